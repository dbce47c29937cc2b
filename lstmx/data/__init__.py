"""Data: text to tokens, tokens to batches, and TFDS data sets without TensorFlow.

Importing it needs only numpy; TFDS and Grain are imported by the functions that use them.
"""

from lstmx.data.batching import ContiguousStreams, EvaluationStreams
from lstmx.data.buckets import LengthBuckets, Rows, padded
from lstmx.data.random_windows import RandomWindowStreams
from lstmx.data.series import Panel, SeriesWindows, WindowBatches, Windows
from lstmx.data.sources import is_prepared, prepared, require_host, text_of
from lstmx.data.subwords import Subwords
from lstmx.data.vocabulary import CharVocabulary
from lstmx.data.words import WordVocabulary, split_words

__all__ = [
    "CharVocabulary",
    "ContiguousStreams",
    "EvaluationStreams",
    "LengthBuckets",
    "Panel",
    "RandomWindowStreams",
    "Rows",
    "SeriesWindows",
    "Subwords",
    "WindowBatches",
    "Windows",
    "WordVocabulary",
    "is_prepared",
    "padded",
    "prepared",
    "require_host",
    "split_words",
    "text_of",
]
