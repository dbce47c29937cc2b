"""Texts for word-level language models, as TFDS data sets: Penn Treebank, WikiText-2, or your own.

    ptb          ptb.{train,valid,test}.txt, Mikolov's 10,000 words; its licence (LDC) allows no download
    wikitext2    wiki.{train,valid,test}.tokens (Merity et al. 2017, CC BY-SA), from a folder or downloaded
    file         a folder with {train,valid,test}.txt, or any text or folder of texts that `text_corpus` reads
    python_docs  the reference topics that come with Python

All files may be compressed (.gz, .xz). `load_words` gives the splits as texts.
"""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Literal

import tensorflow_datasets as tfds

from experiments.datasets.compressed import find_file, without_mark
from experiments.datasets.preparing import SPLITS, DamagedError
from experiments.datasets.text_corpus import (
    load_text,
    load_texts,
    read_text,
    text_records,
)
from lstmx.data import require_host, split_words

Source = Literal["python_docs", "ptb", "wikitext2", "file"]

# Upstream's names of the three files of a text that comes split.
_NAMES = {
    "ptb": "ptb.{}.txt",
    "wikitext2": "wiki.{}.tokens",
    "file": "{}.txt",
}
_UPSTREAM_SPLITS = dict(zip(SPLITS, ("train", "valid", "test"), strict=True))
# Words of each split, including line ends, as published (Mikolov et al. 2010; Merity et al. 2017).
_SIZES = {
    "ptb": {"train": 929_589, "validation": 73_760, "test": 82_430},
    "wikitext2": {"train": 2_088_628, "validation": 217_646, "test": 245_569},
}
_TITLES = {"ptb": "Penn Treebank", "wikitext2": "WikiText-2"}
WIKITEXT2_URL = "https://wikitext.smerity.com/wikitext-2-v1.zip"


def load_words(
    source: Source = "python_docs",
    path: str | os.PathLike | None = None,
    splits: tuple[float, ...] = (90, 5, 5),
    data_dir: str | os.PathLike | None = None,
) -> dict[str, str]:
    """Reads the splits of a text through TFDS, preparing it the first time.

    A text that does not come split is cut by position as `load_text` does, each cut moved on to the next line
    end (where there is none, to the next space), so that no word is cut in two.

    Args:
      source: which text; with a path, `"python_docs"` means `"file"`.
      path: the file or folder; for `"ptb"` and `"wikitext2"` the folder of their three files, by default
        `downloads/manual` in the folder of TFDS, or the folder in it named after the source.
      splits: fractions of train, validation and test, for texts that do not come split.
      data_dir: where TFDS keeps its data sets; None for TFDS's own default.

    Returns:
      The text of `"train"`, `"validation"` and `"test"` that are not empty.

    Raises:
      FileNotFoundError: if a file is missing; names all missing ones, and where to put them.
      ValueError: if the files are not those of the source, and as `load_text`.
      ConnectionError, PermissionError, RuntimeError: as `load_text`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("train", "valid", "test"):
      ...         _ = pathlib.Path(folder, f"{name}.txt").write_text(f"the {name} text\\n")
      ...     load_words(path=folder, data_dir=pathlib.Path(folder, "data"))["validation"]
      'the valid text\\n'
    """
    if source not in Source.__args__:
        raise ValueError(f"source must be one of {', '.join(Source.__args__)}, got {source!r}")
    path = None if path is None else pathlib.Path(path).expanduser().absolute()
    if source in _SIZES:
        config = _named_corpus(source, path, data_dir)
    elif path is not None and (name := _comes_split(path)):
        config = _corpus("file", _files(path, name))
    else:
        source = "python_docs" if path is None and source == "python_docs" else "file"
        return at_line_ends(load_text(source, path, splits, data_dir))
    texts = load_texts(WordCorpus, config, data_dir)
    if source in _SIZES:
        _check_sizes(source, texts)
    return texts


def tokenizer_of(source: Source, path: str | os.PathLike | None) -> Literal["spaces", "words"]:
    """The tokenizer of a text: the tokens of texts in three files are separated by spaces already.

    Example:
      >>> tokenizer_of("ptb", None)
      'spaces'
    """
    comes_split = source in _SIZES or (path is not None and _comes_split(pathlib.Path(path).expanduser()))
    return "spaces" if comes_split else "words"


def at_line_ends(texts: dict[str, str]) -> dict[str, str]:
    """Moves each cut between splits to the next line end, or to the next space if there is none.

    Example:
      >>> at_line_ends({"train": "to be or n", "test": "ot\\nto be"})
      {'train': 'to be or not\\n', 'test': 'to be'}
    """
    whole = "".join(texts.values())
    cuts = [0, *itertools.accumulate(map(len, texts.values()))]
    for at in range(1, len(cuts) - 1):
        cut, after = max(cuts[at - 1 : at + 1]), cuts[at + 1]
        line_end = whole.find("\n", cut - 1, after - 1)
        space = re.compile(r"\s").search(whole, cut - 1)
        if line_end >= 0:
            cuts[at] = line_end + 1
        else:  # a line that is longer than the split
            cuts[at] = len(whole) if space is None else space.end()
    cuts[-1] = len(whole)
    parts = {name: whole[a:b] for name, (a, b) in zip(texts, itertools.pairwise(cuts), strict=True)}
    return {name: part for name, part in parts.items() if part}


@dataclasses.dataclass(eq=False, kw_only=True)
class WordCorpusConfig(tfds.core.BuilderConfig):
    """A text in three files, named after its content.

    Attributes:
      files: the file of each split; empty if they have to be downloaded.
      digests: SHA-256 of the text of each split, in hexadecimal; empty if they have to be downloaded.
    """

    files: dict[str, pathlib.Path]
    digests: dict[str, str]

    def check(self, texts: dict[str, str]) -> None:
        """Raises DamagedError unless these are the texts that the configuration names."""
        if self.digests and _digests(texts) != self.digests:
            raise DamagedError("the SHA-256 of its texts are not those it was prepared with")


class WordCorpus(tfds.core.GeneratorBasedBuilder):
    """A text in three splits: records of up to 65,536 characters in order, feature `text`."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, config: WordCorpusConfig | None = None, **kwargs):
        super().__init__(config=config or _to_download(), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="A text in three splits; the records of a split joined in order are its text.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self.builder_config
        texts = _read(config.files) if config.files else _downloaded_wikitext2(dl_manager)
        if config.digests and _digests(texts) != config.digests:
            raise ValueError("the files changed while they were prepared; run again")
        return {split: text_records(text) for split, text in texts.items()}

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError("the splits are generated by _split_generators")


def _named_corpus(source: str, path: pathlib.Path | None, data_dir) -> WordCorpusConfig:
    root = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    manual = root / "downloads" / "manual"
    folders = [path] if path is not None else [manual, manual / source]
    for folder in folders:
        if find_file(folder, _NAMES[source].format("train")):
            return _corpus(source, _files(folder, _NAMES[source]))
    wanted = ", ".join(_NAMES[source].format(split) for split in _UPSTREAM_SPLITS.values())
    if source == "wikitext2" and path is None:
        return _to_download()
    raise FileNotFoundError(
        f"{_TITLES[source]} is not in {' or '.join(map(str, folders))}: put {wanted} there (as they are or "
        "as .gz or .xz), or pass the folder that has them as --data.path FOLDER"
    )


def _comes_split(path: pathlib.Path) -> str | None:
    """How the files of a folder are named, if there is one for training."""
    found = (name for name in _NAMES.values() if path.is_dir() and find_file(path, name.format("train")))
    return next(found, None)


def _files(folder: pathlib.Path, name: str) -> dict[str, pathlib.Path]:
    files = {split: find_file(folder, name.format(part)) for split, part in _UPSTREAM_SPLITS.items()}
    missing = [name.format(_UPSTREAM_SPLITS[split]) for split, file in files.items() if file is None]
    if missing:
        raise FileNotFoundError(
            f"{folder} has {name.format('train')} but not {' and not '.join(missing)}: a text that comes "
            "split needs all three"
        )
    return files


def _corpus(source: str, files: dict[str, pathlib.Path]) -> WordCorpusConfig:
    digests = _digests(_read(files))
    digest = hashlib.sha256(" ".join(digests.values()).encode()).hexdigest()
    return WordCorpusConfig(name=f"{source}-{digest[:12]}", files=files, digests=digests)


def _to_download() -> WordCorpusConfig:
    return WordCorpusConfig(name="wikitext2", files={}, digests={})


def _read(files: dict[str, pathlib.Path]) -> dict[str, str]:
    return {split: read_text(file) for split, file in files.items()}


def _digests(texts: dict[str, str]) -> dict[str, str]:
    return {split: hashlib.sha256(text.encode("utf-8")).hexdigest() for split, text in texts.items()}


def _check_sizes(source: str, texts: dict[str, str]) -> None:
    sizes = {split: len(split_words(text, "spaces")) for split, text in texts.items()}
    if sizes != _SIZES[source]:
        numbers = [", ".join(f"{s} {n:,}" for s, n in counts.items()) for counts in (sizes, _SIZES[source])]
        raise ValueError(
            f"this is not {_TITLES[source]}: words, line ends included, are {numbers[0]}, expected "
            f"{numbers[1]}; choose source 'file' for another text"
        )


def _downloaded_wikitext2(dl_manager: tfds.download.DownloadManager) -> dict[str, str]:
    names = {split: _NAMES["wikitext2"].format(part) for split, part in _UPSTREAM_SPLITS.items()}
    require_host(
        WIKITEXT2_URL.split("/")[2],
        instead=f"get {WIKITEXT2_URL} on a machine with a network, unpack it anywhere on this one and pass "
        f"the folder with {', '.join(names.values())} as --data.path FOLDER",
    )
    with zipfile.ZipFile(dl_manager.download(WIKITEXT2_URL)) as archive:
        contents = {split: archive.read(f"wikitext-2/{name}") for split, name in names.items()}
    texts = {split: without_mark(content).decode("utf-8") for split, content in contents.items()}
    _check_sizes("wikitext2", texts)
    return texts
