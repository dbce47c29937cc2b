"""Labelled texts: what is read from which files, how it is split, and what is said of bad ones."""

import gzip
import json
import lzma
import time
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from experiments.datasets.labelled_files import Example
from experiments.datasets.labelled_text import LabelledText, load_labelled, made_up
from lstmx.data import prepared

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ROWS = [(f"text {number}", "good" if number % 3 else "bad") for number in range(40)]
CSV = "label,text\n" + "".join(f'{label},"{text}, really"\n' for text, label in ROWS)
TSV = "sentence\tid\ty\n" + "".join(f'"{text}\t{at}\t{label}\n' for at, (text, label) in enumerate(ROWS))
JSONL = "".join(json.dumps({"text": text, "label": label == "good"}) + "\n" for text, label in ROWS)


@pytest.fixture
def load(tmp_path):
    def load(source="made_up", path=None, **options):
        path = None if path is None else tmp_path / path
        return load_labelled(source, path, data_dir=tmp_path / "data", **options)

    return load


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
        with opener(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("name", "content", "columns", "first"),
    [
        ("all.csv", CSV, ("text", "label"), Example("text 0, really", "bad")),
        ("all.csv.gz", "\ufeff" + CSV, ("text", "label"), Example("text 0, really", "bad")),
        ("all.csv", CSV.replace(",", ";"), ("text", "label"), Example("text 0; really", "bad")),
        ("all.tsv.xz", TSV, ("sentence", "y"), Example('"text 0', "bad")),
        ("all.jsonl", "\ufeff" + JSONL, ("text", "label"), Example("text 0", "False")),
    ],
)
def test_a_file_is_split_by_a_seed(load, tmp_path, name, content, columns, first):
    write(tmp_path, {name: content})
    examples = load(path=name, columns=columns, splits=(60, 20, 20))
    assert {split: len(some) for split, some in examples.items()} == {"train": 24, "validation": 8, "test": 8}
    everything = [example for some in examples.values() for example in some]
    assert len(set(everything)) == 40
    assert first in everything
    assert load(path=name, columns=columns, splits=(60, 20, 20)) == examples
    other = load(path=name, columns=columns, splits=(60, 20, 20), split_seed=1)
    assert other != examples
    assert set(load(path=name, columns=columns, splits=(100,))["train"]) == set(everything)


def test_a_folder_has_a_file_for_each_split(load, tmp_path):
    write(
        tmp_path,
        {
            "train.csv": CSV,
            "dev.jsonl": '{"text": "a", "label": "bad"}\n',
            "test.csv.gz": "label,text\ngood,b\n",
        },
    )
    examples = load(path=".")
    assert {split: len(some) for split, some in examples.items()} == {"train": 40, "validation": 1, "test": 1}
    assert examples["validation"] == [Example("a", "bad")]


def test_without_a_validation_file_a_part_of_the_training_is_held_out(load, tmp_path):
    write(tmp_path, {"train.csv": CSV, "test.csv": 'label,text\nbad,"other"\n'})
    examples = load(path=".", splits=(75, 25, 50))
    assert {split: len(some) for split, some in examples.items()} == {
        "train": 30,
        "validation": 10,
        "test": 1,
    }


def test_sst_has_sentences_and_phrases(load, tmp_path):
    lines = {
        "train": "1 a good film\n0 bad -lrb- so bad -rrb-\n",
        "dev": "1 fine\n",
        "test": "0 dull\\/grey\n",
    }
    files = {f"sst/stsa.binary.{split}.gz": text for split, text in lines.items()}
    write(tmp_path, {**files, "glue/train.tsv": "sentence\tlabel\na good film \t1\ngood \t1\nfine \t1\n"})
    assert load("sst2", "sst")["train"] == [
        Example("a good film", "positive"),
        Example("bad ( so bad )", "negative"),
    ]
    with pytest.warns(UserWarning, match="1 of 5 training examples are also in the validation or test split"):
        examples = load("sst2", "sst", phrases=tmp_path / "glue")
    assert examples["train"][2:] == [Example("good", "positive")]
    assert examples["test"] == [Example("dull/grey", "negative")]


def test_imdb_comes_in_three_forms(load, tmp_path):
    reviews = {
        f"aclImdb/{split}/{label}/{n}_7.txt": f"{split} {label}<br />{n}"
        for split in ("train", "test")
        for label in ("neg", "pos")
        for n in range(10)
    }
    rows = {
        f"{split}.jsonl.xz": "".join(
            json.dumps({"text": text, "label": int("pos" in name)}) + "\n"
            for name, text in reviews.items()
            if split in name
        )
        for split in ("train", "test")
    }
    write(tmp_path, {**reviews, **{f"lines/{name}": text for name, text in rows.items()}})

    class ImdbReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain_text")]  # noqa: RUF012
        name = "imdb_reviews"

        def _info(self):
            label = tfds.features.ClassLabel(names=["neg", "pos"])
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split):
            for key, (name, text) in enumerate(reviews.items()):
                if split in name:
                    yield key, {"text": text, "label": name.split("/")[2]}

    wanted = load("imdb", "aclImdb", splits=(80, 20))
    assert {split: len(some) for split, some in wanted.items()} == {"train": 16, "validation": 4, "test": 20}
    assert Example("test pos 3", "positive") in wanted["test"]
    assert load("imdb", "lines", splits=(80, 20)) == wanted
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl and test\.jsonl"):
        load("imdb")
    prepared(ImdbReviews(data_dir=tmp_path / "data"))
    assert load("imdb", splits=(80, 20)) == wanted


def test_made_up_reviews_turn_on_not_and_but():
    examples = made_up()
    assert {split: len(some) for split, some in examples.items()} == {
        "train": 1500,
        "validation": 250,
        "test": 250,
    }
    texts = {text: label for some in examples.values() for text, label in some}
    assert len(texts) == 2000
    good, bad = {"good", "charming", "moving", "clever", "funny", "fresh", "gripping", "warm"}, "negative"
    for text, label in texts.items():
        *_, last = text.split(" but ")
        positive = (last.split()[-1] in good) != (" not " in last)
        assert (label != bad) == positive, text


BAD = {
    "no file": ({}, "none", r"none, which does not exist: wanted there are a file train\.csv"),
    "no train": ({"test.csv": CSV}, ".", r"a file train\.csv, train\.tsv or train\.jsonl"),
    "ending": ({"a.txt": "x"}, "a.txt", r"a\.txt must end in \.csv, \.tsv or \.jsonl"),
    "column": ({"a.csv": "text,y\na,b\n"}, "a.csv", "no column 'label', only 'text', 'y'"),
    "one label": ({"a.csv": "text,label\na,b\nc,b\n"}, "a.csv", "2 training examples have the label 'b'"),
    "latin": ({"a.csv": b"text,label\ncaf\xe9,b\n"}, "a.csv", "not UTF-8: byte 0xe9 at offset 14"),
    "fields": ({"a.csv": "text,label\na,b,c\n"}, "a.csv", r"a\.csv, line 2: 3 fields, the header has 2"),
    "quotes": ({"a.csv": 'text,label\n"a,b\n'}, "a.csv", r"a\.csv, line 2: unexpected end of data"),
    "json": ({"a.jsonl": '{"text": "a", "label": 1}\n{"te'}, "a.jsonl", r"a\.jsonl, line 2: not JSON"),
    "list": ({"a.jsonl": "[1]\n"}, "a.jsonl", r"a\.jsonl, line 1: must be an object"),
    "key": ({"a.jsonl": '{"text": "a"}\n'}, "a.jsonl", r"a\.jsonl, line 1: no column 'label'"),
    "float": ({"a.jsonl": '{"text": "a", "label": 0.5}\n'}, "a.jsonl", "must be text or whole numbers"),
    "empty": ({"a.csv": "text,label\n"}, "a.csv", "no line with a text and a label"),
    "nothing": ({"a.csv": ""}, "a.csv", r"a\.csv is empty"),
    "other label": (
        {"train.csv": CSV, "valid.csv": "text,label\na,ugly\n"},
        ".",
        "the validation split has labels that no training example has: ugly; known are bad, good",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(load, tmp_path, case):
    files, path, message = BAD[case]
    write(tmp_path, files)
    start = time.perf_counter()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load("file", path, splits=(100,))
    assert time.perf_counter() - start < 5


def test_a_delimiter_is_recognised_or_named(load, tmp_path):
    rows = [f"text, {k}{{0}}{'good' if k % 2 else 'bad'}\n" for k in range(10)]
    for name, delimiter in {";": ";", "tab": "\t", "|": "|", "~": "~"}.items():
        text = "".join(row.format(delimiter) for row in ["text{0}label\n", *rows])
        write(tmp_path, {"a.csv": text})
        named = load(path="a.csv", splits=(100,), delimiter=name)
        assert named["train"][0] == Example("text, 0", "bad")
        if name != "~":
            assert load(path="a.csv", splits=(100,)) == named
    with pytest.raises(ValueError, match=r"only 'text~label'; .* delimiter of a table by --data\.delimiter"):
        load(path="a.csv", splits=(100,))
    with pytest.raises(ValueError, match=r"delimiter must be one character or one of tab, .* got 'semi'"):
        load(path="a.csv", splits=(100,), delimiter="semi")


def test_lines_without_text_or_label_are_counted(load, tmp_path):
    write(tmp_path, {"a.csv": CSV + ",x\nbad,\n\n"})
    with pytest.warns(UserWarning, match="3 of 43 lines have no text or no label: skipped"):
        assert len(load(path="a.csv", splits=(100,))["train"]) == 40


def test_wrong_arguments_are_named(load, tmp_path):
    write(tmp_path, {"a.csv": CSV})
    with pytest.raises(ValueError, match="source must be one of made_up, sst2, imdb, file, got 'mr'"):
        load("mr")
    with pytest.raises(ValueError, match="splits must be up to 3 shares"):
        load(path="a.csv", splits=(0, 50, 50))
    with pytest.raises(FileNotFoundError, match="no phrases in"):
        load(path="a.csv", phrases=tmp_path / "none")


def test_a_damaged_copy_is_named(load, tmp_path):
    write(tmp_path, {"a.csv": CSV})
    load(path="a.csv")
    (copy,) = (tmp_path / "data").glob("labelled_text/file-*/1.0.0/*train.array_record*")
    copy.write_bytes(b"\0" * copy.stat().st_size)
    with pytest.raises(RuntimeError, match=r"is damaged .* delete this folder and run again"):
        load(path="a.csv")


def test_the_builder_is_one_of_tfds(tmp_path):
    records = prepared(LabelledText(data_dir=tmp_path), "test")
    assert len(records) == 250
    assert records[0]["label"] in (b"positive", b"negative")


@pytest.mark.skipif(not (DATA / "sst_binary").is_dir(), reason=f"no Stanford Sentiment Treebank in {DATA}")
def test_the_treebank_is_whole(tmp_path):
    with pytest.warns(UserWarning, match="4 of 74,269 training examples are also in"):
        examples = load_labelled("sst2", DATA / "sst_binary", phrases=DATA / "sst2_glue", data_dir=tmp_path)
    assert {split: len(some) for split, some in examples.items()} == {
        "train": 67_030,
        "validation": 872,
        "test": 1821,
    }
