"""Character language model: embedding, stacked LSTM (or GRU, or Elman network), softmax.

    python scripts/train.py char_lm --workdir RUN                    # on Python's language reference, offline
    python scripts/train.py char_lm --workdir RUN --data.path FILE   # on a text of your own
    python scripts/generate.py RUN --prompt "The " --length 500

Trained by back-propagation through time truncated to `--data.window` characters, the state carried from each
window to the next.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lstmx.cells import base
from lstmx.data import CharVocabulary, ContiguousStreams, EvaluationStreams
from lstmx.models import LanguageModel, generate
from lstmx.training import LoopConfig, OptimizerConfig


@dataclass(frozen=True)
class DataConfig:
    """The text.

    Attributes:
        source: `python_docs` (in every Python, no network), `tiny_shakespeare`, or `file`.
        path: text file (.txt, .gz, .xz) or folder of texts; implies `--data.source file`.
        splits: parts for training, validation and test, by position.
        data_dir: where prepared data are kept; the default of tensorflow-datasets if not given.
        batch_size: streams read in parallel.
        window: characters of a stream per step, and the reach of the gradient.
    """

    source: Literal["python_docs", "tiny_shakespeare", "file"] = "python_docs"
    path: Path | None = None
    splits: tuple[float, float, float] = (90, 5, 5)
    data_dir: Path | None = None
    batch_size: int = 32
    window: int = 64


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        cell: recurrent cell.
        embedding_size: features of a character.
        hidden_size: units of each layer.
        num_layers: recurrent layers.
        dropout_rate: of embeddings, between layers and of the last outputs; not of the recurrent connection.
        tied: whether the output shares the embedding's matrix.
    """

    cell: Literal["lstm", "gru", "elman"] = "lstm"
    embedding_size: int = 64
    hidden_size: int = 384
    num_layers: int = 1
    dropout_rate: float = 0.3
    tied: bool = False


@dataclass(frozen=True)
class Config:
    """A character language model and its training.

    Attributes:
        steps: number of updates.
        seed: seed of all randomness.
        data: the text.
        model: the network.
        optimizer: the optimizer.
        loop: evaluation, checkpoints and log.
    """

    steps: int = 2000
    seed: int = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=4e-3, schedule="cosine", warmup_steps=100, final_fraction=0.02, b2=0.99
    )
    loop: LoopConfig = LoopConfig(eval_every=500, checkpoint_every=500, log_every=50)


# The last tenth of Tiny Shakespeare is held out as the test split; the tenth's half before it chooses the
# checkpoint. The three networks have 1.22 million parameters each.
SHAKESPEARE = Config(
    steps=5000,
    data=DataConfig(source="tiny_shakespeare", splits=(85, 5, 10)),
    model=ModelConfig(hidden_size=512, dropout_rate=0.4),
)

PRESETS = {
    "tiny": Config(
        steps=20,
        data=DataConfig(batch_size=4, window=16),
        model=ModelConfig(embedding_size=8, hidden_size=16, dropout_rate=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(eval_every=10, checkpoint_every=10, log_every=5),
    ),
    "shakespeare": SHAKESPEARE,
    "shakespeare-gru": replace(SHAKESPEARE, model=replace(SHAKESPEARE.model, cell="gru", hidden_size=594)),
    "shakespeare-elman": replace(
        SHAKESPEARE, model=replace(SHAKESPEARE.model, cell="elman", hidden_size=1039)
    ),
}


def make_task(config: Config) -> "CharLM":
    """The task of a config: reads the text, makes the vocabulary."""
    from experiments.datasets.text_corpus import load_text  # tensorflow-datasets is not needed for --help

    data = config.data
    texts = load_text(data.source, data.path, data.splits, data.data_dir)
    # All splits: a character that only the held-out text has must be known, if only to be unlikely.
    vocabulary = CharVocabulary.from_text("".join(texts.values()))
    return CharLM(config, vocabulary, texts)


def make_generator(config: Config, assets: Mapping[str, str]) -> "CharLM":
    """The task without its text, from what a run keeps beside its checkpoints: enough to generate."""
    return CharLM(config, CharVocabulary(json.loads(assets["vocabulary.json"])["characters"]), {})


class CharLM:
    """The task (see `lstmx.training.Task`), and text from its model."""

    unit = "characters"

    def __init__(self, config: Config, vocabulary: CharVocabulary, texts: Mapping[str, str]):
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
        return {"loss": loss, **self.display({"loss": loss}), "perplexity": math.exp(loss)}

    @functools.cached_property
    def _evaluate_batch(self):
        def run(params, carry, batch):
            nats, carry = self._nats(params, carry, batch)
            return jnp.sum(nats * batch["mask"]), carry

        return jax.jit(run)

    def display(self, metrics):
        """Bits per character."""
        return {"bits per character": metrics["loss"] / math.log(2)}

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
