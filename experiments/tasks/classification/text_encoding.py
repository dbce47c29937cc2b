"""Texts as sequences of words, characters or subwords, for models that read a text as a whole."""

import json
import re
from collections.abc import Iterable
from typing import Literal

import numpy as np

from lstmx.data import Subwords, WordVocabulary

Level = Literal["word", "character", "bpe"]
_UNKNOWN = "<unk>"
# As the Penn Treebank cuts words ("is n't", "it 's"), which is how the sentences of SST are written.
_WORD = re.compile(
    r"\w+?(?=n['\u2019]t\b)|n['\u2019]t\b|['\u2019](?:s|re|ve|d|ll|m)\b|\w+(?:[-.]\w+)*|\.{2,}|--+|[^\w\s]",
    re.IGNORECASE,
)


def split_text(text: str) -> list[str]:
    """The words and signs of a text, cut as those of the Penn Treebank.

    Example:
      >>> split_text("It isn't re-made... it's new!")
      ['It', 'is', "n't", 're-made', '...', 'it', "'s", 'new', '!']
    """
    return _WORD.findall(text)


class TextEncoder:
    """Text to ids, by a vocabulary of the training texts.

    Args:
      level: what the tokens are: words and punctuation, characters, or subwords.
      vocabulary: a `WordVocabulary` with `<unk>`, or `Subwords` for `"bpe"`.
      lowercase: whether upper and lower case are the same.

    Example:
      >>> encoder = TextEncoder.learn(["So good !", "so so"], "word")
      >>> encoder.encode("So bad!").tolist(), encoder.pieces("So bad!")
      ([1, 0, 2], ['so', 'bad', '!'])
    """

    def __init__(self, level: Level, vocabulary: WordVocabulary | Subwords, lowercase: bool = True):
        self.level, self.vocabulary, self.lowercase = level, vocabulary, lowercase

    @classmethod
    def learn(
        cls,
        texts: Iterable[str],
        level: Level,
        *,
        size: int | None = None,
        least_count: int = 1,
        lowercase: bool = True,
    ) -> "TextEncoder":
        """The encoder whose vocabulary is that of some texts.

        Args:
          texts: the texts.
          level: `"word"`, `"character"` or `"bpe"`.
          size: most tokens to know; None for all (8,000 subwords).
          least_count: how often a word or character must occur.
          lowercase: whether upper and lower case are the same.

        Returns:
          The encoder.

        Raises:
          ValueError: if no token is left, or the size leaves no room, see `WordVocabulary.from_counts` and
            `Subwords.train`.
        """
        texts = [text.lower() if lowercase else text for text in texts]
        if level == "bpe":
            return cls(level, Subwords.train(texts, size or 8000, specials=(_UNKNOWN,)), lowercase)
        cut = split_text if level == "word" else list
        words = (word for text in texts for word in cut(text))
        vocabulary = WordVocabulary.from_counts(words, size=size, least=least_count, specials=(_UNKNOWN,))
        if len(vocabulary) < 2:
            raise ValueError(f"no {level} occurs at least {least_count} times in the training texts")
        return cls(level, vocabulary, lowercase)

    @classmethod
    def from_json(cls, text: str) -> "TextEncoder":
        """The encoder that `to_json` wrote."""
        kept = json.loads(text)
        bpe = kept["level"] == "bpe"
        vocabulary = Subwords.from_json(kept["subwords"]) if bpe else WordVocabulary(kept["tokens"])
        return cls(kept["level"], vocabulary, kept["lowercase"])

    def to_json(self) -> str:
        """The encoder as text."""
        bpe = self.level == "bpe"
        what = {"subwords": self.vocabulary.to_json()} if bpe else {"tokens": self.vocabulary.tokens}
        return json.dumps({"level": self.level, "lowercase": self.lowercase, **what}, ensure_ascii=False)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 `[N]`."""
        text = text.lower() if self.lowercase else text
        if self.level == "bpe":
            return self.vocabulary.encode(text)
        return self.vocabulary.encode(split_text(text) if self.level == "word" else list(text))

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text as a person reads them, N strings; including unknown ones."""
        text = text.lower() if self.lowercase else text
        if self.level == "bpe":
            return self.vocabulary.tokens(self.vocabulary.encode(text))
        return split_text(text) if self.level == "word" else list(text)

    @property
    def unknown(self) -> int:
        """The id of unknown tokens."""
        if self.level == "bpe":
            return self.vocabulary.id_of(_UNKNOWN)
        return int(self.vocabulary.encode([_UNKNOWN])[0])

    def __len__(self) -> int:
        return len(self.vocabulary)
