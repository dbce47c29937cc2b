"""The set of words (or other tokens) a model knows, and words to ids and back."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from lstmx.data.vocabulary import checked_ids

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"
# A name in angle brackets, a word with its inner apostrophes, hyphens and points, or one other sign.
_WORD = re.compile(r"<\w+>|\w+(?:['\u2019.\-]\w+)*|[^\w\s]")
# How many offending words an error shows before it stops.
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class WordVocabulary:
    """Distinct words in a fixed order; a word's id is its position.

    The whole vocabulary is `tokens` and `unknown`, so nothing else needs to be stored.

    Attributes:
      tokens: the words, distinct; at least one. Kept as a tuple.
      unknown: the word that stands for all that are not known, one of `tokens`; None if none does.

    Raises:
      TypeError: if a word is not a string.
      ValueError: if there are no words, one occurs twice, or `unknown` is not among them.

    Example:
      >>> vocabulary = WordVocabulary(["<unk>", "to", "be"])
      >>> vocabulary.encode("to be or not to be".split())
      array([1, 2, 0, 0, 1, 2], dtype=int32)
      >>> vocabulary.decode([1, 2])
      ['to', 'be']
      >>> len(vocabulary)
      3
    """

    tokens: Sequence[str]
    unknown: str | None = UNKNOWN

    def __post_init__(self):
        if isinstance(self.tokens, str):
            raise TypeError("tokens must be a sequence of words, got one string")
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if not self.tokens:
            raise ValueError("a vocabulary needs at least one word, got none")
        for word in self.tokens:
            if not isinstance(word, str):
                raise TypeError(f"words must be strings, got {type(word).__name__}")
        if len(self._ids) < len(self.tokens):
            word, count = collections.Counter(self.tokens).most_common(1)[0]
            raise ValueError(f"words must be distinct, but {word!r} occurs {count} times")
        if self.unknown is not None and self.unknown not in self._ids:
            raise ValueError(f"the unknown word {self.unknown!r} must be one of the {len(self)} words")

    @classmethod
    def from_counts(
        cls,
        words: Iterable[str],
        *,
        size: int | None = None,
        least: int = 1,
        specials: Sequence[str] = (),
    ) -> "WordVocabulary":
        """Makes the vocabulary of a text: the specials, then its words from the most frequent to the rarest.

        Words of equal count are in alphabetical order, so that the same words give the same vocabulary in
        any order. `<unk>` stands for unknown words if it is a special token or a word of the text.

        Args:
          words: the text.
          size: largest number of tokens, specials included; None for no limit.
          least: how often a word must occur.
          specials: tokens that come first, in this order, whether they occur or not.

        Returns:
          The vocabulary.

        Raises:
          ValueError: if `size` leaves no room for a word, `least` is below 1, or nothing is left.

        Example:
          >>> WordVocabulary.from_counts("b a c a b".split(), least=2, specials=["<unk>"]).tokens
          ('<unk>', 'a', 'b')
        """
        if least < 1:
            raise ValueError(f"least must be at least 1, got {least}")
        if size is not None and size <= len(specials):
            raise ValueError(f"size must be above the {len(specials)} special tokens, got {size}")
        counts = collections.Counter(words)
        for special in specials:
            del counts[special]
        frequent = [word for word, count in counts.items() if count >= least]
        frequent.sort(key=lambda word: (-counts[word], word))
        tokens = [*specials, *frequent][:size]
        return cls(tokens, UNKNOWN if UNKNOWN in tokens else None)

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """Turns words into ids.

        Args:
          words: N words.

        Returns:
          int32 [N], each in `[0, len(self))`; the id of `unknown` for words that are not known.

        Raises:
          TypeError: if `words` is one string.
          ValueError: if a word is not known and `unknown` is None; the first few are named with positions.

        Example:
          >>> WordVocabulary(["a", "b"], unknown=None).encode(["b", "a"])
          array([1, 0], dtype=int32)
        """
        if isinstance(words, str):
            raise TypeError("words must be a sequence of words, got one string")
        other = -1 if self.unknown is None else self._ids[self.unknown]
        known = self._ids
        ids = np.fromiter((known.get(word, other) for word in words), np.int32, len(words))
        missing = np.flatnonzero(ids < 0)
        if missing.size:
            shown = ", ".join(f"{words[at]!r} at {at}" for at in missing[:_SHOWN].tolist())
            more = ", ..." if missing.size > _SHOWN else ""
            raise ValueError(
                f"{missing.size} of {len(words)} words are not in the vocabulary of {len(self)}: "
                f"{shown}{more}"
            )
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Turns ids into words, the inverse of `encode` where all words are known.

        Args:
          ids: integers [N], each in `[0, len(self))`.

        Returns:
          N words.

        Raises:
          ValueError: if the ids are not one-dimensional integers or one of them is out of range.

        Example:
          >>> WordVocabulary(["a", "b"], unknown=None).decode([1, 1, 0])
          ['b', 'b', 'a']
        """
        return [self.tokens[id_] for id_ in checked_ids(ids, len(self)).tolist()]

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: id_ for id_, word in enumerate(self.tokens)}


def split_words(text: str, tokenizer: Literal["spaces", "words"] = "words") -> list[str]:
    """The words of a text, `<eos>` after each line, as language models of words are trained on it.

    Args:
      text: the text; empty lines count, and the last line may lack its end.
      tokenizer: `"spaces"` for a text whose tokens are separated by spaces already, `"words"` to separate
        punctuation from words as well.

    Returns:
      The words.

    Raises:
      ValueError: if there is no such tokenizer.

    Example:
      >>> split_words('He didn\\'t ask: "Why?"\\n')
      ['He', "didn't", 'ask', ':', '"', 'Why', '?', '"', '<eos>']
      >>> split_words("no , it was n't", "spaces")
      ['no', ',', 'it', 'was', "n't", '<eos>']
    """
    if tokenizer not in ("spaces", "words"):
        raise ValueError(f'tokenizer must be "spaces" or "words", got {tokenizer!r}')
    cut = str.split if tokenizer == "spaces" else _WORD.findall
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [word for line in lines for word in (*cut(line), END_OF_LINE)]
