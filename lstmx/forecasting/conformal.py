"""Intervals from the errors of forecasts of known values: conformal prediction.

Axes: M windows, H steps of the horizon.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lstmx.data import SeriesWindows, Windows
from lstmx.forecasting.task import ForecastTask
from lstmx.models import Point

# With at least this many windows, each step of the horizon has its own errors; with fewer, they share errors.
_ENOUGH = 100


class Conformal(NamedTuple):
    """Errors of forecasts of known values, divided by the width of each forecast.

        r = (y - f) / w

    In new windows exchangeable with these, r is below its `p` quantile, corrected for the number of errors,
    with a probability of at least p for p above 0.5, and of at most p for p below: whatever the model.

    Attributes:
      errors: float64 [H, K], sorted; or [1, K], shared by all steps.

    Source: Vovk, Gammerman & Shafer 2005; errors divided by a width: Lei et al., "Distribution-free
    predictive inference for regression", JASA 2018, section 5.2. Windows of a series are not quite
    exchangeable: for later windows this holds as far as they resemble the earlier ones.

    Example:
      >>> forecast, width = np.zeros((99, 1)), np.ones((99, 1))
      >>> conformal = Conformal.of(np.arange(-49.0, 50.0)[:, None], forecast, width)
      >>> conformal.quantiles(np.array([[3.0]]), np.array([[0.1]]), (0.1, 0.9)).round(3).tolist()
      [[[-1.0, 7.0]]]
    """

    errors: np.ndarray

    @classmethod
    def of(cls, targets: np.ndarray, forecast: np.ndarray, width: np.ndarray) -> "Conformal":
        """The errors of windows.

        Args:
          targets: float [M, H]; NaN where unknown.
          forecast: float [M, H].
          width: float [M, H], above 0.
        """
        errors = np.sort((targets.astype(np.float64) - forecast) / width, axis=0)
        known = np.isfinite(errors).sum(axis=0)
        if known.min() < _ENOUGH:
            shared = errors[np.isfinite(errors)]
            return cls(np.sort(shared)[None])
        # NaN are sorted last. All steps keep as many errors as the one with the fewest, evenly spread.
        ranks = np.linspace(0, known - 1, known.min()).round().astype(int)
        return cls(np.take_along_axis(errors, ranks, axis=0).T)

    def quantiles(self, forecast: np.ndarray, width: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        """The quantiles of forecasts.

        Args:
          forecast: float [M, H].
          width: float [M, H].
          levels: probabilities.

        Returns:
          [M, H, levels], of the dtype of the forecasts.

        Raises:
          ValueError: if a level is not in (0, 1), or there are too few errors for it: 0.1 and 0.9 need nine.
        """
        count = self.errors.shape[1]
        bounds = []
        for level in levels:
            if not 0 < level < 1:
                raise ValueError(f"levels must lie in (0, 1), got {[*levels]}")
            # Rounded, so that 0.1 * 10 is exactly one.
            rank = round(level * (count + 1), 9)
            rank = int(np.floor(rank) if level < 0.5 else np.ceil(rank))
            if not 1 <= rank <= count:
                least = int(np.ceil(round(1 / min(level, 1 - level), 9))) - 1
                raise ValueError(
                    f"the quantile {level:g} needs at least {least} errors for calibration, and there are "
                    f"{count}: use more calibration_windows or series"
                )
            bounds.append(forecast + width * self.errors[:, rank - 1])
        if not bounds:
            return np.zeros((*forecast.shape, 0), forecast.dtype)
        return np.stack(bounds, axis=-1).astype(forecast.dtype)


def forecast_and_width(task: ForecastTask, params: Any, of: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts [M, H] of windows, and their widths [M, H], above 0.

    The width is half that of the 80 % interval; for point forecasts, the standard deviation of the history.
    """
    if isinstance(task.head, Point):
        mean, width = task.forecast(params, of).mean[..., 0], _deviations(task.windows, of)
    else:
        forecasts = task.forecast(params, of, (0.1, 0.9))
        mean, width = forecasts.mean[..., 0], np.diff(forecasts.quantiles[..., 0, :], axis=-1)[..., 0] / 2
    # The width of a constant series is 0.
    return mean, np.maximum(width, 1e-6 * np.maximum(np.abs(mean), 1e-6))


def _deviations(windows: SeriesWindows, of: Windows) -> np.ndarray:
    """Standard deviations of the known values of histories, float64 [M, 1]."""
    deviations = []
    for rows, batch in windows.parts(of, 1024):
        known = batch["history_exists"][:rows, :, 0]
        history = np.where(known, batch["history"][:rows, :, 0], 0.0)
        count = np.maximum(known.sum(axis=1, keepdims=True), 1)
        mean = history.sum(axis=1, keepdims=True) / count
        deviations.append(np.sqrt(np.sum((history - mean) ** 2, axis=1, keepdims=True, where=known) / count))
    return np.concatenate(deviations)
