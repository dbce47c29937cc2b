import collections
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmx.data import WordVocabulary, split_words

words = st.lists(st.sampled_from(["a", "b", "ß", "x y", "<unk>", "<eos>", ""]), min_size=1)


@given(words)
def test_decode_inverts_encode(text):
    vocabulary = WordVocabulary.from_counts(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert vocabulary.decode(ids) == text
    assert len(vocabulary) == len(set(text))
    again = WordVocabulary(json.loads(json.dumps(vocabulary.tokens)), vocabulary.unknown)
    assert again == vocabulary
    assert hash(again) == hash(vocabulary)


@given(words, st.randoms(use_true_random=False), st.integers(1, 3))
def test_the_order_is_by_count_then_alphabet_whatever_the_order_of_the_text(text, random, least):
    counts = collections.Counter(text)
    expected = sorted((word for word in counts if counts[word] >= least), key=lambda w: (-counts[w], w))
    shuffled = list(text)
    random.shuffle(shuffled)
    if expected:
        assert list(WordVocabulary.from_counts(text, least=least).tokens) == expected
        assert WordVocabulary.from_counts(iter(shuffled), least=least).tokens == tuple(expected)
    else:
        with pytest.raises(ValueError, match="at least one word"):
            WordVocabulary.from_counts(text, least=least)


def test_specials_come_first_and_count_in_the_size():
    text = ["b", "<unk>", "a", "a", "c", "c", "c"]
    vocabulary = WordVocabulary.from_counts(text, size=4, specials=["<pad>", "<unk>"])
    assert vocabulary.tokens == ("<pad>", "<unk>", "c", "a")
    assert vocabulary.encode(["a", "never", "<pad>", "b"]).tolist() == [3, 1, 0, 1]
    # Without <unk> nothing stands for what is unknown.
    assert WordVocabulary.from_counts(["a"]).unknown is None


def test_unknown_words_without_a_place_are_counted_and_named():
    with pytest.raises(ValueError, match=r"2 of 3 words are not in the vocabulary of 1: 'b' at 1, 'c' at 2"):
        WordVocabulary(["a"], None).encode(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"7 of 7 .*'b' at 4, \.\.\."):
        WordVocabulary(["a"], None).encode(["b"] * 7)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WordVocabulary([]), ValueError, "at least one word, got none"),
        (lambda: WordVocabulary(["a", "b", "a"], None), ValueError, "distinct, but 'a' occurs 2 times"),
        (lambda: WordVocabulary(["a"]), ValueError, "unknown word '<unk>' must be one of the 1 words"),
        (lambda: WordVocabulary("abc", None), TypeError, "a sequence of words, got one string"),
        (lambda: WordVocabulary(["a", 1], None), TypeError, "words must be strings, got int"),
        (lambda: WordVocabulary(["a"], None).encode("a"), TypeError, "got one string"),
        (lambda: WordVocabulary.from_counts(["a"], least=0), ValueError, "least must be at least 1, got 0"),
        (
            lambda: WordVocabulary.from_counts("a", size=1, specials="s"),
            ValueError,
            "above the 1 special",
        ),
        (lambda: WordVocabulary(["a"], None).decode([1]), ValueError, r"in \[0, 1\), got 1 at position 0"),
        (lambda: WordVocabulary(["a"], None).decode([[0]]), ValueError, r"one-dimensional \[N\]"),
        (lambda: WordVocabulary(["a"], None).decode([0.0]), ValueError, "integers, got dtype float64"),
        (lambda: split_words("a", "commas"), ValueError, 'must be "spaces" or "words", got \'commas\''),
    ],
)
def test_what_is_wrong_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_empty():
    vocabulary = WordVocabulary(["a"], None)
    assert vocabulary.encode([]).shape == (0,)
    assert vocabulary.decode([]) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n", ["<eos>"]),
        ("a b", ["a", "b", "<eos>"]),
        ("a\n\nb\n", ["a", "<eos>", "<eos>", "b", "<eos>"]),
        ("<unk> it's 3.5, e-mail.\n", ["<unk>", "it's", "3.5", ",", "e-mail", ".", "<eos>"]),
    ],
)
def test_lines_end_with_a_word_of_their_own(text, expected):
    assert split_words(text) == expected
    spaced = [word for line in text.split("\n") for word in [*line.split(), "<eos>"]]
    if text.endswith("\n") or not text:
        spaced.pop()
    assert split_words(text, "spaces") == spaced
