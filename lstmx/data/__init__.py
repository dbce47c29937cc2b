"""Data: text to tokens, tokens to batches, and TFDS data sets without TensorFlow.

Importing it needs numpy alone; TFDS and Grain are imported by the functions that use them.
"""

from lstmx.data.batching import ContiguousStreams, EvaluationStreams
from lstmx.data.sources import is_prepared, prepared, require_host, text_of
from lstmx.data.vocabulary import CharVocabulary

__all__ = [
    "CharVocabulary",
    "ContiguousStreams",
    "EvaluationStreams",
    "is_prepared",
    "prepared",
    "require_host",
    "text_of",
]
