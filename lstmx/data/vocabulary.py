"""The set of characters a language model knows, and text to ids and back."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

# How many offending characters, or characters of the vocabulary, an error shows before it stops.
_SHOWN_UNKNOWN = 5
_SHOWN_KNOWN = 40


@dataclasses.dataclass(frozen=True)
class CharVocabulary:
    """Distinct characters (Unicode code points) in sorted order; a character's id is its position.

    The whole vocabulary is its `characters` string, so nothing else needs to be stored:
    `CharVocabulary(json.loads(...))` is the same vocabulary again.

    Attributes:
      characters: the characters, distinct and in ascending order of their code points; at least one.

    Raises:
      TypeError: if `characters` is not a string.
      ValueError: if `characters` is empty, repeats a character or is not sorted.

    Example:
      >>> vocabulary = CharVocabulary.from_text("hello")
      >>> vocabulary
      CharVocabulary(characters='ehlo')
      >>> vocabulary.encode("hole")
      array([1, 3, 2, 0], dtype=int32)
      >>> vocabulary.decode([1, 0, 2, 2, 3])
      'hello'
      >>> len(vocabulary)
      4
    """

    characters: str

    def __post_init__(self):
        if not isinstance(self.characters, str):
            raise TypeError(f"characters must be a str, got {type(self.characters).__name__}")
        if not self.characters:
            raise ValueError("a vocabulary needs at least one character, got none")
        offending = np.flatnonzero(self._code_points[1:] <= self._code_points[:-1])
        if offending.size:
            at = int(offending[0])
            raise ValueError(
                "characters must be distinct and sorted by code point, but "
                f"{self.characters[at + 1]!r} at position {at + 1} follows {self.characters[at]!r}; "
                "CharVocabulary.from_text sorts for you"
            )

    @classmethod
    def from_text(cls, text: str) -> "CharVocabulary":
        """Makes the vocabulary of every character that occurs in `text`.

        Args:
          text: any non-empty string.

        Returns:
          The vocabulary; the same for every text with the same set of characters.

        Raises:
          ValueError: if `text` is empty.

        Example:
          >>> CharVocabulary.from_text("to be or not to be").characters
          ' benort'
        """
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Turns text into ids.

        Args:
          text: a string of N characters, all of them in the vocabulary.

        Returns:
          int32 [N], each in `[0, len(self))`.

        Raises:
          ValueError: if a character is not in the vocabulary; the first few are named with their positions.

        Example:
          >>> CharVocabulary("abc").encode("cab")
          array([2, 0, 1], dtype=int32)
        """
        points = _code_points(text)
        ids = np.searchsorted(self._code_points, points)
        ids = np.minimum(ids, len(self) - 1)
        unknown = np.flatnonzero(self._code_points[ids] != points)
        if unknown.size:
            shown = ", ".join(f"{text[at]!r} at {at}" for at in unknown[:_SHOWN_UNKNOWN].tolist())
            more = ", ..." if unknown.size > _SHOWN_UNKNOWN else ""
            known = self.characters[:_SHOWN_KNOWN]
            rest = f" and {len(self) - _SHOWN_KNOWN} more" if len(self) > _SHOWN_KNOWN else ""
            raise ValueError(
                f"{unknown.size} of {len(text)} characters are not in the vocabulary: {shown}{more}; "
                f"its {len(self)} characters are {known!r}{rest}"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Turns ids into text, the inverse of `encode`.

        Args:
          ids: integers [N], each in `[0, len(self))`; any array or sequence numpy can read.

        Returns:
          A string of N characters.

        Raises:
          ValueError: if the ids are not one-dimensional integers or one of them is out of range.

        Example:
          >>> CharVocabulary("abc").decode([2, 0, 1])
          'cab'
        """
        ids = checked_ids(ids, len(self))
        return self._code_points[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def __len__(self) -> int:
        return len(self.characters)

    @functools.cached_property
    def _code_points(self) -> np.ndarray:
        return _code_points(self.characters)


def _code_points(text: str) -> np.ndarray:
    # Lone surrogates are legal in a Python string and must not break the round trip.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def checked_ids(ids: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """The ids of a vocabulary of `count` tokens as an array of integers.

    Raises:
      ValueError: if they are not one-dimensional, not integers, or not all in [0, count).

    Example:
      >>> checked_ids([0, 2], 2)
      Traceback (most recent call last):
      ValueError: ids must be in [0, 2), got 2 at position 1 (1 of 2 ids are out of range)
    """
    ids = np.asarray(ids)
    if ids.ndim != 1:
        raise ValueError(f"ids must be one-dimensional [N], got shape {ids.shape}")
    if ids.size == 0:  # an empty list has no integer dtype
        return ids.astype(np.int32)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be integers, got dtype {ids.dtype}")
    outside = np.flatnonzero((ids < 0) | (ids >= count))
    if outside.size:
        at = int(outside[0])
        raise ValueError(
            f"ids must be in [0, {count}), got {int(ids[at])} at position {at} "
            f"({outside.size} of {ids.size} ids are out of range)"
        )
    return ids
