"""Models of recurrent layers, as Flax NNX modules."""

from lstmx.models.generation import generate
from lstmx.models.language_model import LanguageModel

__all__ = ["LanguageModel", "generate"]
