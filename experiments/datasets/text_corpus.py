"""One text as a TFDS data set, split by position: for character- and byte-level language models.

Three sources, none of which needs TensorFlow:

* `python_docs`: the reference topics that come with Python (about 465,000 characters); needs no network.
* `tiny_shakespeare`: Karpathy's 1,115,394 characters (char-rnn, 2015), from a file or downloaded.
* `file`: any UTF-8 text file, as it is or as .gz or .xz, or all texts of a folder.

    text = load_text("file", path="my_notes/", splits=(90, 5, 5))
    text["train"], text["validation"], text["test"]
"""

import dataclasses
import fractions
import hashlib
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal

import tensorflow_datasets as tfds

from experiments.datasets.compressed import read_utf8
from experiments.datasets.preparing import SPLITS, DamagedError, load_prepared
from lstmx.data import require_host, text_of

Source = Literal["python_docs", "tiny_shakespeare", "file"]
SOURCES: tuple[str, ...] = ("python_docs", "tiny_shakespeare", "file")

TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

_FOLDER_SUFFIXES = (".txt", ".md", ".txt.gz")
# Small enough to read a record at once, large enough for a corpus to be a few records.
_CHARACTERS_PER_RECORD = 1 << 16


def load_text(
    source: Source = "python_docs",
    path: str | os.PathLike | None = None,
    splits: Sequence[float] = (90, 5, 5),
    data_dir: str | os.PathLike | None = None,
) -> dict[str, str]:
    """Reads a text through TFDS, preparing it the first time, and verifies it.

    A split ends at character floor(cumulative fraction * N), computed exactly: 90/10/0 of tiny Shakespeare's
    1,115,394 characters trains on the first 1,003,854. The prepared copy is named after the SHA-256 of
    the content and the fractions, so a changed file or another split is another data set.

    Args:
      source: `"python_docs"`, `"tiny_shakespeare"` or `"file"`.
      path: the text file (UTF-8, or that as .gz or .xz), or a folder: all its *.txt, *.md and *.txt.gz, also
        in folders below, in sorted order and joined by a newline. It implies `source="file"` unless the
        source is `"tiny_shakespeare"`, whose file it then is.
      splits: fractions or percentages of train, validation and test; trailing ones may be omitted. They are
        divided by their sum.
      data_dir: where TFDS keeps its data sets; None for TFDS's own default.

    Returns:
      The text of `"train"`, `"validation"` and `"test"` that are not empty, in this order.

    Raises:
      FileNotFoundError: if `path` does not exist, or is a folder without texts.
      ValueError: if the source is unknown, needs a path or is not text (empty, not UTF-8, NUL characters, a
        damaged archive), if the splits are no fractions or leave nothing to train on, or if the text is not
        tiny Shakespeare though it should be.
      ConnectionError: if tiny Shakespeare has to be downloaded and its host does not answer within 3 s.
      PermissionError: if the text has to be prepared and data_dir cannot be written to.
      RuntimeError: if preparing fails, or if the prepared copy is damaged.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "corpus.txt").write_text("to be or not to be, that is the question")
      ...     load_text(path=pathlib.Path(folder, "corpus.txt"), splits=(50, 25, 25), data_dir=folder)
      {'train': 'to be or not to be, ', 'validation': 'that is th', 'test': 'e question'}
    """
    return load_texts(TextCorpus, text_corpus_config(source, path, splits), data_dir)


def load_texts(
    builder_type: type[tfds.core.GeneratorBasedBuilder],
    config: tfds.core.BuilderConfig,
    data_dir: str | os.PathLike | None = None,
) -> dict[str, str]:
    """Reads the texts of a builder whose records are pieces of text, preparing them the first time.

    Args:
      builder_type: `TextCorpus`, or another builder with records of a feature `text` in order.
      config: its configuration, with a method `check(texts)` that raises `DamagedError`.
      data_dir: as in `load_text`.

    Returns:
      The text of each split that is not empty, in the order of `SPLITS`.

    Raises:
      RuntimeError: if the prepared copy is damaged; and the errors of preparing, see `load_text`.
    """

    def read(records):
        texts = {
            split: "".join(text_of(record, "text") for record in records[split])
            for split in SPLITS
            if split in records
        }
        config.check(texts)
        return texts

    return load_prepared(builder_type, config, data_dir, read)


@dataclasses.dataclass(eq=False, kw_only=True)
class TextCorpusConfig(tfds.core.BuilderConfig):
    """Which text, and how it is split; made by `text_corpus_config`.

    Attributes:
      source: one of `SOURCES`.
      path: the text file or folder, or None.
      splits: fractions of train, validation and test, three exact numbers that sum to 1.
      sha256: of the whole text as UTF-8, in hexadecimal.
    """

    source: str
    path: pathlib.Path | None
    splits: tuple[fractions.Fraction, ...]
    sha256: str

    def read(self) -> str | None:
        """Reads the text from its source; None if it has to be downloaded."""
        if self.source == "python_docs":
            return python_docs()
        return None if self.path is None else read_text(self.path)

    def check(self, text: dict[str, str]) -> None:
        """Raises DamagedError unless these are the splits of the text that the configuration names."""
        whole = "".join(text.values())
        if hashlib.sha256(whole.encode("utf-8")).hexdigest() != self.sha256:
            raise DamagedError("the SHA-256 of its text is not the one it was prepared with")
        if text != _split(whole, self.splits):
            raise DamagedError(f"its splits are not cut where {self.name} says")


def text_corpus_config(
    source: Source = "python_docs",
    path: str | os.PathLike | None = None,
    splits: Sequence[float] = (90, 5, 5),
) -> TextCorpusConfig:
    """Checks the choice of a text and names it after its content; arguments and errors as in `load_text`.

    Returns:
      The configuration of `TextCorpus`.

    Example:
      >>> text_corpus_config("tiny_shakespeare", splits=(0.9, 0.1)).name
      'tiny_shakespeare-86c4e6aa9db7-90-10-0'
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if path is not None and source != "tiny_shakespeare":
        source = "file"
    if source == "file" and path is None:
        raise ValueError("source 'file' needs the path of a text file or folder: pass --data.path PATH")
    exact = _exact_fractions(splits)
    config = TextCorpusConfig(
        name="", source=source, path=_absolute(path), splits=exact, sha256=TINY_SHAKESPEARE_SHA256
    )
    text = config.read()
    if text is not None:
        sha256 = hashlib.sha256(text.encode("utf-8")).hexdigest()
        if source == "tiny_shakespeare":
            _check_tiny_shakespeare(sha256, len(text), config.path)
        config.sha256 = sha256
        _cuts(len(text), exact)
    percentages = "-".join(f"{float(100 * fraction):.10g}" for fraction in exact)
    config.name = f"{source}-{config.sha256[:12]}-{percentages}"
    return config


class TextCorpus(tfds.core.GeneratorBasedBuilder):
    """One text in order: records of up to 65,536 characters, feature `text`."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, config: TextCorpusConfig | None = None, **kwargs):
        super().__init__(config=config or text_corpus_config(), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="One text, split by position; the records of a split joined in order are the text.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            # By default TFDS orders records by a hash of their keys, but a text depends on its order.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self.builder_config
        text = config.read()
        if text is None:
            text = _downloaded_tiny_shakespeare(dl_manager)
        if hashlib.sha256(text.encode("utf-8")).hexdigest() != config.sha256:
            raise ValueError(f"{config.path or config.source} changed while it was prepared; run again")
        return {split: text_records(part) for split, part in _split(text, config.splits).items()}

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError("the splits are generated by _split_generators")


def python_docs() -> str:
    """Returns the reference topics that come with Python, in sorted order and separated by blank lines.

    The text depends on the Python version (465,126 characters in 3.11.7).
    """
    from pydoc_data import topics

    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def read_text(path: str | os.PathLike) -> str:
    """Reads a text file, or all texts of a folder, as UTF-8; line ends stay as they are.

    A byte order mark is not part of the text. A file that begins with that of UTF-16 or UTF-32 is decoded.

    Args:
      path: a file (.gz and .xz are decompressed), or a folder whose *.txt, *.md and *.txt.gz are joined by a
        newline in the sorted order of their paths.

    Returns:
      The text, not empty.

    Raises:
      FileNotFoundError: if the path does not exist, or is a folder without texts.
      ValueError: if the content is not text; names the file, the position and what to do.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; pass an existing text file or folder")
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.name.endswith(_FOLDER_SUFFIXES) and file.is_file()]
        if not files:
            wanted = ", ".join(f"*{suffix}" for suffix in _FOLDER_SUFFIXES)
            raise FileNotFoundError(f"the folder {path} holds no text: no {wanted} in it or below")
        parts = [_read_file(file) for file in sorted(files)]
    else:
        parts = [_read_file(path)]
    if not any(parts):
        raise ValueError(f"{path} is empty; a corpus needs at least one character")
    return "\n".join(parts)


def _read_file(path: pathlib.Path) -> str:
    content = read_utf8(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start} "
            f"({error.reason}); convert it first, for example: iconv -f latin1 -t utf-8 OLD > NEW"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is not text: it has a NUL character at offset {content.index(0)}")
    return text


def _downloaded_tiny_shakespeare(dl_manager: tfds.download.DownloadManager) -> str:
    host = TINY_SHAKESPEARE_URL.split("/")[2]
    require_host(
        host,
        instead=f"get the file {TINY_SHAKESPEARE_URL} on a machine with a network, put it anywhere on "
        "this one and pass it as --data.path FILE (input.txt, or compressed as input.txt.gz or .xz)",
    )
    path = pathlib.Path(dl_manager.download(TINY_SHAKESPEARE_URL))
    text = _read_file(path)
    _check_tiny_shakespeare(hashlib.sha256(text.encode("utf-8")).hexdigest(), len(text), path)
    return text


def _check_tiny_shakespeare(sha256: str, length: int, path: pathlib.Path) -> None:
    if sha256 != TINY_SHAKESPEARE_SHA256:
        raise ValueError(
            f"{path} is not tiny Shakespeare: its {length} characters have SHA-256 {sha256}, expected "
            f"1115394 with {TINY_SHAKESPEARE_SHA256}; choose source 'file' for another text, delete the file "
            "if it is a damaged download"
        )


def _exact_fractions(splits: Sequence[float]) -> tuple[fractions.Fraction, ...]:
    splits = tuple(splits)
    rule = f"splits must be 1 to {len(SPLITS)} fractions of {', '.join(SPLITS)}, each >= 0 and train > 0"
    if not 1 <= len(splits) <= len(SPLITS) or not all(math.isfinite(part) and part >= 0 for part in splits):
        raise ValueError(f"{rule}, got {splits}")
    if splits[0] == 0:
        raise ValueError(f"{rule}, got {splits}: there would be nothing to train on")
    # From the decimal notation: 0.7 is 7/10, so no cut moves by a rounding error.
    exact = [fractions.Fraction(str(part)) for part in splits]
    exact += [fractions.Fraction(0)] * (len(SPLITS) - len(exact))
    return tuple(part / sum(exact) for part in exact)


def _cuts(length: int, splits: tuple[fractions.Fraction, ...]) -> list[int]:
    cuts = [math.floor(cumulative * length) for cumulative in itertools.accumulate(splits)]
    if cuts[0] == 0:
        raise ValueError(
            f"the train split would be empty: the text has {length} characters and train is "
            f"{float(100 * splits[0]):.10g} % of it"
        )
    return cuts


def _split(text: str, splits: tuple[fractions.Fraction, ...]) -> dict[str, str]:
    cuts = [0, *_cuts(len(text), splits)]
    parts = {
        name: text[start:end] for name, (start, end) in zip(SPLITS, itertools.pairwise(cuts), strict=True)
    }
    return {name: part for name, part in parts.items() if part}


def text_records(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Keys and records of a text, cut into pieces of 65,536 characters."""
    for key, start in enumerate(range(0, len(text), _CHARACTERS_PER_RECORD)):
        yield key, {"text": text[start : start + _CHARACTERS_PER_RECORD]}


def _absolute(path: str | os.PathLike | None) -> pathlib.Path | None:
    return None if path is None else pathlib.Path(path).expanduser().absolute()
