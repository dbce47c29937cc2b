"""Language modelling as a task of the training loop."""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lstmx.cells import base
from lstmx.data import CharVocabulary, ContiguousStreams, EvaluationStreams
from lstmx.models import LanguageModel, generate


class CharLM:
    """The task (see `lstmx.training.Task`), and text from its model."""

    unit = "characters"

    def __init__(self, config, vocabulary: CharVocabulary, texts: Mapping[str, str]):
        self.config, self.vocabulary, self.splits = config, vocabulary, tuple(texts)
        self._texts = texts
        batch_size, window = config.data.batch_size, config.data.window
        self.units_per_step = batch_size * window
        if texts:
            tokens = vocabulary.encode(texts["train"])
            self._train = ContiguousStreams(tokens, batch_size, window, seed=config.seed)
            self._batches = self._train.dataset(config.steps)
        # Split once: the loop works on plain trees, which costs a step less than modules do.
        self._graph, self.model_shapes = nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))

    def _build(self, key) -> LanguageModel:
        return LanguageModel(len(self.vocabulary), rngs=nnx.Rngs(params=key), **vars(self.config.model))

    def model(self, params) -> LanguageModel:
        """The model with the given parameters."""
        leaves = jax.tree.leaves(params)
        return nnx.merge(self._graph, jax.tree.unflatten(jax.tree.structure(self.model_shapes), leaves))

    def init(self, key):
        """Parameters, and the state of the training streams."""
        model = self._build(key)
        state = model.initial_state((self.config.data.batch_size,))
        return nnx.to_pure_dict(nnx.state(model)), state

    def batch(self, step: int):
        """The windows of a step."""
        return self._batches[step]

    def loss(self, params, carry, batch, key):
        """Mean negative log-likelihood of a character, in nats."""
        nats, carry = self._nats(params, carry, batch, nnx.Rngs(dropout=key))
        return jnp.mean(nats), (carry, {})

    def _nats(self, params, carry, batch, rngs=None):
        model = self.model(params)
        carry, logits = model(
            batch["inputs"], carry, resets=batch["resets"], deterministic=rngs is None, rngs=rngs
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]), carry

    def evaluate(self, params, split: str) -> dict[str, float]:
        """Loss of every character of a split but the first, the state carried through."""
        if split not in self._texts:
            raise ValueError(f"no split {split}: this run has {', '.join(self._texts)}")
        # Few streams lose little at their beginnings; fewer than 16 rows waste the matmul.
        streams = EvaluationStreams(self.vocabulary.encode(self._texts[split]), batch_size=16, window=128)
        carry = self.model(params).initial_state((streams.batch_size,))
        total = characters = 0
        for batch in streams:
            nats, carry = self._evaluate_batch(params, carry, batch)
            total += float(nats)
            characters += int(batch["mask"].sum())
        loss = total / characters
        return {**self.display({"loss": loss}), "perplexity": math.exp(loss)}

    @functools.cached_property
    def _evaluate_batch(self):
        def run(params, carry, batch):
            nats, carry = self._nats(params, carry, batch)
            return jnp.sum(nats * batch["mask"]), carry

        return jax.jit(run)

    def display(self, metrics):
        """The loss in nats, and in bits per character."""
        return {"loss": metrics["loss"], "bits per character": metrics["loss"] / math.log(2)}

    def generate(
        self, params, prompt: str, *, length: int, key, temperature=1.0, top_k=None
    ) -> Iterator[str]:
        """Yields the characters that follow a prompt."""
        if not prompt:
            raise ValueError("the prompt must have at least one character")
        tokens = generate(
            self.model(params), self.vocabulary.encode(prompt),
            length=length, key=key, temperature=temperature, top_k=top_k,
        )  # fmt: skip
        return (self.vocabulary.decode([token]) for token in tokens)

    def sample(self, params, key) -> str:
        """Two hundred characters, for the log."""
        prompt = self._texts["train"][0]
        return prompt + "".join(self.generate(params, prompt, length=200, key=key, temperature=0.8))

    def assets(self) -> dict[str, str]:
        """What a run keeps to generate without the text, and to notice that the text has changed."""
        texts = {
            split: {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            for split, text in self._texts.items()
        }
        vocabulary = {"characters": self.vocabulary.characters}
        return {"vocabulary.json": json.dumps(vocabulary), "texts.json": json.dumps(texts, indent=2)}

    def describe(self) -> str:
        """The text and the model, in a line each."""
        sizes = ", ".join(f"{split} {len(text):,}" for split, text in self._texts.items())
        model, size = self.config.model, base.count(self.model_shapes)
        epochs = self.config.steps / self._train.steps_per_epoch
        return (
            f"text: {sizes} characters, {len(self.vocabulary)} distinct; {epochs:.1f} epochs\n"
            f"model: {model.num_layers} x {model.cell} of {model.hidden_size} units, {size:,} parameters"
        )
