import doctest
import gzip
import itertools
import lzma
import pathlib
import socket
import zipfile

import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from experiments.datasets import word_corpus
from experiments.datasets.word_corpus import at_line_ends, load_words, tokenizer_of
from lstmx.data import split_words

ROOT = pathlib.Path(__file__).resolve().parents[2]
PTB = ROOT.parent / "shared" / "data" / "ptb"
TEXTS = {"train": "a b\nc <unk>\n\n", "validation": "b\n", "test": "c ä\n"}
NAMES = dict(zip(TEXTS, ("train", "valid", "test"), strict=True))


def write(folder, name, texts=TEXTS):
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in texts.items():
        (folder / name.format(NAMES[split])).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def small(monkeypatch):
    """As if the published texts had these sizes."""
    sizes = {split: len(split_words(text, "spaces")) for split, text in TEXTS.items()}
    monkeypatch.setattr(word_corpus, "_SIZES", {"ptb": sizes, "wikitext2": sizes})


@pytest.fixture
def offline(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_docstring_examples():
    # pytest collects doctests below lstmx/ only: under a second module name TFDS would refuse the builder.
    results = doctest.testmod(word_corpus)
    assert results.attempted >= 4
    assert results.failed == 0


@pytest.mark.parametrize("name", ["ptb.{}.txt", "wiki.{}.tokens", "{}.txt"])
def test_a_folder_with_three_files_is_a_text_that_comes_split(tmp_path, name):
    folder = write(tmp_path / "text", name)
    assert load_words(path=folder, data_dir=tmp_path) == TEXTS
    assert load_words("file", folder, data_dir=tmp_path) == TEXTS  # prepared already
    assert tokenizer_of("file", folder) == "spaces"
    # The content names the data set: changed, it is another.
    (folder / name.format("test")).write_text("d\n")
    assert load_words(path=folder, data_dir=tmp_path)["test"] == "d\n"


def test_compressed_files(tmp_path):
    folder = write(tmp_path / "text", "ptb.{}.txt")
    for name, opener, suffix in (("ptb.train.txt", gzip.open, ".gz"), ("ptb.test.txt", lzma.open, ".xz")):
        with opener(folder / (name + suffix), "wb") as file:
            file.write((folder / name).read_bytes())
        (folder / name).unlink()
    assert load_words(path=folder, data_dir=tmp_path) == TEXTS


@pytest.mark.parametrize("where", ["", "ptb"])
def test_named_texts_are_found_where_tfds_keeps_manual_downloads(tmp_path, small, where):
    write(tmp_path / "downloads" / "manual" / where, "ptb.{}.txt")
    assert load_words("ptb", data_dir=tmp_path) == TEXTS


def test_another_text_under_a_known_name_is_refused(tmp_path):
    folder = write(tmp_path / "text", "wiki.{}.tokens")
    with pytest.raises(
        ValueError, match=r"not WikiText-2: words, .* are train 7, validation 2, test 3, expected"
    ):
        load_words("wikitext2", folder, data_dir=tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"ptb.train.txt, ptb.valid.txt, ptb.test.txt there .*--data.path"
    ):
        load_words("ptb", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"WikiText-2 is not in .*wiki.train.tokens"):
        load_words("wikitext2", tmp_path, data_dir=tmp_path)
    (tmp_path / "ptb.train.txt").write_text("a\n")
    with pytest.raises(
        FileNotFoundError, match=r"has ptb.train.txt but not ptb.valid.txt and not ptb.test.txt"
    ):
        load_words(path=tmp_path, data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        load_words(path=tmp_path / "nowhere", data_dir=tmp_path)
    with pytest.raises(ValueError, match="one of python_docs, ptb, wikitext2, file, got 'ptp'"):
        load_words("ptp", data_dir=tmp_path)


def test_wikitext2_without_a_network_says_what_to_do(tmp_path, offline):
    with pytest.raises(ConnectionError, match=r"wikitext-2-v1.zip .*wiki.test.tokens as --data.path FOLDER"):
        load_words("wikitext2", data_dir=tmp_path)


def test_wikitext2_is_downloaded_and_checked(tmp_path, small, monkeypatch):
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for split, text in TEXTS.items():
            file.writestr(f"wikitext-2/wiki.{NAMES[split]}.tokens", text)
    monkeypatch.setattr(word_corpus, "require_host", lambda host, instead: None)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda self, url: archive)
    assert load_words("wikitext2", data_dir=tmp_path) == TEXTS
    archive.unlink()
    assert load_words("wikitext2", data_dir=tmp_path) == TEXTS


def test_a_damaged_copy_is_named(tmp_path):
    folder = write(tmp_path / "text", "{}.txt")
    load_words(path=folder, data_dir=tmp_path)
    (info,) = (tmp_path / "word_corpus").glob("*/1.0.0")
    for record in info.glob("*train*record*"):
        record.write_bytes(record.read_bytes()[:-40])
    with pytest.raises(RuntimeError, match=r"word_corpus.* is damaged .*delete this folder"):
        load_words(path=folder, data_dir=tmp_path)


def test_a_text_in_one_file_is_cut_at_line_ends(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line number {n}\n" for n in range(100)))
    texts = load_words(path=path, splits=(80, 10, 10), data_dir=tmp_path)
    assert "".join(texts.values()) == path.read_text()
    assert all(text.endswith("\n") for text in texts.values())
    assert len(texts["train"].split("\n")) in (81, 82)
    assert tokenizer_of("file", path) == "words"


@given(st.text("ab \n", min_size=3), st.lists(st.integers(0, 100), min_size=2, max_size=2))
def test_no_word_is_cut_in_two(text, cuts):
    cuts = [0, *sorted(cut % len(text) for cut in cuts), len(text)]
    parts = {n: text[a:b] for n, (a, b) in zip(TEXTS, itertools.pairwise(cuts), strict=True) if a < b}
    moved = at_line_ends(parts)
    assert "".join(moved.values()) == text
    assert [word for part in moved.values() for word in part.split()] == text.split()


@pytest.mark.skipif(not PTB.exists(), reason="needs shared/data/ptb beside the repository")
def test_penn_treebank(tmp_path):
    texts = load_words("ptb", PTB, data_dir=tmp_path)
    words = split_words(texts["train"], "spaces")
    assert len(set(words)) == 10_000
    assert set(split_words(texts["test"], "spaces")) <= set(words)
