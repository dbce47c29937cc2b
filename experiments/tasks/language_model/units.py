"""The tokens of a language model, characters or words: text to ids and back, and the metrics."""

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from lstmx.data import CharVocabulary, WordVocabulary, split_words
from lstmx.data.words import END_OF_LINE


class Characters:
    """Every character is a token; the loss is given in bits as well."""

    name = "characters"
    excluded = ()

    def __init__(self, vocabulary: CharVocabulary):
        self.vocabulary = vocabulary

    def require_choice(self) -> None:
        """Raises ValueError if there is only one character, so that there is nothing to predict."""
        if len(self.vocabulary) < 2:
            raise ValueError(
                f"a language model needs at least two distinct characters, this text has only "
                f"{self.vocabulary.characters!r}"
            )

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text."""
        return self.vocabulary.encode(text)

    def prompt(self, text: str) -> np.ndarray:
        """The ids of a prompt."""
        if not text:
            raise ValueError("the prompt must have at least one character")
        return self.vocabulary.encode(text)

    def default_prompt(self) -> str:
        """A line end, a space, or the first character, whichever the vocabulary has."""
        characters = self.vocabulary.characters
        return next((mark for mark in "\n " if mark in characters), characters[0])

    def opening(self, text: str) -> tuple[str, int]:
        """How samples begin, and how many tokens they have."""
        return text[0], 200

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of each token."""
        return (self.vocabulary.decode([token]) for token in tokens)

    def measures(self, nats: float) -> dict[str, float]:
        """A mean negative log-likelihood in the usual units."""
        return {"loss": nats, "bits per character": nats / math.log(2)}

    def asset(self) -> dict:
        """The content from which the same units are made again."""
        return {"characters": self.vocabulary.characters}


class Words:
    """Words and line ends are tokens, and words that are not known are one token together."""

    name = "words"

    def __init__(self, vocabulary: WordVocabulary, tokenizer: Literal["spaces", "words"]):
        self.vocabulary, self.tokenizer = vocabulary, tokenizer
        # Generated text should not contain it.
        self.excluded = () if vocabulary.unknown is None else vocabulary.encode([vocabulary.unknown]).tolist()

    def require_choice(self) -> None:
        """Raises ValueError if no word is known but `<unk>` and the end of a line."""
        if not set(self.vocabulary.tokens) - {self.vocabulary.unknown, END_OF_LINE}:
            raise ValueError(
                "a language model needs at least one known word, this text has none: all are rarer than "
                "data.least_count, or there are none"
            )

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, line ends included."""
        return self.vocabulary.encode(split_words(text, self.tokenizer))

    def prompt(self, text: str) -> np.ndarray:
        """The ids of a prompt, whose last line continues unless it has an end."""
        words = split_words(text, self.tokenizer)
        if not text.endswith("\n"):
            words = words[:-1]  # the line continues
        if not words:
            raise ValueError("the prompt must have at least one word")
        return self.vocabulary.encode(words)

    def default_prompt(self) -> str:
        """A line end."""
        return "\n"

    def opening(self, text: str) -> tuple[str, int]:
        """How samples begin, and how many tokens they have."""
        return "\n", 60

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of each token: words follow a space, `<eos>` is a line end."""
        for token in tokens:
            word = self.vocabulary.tokens[token]
            yield "\n" if word == END_OF_LINE else f" {word}"

    def measures(self, nats: float) -> dict[str, float]:
        """A mean negative log-likelihood in the usual units."""
        # The exponential of a larger loss is not finite.
        return {"loss": nats, "perplexity": math.exp(min(nats, 700.0))}

    def asset(self) -> dict:
        """The content from which the same units are made again."""
        return {
            "words": self.vocabulary.tokens,
            "unknown": self.vocabulary.unknown,
            "tokenizer": self.tokenizer,
        }
