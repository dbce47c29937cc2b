"""How far forecasts of windows are from what came.

Axes: M windows, H steps of the horizon, Q quantiles.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lstmx.data import SeriesWindows, Windows

# The bounds of the interval whose coverage is told.
_INTERVAL = (0.1, 0.9)


def scores(
    windows: SeriesWindows,
    of: Windows,
    mean: np.ndarray,
    quantiles: np.ndarray | None,
    levels: Sequence[float],
    *,
    naive_errors: np.ndarray,
) -> dict[str, float]:
    """The scores of forecasts, over all values that exist.

        mse, mae    mean squared and absolute errors
        smape       200 |y - f| / (|y| + |f|), in percent
        mase        mae of each series over its naive error; the mean over the series
        crps        twice the pinball loss, averaged over the levels; about the score of that name
        wql         weighted quantile loss: the sum of these over the sum of |y|
        coverage    the share of values within the 80 % interval, in percent

    Absolute errors are of the median where there are quantiles, squared ones of the mean.

    Args:
      windows: of series with one target.
      of: (series, cutoffs), int [M] each.
      mean: float [M, H].
      quantiles: float [M, H, Q], or None.
      levels: of the quantiles.
      naive_errors: float [N], the mean error of a naive forecast of each series; NaN where that is 0: such a
        series has no MASE.

    Returns:
      The scores by their names.

    Source: sMAPE and MASE as in Makridakis, Spiliotis & Assimakopoulos 2020; the weighted quantile loss as in
    Salinas et al. 2020, section 4.
    """
    y, exists = targets_of(windows, of)
    levels = np.asarray(levels)
    median = mean if quantiles is None else quantiles[..., int(np.abs(levels - 0.5).argmin())]
    errors = np.abs(y - median)
    size = np.abs(y) + np.abs(median)
    found = {
        "mse": np.mean((y - mean) ** 2, where=exists),
        "mae": np.mean(errors, where=exists),
        "smape": 200 * np.mean(errors / np.where(size > 0, size, 1), where=exists),
        "mase": _mase(errors, exists, of[0], naive_errors),
    }
    if quantiles is not None:
        over = y[..., None] - quantiles
        pinball = np.maximum(levels * over, (levels - 1) * over)
        found["crps"] = np.mean(2 * pinball.mean(axis=-1), where=exists)
        found["wql"] = found["crps"] / max(np.mean(np.abs(y), where=exists), np.finfo(float).tiny)
        low, high = (quantiles[..., int(np.abs(levels - level).argmin())] for level in _INTERVAL)
        found["coverage"] = 100 * np.mean((low <= y) & (y <= high), where=exists)
    return {name: float(value) for name, value in found.items()}


def skill(
    errors: np.ndarray, naive_errors: np.ndarray, groups: np.ndarray, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How much smaller squared errors are than those of a naive forecast, and what is certain of that.

        skill = 1 - sum errors / sum naive_errors

    The interval is that of 95 % of the draws, with replacement, of whole groups: windows of the same time,
    whose errors go together.

    Args:
      errors: float [M], the squared error of each window, summed over its steps.
      naive_errors: the same of the naive forecast.
      groups: int [M], which windows go together.
      draws: how many.
      seed: of the draws.

    Returns:
      (skill, lower bound, upper bound); positive where the forecast is better.

    Source: the percentile bootstrap of clusters: Cameron, Gelbach & Miller 2008.

    Example:
      >>> chance = np.random.default_rng(0)
      >>> naive = chance.random(50)
      >>> found, low, high = skill(0.5 * naive, naive, np.arange(50))
      >>> print(round(found, 3), round(low, 3), round(high, 3))
      0.5 0.5 0.5
    """
    _, groups = np.unique(groups, return_inverse=True)
    sums = np.stack([np.bincount(groups, values) for values in (errors, naive_errors)])
    count = sums.shape[1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    ours, naive = sums @ drawn.T
    low, high = np.quantile(1 - ours / np.where(naive > 0, naive, np.nan), (0.025, 0.975))
    return 1 - sums[0].sum() / sums[1].sum(), low, high


def targets_of(windows: SeriesWindows, of: Windows) -> tuple[np.ndarray, np.ndarray]:
    """What came, float64 [M, H], and what of it is known, of windows of series with one target."""
    batch = dataclasses.replace(windows, input_size=1).batch(*of)
    return batch["target"][..., 0].astype(np.float64), batch["target_exists"][..., 0]


def _mase(errors, exists, series, naive_errors) -> float:
    """Each series counts once, however many windows it has."""
    count = len(naive_errors)
    totals = np.bincount(series, np.sum(errors, axis=1, where=exists), count)
    numbers = np.bincount(series, exists.sum(axis=1), count)
    known = (numbers > 0) & np.isfinite(naive_errors)
    if not known.any():
        return float("nan")
    return float(np.mean(totals[known] / numbers[known] / naive_errors[known]))
