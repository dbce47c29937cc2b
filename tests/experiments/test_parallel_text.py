"""Pairs of sentences: read from folders, from files and from numerals; and what is refused."""

import gzip
import itertools
import lzma
import pathlib
import shutil
import warnings

import pytest

from experiments.datasets import parallel_text
from experiments.datasets.parallel_text import load_pairs, numerals

ROOT = pathlib.Path(__file__).resolve().parents[2]
MULTI30K = ROOT.parent / "shared" / "data" / "multi30k"

needs_multi30k = pytest.mark.skipif(
    not MULTI30K.exists(), reason="needs shared/data/multi30k beside the repository"
)


@pytest.fixture
def folder(tmp_path):
    """A small folder of two languages."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, count in {"train": 20, "val": 4, "test": 3, "test-2": 2}.items():
        for language in ("de", "en"):
            lines = [f"{language} {name} satz nummer {k}" for k in range(count)]
            (folder / f"{name}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def load(tmp_path):
    def load(path, source="de", target="en", **options):
        return load_pairs(
            path=path, source_language=source, target_language=target, data_dir=tmp_path / "data", **options
        )

    return load


def test_a_folder_of_aligned_lines(folder, load, capfd):
    pairs = load(folder)
    sizes = {split: len(those) for split, those in pairs.items()}
    assert sizes == {"train": 20, "validation": 4, "test": 3, "test_2": 2}
    assert pairs["validation"][3] == ("de val satz nummer 3", "en val satz nummer 3")
    assert load(folder, "en", "de")["train"][0] == ("en train satz nummer 0", "de train satz nummer 0")
    assert load(folder) == pairs  # the prepared copy
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_character(folder, load, encoding):
    expected = load(folder)
    text = (folder / "train.de").read_text(encoding="utf-8")
    (folder / "train.de").write_text(text, encoding=encoding)
    assert load(folder) == expected


def test_archives_are_read_as_they_are(folder, load):
    expected = load(folder)
    for name, opener in {"train.de": gzip.open, "val.en": lzma.open}.items():
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        suffix = {gzip.open: ".gz", lzma.open: ".xz"}[opener]
        with opener(folder / (name + suffix), "wb") as file:
            file.write(content)
    assert load(folder) == expected
    whole = (folder / "train.de.gz").read_bytes()
    (folder / "train.de.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train\.de\.gz is not a whole \.gz file"):
        load(folder)


def test_two_files_are_divided_by_the_seed(folder, load):
    paths = {"path": folder / "train.de", "target_path": folder / "train.en", "splits": (50, 25, 25)}
    pairs = load(**paths, seed=1)
    assert [len(pairs[split]) for split in ("train", "validation", "test")] == [10, 5, 5]
    everything = list(itertools.chain(*pairs.values()))
    assert sorted(everything) == sorted(load(folder)["train"])
    assert all(a.split()[2:] == b.split()[2:] for a, b in everything)
    assert load(**paths, seed=1) == pairs
    assert load(**paths, seed=2) != pairs


def test_numerals_are_numbers_in_words():
    found = numerals("en", "de")
    assert [len(found[split]) for split in ("train", "validation", "test")] == [6000, 300, 300]
    sources = [source for pairs in found.values() for source, _ in pairs]
    assert len(set(sources)) == len(sources)
    known = dict(itertools.chain(*found.values()))
    assert {"one", "twelve", "three hundred"} <= set(sources)
    short = sum("thousand" not in source for source in sources)
    assert 700 < short < 1000  # most of those there are
    assert all("hundert" in target for source, target in known.items() if "hundred" in source)
    with pytest.raises(ValueError, match="does not know one of the languages en, xx"):
        numerals("en", "xx")


def test_only_line_feeds_end_lines_and_texts_are_normalised(folder, load):
    lines = ["a\u2028b\x85c", " Gro\u0308ße \r", *["x"] * 18]
    (folder / "train.de").write_bytes("\n".join(lines).encode())
    (folder / "train.en").write_bytes("\n".join(["yy"] * 20).encode())
    pairs = load(folder)["train"]
    assert pairs[0][0] == "a\u2028b\x85c"
    assert pairs[1][0] == "Gr\u00f6ße"


def test_empty_lines_are_left_out_and_counted(folder, load):
    lines = (folder / "train.de").read_text().split("\n")
    lines[3], lines[7] = "", "  "
    (folder / "train.de").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"2 of 20 pairs of .*train.de and .*train.en are skipped"):
        pairs = load(folder)["train"]
    assert len(pairs) == 18
    assert all(a.split()[2:] == b.split()[2:] for a, b in pairs)


def test_files_that_look_shifted_are_pointed_out(folder, load):
    lines = ["short", "a sentence that is much longer than the other one is"] * 10
    (folder / "train.de").write_text("\n".join(lines))
    (folder / "train.en").write_text("\n".join([*lines[1:], lines[0]]))
    with pytest.warns(UserWarning, match="in 20 of 20 pairs .* more than 4 times as long .* aligned"):
        load(folder)


def lacking(name):
    return lambda folder: (folder / name).unlink()


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


ERRORS = {
    "unequal": (written("val.en", b"one\ntwo\n"), ValueError, r"val\.de has 4 lines and .*val\.en has 2"),
    "not UTF-8": (
        written("train.de", b"gut\ncaf\xe9\n" + b"x\n" * 18), ValueError, "byte 0xe9 in line 2 .*iconv",
    ),
    "one language": (lacking("test.en"), FileNotFoundError, r"test in one language only: test\.en is miss"),
    "no direction": (lacking("train.en"), ValueError, r"from de to en: there is no train\.en .* train\.de"),
    "no training": (lambda f: [lacking(f"train.{x}")(f) for x in ("de", "en")], ValueError, "no file train"),
    "nothing left": (
        lambda f: [written(f"train.{x}", b"")(f) for x in ("de", "en")], ValueError, "no pair is left",
    ),
    "no folder": (shutil.rmtree, FileNotFoundError, "does not exist; pass an existing folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_bad_folders_are_named(case, folder, load):
    spoil, error, message = ERRORS[case]
    spoil(folder)
    with pytest.raises(error, match=message):
        load(folder)


def test_bad_arguments_are_named(folder, load, tmp_path):
    with pytest.raises(ValueError, match=r"from fr to en: there is no train\.fr .* train\.de and train\.en"):
        load(folder, "fr", "en")
    with pytest.raises(ValueError, match="must differ, got 'de' twice"):
        load(folder, "de", "de")
    with pytest.raises(ValueError, match="one of numerals, multi30k, files, got 'file'"):
        load_pairs("file", folder)
    with pytest.raises(ValueError, match="source 'files' needs a folder"):
        load_pairs("files")
    with pytest.raises(ValueError, match="is a file: pass its translations"):
        load(folder / "train.de")
    with pytest.raises(ValueError, match="target_path needs path"):
        load_pairs("files", target_path=folder / "train.en")
    with pytest.raises(
        FileNotFoundError, match=r"non-commercial .* train.*github\.com/multi30k/.* --data\.path FOLDER"
    ):
        load_pairs("multi30k", source_language="de", target_language="en", data_dir=tmp_path)
    with pytest.raises(ValueError, match="splits must be 1 to 3 shares"):
        load(folder / "train.de", target_path=folder / "train.en", splits=(0, 1))


def test_a_damaged_copy_is_named(folder, load, tmp_path):
    load(folder)
    (prepared,) = (tmp_path / "data" / "parallel_text").glob("files-de-en-*/1.0.0")
    for file in prepared.glob("*.array_record*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"files-de-en-\w+ is damaged \(.*\); delete this folder"):
        load(folder)


@needs_multi30k
def test_multi30k(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = load_pairs(
            "multi30k", MULTI30K, source_language="de", target_language="en", data_dir=tmp_path
        )
    assert {split: len(those) for split, those in pairs.items()} == {
        "train": 29_000, "validation": 1014, "test": 1000,
        "test_2017_flickr": 1000, "test_2017_mscoco": 461, "test_2018_flickr": 1071,
    }  # fmt: skip
    assert pairs["train"][0] == (
        "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
        "Two young, White males are outside near many bushes.",
    )


def test_docstring_examples():
    # pytest collects doctests below lstmx/ only: under a second module name TFDS would refuse the builder.
    import doctest

    results = doctest.testmod(parallel_text)
    assert results.attempted >= 2
    assert results.failed == 0
