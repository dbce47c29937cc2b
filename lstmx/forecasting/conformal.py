"""Intervals by the errors of forecasts of what is known: conformal prediction.

Axes: M windows, H steps of the horizon.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lstmx.data import SeriesWindows, Windows
from lstmx.forecasting.task import ForecastTask
from lstmx.models import Point

# As many windows give each step of the horizon errors of its own; with fewer, the steps share theirs.
_ENOUGH = 100


class Conformal(NamedTuple):
    """Errors of forecasts of known values, over how wide each forecast is.

        r = (y - f) / w

    In new windows that are like the old, r lies below its `p` quantile, with the correction for how many
    there are, with a probability of at least p above a half, and of at most p below: whatever the model.

    Attributes:
      errors: float64 [H, K], in order; or [1, K] for all steps.

    Source: Vovk, Gammerman & Shafer 2005; errors over a width of their own: Lei et al., "Distribution-free
    predictive inference for regression", JASA 2018, section 5.2. Windows of series are not quite
    exchangeable: of those that follow this holds as far as they are like those before.

    Example:
      >>> forecast, width = np.zeros((99, 1)), np.ones((99, 1))
      >>> conformal = Conformal.of(np.arange(-49.0, 50.0)[:, None], forecast, width)
      >>> conformal.quantiles(np.array([[3.0]]), np.array([[0.1]]), (0.1, 0.9)).round(3).tolist()
      [[[-1.0, 7.0]]]
    """

    errors: np.ndarray

    @classmethod
    def of(cls, came: np.ndarray, forecast: np.ndarray, width: np.ndarray) -> "Conformal":
        """The errors of some windows.

        Args:
          came: float [M, H]; NaN where it is not known.
          forecast: float [M, H].
          width: float [M, H], above 0.
        """
        errors = np.sort((came.astype(np.float64) - forecast) / width, axis=0)
        known = np.isfinite(errors).sum(axis=0)
        if known.min() < _ENOUGH:
            shared = errors[np.isfinite(errors)]
            return cls(np.sort(shared)[None])
        # NaN come last in order: the steps have as many errors as the one with the fewest, evenly spread.
        ranks = np.linspace(0, known - 1, known.min()).round().astype(int)
        return cls(np.take_along_axis(errors, ranks, axis=0).T)

    def quantiles(self, forecast: np.ndarray, width: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        """The quantiles of forecasts.

        Args:
          forecast: float [M, H].
          width: float [M, H].
          levels: their probabilities.

        Returns:
          [M, H, levels], of the type of the forecasts.

        Raises:
          ValueError: if a level is not in (0, 1), or there are too few errors for it: 0.1 and 0.9 need nine.
        """
        count = self.errors.shape[1]
        found = []
        for level in levels:
            if not 0 < level < 1:
                raise ValueError(f"levels must lie in (0, 1), got {[*levels]}")
            # Rounded, so that 0.1 of 10 is one in binary too.
            rank = round(level * (count + 1), 9)
            rank = int(np.floor(rank) if level < 0.5 else np.ceil(rank))
            if not 1 <= rank <= count:
                least = int(np.ceil(round(1 / min(level, 1 - level), 9))) - 1
                raise ValueError(
                    f"the quantile {level:g} needs at least {least} errors to calibrate by, and there are "
                    f"{count}: more calibration_windows or series"
                )
            found.append(forecast + width * self.errors[:, rank - 1])
        bounds = np.stack(found, axis=-1) if found else np.zeros((*forecast.shape, 0))
        return bounds.astype(forecast.dtype)


def forecast_and_width(task: ForecastTask, params: Any, of: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts of windows, [M, H], and how wide each is, [M, H], above 0.

    That is half the 80 % interval; of heads that forecast points, the deviation of the history.
    """
    if isinstance(task.head, Point):
        mean, width = task.forecast(params, of).mean[..., 0], _deviations(task.windows, of)
    else:
        said = task.forecast(params, of, (0.1, 0.9))
        mean, width = said.mean[..., 0], np.diff(said.quantiles[..., 0, :], axis=-1)[..., 0] / 2
    # Series that do not vary have no width.
    return mean, np.maximum(width, 1e-6 * np.maximum(np.abs(mean), 1e-6))


def _deviations(windows: SeriesWindows, of: Windows) -> np.ndarray:
    """Of what is known of the history of windows, float64 [M, 1]."""
    found = []
    for rows, batch in windows.parts(of, 1024):
        known = batch["history_exists"][:rows, :, 0]
        history = np.where(known, batch["history"][:rows, :, 0], 0.0)
        count = np.maximum(known.sum(axis=1, keepdims=True), 1)
        mean = history.sum(axis=1, keepdims=True) / count
        found.append(np.sqrt(np.sum((history - mean) ** 2, axis=1, keepdims=True, where=known) / count))
    return np.concatenate(found)
