"""Models built from recurrent layers, as Flax NNX modules."""

from lstmx.models.attention import AttentionCell
from lstmx.models.beam_search import Beams, beam_search
from lstmx.models.classifier import SequenceClassifier, saliency
from lstmx.models.dynamic_evaluation import adapter, gradient_scale
from lstmx.models.forecast_heads import (
    ForecastHead,
    Gaussian,
    NegativeBinomial,
    Point,
    Quantiles,
    StudentT,
    head_named,
)
from lstmx.models.forecaster import DirectForecaster
from lstmx.models.generation import generate
from lstmx.models.instance_scaling import InstanceScaling, level_and_spread
from lstmx.models.language_model import LanguageModel
from lstmx.models.neural_cache import CacheMemory, cached_nats, empty_cache
from lstmx.models.recurrent_forecaster import RecurrentForecaster
from lstmx.models.sampled_softmax import sampled_softmax_nats
from lstmx.models.seasonal_smoothing import SeasonalSmoothing, smoothed
from lstmx.models.seq2seq import Seq2Seq

__all__ = [
    "AttentionCell",
    "Beams",
    "CacheMemory",
    "DirectForecaster",
    "ForecastHead",
    "Gaussian",
    "InstanceScaling",
    "LanguageModel",
    "NegativeBinomial",
    "Point",
    "Quantiles",
    "RecurrentForecaster",
    "SeasonalSmoothing",
    "Seq2Seq",
    "SequenceClassifier",
    "StudentT",
    "adapter",
    "beam_search",
    "cached_nats",
    "empty_cache",
    "generate",
    "gradient_scale",
    "head_named",
    "level_and_spread",
    "saliency",
    "sampled_softmax_nats",
    "smoothed",
]
