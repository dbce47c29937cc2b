"""Character language model: embedding, stacked LSTM (or GRU, or Elman network), softmax.

    python scripts/train.py char_lm --workdir RUN                    # on Python's language reference, offline
    python scripts/train.py char_lm --workdir RUN --data.path FILE   # on a text of your own
    python scripts/generate.py RUN --prompt "The " --length 500

Tiny Shakespeare, trained on the first nine tenths, the last tenth (111,540 characters) held out:

    python scripts/train.py char_lm --preset shakespeare --workdir RUN --data.path input.txt
    python scripts/evaluate.py RUN --split test

1.464 nats per character (2.113 bits) after 10 min 35 s on 2 cores of an AMD EPYC with AVX-512, on a shared
machine. README.md in this folder has the GRU and the Elman network of equal size, and how the recipe was
chosen.

Trained by back-propagation through time truncated to `--data.window` characters, the state carried from each
window to the next.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lstmx.training import LoopConfig, OptimizerConfig

if TYPE_CHECKING:
    # Flax, optax and tensorflow-datasets take seconds to import and --help needs none of them: the functions
    # below import what they use.
    from experiments.tasks.language_model.task import CharLM
    from lstmx.data import CharVocabulary


@dataclass(frozen=True)
class DataConfig:
    """The text.

    Attributes:
        source: `python_docs` (in every Python, no network), `tiny_shakespeare`, or `file`.
        path: text file (.txt, .gz, .xz) or folder of texts; implies `--data.source file`.
        splits: parts for training, validation and test, by position.
        data_dir: where prepared data are stored; the default of tensorflow-datasets if not given.
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


# The last tenth of Tiny Shakespeare is held out: evaluated after the training, it chooses no checkpoint.
# README.md in this folder describes how the recipe was found. All have 1.22 million parameters.
SHAKESPEARE = Config(
    steps=4000,
    data=DataConfig(source="tiny_shakespeare", splits=(90, 0, 10)),
    model=ModelConfig(hidden_size=512, dropout_rate=0.3),
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


def sweep() -> dict[str, str]:
    """What `scripts/sweep.py` varies if nothing else is asked for."""
    return {
        "optimizer.learning_rate": "log:1e-3:2e-2",
        "model.dropout_rate": "0:0.5",
        "model.cell": "lstm,gru",
    }


def make_task(config: Config, assets: Mapping[str, str] | None = None) -> "CharLM":
    """The task of a config: reads the text, makes the vocabulary or keeps that of a run's assets."""
    from experiments.datasets.text_corpus import load_text
    from experiments.tasks.language_model.task import CharLM
    from lstmx.data import CharVocabulary

    data = config.data
    texts = load_text(data.source, data.path, data.splits, data.data_dir)
    if assets is not None:
        return CharLM(config, _vocabulary(assets), texts)
    # All splits: a character that only the held-out text has must be known, if only to be unlikely.
    return CharLM(config, CharVocabulary.from_text("".join(texts.values())), texts)


def make_generator(config: Config, assets: Mapping[str, str]) -> "CharLM":
    """The task without its text, from the assets of a run: enough to generate."""
    from experiments.tasks.language_model.task import CharLM

    return CharLM(config, _vocabulary(assets), {})


def _vocabulary(assets: Mapping[str, str]) -> "CharVocabulary":
    from lstmx.data import CharVocabulary

    return CharVocabulary(json.loads(assets["vocabulary.json"])["characters"])
