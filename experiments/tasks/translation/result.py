"""What translating one sentence gives."""

from typing import NamedTuple

import numpy as np


class TranslationResult(NamedTuple):
    """A translation.

    Attributes:
        text: the sentence.
        score: log-probability over the length penalty.
        source_tokens: pieces of the sentence translated, the end's token included.
        target_tokens: pieces of the translation, the end's token included if it ended.
        attention: float `[target_tokens, source_tokens]`, where the decoder looked for each piece.
        left_out: pieces of the sentence beyond the longest that the model reads.
    """

    text: str
    score: float
    source_tokens: list[str]
    target_tokens: list[str]
    attention: np.ndarray
    left_out: int
