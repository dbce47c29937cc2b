"""Subwords: what is learnt, that nothing is lost, and that it is the same every time."""

import itertools
import json
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmx.data import Subwords

WORDS = ["the", "lower", "lowest", "new", "newer", "wide", "wider", "zwölf", "größer", "über", "low"]
WEIGHTS = [31, 7, 5, 17, 3, 11, 2, 13, 19, 23, 37]
TEXTS = [" ".join(random.Random(k).choices(WORDS, WEIGHTS, k=8)) for k in range(300)]
SUBWORDS = Subwords.train(TEXTS, size=285)


def test_pairs_are_merged_as_published():
    """The most frequent pair, again and again; which of several equally frequent ones is left open."""
    words = Counter(word for text in TEXTS for word in text.split())
    pieces = {word: [bytes([b]) for b in (" " + word).encode()] for word in words}
    learnt = [text.encode() for text in SUBWORDS.tokens(range(4 + 256, len(SUBWORDS)))]
    checked = 0
    for piece in learnt:
        pairs = Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        best = [pair for pair in pairs if pairs[pair] == max(pairs.values())]
        merged = [pair for pair in best if b"".join(pair) == piece]
        if not merged:
            # Half of a letter of two bytes has no text of its own to compare.
            assert "\ufffd".encode() in piece
            break
        checked += 1
        for word, parts in pieces.items():
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == merged[0]:
                    parts[at : at + 2] = [piece]
                at += 1
            pieces[word] = parts
    assert checked >= 9


def test_special_tokens_come_first_and_no_text_becomes_one():
    assert SUBWORDS.tokens(range(4)) == ["<pad>", "<unk>", "<bos>", "<eos>"]
    assert [SUBWORDS.id_of(name) for name in ("<pad>", "<eos>")] == [0, 3]
    ids = SUBWORDS.encode("a <pad> b<eos>")
    assert ids.min() >= 4
    assert SUBWORDS.decode(ids) == "a <pad> b<eos>"
    assert SUBWORDS.decode([2, *ids, 3, 0]) == "a <pad> b<eos>"
    with pytest.raises(ValueError, match="no token '<mask>'"):
        SUBWORDS.id_of("<mask>")


@given(st.text())
def test_any_text_is_given_back(text):
    text = text.encode("utf-8", "replace").decode().strip()
    ids = SUBWORDS.encode(text)
    assert ids.dtype == np.int32
    assert SUBWORDS.decode(ids) == text
    assert len(SUBWORDS.tokens(ids)) == len(ids)
    (same,) = SUBWORDS.encode_all([text])
    assert np.array_equal(same, ids)


def test_frequent_words_are_one_token():
    assert SUBWORDS.tokens(SUBWORDS.encode("the größer")) == [" the", " größer"]
    assert len(SUBWORDS.encode("the größer")) < len(SUBWORDS.encode("eht reßörg"))


def test_the_same_text_the_same_vocabulary():
    again = Subwords.train(reversed(TEXTS), size=285)
    assert again.to_json() == SUBWORDS.to_json()
    program = (
        "import json, sys; from lstmx.data import Subwords;"
        "print(json.dumps(Subwords.train(json.load(sys.stdin), size=285).to_json()))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    assert json.loads(elsewhere.stdout) == SUBWORDS.to_json()


def test_a_vocabulary_is_a_text():
    text = SUBWORDS.to_json()
    again = Subwords.from_json(text)
    assert again.to_json() == text
    assert len(again) == len(SUBWORDS) == 285
    assert np.array_equal(again.encode(TEXTS[0]), SUBWORDS.encode(TEXTS[0]))
    with pytest.raises(ValueError, match="not a vocabulary of subwords"):
        Subwords.from_json("{}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 259}, "at least 260 \\(256 bytes and 4 special tokens\\), got 259"),
        ({"texts": []}, "learnt from text, got none"),
        ({"texts": ["  ", ""]}, "learnt from text, got none"),
        ({"specials": ("<a>", "<a>")}, "specials must be distinct"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Subwords.train(**{"texts": TEXTS, "size": 300, **arguments})


def test_ids_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"ids must be in \[0, 285\), got 285"):
        SUBWORDS.decode([5, 285])
