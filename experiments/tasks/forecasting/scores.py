"""Scores of forecasts.

Axes: M windows, H steps of the horizon, Q quantiles.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lstmx.data import SeriesWindows, Windows

# The bounds of the interval whose coverage is reported.
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
    """The scores of forecasts, over all existing values.

        mse, mae    mean squared and absolute errors
        smape       200 |y - f| / (|y| + |f|), in percent
        mase        mae of each series divided by its naive error; the mean over the series
        crps        twice the pinball loss, averaged over the levels, which approximates the CRPS
        wql         weighted quantile loss: the sum of these divided by the sum of |y|
        coverage    percentage of values within the 80 % interval

    Absolute errors are those of the median where there are quantiles, squared ones those of the mean.

    Args:
      windows: windows of series with one target.
      of: (series, cutoffs), int [M] each.
      mean: float [M, H].
      quantiles: float [M, H, Q], or None.
      levels: levels of the quantiles.
      naive_errors: float [N], the mean error of a naive forecast of each series; NaN where it is 0, since the
        series has no MASE then.

    Returns:
      The scores by name.

    Source: sMAPE and MASE as in Makridakis, Spiliotis & Assimakopoulos 2020; the weighted quantile loss as in
    Salinas et al. 2020, section 4.
    """
    y, exists = targets_of(windows, of)
    levels = np.asarray(levels)
    median = mean if quantiles is None else quantiles[..., int(np.abs(levels - 0.5).argmin())]
    errors = np.abs(y - median)
    size = np.abs(y) + np.abs(median)
    values = {
        "mse": np.mean((y - mean) ** 2, where=exists),
        "mae": np.mean(errors, where=exists),
        "smape": 200 * np.mean(errors / np.where(size > 0, size, 1), where=exists),
        "mase": _mase(errors, exists, of[0], naive_errors),
    }
    if quantiles is not None:
        over = y[..., None] - quantiles
        pinball = np.maximum(levels * over, (levels - 1) * over)
        values["crps"] = np.mean(2 * pinball.mean(axis=-1), where=exists)
        values["wql"] = values["crps"] / max(np.mean(np.abs(y), where=exists), np.finfo(float).tiny)
        low, high = (quantiles[..., int(np.abs(levels - level).argmin())] for level in _INTERVAL)
        values["coverage"] = 100 * np.mean((low <= y) & (y <= high), where=exists)
    return {name: float(value) for name, value in values.items()}


def skill(
    errors: np.ndarray, naive_errors: np.ndarray, groups: np.ndarray, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The relative reduction of squared errors below a naive forecast, with a confidence interval.

        skill = 1 - sum errors / sum naive_errors

    The 95 % interval is that of a bootstrap of whole groups: windows of the same time, whose errors are
    correlated.

    Args:
      errors: float [M], the squared error of each window, summed over its steps.
      naive_errors: the same for the naive forecast.
      groups: int [M], the group of each window.
      draws: number of bootstrap samples.
      seed: seed of the samples.

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
    """The targets, float64 [M, H], and which of them exist, for windows of series with one target."""
    batch = dataclasses.replace(windows, input_size=1).batch(*of)
    return batch["target"][..., 0].astype(np.float64), batch["target_exists"][..., 0]


def _mase(errors, exists, series, naive_errors) -> float:
    """The mean over series, each with equal weight, however many windows it has."""
    count = len(naive_errors)
    totals = np.bincount(series, np.sum(errors, axis=1, where=exists), count)
    numbers = np.bincount(series, exists.sum(axis=1), count)
    known = (numbers > 0) & np.isfinite(naive_errors)
    if not known.any():
        return float("nan")
    return float(np.mean(totals[known] / numbers[known] / naive_errors[known]))
