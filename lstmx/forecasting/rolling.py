"""Forecasts of the end of each series from the steps before it, at several cutoffs.

Axes: N series, W cutoffs, H steps of the horizon, Q levels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lstmx.data import SeriesWindows
from lstmx.forecasting.arguments import Recipe, integer, require_val_size, switch
from lstmx.forecasting.fitting import fit_series, forecasts_of
from lstmx.forecasting.frames import FramePanel, forecast_frame
from lstmx.forecasting.levels import level_columns, named_columns, require_levels
from lstmx.forecasting.reading import read_series


def cutoffs_of(series: FramePanel, h: int, n_windows: int, step_size: int) -> np.ndarray:
    """The numbers of steps before each window, int [N, W]; the last window ends with its series.

    Raises:
      ValueError: if a series has no step before its first window; the message names it.
    """
    ends = series.panel.observed
    back = h + step_size * np.arange(n_windows)[::-1]
    for number in np.flatnonzero(ends - back[0] < 1)[:1]:
        raise ValueError(
            f"series {series.ids[number]!r} has {ends[number]} steps, but {n_windows} windows of "
            f"{h} steps, {step_size} apart, need {back[0] + 1}"
        )
    return ends[:, None] - back


def rolling_forecasts(
    recipe: Recipe,
    series: FramePanel,
    cutoffs: np.ndarray,
    names: Mapping[str, Any],
    *,
    levels: Sequence[float] = (),
    refit: bool,
    warm_start: bool = False,
    **options: Any,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Trains before the first cutoff, or before each, and forecasts the steps after it.

    Args:
      recipe: network and training.
      series: the series.
      cutoffs: int [N, W], as from `cutoffs_of`.
      names: arguments of `read_frame` for further frames.
      levels: probabilities of quantiles.
      refit: whether to train for every cutoff, rather than once for the first one.
      warm_start: whether to start from the parameters for the cutoff before.
      options: of `fit_series`.

    Yields:
      For each training, the forecasts [N, K, H] and their quantiles [N, K, H, Q] at its K cutoffs: one with
      `refit`, and all without.
    """
    fitted = None
    for at in range(cutoffs.shape[1] if refit else 1):
        start = fitted if warm_start else None
        fitted = fit_series(recipe, series, cutoffs[:, at], names, start=start, **options)
        ahead = cutoffs[:, at : at + 1] if refit else cutoffs
        count, several = ahead.shape
        windows = np.repeat(np.arange(count), several), ahead.ravel()
        mean, bounds = forecasts_of(fitted, series, windows, levels)
        shape = count, several, recipe.h
        yield mean.reshape(shape), bounds.reshape(*shape, len(levels))


def targets_after(series: FramePanel, cutoffs: np.ndarray, h: int) -> np.ndarray:
    """The targets of the `h` steps after each cutoff, float32 [N, W, H]; NaN where missing."""
    count, several = cutoffs.shape
    windows = SeriesWindows(series.panel, 1, h)
    batch = windows.batch(np.repeat(np.arange(count), several), cutoffs.ravel())
    return np.where(batch["target_exists"], batch["target"], np.nan)[..., 0].reshape(count, several, h)


def cross_validation(
    recipe: Recipe,
    df: Any,
    static_df: Any,
    freq: Any,
    names: Mapping[str, Any],
    *,
    n_windows: int,
    step_size: int | None,
    refit: bool,
    warm_start: bool,
    val_size: int,
    calibration_windows: int,
    level: float | Sequence[float] | None,
    quantiles: float | Sequence[float] | None,
) -> Any:
    """`LSTMForecaster.cross_validation`, with its arguments unchecked."""
    n_windows = integer("n_windows", n_windows, 1)
    step = recipe.h if step_size is None else integer("step_size", step_size, 1)
    refit, warm_start = switch("refit", refit), switch("warm_start", warm_start)
    if n_windows == 1 and (refit or step != recipe.h):
        name, value = ("refit", refit) if refit else ("step_size", step)
        raise ValueError(f"{name}={value} has no effect with n_windows=1")
    if warm_start and not refit:
        raise ValueError("warm_start has no effect without refit")
    calibration_windows = integer("calibration_windows", calibration_windows, 0)
    if warm_start and calibration_windows:
        raise ValueError("calibration_windows cannot be combined with warm_start")
    options = {
        "val_size": require_val_size(val_size, recipe.h),
        "calibration_windows": calibration_windows,
    }
    levels = level_columns(recipe.alias, level, quantiles)
    require_levels([*levels.values()], recipe.head, bool(calibration_windows))
    series = read_series(recipe, df, static_df, freq, names)
    cutoffs = cutoffs_of(series, recipe.h, n_windows, step)
    parts = rolling_forecasts(
        recipe,
        series,
        cutoffs,
        names,
        levels=tuple(levels.values()),
        refit=refit,
        warm_start=warm_start,
        **options,
    )
    mean, bounds = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    columns = named_columns(recipe.alias, mean, bounds, levels)
    columns[names["target_col"]] = targets_after(series, cutoffs, recipe.h)
    flat = {name: values.reshape(-1, recipe.h) for name, values in columns.items()}
    windows = np.repeat(np.arange(len(cutoffs)), n_windows), cutoffs.ravel()
    return forecast_frame(series, flat, windows=windows)
