"""Sentiment, or any other class of a text: embedding, bidirectional LSTM, pooling, softmax.

    python scripts/train.py sentiment --workdir RUN                    # on made-up reviews, offline
    python scripts/train.py sentiment --workdir RUN --data.path FILE   # CSV, TSV or JSONL with text and label
    python scripts/evaluate.py RUN --split test --json
    python scripts/classify.py RUN "not bad at all"

A folder given as `--data.path` has files train, validation and test; a single file is split by a seed.

The Stanford Sentiment Treebank, positive against negative (stsa.binary.{train,dev,test} in one folder, the
phrases of GLUE's train.tsv in the other), and the Large Movie Review Dataset:

    python scripts/train.py sentiment --preset sst2 --workdir RUN --data.path FOLDER --data.phrases FOLDER
    python scripts/train.py sentiment --preset imdb --workdir RUN --data.path FOLDER

With `--pretraining.steps N` the first N updates train the network as a language model, each direction to
predict the word it reads next (Dai & Le 2015).

Measured on 2 CPU cores (README.md beside this file), accuracy on the test split, without pretrained vectors:
`sst2` 83.7 (mean of three seeds) after 5 minutes, `imdb` 89.5 after 12 minutes.

`evaluate.py` shows the confusion matrix and, beside the model, logistic regression on words and pairs of
words (where scikit-learn is installed).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lstmx.training import LoopConfig, OptimizerConfig

if TYPE_CHECKING:
    # As in char_lm: --help needs none of what these import.
    from experiments.tasks.classification.task import TextClassification
    from experiments.tasks.classification.text_encoding import TextEncoder


@dataclass(frozen=True)
class DataConfig:
    """The texts.

    Attributes:
        source: `made_up` (no data needed), `sst2`, `imdb`, or `file`.
        path: file (.csv, .tsv, .jsonl; also .gz, .xz) or folder with train, validation and test files;
            implies `--data.source file` unless the source is `sst2` or `imdb`, whose folder it then is.
        phrases: file of more texts to train on, or folder with train.tsv; for sst2 the phrases of GLUE.
        text_column: name of the column of texts.
        label_column: name of the column of labels.
        delimiter: that of CSV and TSV files, one character or `tab`; recognised by the header if not given.
        splits: parts for training, validation and test of what does not come split.
        split_seed: seed of that division.
        data_dir: where prepared data are stored; the default of tensorflow-datasets if not given.
        level: what the tokens are.
        lowercase: whether upper and lower case are the same.
        vocabulary_size: most tokens to know; if not given all, or 8,000 subwords.
        least_count: how often a word or character must occur in training to be known.
        limit: most tokens to read of a text.
        too_long: whether longer texts are cut or refused.
        keep: which end of a text that is cut is read.
        batch_size: texts per step, of similar length.
    """

    source: Literal["made_up", "sst2", "imdb", "file"] = "made_up"
    path: Path | None = None
    phrases: Path | None = None
    text_column: str = "text"
    label_column: str = "label"
    delimiter: str | None = None
    splits: tuple[float, float, float] = (80, 10, 10)
    split_seed: int = 0
    data_dir: Path | None = None
    level: Literal["word", "character", "bpe"] = "word"
    lowercase: bool = True
    vocabulary_size: int | None = None
    least_count: int = 1
    limit: int = 400
    too_long: Literal["truncate", "refuse"] = "truncate"
    keep: Literal["first", "last"] = "first"
    batch_size: int = 32

    def __post_init__(self):
        for name in ("limit", "batch_size", "least_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        cell: recurrent cell.
        embedding_size: features of a token.
        hidden_size: units of each layer and direction.
        num_layers: recurrent layers.
        bidirectional: whether each layer reads in both directions.
        pooling: how the outputs of all steps become one vector.
        dropout_rate: of the outputs of each layer, and of that vector.
        embedding_dropout_rate: of features of the embeddings, the same in all steps of a text.
        word_dropout_rate: of whole tokens.
    """

    cell: Literal["lstm", "gru", "elman"] = "lstm"
    embedding_size: int = 128
    hidden_size: int = 128
    num_layers: int = 1
    bidirectional: bool = True
    pooling: Literal["last", "max", "mean", "attention"] = "max"
    dropout_rate: float = 0.3
    embedding_dropout_rate: float = 0.2
    word_dropout_rate: float = 0.1


@dataclass(frozen=True)
class PretrainingConfig:
    """Training as a language model before the classes: each direction predicts the next token it reads.

    Attributes:
        steps: number of updates, the first ones; 0 for none.
        candidates: tokens that compete with each to be predicted, drawn for each update.
    """

    steps: int = 0
    candidates: int = 1000

    def __post_init__(self):
        if self.steps < 0 or self.candidates < 1:
            raise ValueError(
                "pretraining needs steps of at least 0 and at least 1 of candidates, "
                f"got {self.steps} and {self.candidates}"
            )


@dataclass(frozen=True)
class Config:
    """A classifier of texts and its training.

    Attributes:
        steps: number of updates, those of pretraining included.
        seed: seed of all randomness.
        data: the texts.
        model: the network.
        pretraining: training as a language model first.
        adversarial: size of an adversarial change of the embeddings that is trained on as well, relative to
            the norm of an embedding; 0 for none.
        optimizer: the optimizer.
        loop: evaluation, checkpoints and log.
    """

    steps: int = 1000
    seed: int = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    adversarial: float = 0.0
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, schedule="linear", warmup_steps=50, final_fraction=0.05
    )
    loop: LoopConfig = LoopConfig(eval_every=250, checkpoint_every=250, log_every=50)

    def __post_init__(self):
        if self.pretraining.steps >= self.steps:
            raise ValueError(
                f"{self.pretraining.steps} pretraining steps leave none of {self.steps} for classes"
            )
        if not 0 <= self.adversarial < float("inf"):
            raise ValueError(f"adversarial must be at least 0 and finite, got {self.adversarial}")


DEFAULT = Config()

PRESETS = {
    "tiny": Config(
        steps=20,
        data=DataConfig(batch_size=8),
        model=ModelConfig(embedding_size=8, hidden_size=8, dropout_rate=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(eval_every=10, checkpoint_every=10, log_every=5),
    ),
    "sst2": Config(
        steps=5000,
        data=DataConfig(source="sst2", batch_size=64),
        model=ModelConfig(
            embedding_size=300, hidden_size=150, dropout_rate=0.5, embedding_dropout_rate=0.5,
            word_dropout_rate=0.3,
        ),
        adversarial=0.1,
        optimizer=replace(DEFAULT.optimizer, weight_decay=0.1, average_horizon=1000),
        loop=LoopConfig(eval_every=500, checkpoint_every=500, log_every=100),
    ),
    "imdb": Config(
        steps=4000,
        data=DataConfig(
            source="imdb", splits=(90, 10, 0), vocabulary_size=30_000, least_count=2, keep="last"
        ),
        model=ModelConfig(dropout_rate=0.5, embedding_dropout_rate=0.5, word_dropout_rate=0.3),
        adversarial=0.1,
        optimizer=replace(DEFAULT.optimizer, learning_rate=2e-3, weight_decay=0.01, average_horizon=500),
        loop=LoopConfig(eval_every=500, checkpoint_every=500, log_every=50),
    ),
}  # fmt: skip


def sweep() -> dict[str, str]:
    """What `scripts/sweep.py` varies if nothing else is asked for."""
    return {
        "optimizer.learning_rate": "log:3e-4:1e-2",
        "model.dropout_rate": "0.1:0.6",
        "model.embedding_dropout_rate": "0:0.5",
        "model.word_dropout_rate": "0:0.3",
    }


def make_task(config: Config, assets: Mapping[str, str] | None = None) -> "TextClassification":
    """The task of a config: reads the texts, makes the vocabulary or keeps that of a run's assets."""
    from experiments.datasets.labelled_text import load_labelled
    from experiments.tasks.classification.task import TextClassification
    from experiments.tasks.classification.text_encoding import TextEncoder

    data = config.data
    examples = load_labelled(
        data.source,
        data.path,
        phrases=data.phrases,
        columns=(data.text_column, data.label_column),
        delimiter=data.delimiter,
        splits=data.splits,
        split_seed=data.split_seed,
        data_dir=data.data_dir,
    )
    if assets is not None:
        return TextClassification(config, *_kept(assets), examples)
    encoder = TextEncoder.learn(
        (text for text, _ in examples["train"]),
        data.level,
        size=data.vocabulary_size,
        least_count=data.least_count,
        lowercase=data.lowercase,
    )
    return TextClassification(config, encoder, sorted({label for _, label in examples["train"]}), examples)


def make_classifier(config: Config, assets: Mapping[str, str]) -> "TextClassification":
    """The task without its texts, from the assets of a run: enough to classify."""
    from experiments.tasks.classification.task import TextClassification

    return TextClassification(config, *_kept(assets), {})


def _kept(assets: Mapping[str, str]) -> tuple["TextEncoder", list[str]]:
    """The vocabulary and the classes of a run."""
    from experiments.tasks.classification.text_encoding import TextEncoder

    return TextEncoder.from_json(assets["vocabulary.json"]), json.loads(assets["classes.json"])
