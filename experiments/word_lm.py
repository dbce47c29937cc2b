"""Word language model: embedding, stacked LSTM (or GRU, or Elman network), softmax over the vocabulary.

    python scripts/train.py word_lm --workdir RUN                    # on Python's language reference, offline
    python scripts/train.py word_lm --workdir RUN --data.path FILE   # on a text of your own
    python scripts/generate.py RUN --prompt "The value" --length 100 --top-p 0.9
    python scripts/perplexity.py RUN --split test --cache            # with a neural cache
    python scripts/perplexity.py RUN --split test --dynamic          # with dynamic evaluation

Penn Treebank (a folder with ptb.{train,valid,test}.txt) and WikiText-2 (wiki.{train,valid,test}.tokens):

    python scripts/train.py word_lm --preset zaremba-small --workdir RUN --data.path FOLDER
    python scripts/train.py word_lm --preset awd --workdir RUN --data.source wikitext2 --data.path FOLDER
    python scripts/evaluate.py RUN --split test

The presets `zaremba-small`, `-medium` and `-large` are the networks of Zaremba et al. (2014), `awd` is the
AWD-LSTM of Merity et al. (2018), and `fast` is meant for less than an hour of two CPU cores.

Measured on 2 CPU cores (README.md beside this file): `zaremba-small` has a test perplexity of 112.1 on Penn
Treebank after 28 minutes, where 114.5 was published; `fast` 83.9 after 35 minutes.

Perplexity is that of a whole split as one text: the state is carried from its first word to its last, line
ends count as words, and every word but the first is predicted once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lstmx.training import LoopConfig, OptimizerConfig

if TYPE_CHECKING:
    # As in char_lm: --help needs none of what these import.
    from experiments.tasks.language_model.task import LanguageModelTask
    from lstmx.data import WordVocabulary


@dataclass(frozen=True)
class DataConfig:
    """The text.

    Attributes:
        source: `python_docs` (in every Python, no network), `ptb`, `wikitext2`, or `file`.
        path: text file (.txt, .gz, .xz), folder of texts, or folder with a text in three files; implies
            `--data.source file` unless the source is `ptb` or `wikitext2`.
        splits: parts for training, validation and test, by position, of a text that does not come split.
        data_dir: where prepared data are stored; the default of tensorflow-datasets if not given.
        tokenizer: `spaces` where tokens are separated already, `words` to separate punctuation from words;
            `auto` is `spaces` for texts that come split.
        vocabulary_size: most words to know, the most frequent of the training split; all if not given.
        least_count: how often a word must occur to be known; the others are one word, `<unk>`.
        batch_size: streams read in parallel.
        window: words of a stream per step, and the reach of the gradient.
        random_windows: whether windows vary in length, as those of an AWD-LSTM do.
        evaluation_streams: streams that a split is evaluated in; 1 is exact, more are faster.
    """

    source: Literal["python_docs", "ptb", "wikitext2", "file"] = "python_docs"
    path: Path | None = None
    splits: tuple[float, float, float] = (90, 5, 5)
    data_dir: Path | None = None
    tokenizer: Literal["auto", "spaces", "words"] = "auto"
    vocabulary_size: int | None = None
    least_count: int = 2
    batch_size: int = 20
    window: int = 35
    random_windows: bool = False
    evaluation_streams: int = 1


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        cell: recurrent cell.
        embedding_size: features of a word.
        hidden_size: units of each layer.
        num_layers: recurrent layers.
        last_hidden_size: units of the last layer, if they differ.
        tied: whether the output shares the embedding's matrix.
        dropout_rate: a new mask in each step, of embeddings, between layers and of last outputs (Zaremba).
        input_dropout: one mask for all steps, of embeddings (this and the following: AWD-LSTM).
        hidden_dropout: one mask for all steps, between layers.
        output_dropout: one mask for all steps, of the last outputs.
        embedding_dropout: of whole words.
        weight_drop: of the weights that read the layer's own past.
        init_scale: draws all parameters from [-scale, scale]; each part has its own rule if not given.
    """

    cell: Literal["lstm", "gru", "elman"] = "lstm"
    embedding_size: int = 256
    hidden_size: int = 256
    num_layers: int = 1
    last_hidden_size: int | None = None
    tied: bool = True
    dropout_rate: float = 0.4
    input_dropout: float = 0.0
    hidden_dropout: float = 0.0
    output_dropout: float = 0.0
    embedding_dropout: float = 0.0
    weight_drop: float = 0.0
    init_scale: float | None = None


@dataclass(frozen=True)
class PenaltyConfig:
    """What is added to the loss.

    Attributes:
        activation: weight of the last outputs' mean square after dropout (AR).
        temporal: weight of the mean square of their change from step to step, before dropout (TAR).
    """

    activation: float = 0.0
    temporal: float = 0.0


@dataclass(frozen=True)
class Config:
    """A word language model and its training.

    Attributes:
        steps: number of updates.
        seed: seed of all randomness.
        data: the text.
        model: the network.
        penalties: penalties on activations.
        optimizer: the optimizer.
        loop: evaluation, checkpoints and log.
    """

    steps: int = 2000
    seed: int = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    penalties: PenaltyConfig = PenaltyConfig()
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-3, schedule="cosine", warmup_steps=100, final_fraction=0.02
    )
    loop: LoopConfig = LoopConfig(eval_every=500, checkpoint_every=500, log_every=50)


# All words of these texts are known: rare ones are <unk> already.
PTB = DataConfig(source="ptb", least_count=1)


def _zaremba(
    *, hidden_size: int, dropout_rate: float, init_scale: float, window: int, clip_norm: float,
    epochs: int, constant_epochs: int, factor: float,
) -> Config:  # fmt: skip
    # Steps of an epoch of Penn Treebank. Zaremba et al. sum the loss over the window, which is a mean here:
    # their rate of 1 is `window`, and their norm of the gradient is `window` times ours.
    epoch = {20: 2323, 35: 1327}[window]
    return Config(
        steps=epochs * epoch,
        data=replace(PTB, window=window),
        model=ModelConfig(
            embedding_size=hidden_size, hidden_size=hidden_size, num_layers=2, tied=False,
            dropout_rate=dropout_rate, init_scale=init_scale,
        ),
        optimizer=OptimizerConfig(
            "sgd", learning_rate=float(window), momentum=0.0, clip_norm=clip_norm / window,
            schedule="staircase", stages=epochs, constant_stages=constant_epochs, stage_factor=factor,
        ),
        loop=LoopConfig(eval_every=epoch, checkpoint_every=500, log_every=100),
    )  # fmt: skip


PRESETS = {
    "tiny": Config(
        steps=20,
        data=DataConfig(batch_size=4, window=8, vocabulary_size=200),
        model=ModelConfig(embedding_size=8, hidden_size=16, dropout_rate=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(eval_every=10, checkpoint_every=10, log_every=5),
    ),
    "zaremba-small": _zaremba(
        hidden_size=200, dropout_rate=0.0, init_scale=0.1, window=20, clip_norm=5.0,
        epochs=13, constant_epochs=4, factor=0.5,
    ),
    "zaremba-medium": _zaremba(
        hidden_size=650, dropout_rate=0.5, init_scale=0.05, window=35, clip_norm=5.0,
        epochs=39, constant_epochs=6, factor=1 / 1.2,
    ),
    "zaremba-large": _zaremba(
        hidden_size=1500, dropout_rate=0.65, init_scale=0.04, window=35, clip_norm=10.0,
        epochs=55, constant_epochs=14, factor=1 / 1.15,
    ),
    "awd": Config(
        steps=340_000,
        data=replace(PTB, window=70, random_windows=True),
        model=ModelConfig(
            embedding_size=400, hidden_size=1150, last_hidden_size=400, num_layers=3, tied=True,
            dropout_rate=0.0, input_dropout=0.4, hidden_dropout=0.25, output_dropout=0.4,
            embedding_dropout=0.1, weight_drop=0.5,
        ),
        penalties=PenaltyConfig(activation=2.0, temporal=1.0),
        optimizer=OptimizerConfig(
            "sgd", learning_rate=30.0, momentum=0.0, clip_norm=0.25, weight_decay=1.2e-6, average_patience=5
        ),
        loop=LoopConfig(eval_every=680, checkpoint_every=680, log_every=100),
    ),
    # One wide layer, as the steps of layers wait for one another; a narrow embedding, as the softmax costs as
    # much as the LSTM; less dropout than in longer trainings, as twelve epochs are few.
    "fast": Config(
        steps=16_000,
        data=PTB,
        model=ModelConfig(embedding_size=256, hidden_size=650, dropout_rate=0.4),
        optimizer=OptimizerConfig(
            learning_rate=3e-3, schedule="cosine", warmup_steps=200, final_fraction=0.01, b2=0.99,
            clip_norm=0.5,
        ),
        loop=LoopConfig(eval_every=4000, checkpoint_every=500, log_every=100),
    ),
}  # fmt: skip


def sweep() -> dict[str, str]:
    """What `scripts/sweep.py` varies if nothing else is asked for."""
    return {
        "optimizer.learning_rate": "log:5e-4:2e-2",
        "model.dropout_rate": "0.1:0.7",
        "optimizer.weight_decay": "log:1e-4:1e-1",
    }


def make_task(config: Config, assets: Mapping[str, str] | None = None) -> "LanguageModelTask":
    """The task of a config: reads the text, makes the vocabulary of its training split or keeps a run's."""
    from experiments.datasets.word_corpus import load_words, tokenizer_of
    from lstmx.data import WordVocabulary, split_words
    from lstmx.data.words import END_OF_LINE, UNKNOWN

    data = config.data
    texts = load_words(data.source, data.path, data.splits, data.data_dir)
    if assets is not None:
        return _task(config, *_kept(assets), texts)
    tokenizer = tokenizer_of(data.source, data.path) if data.tokenizer == "auto" else data.tokenizer
    vocabulary = WordVocabulary.from_counts(
        split_words(texts["train"], tokenizer),
        size=data.vocabulary_size,
        least=data.least_count,
        specials=[UNKNOWN, END_OF_LINE],
    )
    return _task(config, vocabulary, tokenizer, texts)


def make_generator(config: Config, assets: Mapping[str, str]) -> "LanguageModelTask":
    """The task without its text, from the assets of a run: enough to generate."""
    return _task(config, *_kept(assets), {})


def _kept(assets: Mapping[str, str]) -> tuple["WordVocabulary", str]:
    from lstmx.data import WordVocabulary

    kept = json.loads(assets["vocabulary.json"])
    return WordVocabulary(kept["words"], kept["unknown"]), kept["tokenizer"]


def _task(config, vocabulary, tokenizer, texts) -> "LanguageModelTask":
    from experiments.tasks.language_model.task import LanguageModelTask
    from experiments.tasks.language_model.units import Words

    return LanguageModelTask(
        config,
        Words(vocabulary, tokenizer),
        texts,
        evaluation_streams=config.data.evaluation_streams,
        random_windows=config.data.random_windows,
        activation_penalty=config.penalties.activation,
        temporal_penalty=config.penalties.temporal,
    )
