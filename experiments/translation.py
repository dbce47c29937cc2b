"""Translation: bidirectional LSTM encoder, LSTM decoder with attention and input feeding, byte-pair encoding.

    python scripts/train.py translation --workdir RUN          # numbers in words, English to German, offline
    python scripts/translate.py RUN "nine thousand and one"

Your own files of aligned lines (train.de, train.en, val.de, val.en, ...), or two files:

    python scripts/train.py translation --preset multi30k-de-en --workdir RUN --data.path FOLDER
    python scripts/train.py translation --preset multi30k-de-en --workdir RUN --data.path A.de \\
        --data.target-path A.en

Multi30k (Elliott et al. 2016), lower-cased, from the folder with train.de.gz, val.de.gz,
test_2016_flickr.de.gz and so on:

    python scripts/train.py translation --preset multi30k-de-en --workdir RUN --data.path FOLDER
    python scripts/evaluate.py RUN --split test

Measured on 2 CPU cores (README.md beside this file): 41.6 BLEU on test2016 after 44 minutes, where a GRU with
attention of 20.5 million parameters had 28.3.

Scores are sacreBLEU's BLEU and chrF of beam search on the test sets, and of greedy search on the validation
set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lstmx.training import LoopConfig, OptimizerConfig

if TYPE_CHECKING:
    # Flax, optax and tensorflow-datasets take seconds to import and --help needs none of them: the functions
    # below import what they use.
    from experiments.tasks.translation.task import Translation


@dataclass(frozen=True)
class DataConfig:
    """The sentences.

    Attributes:
        source: `numerals` (generated, no network), `multi30k`, or `files`.
        path: folder with files NAME.LANGUAGE of aligned lines (as they are, .gz or .xz), or with target_path
            a file in the source language; implies `--data.source files`.
        target_path: file of the translations, line by line.
        splits: with target_path, parts for training, validation and test, drawn by the seed.
        source_language: the language to translate from.
        target_language: the language to translate to.
        lower_case: whether everything is made lower-case first.
        vocabulary_size: pieces of words (of each language, if it has its own); 8,000 if not given, and 320
            for numerals.
        shared_vocabulary: whether both languages have one vocabulary, learnt from both.
        max_length: pieces of the longest sentence.
        too_long: what happens to longer ones: `truncate` (their number is reported) or `refuse`.
        limit: train on the first pairs only; all if not given.
        data_dir: where prepared data are stored; the default of tensorflow-datasets if not given.
        batch_size: pairs per step.
        most_shapes: into how many widths the batches are divided at most; more have less padding, and each is
            compiled.
    """

    source: Literal["numerals", "multi30k", "files"] = "numerals"
    path: Path | None = None
    target_path: Path | None = None
    splits: tuple[float, float, float] = (90, 5, 5)
    source_language: str = "en"
    target_language: str = "de"
    lower_case: bool = False
    vocabulary_size: int | None = None
    shared_vocabulary: bool = False
    max_length: int = 100
    too_long: Literal["truncate", "refuse"] = "truncate"
    limit: int | None = None
    data_dir: Path | None = None
    batch_size: int = 64
    most_shapes: int = 10


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        cell: recurrent cell.
        attention: how a place is scored.
        input_feeding: whether the decoder reads its last attention vector.
        embedding_size: features of a piece, and of an attention vector.
        hidden_size: units of a decoder layer, and of both directions of an encoder layer together.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        dropout_rate: of embeddings, between encoder layers, of what is attended to and of attention vectors.
        tied: whether the output shares the target embedding's matrix.
        shared: whether both languages share one embedding (with a shared vocabulary).
    """

    cell: Literal["lstm", "gru", "elman"] = "lstm"
    attention: Literal["multiplicative", "additive"] = "multiplicative"
    input_feeding: bool = True
    embedding_size: int = 64
    hidden_size: int = 128
    encoder_layers: int = 1
    decoder_layers: int = 1
    dropout_rate: float = 0.1
    tied: bool = True
    shared: bool = False


@dataclass(frozen=True)
class SearchConfig:
    """How sentences are translated.

    Attributes:
        beam_size: open sentences of the beam search; 1 for greedy search.
        validation_beam_size: the same on the validation split, which is translated while training.
        length_penalty: alpha of Wu et al. 2016; 0 prefers short sentences, 1 nearly ignores their length.
        batch_size: sentences at once.
    """

    beam_size: int = 5
    validation_beam_size: int = 1
    length_penalty: float = 1.0
    batch_size: int = 32


@dataclass(frozen=True)
class Config:
    """A translation model and its training.

    Attributes:
        steps: number of updates.
        seed: seed of all randomness.
        label_smoothing: share of the target distribution that is spread over all pieces.
        data: the sentences.
        model: the network.
        search: the search for translations.
        optimizer: the optimizer.
        loop: evaluation, checkpoints and log.
    """

    steps: int = 1500
    seed: int = 0
    label_smoothing: float = 0.0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    search: SearchConfig = SearchConfig()
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=4e-3, schedule="cosine", warmup_steps=100, final_fraction=0.02
    )
    loop: LoopConfig = LoopConfig(eval_every=500, checkpoint_every=500, log_every=50)


MULTI30K = Config(
    steps=9000,
    label_smoothing=0.1,
    data=DataConfig(
        source="multi30k",
        source_language="de",
        target_language="en",
        lower_case=True,
        vocabulary_size=6000,
        shared_vocabulary=True,
        most_shapes=16,
    ),
    model=ModelConfig(embedding_size=256, hidden_size=512, dropout_rate=0.4, shared=True),
    optimizer=OptimizerConfig(
        learning_rate=1.5e-3, schedule="cosine", warmup_steps=400, final_fraction=0.02, b2=0.99
    ),
    loop=LoopConfig(eval_every=1500, checkpoint_every=500, log_every=50),
)

PRESETS = {
    "tiny": Config(
        steps=20,
        data=DataConfig(limit=200, batch_size=8, most_shapes=1),
        model=ModelConfig(embedding_size=8, hidden_size=16, dropout_rate=0.0),
        search=SearchConfig(beam_size=2),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(eval_every=10, checkpoint_every=10, log_every=5),
    ),
    "multi30k-de-en": MULTI30K,
    "multi30k-en-de": replace(
        MULTI30K, data=replace(MULTI30K.data, source_language="en", target_language="de")
    ),
}


def sweep() -> dict[str, str]:
    """What `scripts/sweep.py` varies if nothing else is asked for."""
    return {
        "optimizer.learning_rate": "log:5e-4:1e-2",
        "model.dropout_rate": "0:0.4",
        "label_smoothing": "0:0.2",
    }


def make_task(config: Config, assets: Mapping[str, str] | None = None) -> "Translation":
    """The task of a config: reads the pairs, learns the vocabularies or keeps those of a run's assets."""
    from experiments.datasets.parallel_text import load_pairs
    from experiments.tasks.translation.task import Translation, learn_vocabularies, read_vocabularies

    data = config.data
    pairs = load_pairs(
        data.source,
        data.path,
        data.target_path,
        source_language=data.source_language,
        target_language=data.target_language,
        splits=data.splits,
        seed=config.seed,
        data_dir=data.data_dir,
    )
    pairs["train"] = pairs["train"][: data.limit]
    if data.lower_case:
        pairs = {split: [(a.lower(), b.lower()) for a, b in some] for split, some in pairs.items()}
    if assets is not None:
        return Translation(config, read_vocabularies(assets), pairs)
    return Translation(config, learn_vocabularies(data, pairs["train"]), pairs)


def make_translator(config: Config, assets: Mapping[str, str]) -> "Translation":
    """The task without its sentences, from the assets of a run: enough to translate."""
    from experiments.tasks.translation.task import Translation, read_vocabularies

    return Translation(config, read_vocabularies(assets), {})
