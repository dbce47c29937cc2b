"""Forecasting: data frames in, data frames of forecasts out, and the training task behind it."""

from lstmx.forecasting.forecaster import LSTMForecaster
from lstmx.forecasting.frames import (
    FramePanel,
    forecast_frame,
    read_frame,
    times_of,
    with_future,
)
from lstmx.forecasting.frequencies import require_pandas
from lstmx.forecasting.levels import LEVELS, interval_columns
from lstmx.forecasting.scales import Scales, in_logarithms, require_counts
from lstmx.forecasting.task import Forecasts, ForecastTask
from lstmx.forecasting.tuning import Tuned

__all__ = [
    "LEVELS",
    "ForecastTask",
    "Forecasts",
    "FramePanel",
    "LSTMForecaster",
    "Scales",
    "Tuned",
    "forecast_frame",
    "in_logarithms",
    "interval_columns",
    "read_frame",
    "require_counts",
    "require_pandas",
    "times_of",
    "with_future",
]
