"""What translating one sentence gives."""

from typing import NamedTuple

import numpy as np


class TranslationResult(NamedTuple):
    """A translation.

    Attributes:
        text: the sentence.
        score: log-probability over the length penalty.
        source_tokens: pieces of the source sentence, including the end token.
        target_tokens: pieces of the translation, including the end token if it ended.
        attention: float `[target_tokens, source_tokens]`, the attention of each piece.
        left_out: pieces of the sentence beyond the longest that the model reads.
    """

    text: str
    score: float
    source_tokens: list[str]
    target_tokens: list[str]
    attention: np.ndarray
    left_out: int
