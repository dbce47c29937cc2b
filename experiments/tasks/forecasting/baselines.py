"""Baseline forecasts: last value, seasonal naive, and a linear map.

Axes: M windows, L steps of history, H steps of the horizon.
"""

from collections.abc import Iterator

import numpy as np

from lstmx.data import SeriesWindows, Windows

_PART = 4096
# Relative to the mean square of the inputs of the linear map.
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def last_value(windows: SeriesWindows, of: Windows) -> np.ndarray:
    """The last known value, repeated, float64 [M, H]."""
    return seasonal_naive(windows, of, 1)


def seasonal_naive(windows: SeriesWindows, of: Windows, season_length: int) -> np.ndarray:
    """The last known season, repeated, float64 [M, H].

    All steps of a series before the cutoff count, not only those of the window. A missing value is replaced
    by that of the season before, or else the last known value, or else 0.

    Args:
      windows: windows of series with one target.
      of: (series, cutoffs), the windows.
      season_length: steps per season.

    Example:
      >>> from lstmx.data import Panel
      >>> panel = Panel(np.array([0, 6]), np.arange(6.0)[:, None])
      >>> seasonal_naive(SeriesWindows(panel, 2, 4), (np.array([0]), np.array([6])), 3)
      array([[3., 4., 5., 3.]])
    """
    forecasts = np.zeros((len(of[0]), windows.horizon))
    last = np.arange(windows.horizon) % season_length
    for number in np.unique(of[0]):
        values = windows.panel.series(number)[:, 0]
        steps = _filled(values, 1)
        # The last known value a whole number of seasons before.
        newest = _filled(values, season_length)
        rows = np.flatnonzero(of[0] == number)
        at = np.asarray(of[1])[rows][:, None] - season_length + last
        seasonal = np.where(at >= 0, newest[np.maximum(at, 0)], np.nan)
        previous = np.asarray(of[1])[rows][:, None] - 1
        naive = np.where(previous >= 0, steps[np.maximum(previous, 0)], 0)
        forecasts[rows] = np.nan_to_num(np.where(np.isnan(seasonal), naive, seasonal))
    return forecasts


def _filled(values: np.ndarray, season_length: int) -> np.ndarray:
    """The values, where missing the last known one a whole number of seasons before."""
    padded = np.concatenate([values, np.full(-len(values) % season_length, np.nan)]).reshape(
        -1, season_length
    )
    known = np.where(np.isnan(padded), 0, np.arange(len(padded))[:, None])
    newest = np.maximum.accumulate(known, axis=0)
    return np.take_along_axis(padded, newest, axis=0).ravel()[: len(values)]


class LinearForecaster:
    """One linear map for all series, in closed form: ridge regression of the horizon on the history.

    The last value is subtracted from both. Missing values of the history count as the last value; windows
    with a missing target are skipped. The penalty is the one with the smallest squared error on the
    validation windows.

    Args:
      windows: windows of series with one target.
      train: the windows to fit.
      validation: the windows that choose the penalty; without any the smallest is used.
      divided: whether to divide both by the standard deviation of the history, for series of different
        sizes.

    Attributes:
      penalty: the chosen penalty, relative to the mean square of the inputs.

    Example:
      >>> from lstmx.data import Panel
      >>> panel = Panel(np.array([0, 200]), np.sin(np.arange(200.0) / 3)[:, None])
      >>> windows = SeriesWindows(panel, 20, 5)
      >>> model = LinearForecaster(windows, windows.within(0, 150, least_history=20), windows.within(150))
      >>> errors = model(windows, windows.within(175)) - panel.series(0)[175:180, 0]
      >>> bool(np.abs(errors[0]).max() < 0.01)
      True
    """

    def __init__(self, windows: SeriesWindows, train: Windows, validation: Windows, *, divided: bool = False):
        size, self._divided = windows.input_size, divided
        gram, cross = np.zeros((size + 1, size + 1)), np.zeros((size + 1, windows.horizon))
        for xs, ys, *_ in _pairs(windows, train, divided):
            whole = ~np.isnan(ys).any(axis=1)
            gram += xs[whole].T @ xs[whole]
            cross += xs[whole].T @ ys[whole]
        # The constant is not penalized.
        unit = np.trace(gram[:-1, :-1]) / size * np.diag([1.0] * size + [0.0])
        solutions = [np.linalg.lstsq(gram + p * unit, cross)[0] for p in _PENALTIES]
        errors = np.zeros(len(solutions))
        for xs, ys, *_ in _pairs(windows, validation, divided):
            errors += [np.nansum((xs @ solution - ys) ** 2) for solution in solutions]
        self.penalty = _PENALTIES[int(errors.argmin())]
        self._solution = solutions[int(errors.argmin())]

    def __call__(self, windows: SeriesWindows, of: Windows) -> np.ndarray:
        """Forecasts of windows, float64 [M, H]."""
        parts = _pairs(windows, of, self._divided)
        return np.concatenate([xs @ self._solution * spread + level for xs, _, level, spread in parts])


def _pairs(windows: SeriesWindows, of: Windows, divided: bool) -> Iterator[tuple[np.ndarray, ...]]:
    """Inputs with a constant [M, L + 1], targets with NaN where missing [M, H], levels and spreads [M, 1]."""
    for count, batch in windows.parts(of, _PART):
        batch = {name: leaf[:count] for name, leaf in batch.items()}
        history, exists = batch["history"][..., 0].astype(np.float64), batch["history_exists"][..., 0]
        at = np.where(exists, np.arange(1, history.shape[1] + 1), 0).argmax(axis=1)
        level = history[np.arange(count), at][:, None]
        spread = np.ones((count, 1))
        if divided:
            deviation = np.std(np.where(exists, history, level), axis=1, keepdims=True)
            spread = np.where(deviation > 1e-6 * np.abs(level), deviation, 1)
        xs = np.where(exists, history - level, 0) / spread
        ys = np.where(batch["target_exists"], batch["target"], np.nan)[..., 0].astype(np.float64)
        yield np.concatenate([xs, np.ones((count, 1))], axis=1), (ys - level) / spread, level, spread
