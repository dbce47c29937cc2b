import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmx.data import CharVocabulary

any_text = st.text(st.characters(), min_size=1)  # includes lone surrogates and characters beyond 16 bits


@given(any_text)
def test_ids_are_positions_among_the_sorted_distinct_characters(text):
    vocabulary = CharVocabulary.from_text(text)
    assert list(vocabulary.characters) == sorted(set(text))
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == [vocabulary.characters.index(character) for character in text]


@given(any_text)
def test_decode_inverts_encode(text):
    vocabulary = CharVocabulary.from_text(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert CharVocabulary(vocabulary.characters) == vocabulary
    assert len(vocabulary) == len(set(text))


def test_vocabulary_depends_on_the_set_of_characters_only():
    assert CharVocabulary.from_text("hello") == CharVocabulary.from_text("oleh")
    assert hash(CharVocabulary.from_text("hello")) == hash(CharVocabulary.from_text("oleh"))


def test_empty_text_and_empty_ids():
    vocabulary = CharVocabulary("ab")
    ids = vocabulary.encode("")
    assert ids.shape == (0,)
    assert ids.dtype == np.int32
    assert vocabulary.decode([]) == ""
    assert vocabulary.decode(ids) == ""


@pytest.mark.parametrize(
    ("characters", "message"),
    [
        ("", "at least one character"),
        ("aab", "distinct and sorted.*'a' at position 1 follows 'a'"),
        ("acb", "distinct and sorted.*'b' at position 2 follows 'c'"),
    ],
)
def test_invalid_characters_are_refused(characters, message):
    with pytest.raises(ValueError, match=message):
        CharVocabulary(characters)


def test_characters_must_be_a_string():
    with pytest.raises(TypeError, match="must be a str, got list"):
        CharVocabulary(["a", "b"])


def test_unknown_characters_are_counted_and_the_first_named():
    vocabulary = CharVocabulary("abc")
    with pytest.raises(ValueError, match="characters are not in the vocabulary") as caught:
        vocabulary.encode("aXbYcZXYZX")
    message = str(caught.value)
    assert "7 of 10 characters" in message
    assert "'X' at 1, 'Y' at 3, 'Z' at 5, 'X' at 6, 'Y' at 7, ...;" in message
    assert "its 3 characters are 'abc'" in message


@pytest.mark.parametrize("unknown", ["A", "b", "é", "\U0001f600", "\ud800"])  # below, between, above
def test_unknown_characters_anywhere_in_the_order_are_found(unknown):
    with pytest.raises(ValueError, match=r"1 of 3 characters are not in the vocabulary.* at 1;"):
        CharVocabulary("acz").encode("a" + unknown + "z")


def test_error_shows_only_the_beginning_of_a_large_vocabulary():
    vocabulary = CharVocabulary.from_text("".join(map(chr, range(1000, 2000))))
    with pytest.raises(ValueError, match="and 960 more") as caught:
        vocabulary.encode("x")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 3], r"in \[0, 3\), got 3 at position 1 \(1 of 2"),
        ([0, 1, -1], r"in \[0, 3\), got -1 at position 2"),
        (np.array([2**40]), "got 1099511627776 at position 0"),
        ([[0, 1]], r"one-dimensional \[N\], got shape \(1, 2\)"),
        ([0.0, 1.0], "integers, got dtype float64"),
    ],
)
def test_invalid_ids_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        CharVocabulary("abc").decode(ids)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_decode_takes_any_integer_type(dtype):
    assert CharVocabulary("abc").decode(np.array([2, 0], dtype)) == "ca"
