"""Language modelling, of characters or words, as a task of the training loop."""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.tasks.language_model.units import Characters, Words
from experiments.tasks.pictures import draw_curves
from lstmx.cells import base
from lstmx.data import CharVocabulary, ContiguousStreams, EvaluationStreams, RandomWindowStreams
from lstmx.models import LanguageModel, generate
from lstmx.regularizers import activation_penalty, temporal_activation_penalty
from lstmx.training import ModuleTask


class LanguageModelTask(ModuleTask):
    """The task (see `lstmx.training.Task`), and text from its model.

    Args:
      config: `steps`, `seed`, `data.batch_size`, `data.window`, and `model`: the arguments of LanguageModel.
      units: what the text is made of.
      texts: text by split; none for a task that only generates.
      evaluation_streams: how many streams a text is evaluated in. One is exact; each further one begins with
        the initial state, and makes it faster.
      random_windows: whether windows vary in length. The gradient of a window is then weighted by its length
        over the usual one, as an AWD-LSTM's learning rate is.
      activation_penalty: weight of AR.
      temporal_penalty: weight of TAR.
    """

    def __init__(
        self,
        config,
        units: Characters | Words,
        texts: Mapping[str, str],
        *,
        evaluation_streams: int = 16,
        random_windows: bool = False,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
    ):
        self.config, self.units, self.splits = config, units, tuple(texts)
        self.unit, self.vocabulary = units.name, units.vocabulary
        self._texts, self._encoded = texts, {}
        self._evaluation_streams = evaluation_streams
        self._random_windows, self._penalties = random_windows, (activation_penalty, temporal_penalty)
        units.require_choice()
        batch_size, window = config.data.batch_size, config.data.window
        self.units_per_step = batch_size * window
        for split in texts:
            self.tokens(split)
        if texts:
            streams = RandomWindowStreams if random_windows else ContiguousStreams
            self._train = streams(self.tokens("train"), batch_size, window, seed=config.seed)
            self._batches = self._train.dataset(config.steps)
        self.split_model()

    def build(self, key) -> LanguageModel:
        """Makes the model with newly initialized parameters."""
        return LanguageModel(len(self.vocabulary), rngs=nnx.Rngs(params=key), **vars(self.config.model))

    def tokens(self, split: str) -> np.ndarray:
        """The ids of a split."""
        if split not in self._texts:
            raise ValueError(f"no split {split}: this run has {', '.join(self._texts)}")
        if split not in self._encoded:
            try:
                self._encoded[split] = self.units.encode(self._texts[split])
            except ValueError as error:
                raise ValueError(f"the {split} split cannot be read: {error}") from error
        return self._encoded[split]

    def init(self, key):
        """Parameters, and the state of the training streams."""
        model = self.build(key)
        state = model.initial_state((self.config.data.batch_size,))
        return nnx.to_pure_dict(nnx.state(model)), state

    def batch(self, step: int):
        """The windows of a step."""
        return self._batches[step]

    def loss(self, params, carry, batch, key):
        """Mean negative log-likelihood of a token, in nats, and the penalties on the activations."""
        rngs = nnx.Rngs(dropout=key)
        nats, carry, ys, dropped = self.read(params, carry, batch, rngs)
        loss, metrics = jnp.mean(nats), {}
        if any(self._penalties):
            metrics["nats"] = loss
            loss += activation_penalty(dropped, self._penalties[0])
            loss += temporal_activation_penalty(jnp.moveaxis(ys, 1, 0), self._penalties[1])
        if self._random_windows:
            share = nats.shape[1] / self.config.data.window
            loss = share * loss + jax.lax.stop_gradient((1 - share) * loss)
        return loss, (carry, metrics)

    def read(self, params, carry, batch, rngs: nnx.Rngs | None = None):
        """Reads a batch: `(nats, carry, ys, dropped)`, nats `[B, T]`, outputs before and after dropout."""
        model, options = self.model(params), {"deterministic": rngs is None, "rngs": rngs}
        carry, ys = model.hidden(batch["inputs"], carry, resets=batch["resets"], **options)
        dropped = model.drop_outputs(ys, **options)
        logits = model.logits(dropped)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]), carry, ys, dropped

    def evaluate(self, params, split: str) -> dict[str, float]:
        """Loss of every token of a split but the first, the state carried through."""
        return self.evaluate_tokens(params, self.tokens(split))

    def evaluate_tokens(self, params, tokens: np.ndarray) -> dict[str, float]:
        """The same of any text, as ids."""
        streams = EvaluationStreams(tokens, self._evaluation_streams, window=128)
        carry = self.model(params).initial_state((streams.batch_size,))
        total = count = 0
        for batch in streams:
            nats, carry = self._evaluate_batch(params, carry, batch)
            total += float(nats)
            count += int(batch["mask"].sum())
        return self.summary(total / count)

    def summary(self, nats: float) -> dict[str, float]:
        """The metrics of a mean negative log-likelihood."""
        return {**self.units.measures(nats), "perplexity": math.exp(min(nats, 700.0))}

    @functools.cached_property
    def _evaluate_batch(self):
        def run(params, carry, batch):
            nats, carry, *_ = self.read(params, carry, batch)
            return jnp.sum(nats * batch["mask"]), carry

        return jax.jit(run)

    def display(self, metrics):
        """The loss in the usual units, without penalties."""
        return self.units.measures(metrics.get("nats", metrics["loss"]))

    def generate(
        self, params, prompt: str, *, length: int, key, temperature=1.0, top_k=None, top_p=None
    ) -> Iterator[str]:
        """Yields what follows a prompt, token by token."""
        tokens = generate(
            self.model(params), self.units.prompt(prompt), length=length, key=key,
            temperature=temperature, top_k=top_k, top_p=top_p, exclude=self.units.excluded,
        )  # fmt: skip
        return self.units.pieces(tokens)

    def sample(self, params, key) -> str:
        """A short text, for the log."""
        prompt, length = self.units.opening(self._texts["train"])
        return prompt + "".join(self.generate(params, prompt, length=length, key=key, temperature=0.8))

    def draw(self, params, folder: Path) -> list[Path]:
        """Draws the curves of a run, if matplotlib is installed."""
        curves = draw_curves(folder, tuple(self.units.measures(0.0)))
        return [] if curves is None else [curves]

    def assets(self) -> dict[str, str]:
        """The vocabulary, to generate without the text, and digests, to notice a changed text."""
        texts = {
            split: {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            for split, text in self._texts.items()
        }
        return {
            "vocabulary.json": json.dumps(self.units.asset()),
            "texts.json": json.dumps(texts, indent=2),
        }

    def describe(self) -> str:
        """The text and the model, one line each."""
        sizes = ", ".join(f"{split} {self.tokens(split).size:,}" for split in self.splits)
        if self.units.excluded:
            shares = [np.isin(self.tokens(split), self.units.excluded).mean() for split in self.splits]
            sizes += f" ({', '.join(f'{share:.1%}' for share in shares)} unknown)"
        model, size = self.config.model, base.count(self.model_shapes)
        epochs = self.config.steps / self._train.steps_per_epoch
        return (
            f"text: {sizes} {self.unit}, {len(self.vocabulary)} distinct; {epochs:.1f} epochs\n"
            f"model: {model.num_layers} x {model.cell} of {model.hidden_size} units, {size:,} parameters"
        )


class CharLM(LanguageModelTask):
    """A language model of characters."""

    def __init__(self, config, vocabulary: CharVocabulary, texts: Mapping[str, str]):
        super().__init__(config, Characters(vocabulary), texts)
