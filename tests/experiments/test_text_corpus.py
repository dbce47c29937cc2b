import doctest
import gzip
import hashlib
import lzma
import pathlib
import random
import shutil
import socket
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.datasets import text_corpus
from experiments.datasets.text_corpus import TextCorpus, load_text, python_docs, read_text, text_corpus_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY_SHAKESPEARE = ROOT.parent / "shared" / "data" / "tiny_shakespeare" / "input.txt.gz"

needs_tiny_shakespeare = pytest.mark.skipif(
    not TINY_SHAKESPEARE.exists(), reason="needs shared/data/tiny_shakespeare beside the repository"
)


@pytest.fixture
def corpus(tmp_path):
    """A file of 300,000 characters, several records long, in which no two places look alike."""
    path = tmp_path / "corpus.txt"
    letters = random.Random(0).choices("abcdefgh äöü€𝄞\n\r", k=300_000)
    path.write_text("".join(letters), encoding="utf-8", newline="")
    return path


@pytest.fixture
def preparations(monkeypatch):
    """Names of the configurations that were prepared, in order."""
    names = []
    split_generators = TextCorpus._split_generators

    def counted(self, dl_manager):
        names.append(self.builder_config.name)
        return split_generators(self, dl_manager)

    monkeypatch.setattr(TextCorpus, "_split_generators", counted)
    return names


@pytest.fixture
def offline(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def exactly(path):
    return path.read_bytes().decode("utf-8")


def prepared_folder(data_dir):
    (folder,) = (data_dir / "text_corpus").glob("*/1.0.0")
    return folder


def test_docstring_examples():
    # pytest collects doctests below lstmx/ only: under a second module name TFDS would refuse the builder.
    results = doctest.testmod(text_corpus)
    assert results.attempted >= 3
    assert results.failed == 0


def test_python_docs_end_to_end(tmp_path, preparations, capfd):
    text = load_text(data_dir=tmp_path)
    whole = python_docs()
    assert whole == python_docs()
    assert 300_000 < len(whole) < 900_000
    assert list(text) == ["train", "validation", "test"]
    assert "".join(text.values()) == whole
    assert len(text["train"]) == len(whole) * 90 // 100
    assert len(text["train"]) + len(text["validation"]) == len(whole) * 95 // 100
    assert load_text("python_docs", data_dir=str(tmp_path)) == text
    assert len(preparations) == 1
    assert capfd.readouterr().out == ""


def test_records_keep_their_order_over_several_records(corpus, tmp_path):
    text = load_text(path=corpus, splits=(60, 30, 10), data_dir=tmp_path / "data")
    assert "".join(text.values()) == exactly(corpus)
    assert [len(part) for part in text.values()] == [180_000, 90_000, 30_000]
    # Read without this library's code, as a set prepared on another machine would be.
    source = tfds.builder_from_directory(prepared_folder(tmp_path / "data")).as_data_source("train")
    records = [record["text"].decode() for record in source]
    assert [len(record) for record in records] == [65_536, 65_536, 48_928]
    assert "".join(records) == text["train"]


def test_records_keep_their_order_over_several_shards(corpus, tmp_path):
    builder = TextCorpus(config=text_corpus_config(path=corpus, splits=(1,)), data_dir=tmp_path / "data")
    builder.download_and_prepare(
        file_format="array_record", download_config=tfds.download.DownloadConfig(num_shards=3)
    )
    assert len(list(prepared_folder(tmp_path / "data").glob("*.array_record-*"))) == 3
    assert load_text(path=corpus, splits=(1,), data_dir=tmp_path / "data") == {"train": exactly(corpus)}


def test_builder_has_the_default_text_without_a_config(tmp_path):
    builder = TextCorpus(data_dir=tmp_path)
    assert builder.builder_config.name == text_corpus_config().name
    assert builder.builder_config.name.startswith("python_docs-")


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_files_are_the_same_data_set(corpus, tmp_path, preparations, suffix, opener):
    compressed = tmp_path / f"other{suffix}"
    with opener(compressed, "wb") as file:
        file.write(corpus.read_bytes())
    assert load_text(path=compressed, data_dir=tmp_path) == load_text(path=corpus, data_dir=tmp_path)
    assert len(preparations) == 1


def test_folder_joins_its_texts_in_sorted_order(tmp_path):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "c.txt").write_text("third\n")
    (folder / "b" / "z.md").write_text("second")
    with gzip.open(folder / "a.txt.gz", "wt") as file:
        file.write("first")
    (folder / "ignored.csv").write_text("not a text")
    assert read_text(folder) == "first\nsecond\nthird\n"
    assert load_text(path=folder, splits=[1], data_dir=tmp_path) == {"train": "first\nsecond\nthird\n"}


def test_second_load_reads_and_changed_content_or_splits_prepare_anew(corpus, tmp_path, preparations):
    data_dir = tmp_path / "data"
    first = load_text(path=corpus, data_dir=data_dir)
    assert load_text(path=corpus, data_dir=data_dir) == first
    assert len(preparations) == 1
    corpus.write_text(exactly(corpus)[:-1] + "!", encoding="utf-8", newline="")
    changed = load_text(path=corpus, data_dir=data_dir)
    assert changed["test"][-1] == "!"
    assert changed["train"] == first["train"]
    assert len(preparations) == 2
    assert set(load_text(path=corpus, splits=(90, 10), data_dir=data_dir)) == {"train", "validation"}
    assert len(set(preparations)) == 3


def test_two_preparations_write_the_same_bytes(corpus, tmp_path):
    digests = []
    for data_dir in (tmp_path / "one", tmp_path / "two"):
        load_text(path=corpus, data_dir=data_dir)
        files = sorted(prepared_folder(data_dir).iterdir())
        digests.append([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
    assert digests[0] == digests[1]


def test_config_name_holds_source_content_and_splits(corpus):
    digest = hashlib.sha256(corpus.read_bytes()).hexdigest()
    assert text_corpus_config(path=corpus).name == f"file-{digest[:12]}-90-5-5"
    assert text_corpus_config(path=corpus, splits=(0.9, 0.05, 0.05)).name == f"file-{digest[:12]}-90-5-5"
    names = {text_corpus_config(path=corpus, splits=(part, 1)).name for part in (1, 2, 3, 3.0000001)}
    assert len(names) == 4


@example(10, (7, 2, 1), 0.1)  # in floating point 0.7 is below 7/10, and a character would be lost
@given(
    st.integers(1, 200),
    st.tuples(st.integers(1, 10), st.integers(0, 10), st.integers(0, 10)),
    st.sampled_from([1, 10, 0.1, 0.01]),
)
def test_splits_cut_at_the_floor_of_the_exact_fraction(length, weights, scale):
    text = "".join(map(chr, range(1000, 1000 + length)))
    cuts = [0, *(sum(weights[: count + 1]) * length // sum(weights) for count in range(3))]
    expected = {
        name: text[cuts[at] : cuts[at + 1]]
        for at, name in enumerate(["train", "validation", "test"])
        if cuts[at + 1] > cuts[at]
    }
    splits = text_corpus._exact_fractions([round(weight * scale, 4) for weight in weights])
    if cuts[1] == 0:
        with pytest.raises(ValueError, match=f"train split would be empty: the text has {length} char"):
            text_corpus._split(text, splits)
    else:
        assert text_corpus._split(text, splits) == expected


@pytest.mark.parametrize("splits", [(), (1, 1, 1, 1), (-1, 2), (0, 0, 0), (0, 1), (np.nan,), (np.inf, 1)])
def test_invalid_splits_are_refused(corpus, splits):
    with pytest.raises(ValueError, match="splits must be 1 to 3 fractions of train, validation, test"):
        load_text(path=corpus, splits=splits, data_dir="unused")


def test_empty_train_split_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(ValueError, match=r"train split would be empty: the text has 3 characters .* 10 %"):
        load_text(path=tmp_path / "short.txt", splits=(10, 90), data_dir=tmp_path)


def test_wrong_source_and_missing_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one of python_docs, tiny_shakespeare, file, got 'wikitext'"):
        load_text("wikitext", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"needs the path .* --data\.path"):
        load_text("file", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing.txt does not exist"):
        load_text(path=tmp_path / "missing.txt", data_dir=tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder holds no text: no \*.txt, \*.md, \*.txt.gz"):
        load_text(path=tmp_path / "folder", data_dir=tmp_path)
    assert not (tmp_path / "text_corpus").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "a.txt.gz is empty"),
        ("a.txt", b"caf\xe9 au lait", r"a.txt is not UTF-8: byte 0xe9 at offset 3 .*iconv"),
        ("a.txt", "\ufeff".encode(), "a.txt is empty"),
        ("a.txt", b"\xff\xfea", "a.txt begins as UTF-16 and is not: truncated data at offset 2"),
        ("a.bin", b"ab\0c", "a.bin is not text: it has a NUL character at offset 2"),
        ("a.txt.gz", b"plain", r"a.txt.gz is not a whole .gz file"),
        ("a.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], r"a.txt.gz is not a whole .gz file"),
        ("a.txt.xz", lzma.compress(b"x" * 99)[:-9], r"a.txt.xz is not a whole .xz file"),
        ("a.txt.xz", b"plain", r"a.txt.xz is not a whole .xz file"),
    ],
)
def test_what_is_not_text_is_refused_before_preparing(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_text(path=tmp_path / name, data_dir=tmp_path)
    if not name.endswith((".bin", ".xz")):  # as one file of a folder
        with pytest.raises(ValueError, match=message if b"x" in content else "a.txt|is empty"):
            load_text(path=tmp_path, data_dir=tmp_path)
    assert not (tmp_path / "text_corpus").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_a_byte_order_mark_is_no_character(tmp_path, encoding):
    text = "na\u00efve caf\u00e9\n" * 4
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes((mark + text).encode(encoding))
    assert load_text(path=tmp_path / "a.txt", splits=(100,), data_dir=tmp_path) == {"train": text}
    assert read_text(tmp_path) == text + "\n" + text


def test_content_that_changes_between_naming_and_preparing_is_refused(corpus, tmp_path):
    builder = TextCorpus(config=text_corpus_config(path=corpus), data_dir=tmp_path)
    corpus.write_text("something else")
    with pytest.raises(ValueError, match=r"corpus.txt changed while it was prepared; run again"):
        builder.download_and_prepare(file_format="array_record")
    assert not pathlib.Path(builder.data_dir).exists()


def test_killed_preparation_is_prepared_anew(corpus, tmp_path, preparations):
    text = load_text(path=corpus, data_dir=tmp_path)
    (prepared_folder(tmp_path) / "dataset_info.json").unlink()
    assert load_text(path=corpus, data_dir=tmp_path) == text
    assert len(preparations) == 2


def damage_by_deleting(folder):
    next(folder.glob("*train.array_record*")).unlink()


def damage_by_truncating(folder):
    file = next(folder.glob("*train.array_record*"))
    file.write_bytes(file.read_bytes()[:1000])


def damage_by_swapping_splits(folder):
    train, test = next(folder.glob("*train.array_record*")), next(folder.glob("*test.array_record*"))
    shutil.copy(test, train)


def damage_the_description(folder):
    (folder / "dataset_info.json").write_text("{")


def damage_by_dropping_a_split(folder):
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"name": "test"', '"name": "other"'))


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_deleting,
        damage_by_truncating,
        damage_by_swapping_splits,
        damage_the_description,
        damage_by_dropping_a_split,
    ],
)
def test_damaged_preparation_is_named_and_repaired_by_deleting_it(corpus, tmp_path, damage):
    text = load_text(path=corpus, data_dir=tmp_path)
    folder = prepared_folder(tmp_path)
    damage(folder)
    with pytest.raises(RuntimeError, match=r"damaged.*delete this folder and run again") as caught:
        load_text(path=corpus, data_dir=tmp_path)
    assert str(folder.parent) in str(caught.value)
    shutil.rmtree(folder.parent)
    assert load_text(path=corpus, data_dir=tmp_path) == text


def test_preparation_with_other_splits_under_this_name_is_damage(corpus, tmp_path):
    load_text(path=corpus, splits=(50, 50), data_dir=tmp_path)
    folder = prepared_folder(tmp_path).parent
    name = text_corpus_config(path=corpus, splits=(60, 40)).name
    info = folder / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace(folder.name, name))
    folder.rename(folder.with_name(name))
    with pytest.raises(RuntimeError, match=f"damaged.*its splits are not cut where {name} says"):
        load_text(path=corpus, splits=(60, 40), data_dir=tmp_path)


def test_what_goes_wrong_without_a_prepared_set_is_not_called_damage(tmp_path, monkeypatch):
    def broken(self):
        raise ModuleNotFoundError("No module named 'importlib_resources'")

    monkeypatch.setattr(TextCorpus, "_info", broken)
    with pytest.raises(ModuleNotFoundError, match="importlib_resources"):
        load_text(data_dir=tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_flipped_byte_is_never_read_silently(corpus, tmp_path, seed):
    text = load_text(path=corpus, data_dir=tmp_path)
    file = next(prepared_folder(tmp_path).glob("*train.array_record*"))
    content = bytearray(file.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 0x55
    file.write_bytes(content)
    try:
        assert load_text(path=corpus, data_dir=tmp_path) == text  # the byte was padding
    except RuntimeError as error:
        assert "is damaged" in str(error)  # noqa: PT017 (either outcome is right)


@pytest.mark.usefixtures("offline")
def test_tiny_shakespeare_offline_says_at_once_what_to_do(tmp_path):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"cannot reach raw.*--data\.path FILE"):
        load_text("tiny_shakespeare", data_dir=tmp_path)
    assert time.monotonic() - start < 5
    assert not list(tmp_path.rglob("*.array_record*"))


def test_tiny_shakespeare_must_be_tiny_shakespeare(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"is not tiny Shakespeare: its 300000 characters.*expected 1115394"):
        load_text("tiny_shakespeare", path=corpus, data_dir=tmp_path)


def test_wrong_download_is_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(text_corpus, "require_host", lambda host, instead: None)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda self, url: corpus)
    with pytest.raises(ValueError, match="is not tiny Shakespeare"):
        load_text("tiny_shakespeare", data_dir=tmp_path)


@needs_tiny_shakespeare
@pytest.mark.usefixtures("offline")
def test_tiny_shakespeare_from_a_file_then_from_what_was_prepared(tmp_path, preparations):
    text = load_text("tiny_shakespeare", path=TINY_SHAKESPEARE, splits=(90, 10, 0), data_dir=tmp_path)
    with gzip.open(TINY_SHAKESPEARE, "rt", encoding="utf-8", newline="") as file:
        whole = file.read()
    assert text == {"train": whole[:1_003_854], "validation": whole[1_003_854:]}
    assert len(text["validation"]) == 111_540
    assert load_text("tiny_shakespeare", splits=(0.9, 0.1), data_dir=tmp_path) == text
    assert len(preparations) == 1


@needs_tiny_shakespeare
def test_tiny_shakespeare_downloaded_is_the_same_data_set(tmp_path, monkeypatch):
    downloaded = tmp_path / "input.txt"
    downloaded.write_bytes(gzip.decompress(TINY_SHAKESPEARE.read_bytes()))
    urls = []
    monkeypatch.setattr(text_corpus, "require_host", lambda host, instead: None)
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download", lambda self, url: urls.append(url) or downloaded
    )
    text = load_text("tiny_shakespeare", data_dir=tmp_path)
    assert urls == [text_corpus.TINY_SHAKESPEARE_URL]
    assert text == load_text("tiny_shakespeare", path=TINY_SHAKESPEARE, data_dir=tmp_path)
