"""Sentences in two languages as a TFDS data set: for translation. No source needs TensorFlow.

* `numerals`: whole numbers below a million in English and German words, generated with num2words, no network.
* `multi30k`: image captions in English, German and French (Elliott et al. 2016), from a folder.
* `files`: any folder with files of aligned lines, or two such files.

A folder holds files NAME.LANGUAGE, as they are or as .gz or .xz: `train.de` and `train.en`, and as far as
there are such `val` (or valid, dev, validation), `test` and other test sets under names of their own.

    pairs = load_pairs("files", path="my_folder", source_language="de", target_language="en")
    pairs["train"][0]    # ("Zwei Hunde .", "Two dogs .")
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds

from experiments.datasets.compressed import is_compressed, read_utf8
from experiments.datasets.preparing import SPLITS, DamagedError, load_prepared
from lstmx.data import text_of

Source = Literal["numerals", "multi30k", "files"]
SOURCES: tuple[str, ...] = ("numerals", "multi30k", "files")
Pairs = list[tuple[str, str]]

MULTI30K_URL = "https://github.com/multi30k/dataset/tree/master/data/task1/raw"

# File names of the splits, the preferred ones first.
_NAMES = {
    "train": ("train",),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "test_2016_flickr"),
}
# Largest number of digits; no number is in two splits.
_NUMERALS_DIGITS = 6
_NUMERALS = {"train": 6_000, "validation": 300, "test": 300}
# A sentence and its translation differ less in length; in files that are shifted by a line many differ more.
_STRANGE_RATIO = 4
_STRANGE_SHARE = 0.05


def load_pairs(
    source: Source = "numerals",
    path: str | os.PathLike | None = None,
    target_path: str | os.PathLike | None = None,
    *,
    source_language: str = "en",
    target_language: str = "de",
    splits: Sequence[float] = (90, 5, 5),
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
) -> dict[str, Pairs]:
    """Reads pairs of sentences through TFDS, preparing them the first time.

    Sentences are in Unicode's composed form (NFC), without white space at their ends. A pair with an empty
    line is skipped, with a warning that gives their number.

    Args:
      source: `"numerals"`, `"multi30k"` or `"files"`.
      path: a folder, or with `target_path` a file in the source language, one sentence per line. It implies
        `source="files"` unless the source is `"multi30k"`, whose folder it then is (by default
        `downloads/manual/multi30k` in `data_dir`).
      target_path: a file of the translations, line by line.
      source_language: the language to translate from: the ending of the files of a folder.
      target_language: the language to translate to.
      splits: with `target_path`, shares of training, validation and test.
      seed: with `target_path`, of the draw that divides the pairs.
      data_dir: where TFDS keeps its data sets; None for TFDS's own default.

    Returns:
      (source, target) pairs by split: `"train"`, `"validation"` and `"test"` as far as they exist, and
      further test sets under the names of their files.

    Raises:
      FileNotFoundError: if a path does not exist or a file has no counterpart in the other language.
      ValueError: if the source or the direction is unknown, files have different numbers of lines, a line is
        not UTF-8, an archive is damaged or nothing is left to train on; with the file and the numbers.
      ImportError: if num2words is not installed, which `"numerals"` needs.
      PermissionError: if the pairs have to be prepared and data_dir cannot be written to.
      RuntimeError: if preparing fails, or if the prepared copy is damaged.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as name:
      ...     folder = pathlib.Path(name)
      ...     _ = (folder / "train.de").write_text("Guten Tag!")
      ...     _ = (folder / "train.en").write_text("Hello!")
      ...     load_pairs(path=folder, source_language="de", target_language="en", data_dir=folder)
      {'train': [('Guten Tag!', 'Hello!')]}
    """
    if source_language == target_language:
        raise ValueError(f"source_language and target_language must differ, got {source_language!r} twice")
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if path is not None and source == "numerals":
        source = "files"
    root = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    path = None if path is None else pathlib.Path(path).expanduser()
    if source == "numerals":
        pairs = numerals(source_language, target_language)
    elif target_path is not None:
        if path is None:
            raise ValueError("target_path needs path, the file in the source language, beside it")
        pairs = _divided(read_pairs(path, pathlib.Path(target_path).expanduser()), splits, seed)
    else:
        pairs = _read_folder(_folder(source, path, root), source_language, target_language)
    if not pairs.get("train"):
        raise ValueError(f"no pair is left to train on in {path}")
    return _through_tfds(pairs, source, (source_language, target_language), root)


def numerals(source_language: str = "en", target_language: str = "de") -> dict[str, Pairs]:
    """Numbers below a million in words of two of the languages that num2words knows; arguments as above.

    Example:
      >>> {split: len(pairs) for split, pairs in numerals("en", "de").items()}
      {'train': 6000, 'validation': 300, 'test': 300}
    """
    try:
        from num2words import num2words
    except ImportError:
        raise ImportError(
            "the source 'numerals' is generated with num2words: pip install num2words, or pass --data.path"
        ) from None
    # Equally many of each length; drawn uniformly, nearly all would have six digits.
    digits = np.random.default_rng(0).uniform(0, _NUMERALS_DIGITS, 4 * sum(_NUMERALS.values()))
    drawn = iter(dict.fromkeys((10**digits).astype(int).tolist()))
    pairs = {}
    for split, count in _NUMERALS.items():
        numbers = list(itertools.islice(drawn, count))
        try:
            pairs[split] = [
                tuple(num2words(number, lang=lang) for lang in (source_language, target_language))
                for number in numbers
            ]
        except NotImplementedError:
            raise ValueError(
                f"num2words does not know one of the languages {source_language}, {target_language}"
            ) from None
    return pairs


def read_pairs(source_path: pathlib.Path, target_path: pathlib.Path) -> Pairs:
    """Reads two files of aligned lines; see `load_pairs` for what is refused or skipped."""
    sources, targets = _read_lines(source_path), _read_lines(target_path)
    if len(sources) != len(targets):
        raise ValueError(
            f"{source_path} has {len(sources)} lines and {target_path} has {len(targets)}: line by line one "
            "must be the translation of the other"
        )
    pairs = [pair for pair in zip(sources, targets, strict=True) if all(pair)]
    if len(pairs) < len(sources):
        warnings.warn(
            f"{len(sources) - len(pairs)} of {len(sources)} pairs of {source_path} and {target_path} are "
            "skipped: one of the lines is empty",
            stacklevel=3,
        )
    strange = sum(max(map(len, pair)) > _STRANGE_RATIO * min(map(len, pair)) for pair in pairs)
    if strange > max(1, _STRANGE_SHARE * len(pairs)):
        warnings.warn(
            f"in {strange} of {len(pairs)} pairs of {source_path} and {target_path} one line is more than "
            f"{_STRANGE_RATIO} times as long as the other: are the files aligned?",
            stacklevel=3,
        )
    return pairs


def _folder(source: str, path: pathlib.Path | None, root: pathlib.Path) -> pathlib.Path:
    if path is None and source == "files":
        raise ValueError("source 'files' needs a folder (or two files): pass --data.path FOLDER")
    folder = root / "downloads" / "manual" / "multi30k" if path is None else path
    if source == "multi30k" and not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}. Multi30k may be used for non-commercial research and teaching; "
            f"get train.*, val.* and test_2016_flickr.* (as .gz) from {MULTI30K_URL} and put them there, or "
            "pass their folder as --data.path FOLDER"
        )
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; pass an existing folder as --data.path")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: pass its translations as --data.target-path, or a folder")
    return folder


def _read_folder(folder: pathlib.Path, source_language: str, target_language: str) -> dict[str, Pairs]:
    files: dict[str, dict[str, pathlib.Path]] = {}
    for file in sorted(folder.iterdir()):
        stem = file.with_suffix("") if is_compressed(file) else file
        name, _, language = stem.name.rpartition(".")
        if name and file.is_file():
            files.setdefault(name, {}).setdefault(language, file)
    known = sorted(files.get("train", {}))
    for language in (source_language, target_language):
        if language not in known:
            there = f"it has train.{' and train.'.join(known)}" if known else "it has no file train.LANGUAGE"
            raise ValueError(
                f"{folder} cannot teach to translate from {source_language} to {target_language}: there is "
                f"no train.{language} (or that as .gz or .xz); {there}"
            )
    named = {split: next((name for name in names if name in files), None) for split, names in _NAMES.items()}
    # The names of TFDS splits must be words.
    rest = {re.sub(r"\W", "_", name): name for name in files if name not in named.values()}
    pairs = {}
    for split, name in {**named, **rest}.items():
        there = [files.get(name, {}).get(language) for language in (source_language, target_language)]
        if None not in there:
            pairs[split] = read_pairs(*there)
        elif any(there) and split in named:
            missing = target_language if there[0] else source_language
            raise FileNotFoundError(f"{folder} has {name} in one language only: {name}.{missing} is missing")
    return {split: found for split, found in pairs.items() if found}


def _read_lines(path: pathlib.Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; pass a file with one sentence per line")
    content = read_utf8(path)
    # Only at line feeds: Unicode has further line ends, at which a text may be broken within a sentence.
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    return [_sentence(path, number, line) for number, line in enumerate(lines, start=1)]


def _sentence(path: pathlib.Path, number: int, line: bytes) -> str:
    try:
        return unicodedata.normalize("NFC", line.decode("utf-8")).strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{line[error.start]:02x} in line {number} ({error.reason}); convert "
            "it first, for example: iconv -f latin1 -t utf-8 OLD > NEW"
        ) from error


def _divided(pairs: Pairs, splits: Sequence[float], seed: int) -> dict[str, Pairs]:
    shares = np.array([*splits, 0, 0][: len(SPLITS)], float)
    if not (1 <= len(splits) <= len(SPLITS) and np.all(shares >= 0) and shares[0] > 0):
        raise ValueError(f"splits must be 1 to {len(SPLITS)} shares of {', '.join(SPLITS)}, got {splits}")
    order = np.random.default_rng(seed).permutation(len(pairs))
    ends = np.rint(np.cumsum(shares) / shares.sum() * len(pairs)).astype(int)
    parts = zip(SPLITS, np.split(order, ends[:-1]), strict=True)
    return {split: [pairs[at] for at in part] for split, part in parts if len(part)}


@dataclasses.dataclass(eq=False, kw_only=True)
class ParallelTextConfig(tfds.core.BuilderConfig):
    """Which pairs; made by `load_pairs`.

    Attributes:
      pairs: the pairs of each split.
    """

    pairs: dict[str, Pairs]


class ParallelText(tfds.core.GeneratorBasedBuilder):
    """Pairs of sentences in their order, features `source` and `target`."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, config: ParallelTextConfig, **kwargs):
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"source": tfds.features.Text(), "target": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sentences and their translations.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: _records(pairs) for split, pairs in self.builder_config.pairs.items()}

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError("the splits are generated by _split_generators")


def _records(pairs: Pairs) -> Iterator[tuple[int, dict[str, str]]]:
    for key, (source, target) in enumerate(pairs):
        yield key, {"source": source, "target": target}


def _through_tfds(pairs, source: str, languages: tuple[str, str], root: pathlib.Path) -> dict[str, Pairs]:
    """The same pairs, from a prepared copy that is named after their content."""
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    config = ParallelTextConfig(name=f"{source}-{'-'.join(languages)}-{digest[:12]}", pairs=pairs)

    def read(records):
        found = {
            split: [(text_of(record, "source"), text_of(record, "target")) for record in records[split]]
            for split in pairs
        }
        if found != pairs:
            raise DamagedError("its pairs are not those of the files")
        return found

    return load_prepared(ParallelText, config, root, read)
