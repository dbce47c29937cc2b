"""Translation as a task of the training loop."""

import functools
import hashlib
import json
import math
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.tasks.pictures import draw_curves
from experiments.tasks.translation.attention_picture import draw_attention
from experiments.tasks.translation.result import TranslationResult
from lstmx.cells import base
from lstmx.data import LengthBuckets, Subwords, padded
from lstmx.models import Seq2Seq, beam_search
from lstmx.training import VALIDATION, ModuleTask

# Sentences are padded to multiples of this for translation: few shapes, and no sentence depends on the others
# in its batch.
_WIDTH = 16


class Vocabularies(NamedTuple):
    """The pieces of words of both languages; one object if they share them."""

    source: Subwords
    target: Subwords


def learn_vocabularies(data, pairs: Sequence[tuple[str, str]]) -> Vocabularies:
    """Learns the pieces from training pairs, by the `DataConfig` of the experiment."""
    size = data.vocabulary_size or (320 if data.source == "numerals" and data.path is None else 8000)
    sources, targets = zip(*pairs, strict=True)
    if data.shared_vocabulary:
        return Vocabularies(*[Subwords.train((*sources, *targets), size)] * 2)
    return Vocabularies(Subwords.train(sources, size), Subwords.train(targets, size))


def read_vocabularies(assets: Mapping[str, str]) -> Vocabularies:
    """The vocabularies of a run, from its assets."""
    missing = {"source.json", "target.json"} - set(assets)
    if missing:
        raise ValueError(f"the run's assets lack {', '.join(sorted(missing))}: it cannot translate")
    source = Subwords.from_json(assets["source.json"])
    if assets["source.json"] == assets["target.json"]:
        return Vocabularies(source, source)
    return Vocabularies(source, Subwords.from_json(assets["target.json"]))


class Translation(ModuleTask):
    """The task (see `lstmx.training.Task`), and translations by its model."""

    unit = "sentences"

    def __init__(self, config, vocabularies: Vocabularies, pairs: Mapping[str, Sequence[tuple[str, str]]]):
        self.config, self.vocabularies, self.splits = config, vocabularies, tuple(pairs)
        self._pairs, self.units_per_step = pairs, config.data.batch_size
        self._pad, self._bos, self._eos = map(vocabularies.target.id_of, ("<pad>", "<bos>", "<eos>"))
        if config.model.shared and vocabularies.source is not vocabularies.target:
            raise ValueError("a shared embedding needs a shared vocabulary: pass --data.shared-vocabulary")
        if not 0 <= config.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {config.label_smoothing}")
        if pairs:
            self._train = self._encoded("train")
            self._buckets = self._divided(self._train, seed=config.seed)
            self.units_per_step = self._buckets.batch_size
            self._batches = self._buckets.dataset(config.steps, functools.partial(self._batch, self._train))
        self.split_model()

    def build(self, key) -> Seq2Seq:
        """Makes the model with newly initialized parameters."""
        sizes = map(len, self.vocabularies)
        return Seq2Seq(*sizes, rngs=nnx.Rngs(params=key), **vars(self.config.model))

    def init(self, key):
        """The parameters; there is no recurrent state."""
        return nnx.to_pure_dict(nnx.state(self.build(key))), ()

    def batch(self, step: int):
        """The pairs of a step."""
        return self._batches[step]

    def _encoded(self, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs as ids, each with an end token, and cut or refused if they are too long."""
        longest = self.config.data.max_length
        encoded = [
            vocabulary.encode_all(texts)
            for vocabulary, texts in zip(
                self.vocabularies, zip(*self._pairs[split], strict=True), strict=True
            )
        ]
        longer = [at for at, pair in enumerate(zip(*encoded, strict=True)) if max(map(len, pair)) > longest]
        if longer:
            what = (
                f"{len(longer)} of {len(self._pairs[split])} {split} pairs are longer than {longest} pieces"
            )
            if self.config.data.too_long == "refuse":
                raise ValueError(
                    f"{what}, the first is pair {longer[0] + 1}; pass a larger --data.max-length or "
                    "--data.too-long truncate"
                )
            warnings.warn(f"{what} (--data.max-length): the rest is cut off", stacklevel=2)
        return [
            tuple(np.append(ids[:longest], np.int32(self._eos)) for ids in pair)
            for pair in zip(*encoded, strict=True)
        ]

    def _divided(self, encoded, seed: int | None = None) -> LengthBuckets:
        data = self.config.data
        lengths = np.array([(len(source), len(target)) for source, target in encoded])
        return LengthBuckets(lengths, data.batch_size, seed=seed, most_shapes=data.most_shapes)

    def _batch(self, encoded, rows) -> dict[str, np.ndarray]:
        (sources, targets), (width, target_width) = zip(*encoded, strict=True), rows.widths
        source, lengths = padded(sources, rows.rows, width, fill=self._pad)
        target, target_lengths = padded(targets, rows.rows, target_width, fill=self._pad)
        first = np.full((len(target), 1), self._bos, np.int32)
        return {
            "source": source,
            "lengths": lengths,
            "before": np.concatenate([first, target[:, :-1]], axis=1),
            "target": target,
            "target_lengths": target_lengths,
        }

    def loss(self, params, carry, batch, key):
        """Mean smoothed cross-entropy of a piece, in nats; and without the smoothing, as `nats`."""
        nats, smooth, count = self._nats(params, batch, nnx.Rngs(dropout=key))
        share = self.config.label_smoothing
        return ((1 - share) * nats + share * smooth) / count, (carry, {"nats": nats / count})

    def _nats(self, params, batch, rngs=None):
        """Sums of negative log-likelihoods: of targets, and averaged over all pieces; and their number."""
        logits = self.model(params)(
            batch["source"], batch["lengths"], batch["before"], deterministic=rngs is None, rngs=rngs
        )
        counts = jnp.arange(logits.shape[1]) < batch["target_lengths"][:, None]
        total = jax.nn.logsumexp(logits, axis=-1)
        own = jnp.take_along_axis(logits, batch["target"][..., None], axis=-1)[..., 0]
        nats = jnp.where(counts, total - own, 0)
        smooth = jnp.where(counts, total - logits.mean(axis=-1), 0)
        return nats.sum(), smooth.sum(), jnp.maximum(counts.sum(), 1)

    def evaluate(self, params, split: str) -> dict[str, float]:
        """Loss of every piece of a split, and BLEU and chrF of its translations."""
        if split not in self._pairs:
            raise ValueError(f"no split {split}: this run has {', '.join(self._pairs)}")
        encoded = self._encoded(split)
        batches = (self._batch(encoded, rows) for rows in self._divided(encoded).every_row())
        sums = [self._evaluate_batch(params, batch) for batch in batches]
        nats, _, count = np.sum(jax.device_get(sums), axis=0)
        metrics = {**self.display({"nats": nats / count}), "loss": nats / count}
        search = self.config.search
        beam_size = search.validation_beam_size if split == VALIDATION else search.beam_size
        sources, references = zip(*self._pairs[split], strict=True)
        results = self.translate(params, sources, beam_size=beam_size)
        return {**metrics, **self.scores([result.text for result in results], references)[0]}

    @functools.cached_property
    def _evaluate_batch(self):
        return jax.jit(self._nats)

    def scores(
        self, translations: Sequence[str], references: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """BLEU (Papineni et al. 2002) and chrF (Popovic 2015) of a corpus, by sacreBLEU (Post 2018).

        Beside them, as BLEU is 0 where no sentence has four words: how many translations are the reference.

        Args:
            translations: sentences.
            references: as many.

        Returns:
            Scores by name, from 0 to 100; the signatures of BLEU and chrF, which need sacreBLEU.
        """
        lower_case = self.config.data.lower_case
        read = str.lower if lower_case else str
        same = [read(one) == read(other) for one, other in zip(translations, references, strict=True)]
        exact = {"exact": 100 * sum(same) / max(len(same), 1)}
        try:
            from sacrebleu.metrics import BLEU, CHRF
        except ImportError:
            return exact, {}
        metrics = {"BLEU": BLEU(lowercase=lower_case), "chrF": CHRF(lowercase=lower_case)}
        scores = {
            name: metric.corpus_score(list(translations), [list(references)]).score
            for name, metric in metrics.items()
        }
        return scores | exact, {name: str(metric.get_signature()) for name, metric in metrics.items()}

    def display(self, metrics):
        """The loss without the smoothing, in nats, and the perplexity of a piece."""
        return {"nats": metrics["nats"], "perplexity": math.exp(min(metrics["nats"], 700))}

    def translate(
        self,
        params,
        sentences: Sequence[str],
        *,
        beam_size: int | None = None,
        length_penalty: float | None = None,
    ) -> list[TranslationResult]:
        """Translates sentences, independently of each other.

        Args:
            params: the parameters.
            sentences: texts in the source language.
            beam_size: 1 for greedy search; None for the config's.
            length_penalty: None for the config's; greedy search has none.

        Raises:
            ValueError: if a sentence cannot be translated (see `check`), or an argument is out of range.
        """
        search, data = self.config.search, self.config.data
        beam_size = search.beam_size if beam_size is None else beam_size
        alpha = search.length_penalty if length_penalty is None else length_penalty
        alpha = alpha if beam_size > 1 else 0.0
        for sentence in sentences:
            self.check(sentence)
        encoded = self.vocabularies.source.encode_all([self._prepared(text) for text in sentences])
        sources = [np.append(ids[: data.max_length], np.int32(self._eos)) for ids in encoded]
        results: dict[int, TranslationResult] = {}
        for width, rows in _by_width(sources, search.batch_size):
            source, lengths = padded(sources, rows, width, fill=self._pad)
            tokens, ends, scores = jax.device_get(
                self._search(params, source, lengths, beam_size=beam_size, alpha=alpha)
            )
            before = np.concatenate([np.full((len(rows), 1), self._bos), tokens[:, :-1]], axis=1)
            weights = jax.device_get(self._attention(params, source, lengths, before))
            for at, row in enumerate(rows):
                if row >= 0:
                    ids, attention = tokens[at, : ends[at]], weights[at, : ends[at], : lengths[at]]
                    results[row] = TranslationResult(
                        self.vocabularies.target.decode(ids),
                        float(scores[at]),
                        self.vocabularies.source.tokens(sources[row]),
                        self.vocabularies.target.tokens(ids),
                        attention,
                        len(encoded[row]) + 1 - len(sources[row]),
                    )
        return [results[at] for at in range(len(sentences))]

    def check(self, sentence: str) -> None:
        """Raises ValueError if a sentence is empty, or too long where that is refused."""
        if not sentence.strip():
            raise ValueError("there is nothing to translate")
        data = self.config.data
        if data.too_long == "refuse":
            count = len(self.vocabularies.source.encode(self._prepared(sentence)))
            if count > data.max_length:
                raise ValueError(f"too long: {count} pieces, at most {data.max_length} are read")

    def _prepared(self, sentence: str) -> str:
        """A sentence, normalized like the training data."""
        sentence = unicodedata.normalize("NFC", sentence).strip()
        return sentence.lower() if self.config.data.lower_case else sentence

    @functools.cached_property
    def _search(self):
        def run(params, source, lengths, *, beam_size, alpha):
            model = self.model(params)
            memory, state = model.encode(source, lengths)
            best = beam_search(
                functools.partial(model.step, memory), state, batch_size=len(source), beam_size=beam_size,
                max_length=2 * source.shape[1] + 8, bos=self._bos, eos=self._eos, alpha=alpha,
                banned=(self._pad, self._bos),
            )  # fmt: skip
            return best.tokens[:, 0], best.lengths[:, 0], best.scores[:, 0]

        return jax.jit(run, static_argnames=("beam_size", "alpha"))

    @functools.cached_property
    def _attention(self):
        return jax.jit(lambda params, *arguments: self.model(params).attention(*arguments))

    def sample(self, params, key) -> str | None:
        """Three sentences that were not trained on, their references, and their translations."""
        split = next((name for name in self.splits if name != "train"), "train")
        chosen = jax.random.choice(key, len(self._pairs[split]), (3,))
        pairs = [self._pairs[split][at] for at in np.asarray(chosen).tolist()]
        results = self.translate(params, [source for source, _ in pairs], beam_size=1)
        return "\n".join(
            f"{source}\n    reference:   {target}\n    translation: {result.text}"
            for (source, target), result in zip(pairs, results, strict=True)
        )

    def draw(self, params, folder: Path, split: str = VALIDATION) -> list[Path]:
        """Draws the curves of a run and the attention of the decoder, if matplotlib is installed."""
        drawn, sources = (
            [draw_curves(folder, ("nats", "chrF"))],
            [source for source, _ in self._pairs[split][:3]],
        )
        drawn += [
            draw_attention(result, folder / "plots" / f"attention_{split}_{number}.png")
            for number, result in enumerate(self.translate(params, sources), start=1)
        ]
        return [path for path in drawn if path is not None]

    def report(self, params, split: str, folder: Path) -> tuple[str, dict[str, str]]:
        """The report on an evaluation: signatures of the scores, and pictures.

        Args:
            params: the parameters.
            split: the split.
            folder: the run; pictures of the training and of the attention go to its folder `plots`,
                where matplotlib is installed.

        Returns:
            (text, values): the same as text, and for JSON.
        """
        _, signatures = self.scores(["a"], ["a"])
        lines = [f"{name}: {signature}" for name, signature in signatures.items()]
        lines += [f"picture: {path}" for path in self.draw(params, folder, split)]
        return "\n".join(lines), {f"{name} signature": text for name, text in signatures.items()}

    def assets(self) -> dict[str, str]:
        """Vocabularies, to translate without the data, and digests, to notice changed data."""
        digests = {
            split: {"pairs": len(pairs), "sha256": hashlib.sha256(json.dumps(pairs).encode()).hexdigest()}
            for split, pairs in self._pairs.items()
        }
        return {
            "source.json": self.vocabularies.source.to_json(),
            "target.json": self.vocabularies.target.to_json(),
            "pairs.json": json.dumps(digests, indent=2),
        }

    def describe(self) -> str:
        """The pairs, the model and the scores, one line each."""
        data, model = self.config.data, self.config.model
        sizes = ", ".join(f"{split} {len(pairs):,}" for split, pairs in self._pairs.items())
        source, target = map(len, self.vocabularies)
        pieces = f"{source:,} pieces" if data.shared_vocabulary else f"{source:,} and {target:,} pieces"
        epochs = self.config.steps / self._buckets.steps_per_epoch
        _, signatures = self.scores(["a"], ["a"])
        scores = "; ".join(f"{name} {signature}" for name, signature in signatures.items())
        return (
            f"pairs {data.source_language}-{data.target_language}: {sizes}; {pieces}; {epochs:.1f} epochs in "
            f"{len(self._buckets.shapes)} shapes, {self._buckets.padding:.0%} padding\n"
            f"model: {model.encoder_layers} + {model.decoder_layers} x {model.cell} of {model.hidden_size} "
            f"units, {model.attention} attention, {base.count(self.model_shapes):,} parameters\n"
            f"scores: {scores or 'none, as sacrebleu is not installed'}"
        )


def _by_width(sources: Sequence[np.ndarray], batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Batches of sentences of one width; rows that a batch lacks are -1."""
    widths = [-(-len(ids) // _WIDTH) * _WIDTH for ids in sources]
    for width in sorted(set(widths)):
        rows = [row for row, own in enumerate(widths) if own == width]
        # A few sentences do not need a full batch, and each other size would be compiled.
        size = batch_size if len(rows) > 4 else min(batch_size, 4 if len(rows) > 1 else 1)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield width, np.array(part + [-1] * (size - len(part)))
