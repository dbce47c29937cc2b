"""Classification of texts as a task of the training loop."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.tasks.classification import report
from experiments.tasks.classification.measures import accuracy, confusion_matrix, macro_f1
from experiments.tasks.classification.text_encoding import TextEncoder
from experiments.tasks.classification.word_prediction import WordPrediction
from lstmx.cells import base
from lstmx.data import LengthBuckets, Rows, padded
from lstmx.models import SequenceClassifier, saliency
from lstmx.training import ModuleTask

# Batches for predictions, where fewer compilations matter more than less padding.
_BATCH, _SHAPES = 64, 10
_UNITS = {"word": "words", "character": "characters", "bpe": "subwords"}


class Verdict(NamedTuple):
    """The prediction for a text.

    Attributes:
      label: the likeliest class.
      probabilities: of each class, by its name.
      tokens: the tokens that were read.
      saliency: contribution of each of them to the label (negative: against it), in log-odds; None if it was
        not requested.
      left_out: number of tokens of the text beyond the limit.
    """

    label: str
    probabilities: dict[str, float]
    tokens: list[str]
    saliency: list[float] | None
    left_out: int


class TextClassification(ModuleTask):
    """The task (see `lstmx.training.Task`), and predictions by its model."""

    unit = "texts"

    def __init__(
        self,
        config,
        encoder: TextEncoder,
        classes: Sequence[str],
        examples: Mapping[str, Sequence[tuple[str, str]]],
    ):
        self.config, self.encoder, self.classes, self.splits = (
            config,
            encoder,
            tuple(classes),
            tuple(examples),
        )
        self.examples = examples
        encoded = {split: self._encode([text for text, _ in some]) for split, some in examples.items()}
        self._encoded = {split: [self._read(ids) for ids in some] for split, some in encoded.items()}
        limit = config.data.limit
        self._longer = {split: sum(len(ids) > limit for ids in some) for split, some in encoded.items()}
        if len(self.classes) < 2:
            raise ValueError(
                f"a classifier needs at least two classes, got {', '.join(self.classes) or 'none'}"
            )
        index = {name: number for number, name in enumerate(self.classes)}
        unknown = sorted({label for some in examples.values() for _, label in some} - set(self.classes))
        if unknown:
            raise ValueError(
                f"labels must be {', '.join(self.classes)}, the classes of the run, got also "
                f"{', '.join(unknown[:5])}"
            )
        self._labels = {
            split: np.array([index[label] for _, label in some], np.int32) for split, some in examples.items()
        }
        self.units_per_step = config.data.batch_size
        if examples:
            lengths = np.array([len(ids) for ids in self._encoded["train"]])
            self.buckets = LengthBuckets(lengths, config.data.batch_size, seed=config.seed)
            self.units_per_step = self.buckets.batch_size
            self._batches = self.buckets.dataset(config.steps, lambda rows: self._batch("train", rows))
            self._words = WordPrediction(
                self._encoded["train"], len(encoder), config.pretraining.candidates, config.seed
            )
        self.split_model()

    def build(self, key) -> SequenceClassifier:
        """Makes the model with newly initialized parameters."""
        return SequenceClassifier(
            len(self.encoder),
            len(self.classes),
            unknown=self.encoder.unknown,
            predicts_words=self.config.pretraining.steps > 0,
            rngs=nnx.Rngs(params=key),
            **vars(self.config.model),
        )

    def init(self, key):
        """The parameters; there is no recurrent state."""
        return nnx.to_pure_dict(nnx.state(self.build(key))), ()

    def batch(self, step: int):
        """Texts of similar length and their labels; or, in pretraining, candidates for their tokens."""
        batch = self._batches[step]
        return self._words.batch(step, batch) if step < self.config.pretraining.steps else batch

    def _batch(self, split: str, batch: Rows) -> dict[str, np.ndarray]:
        tokens, lengths = padded(self._encoded[split], batch.rows, batch.widths[0])
        return {"tokens": tokens, "lengths": lengths, "labels": self._labels[split][batch.rows]}

    def loss(self, params, carry, batch, key):
        """Mean negative log-likelihood of a label, in nats; and the accuracy.

        With adversarial training it is the mean of that of the embeddings and that of embeddings changed for
        the worse (Miyato, Dai & Goodfellow 2017). While words are learned it is that of a word.
        """
        if "candidates" in batch:
            nats = self._words.nats(self.model(params), batch, nnx.Rngs(dropout=key))
            return nats, (carry, {})

        def nats_of(model, xs):
            rngs = nnx.Rngs(dropout=key)
            logits = model.from_vectors(xs, batch["lengths"], deterministic=False, rngs=rngs)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
            right = jnp.argmax(logits, axis=-1) == batch["labels"]
            return jnp.mean(nats), jnp.mean(right.astype(jnp.float32))

        model = self.model(params)
        xs = model.vectors(batch["tokens"])
        nats, right = nats_of(model, xs)
        if self.config.adversarial:
            # Nothing is differentiated twice: the change is a constant for the outer gradient.
            fixed, at = jax.lax.stop_gradient((params, xs))
            uphill = jax.grad(lambda xs: nats_of(self.model(fixed), xs)[0])(at)
            worse, _ = nats_of(
                model, xs + worst_change(at, uphill, batch["lengths"], self.config.adversarial)
            )
            nats = (nats + worse) / 2
        return nats, (carry, {"accuracy": right})

    def evaluate(self, params, split: str) -> dict[str, float]:
        """Loss, accuracy and F1 (mean over the classes) of a split, each text counted once."""
        labels = self.labels(split)
        logp = self.log_probabilities(params, split)
        matrix = confusion_matrix(labels, logp.argmax(axis=1), len(self.classes))
        loss = -float(np.mean(logp[np.arange(len(labels)), labels]))
        return {"loss": loss, "accuracy": accuracy(matrix), "f1": macro_f1(matrix)}

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split, as positions in `classes`."""
        if split not in self._labels:
            raise ValueError(f"no split {split}: this run has {', '.join(self.splits)}")
        return self._labels[split]

    def log_probabilities(self, params, split: str) -> np.ndarray:
        """Log-probabilities of the classes, float64 `[N, C]`, in the order of the split's examples."""
        return self._log_probabilities(params, self._encoded[split])

    def _log_probabilities(self, params, encoded: Sequence[np.ndarray], *, roomy: bool = False) -> np.ndarray:
        logp_NC = np.zeros((len(encoded), len(self.classes)))
        for batch in _evaluation_batches(encoded, roomy):
            tokens, lengths = padded(encoded, batch.rows, batch.widths[0])
            logp = np.asarray(self._evaluate_batch(params, tokens, lengths), np.float64)
            logp_NC[batch.rows[batch.rows >= 0]] = logp[batch.rows >= 0]
        return logp_NC

    @functools.cached_property
    def _evaluate_batch(self):
        return jax.jit(lambda params, *batch: jax.nn.log_softmax(self.model(params)(*batch)))

    @functools.cached_property
    def _explain_batch(self):
        def explain(params, tokens, lengths):
            model = self.model(params)
            logp = jax.nn.log_softmax(model(tokens, lengths))
            return logp, saliency(model, tokens, lengths, jnp.argmax(logp, axis=-1))

        return jax.jit(explain)

    def classify(self, params, texts: Sequence[str], *, explain: bool = True) -> list[Verdict]:
        """Classifies texts.

        Args:
          params: the parameters.
          texts: any texts; only a limited number of tokens is read, see `DataConfig`.
          explain: whether to compute the saliency of the tokens, which takes most of the time.

        Returns:
          A verdict for each.

        Raises:
          ValueError: if a text has no tokens, or too many where that is refused.
        """
        for text in texts:
            self.check(text)
        if not texts:
            return []
        encoded = [self._read(ids) for ids in self._encode(texts)]
        verdicts: list[Verdict | None] = [None] * len(texts)
        for batch in _evaluation_batches(encoded, roomy=True):
            tokens, lengths = padded(encoded, batch.rows, batch.widths[0])
            run = self._explain_batch if explain else self._evaluate_batch
            logp, *saliency = jax.tree.leaves(jax.device_get(run(params, tokens, lengths)))
            for at, row in enumerate(batch.rows):
                if row >= 0:
                    own = saliency[0][at, : lengths[at]].tolist() if explain else None
                    verdicts[row] = self._verdict(texts[row], np.exp(logp[at]), own)
        return verdicts

    def check(self, text: str) -> None:
        """Raises ValueError if a text cannot be classified: it has no tokens, or more than are allowed."""
        if len(self._encode([text])[0]) == 0:
            raise ValueError(f"there is nothing to classify in {text!r}")

    def _verdict(self, text: str, probabilities: np.ndarray, saliency: list[float] | None) -> Verdict:
        named = dict(zip(self.classes, probabilities.tolist(), strict=True))
        tokens = self.encoder.pieces(text)
        read = self._read(tokens)
        label = self.classes[probabilities.argmax()]
        return Verdict(label, named, read, saliency, len(tokens) - len(read))

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        data = self.config.data
        encoded = [self.encoder.encode(text) for text in texts]
        if data.too_long == "refuse":
            for text, ids in zip(texts, encoded, strict=True):
                if len(ids) > data.limit:
                    raise ValueError(
                        f"a text has {len(ids)} tokens, the limit is {data.limit}: {text[:60]!r}..."
                    )
        return encoded

    def _read(self, tokens):
        """The part of a text that is read."""
        limit = self.config.data.limit
        return tokens[-limit:] if self.config.data.keep == "last" else tokens[:limit]

    def confusion(self, params, split: str) -> np.ndarray:
        """The confusion matrix of a split: counts of true classes (rows) and predictions (columns)."""
        predicted = self.log_probabilities(params, split).argmax(axis=1)
        return confusion_matrix(self.labels(split), predicted, len(self.classes))

    def draw(self, params, folder: Path) -> list[Path]:
        """Draws the curves of a run and its confusion matrix, if matplotlib is installed."""
        split = "validation" if "validation" in self.splits else "train"
        return report.draw(self.confusion(params, split), self.classes, split, folder)

    def report(self, params, split: str, folder: Path) -> tuple[str, dict[str, Any]]:
        """See `experiments.tasks.classification.report.report`."""
        return report.report(self.confusion(params, split), self.classes, self.examples, split, folder)

    def display(self, metrics):
        """Loss and accuracy of the batch; in pretraining, the loss per token."""
        if "accuracy" not in metrics:
            return {"nats per word": metrics["loss"]}
        return {"loss": metrics["loss"], "accuracy": metrics["accuracy"]}

    def sample(self, params, key) -> str:
        """Three texts of the validation split, with their labels and predictions."""
        split = "validation" if "validation" in self.splits else "train"
        some = self.examples[split]
        rows = jax.random.choice(key, len(some), (min(3, len(some)),), replace=False)
        chosen = [some[int(row)] for row in rows]
        encoded = [self._read(ids) for ids in self._encode([text for text, _ in chosen])]
        logp = self._log_probabilities(params, encoded, roomy=True)
        return "\n".join(
            f"{label}, predicted {self.classes[p.argmax()]} ({np.exp(p.max()):.0%}): {_short(text)}"
            for (text, label), p in zip(chosen, logp, strict=True)
        )

    def assets(self) -> dict[str, str]:
        """Vocabulary and classes, to classify without the data, and digests, to notice changed data."""
        texts = {
            split: {"texts": len(some), "sha256": hashlib.sha256(json.dumps(some).encode()).hexdigest()}
            for split, some in self.examples.items()
        }
        return {
            "vocabulary.json": self.encoder.to_json(),
            "classes.json": json.dumps(self.classes, ensure_ascii=False),
            "texts.json": json.dumps(texts, indent=2),
        }

    def describe(self) -> str:
        """The texts and the model, one line each."""
        sizes = ", ".join(f"{split} {len(some):,}" for split, some in self.examples.items())
        data, model, buckets = self.config.data, self.config.model, self.buckets
        layers = f"{model.num_layers} x {'bidirectional ' if model.bidirectional else ''}{model.cell}"
        epochs = self.config.steps / buckets.steps_per_epoch
        lines = [
            f"texts: {sizes}; {len(self.classes)} classes, {len(self.encoder):,} {_UNITS[data.level]} known; "
            f"{epochs:.1f} epochs",
            f"batches of {len(buckets.shapes)} lengths, {buckets.padding:.1%} of their steps are padding",
            f"model: {layers} of {model.hidden_size} units, {model.pooling} pooling, "
            f"{base.count(self.model_shapes):,} parameters",
        ]
        if self.config.pretraining.steps:
            lines.append(
                f"the first {self.config.pretraining.steps:,} steps: pretraining as a language model"
            )
        if any(self._longer.values()):
            counts = ", ".join(f"{split} {count:,}" for split, count in self._longer.items())
            lines.insert(
                1, f"longer than the limit, their {data.keep} {data.limit} tokens are read: {counts}"
            )
        return "\n".join(lines)


def worst_change(xs: jax.Array, uphill: jax.Array, lengths: jax.Array, size: float) -> jax.Array:
    """A change of each sequence's embeddings `[B, T, E]` along the gradient of the loss.

    Its norm over a whole sequence is `size` times the mean norm of the sequence's embeddings: relative, for
    else embeddings would grow until a change of fixed size is nothing to them.
    """
    exists = jnp.arange(xs.shape[1]) < lengths[:, None]
    mean_norm = jnp.sum(jnp.linalg.norm(xs, axis=-1), axis=1, where=exists) / jnp.maximum(lengths, 1)
    norm = jnp.sqrt(jnp.sum(uphill**2, axis=(1, 2)))
    return uphill * (size * mean_norm / jnp.maximum(norm, 1e-30))[:, None, None]


def _evaluation_batches(encoded: Sequence[np.ndarray], roomy: bool) -> Iterator[Rows]:
    """Batches of all texts; roomy ones have one of a few widths, whatever the texts."""
    lengths = np.array([len(ids) for ids in encoded])
    for batch in LengthBuckets(lengths, _BATCH, most_shapes=_SHAPES).every_row():
        yield Rows(batch.rows, (roomy_width(batch.widths[0]),)) if roomy else batch


def roomy_width(length: int) -> int:
    """The next of 4, 8, 12, 16, 24, 32, 48, 64, 96 and so on: shapes that many texts share.

    Example:
      >>> [roomy_width(length) for length in (1, 9, 17, 32, 33, 300)]
      [4, 12, 24, 32, 48, 384]
    """
    step = max(4, 1 << max(length.bit_length() - 2, 0))
    return -(-length // step) * step


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
