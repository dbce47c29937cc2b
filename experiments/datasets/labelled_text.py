"""Texts with labels, as TFDS data sets without TensorFlow.

`load_labelled` reads one of these, split into training, validation and test:

    sst2      Stanford Sentiment Treebank, positive or negative (Socher et al. 2013):
              stsa.binary.{train,dev,test} (label, space, sentence), and for training also the phrases of
              GLUE's train.tsv
    imdb      Large Movie Review Dataset (Maas et al. 2011): {train,test}.jsonl, or the folder aclImdb, or
              TFDS's `imdb_reviews` where it is prepared
    file      any CSV, TSV or JSONL: one file, split by a seed, or a folder with a file for each split
    made_up   short reviews from a grammar, for trying without data
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds

from experiments.datasets.labelled_files import (
    Example,
    Examples,
    Files,
    arranged,
    digest_of,
    find_files,
    read_files,
)
from experiments.datasets.preparing import SPLITS, load_prepared
from lstmx.data import text_of

Source = Literal["made_up", "sst2", "imdb", "file"]

_THINGS = [
    "the plot",
    "the cast",
    "the music",
    "the ending",
    "the dialogue",
    "the camera work",
    "the pace",
    "the first half",
]
_DEGREES = ["", "really ", "rather ", "truly "]
_WORDS = {
    "positive": ["good", "charming", "moving", "clever", "funny", "fresh", "gripping", "warm"],
    "negative": ["bad", "dull", "clumsy", "silly", "tedious", "stale", "cold", "shallow"],
}


def load_labelled(
    source: Source = "made_up",
    path: str | os.PathLike | None = None,
    *,
    phrases: str | os.PathLike | None = None,
    columns: tuple[str, str] = ("text", "label"),
    delimiter: str | None = None,
    splits: Sequence[float] = (80, 10, 10),
    split_seed: int = 0,
    data_dir: str | os.PathLike | None = None,
) -> Examples:
    """Reads texts with labels through TFDS, preparing them the first time.

    The prepared copy is named after the content of the files and how they are read, so that a changed file is
    another data set.

    Args:
      source: which texts; with a path, `"made_up"` means `"file"`.
      path: a file or folder, see `find_files`; by default `downloads/manual` in the folder of TFDS, or the
        folder in it named after the source.
      phrases: more texts to train on, see `find_files`.
      columns: names of the columns of text and label.
      delimiter: that of CSV and TSV files, one character or `tab`; None to recognise it by the header.
      splits: shares of train, validation and test, for what does not come split.
      split_seed: seed of that division.
      data_dir: where TFDS keeps its data sets; None for TFDS's own default.

    Returns:
      The examples of `"train"`, `"validation"` and `"test"` that are not empty.

    Raises:
      FileNotFoundError: if there are no such files; says which are expected, and where.
      ValueError: if a file is not valid, see `read_files`.
      PermissionError: if the data have to be prepared and data_dir cannot be written to.
      RuntimeError: if preparing fails, or if the prepared copy is damaged.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder, "reviews.csv")
      ...     _ = file.write_text("text,label\\n" + "good,1\\nbad,0\\n" * 10)
      ...     examples = load_labelled(path=file, splits=(100,), data_dir=folder)
      >>> len(examples["train"]), examples["train"][0]
      (20, Example(text='good', label='1'))
    """
    if source not in Source.__args__:
        raise ValueError(f"source must be one of {', '.join(Source.__args__)}, got {source!r}")
    if source == "made_up" and path is not None:
        source = "file"
    root = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if source == "imdb" and path is None and (folder := _prepared_imdb(root)):
        return arranged("imdb", _read_imdb(folder), splits, split_seed)
    files = None
    if source != "made_up":
        manual = root / "downloads" / "manual"
        files = find_files(source, path, phrases, columns, [manual, manual / source], delimiter)
    config = LabelledTextConfig(
        name=source, source=source, files=files, shares=tuple(map(float, splits)), seed=split_seed
    )
    return _load(config, data_dir)


@dataclasses.dataclass(eq=False, kw_only=True)
class LabelledTextConfig(tfds.core.BuilderConfig):
    """Which texts; named after their content.

    Attributes:
      source: one of `Source`.
      files: where they are; None if they are made up.
      shares: of train, validation and test.
      seed: of the division.
    """

    source: str = "made_up"
    files: Files | None = None
    shares: tuple[float, ...] = (80, 10, 10)
    seed: int = 0

    def __post_init__(self):
        if self.files is not None:
            digest = digest_of(self.files, self.source, self.shares, self.seed)
            self.name = f"{self.source}-{digest[:12]}"

    def read(self) -> Examples:
        """Reads the examples from their files."""
        if self.files is None:
            return made_up()
        return read_files(self.source, self.files, self.shares, self.seed)


class LabelledText(tfds.core.GeneratorBasedBuilder):
    """Texts with labels, features `text` and `label` (the name of the class), in the order of the files."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, config: LabelledTextConfig | None = None, **kwargs):
        super().__init__(config=config or LabelledTextConfig(name="made_up"), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Texts with labels.",
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.Text()}
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(some) for split, some in self.builder_config.read().items()}

    def _generate_examples(self, examples: Sequence[Example]) -> Iterator:
        return ((key, example._asdict()) for key, example in enumerate(examples))


def made_up(count: int = 2000) -> Examples:
    """Reviews from a grammar in which "not" negates a clause and after "but" only the last clause counts.

    Args:
      count: number of distinct ones; an eighth each for validation and test.

    Returns:
      The examples of the splits, the same in every call.

    Example:
      >>> made_up()["train"][0]
      Example(text='the music is really tedious', label='negative')
    """
    chance = np.random.default_rng(0)

    def clause() -> tuple[str, str]:
        label, negated = ("positive", "negative")[chance.integers(2)], chance.integers(3) == 0
        word = chance.choice(_WORDS[label])
        degree = "not " if negated else chance.choice(_DEGREES)
        sentiment = label if not negated else {"positive": "negative", "negative": "positive"}[label]
        return f"{chance.choice(_THINGS)} is {degree}{word}", sentiment

    found: dict[str, str] = {}
    while len(found) < count:
        text, label = clause()
        if chance.integers(3):
            after, label = clause()
            text = f"{text} but {after}"
        found[text] = label
    examples = [Example(*pair) for pair in found.items()]
    held = count // 8
    cuts = {"train": (0, -2 * held), "validation": (-2 * held, -held), "test": (-held, None)}
    return {split: examples[slice(*cut)] for split, cut in cuts.items()}


def _load(config: LabelledTextConfig, data_dir: str | os.PathLike | None) -> Examples:
    def read(records):
        return {
            split: [
                Example(text_of(record, "text"), text_of(record, "label")) for record in _all(records[split])
            ]
            for split in SPLITS
            if split in records
        }

    return load_prepared(LabelledText, config, data_dir, read)


def _all(records: Sequence) -> Sequence:
    # Twice as fast as reading them one by one.
    return records.__getitems__(range(len(records)))


def _prepared_imdb(root: pathlib.Path) -> pathlib.Path | None:
    found = sorted(root.glob("imdb_reviews/plain_text/*/dataset_info.json"))
    return found[-1].parent if found else None


def _read_imdb(folder: pathlib.Path) -> Examples:
    builder = tfds.builder_from_directory(str(folder))
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{folder} is prepared as {builder.info.file_format.value}, which needs TensorFlow to be read; "
            "prepare it with file_format='array_record', or pass the files as --data.path FOLDER"
        )
    names = builder.info.features["label"].names
    return {
        split: [Example(text_of(record, "text"), names[int(record["label"])]) for record in _all(records)]
        for split, records in builder.as_data_source().items()
        if split in SPLITS
    }
