"""Pictures of forecasts, where matplotlib is installed.

Axes: M windows, L steps of history, H steps of the horizon, Q quantiles.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.tasks.pictures import new_figure, saved, with_dates


def draw_windows(
    history: np.ndarray,
    target: np.ndarray,
    forecasts: Mapping[str, np.ndarray],
    bands: tuple[np.ndarray, np.ndarray] | None,
    names: Sequence[str],
    path: Path,
    times: np.ndarray | None = None,
) -> Path | None:
    """Draws forecasts and targets, one panel for each window.

    Args:
      history: float [M, L]; NaN where unknown.
      target: float [M, H]; NaN where unknown.
      forecasts: float [M, H] by name of the method; the first is drawn in bold.
      bands: the bounds of the 80 % interval of the first method, float [M, H] each; or None.
      names: titles of the windows [M].
      path: the file.
      times: datetime64 or int [M, L + H], of the steps; by default counted from the start of the forecast.

    Returns:
      The file; None without matplotlib.
    """
    count = len(names)
    figure = new_figure(9, 2.4 * count + 0.4)
    if figure is None:
        return None
    horizon = target.shape[1]
    shown = min(history.shape[1], 3 * horizon)
    for row, axes in enumerate(figure.subplots(count, 1, squeeze=False)[:, 0]):
        steps = np.arange(-shown + 1, horizon + 1) if times is None else times[row, -shown - horizon :]
        ahead = steps[-horizon:]
        axes.plot(steps, np.append(history[row, -shown:], target[row]), "black", linewidth=1, label="series")
        if bands is not None:
            low, high = bands
            axes.fill_between(ahead, low[row], high[row], color="C0", alpha=0.25, label="80 % interval", lw=0)
        for number, (method, values) in enumerate(forecasts.items()):
            style = {"linewidth": 2} if number == 0 else {"linewidth": 1, "linestyle": "--"}
            axes.plot(ahead, values[row], color=f"C{number}", label=method, **style)
        # Between history and forecast.
        axes.axvline(ahead[0] - (ahead[0] - steps[-horizon - 1]) / 2, color="grey", linewidth=0.5)
        axes.set(title=names[row], ylabel="value")
        if steps.dtype.kind == "M":
            with_dates(axes)
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="steps ahead" if times is None else "")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return saved(figure, path)


def draw_errors(errors: Mapping[str, np.ndarray], path: Path) -> Path | None:
    """Draws the mean absolute error of each method [H] by step of the horizon."""
    figure = new_figure(6, 3.6)
    if figure is None:
        return None
    axes = figure.subplots()
    for number, (method, values) in enumerate(errors.items()):
        style = {"linewidth": 2} if number == 0 else {"linewidth": 1, "linestyle": "--"}
        axes.plot(np.arange(1, len(values) + 1), values, label=method, color=f"C{number}", **style)
    axes.set(xlabel="steps ahead", ylabel="mean absolute error", ylim=(0, None))
    axes.legend()
    return saved(figure, path)


def draw_calibration(levels: Sequence[float], shares: Sequence[float], path: Path) -> Path | None:
    """Draws the share of values below each quantile against its level: on the diagonal if calibrated."""
    figure = new_figure(4.2, 4.2)
    if figure is None:
        return None
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="calibrated")
    axes.plot(levels, shares, marker="o", markersize=4, label="forecast")
    axes.set(xlabel="level of the quantile", ylabel="share of values below it", xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")
    axes.legend()
    return saved(figure, path)
