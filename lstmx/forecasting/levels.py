"""Requested intervals and quantiles: their columns, and whether a head has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstmx.forecasting.arguments import is_number, items_of

# Levels of the head "quantiles": the bounds of intervals of up to 95 %.
LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)
POINTS = ("mae", "mse")


def interval_columns(name: str, widths: float | Sequence[float] | None) -> dict[str, float]:
    """The columns of interval bounds, and the probabilities of values below them.

    Args:
      name: column of the forecast.
      widths: widths of intervals in percent, in (0, 100): one or several; None for none.

    Raises:
      ValueError: if one is not a number, out of range, or given twice; it is called `level`.

    Example:
      >>> interval_columns("lstmx", [80])
      {'lstmx-lo-80': 0.1, 'lstmx-hi-80': 0.9}
    """
    columns = {}
    for width in _several("level", widths, 100, "percent, such as 80 or [80, 95]"):
        columns[f"{name}-lo-{width:g}"] = round(0.5 - width / 200, 6)
        columns[f"{name}-hi-{width:g}"] = round(0.5 + width / 200, 6)
    return columns


def level_columns(alias: str, level: Any, quantiles: Any) -> dict[str, float]:
    """The columns of intervals and quantiles, and their probabilities.

    Args:
      alias: name of the column of forecasts.
      level: widths of intervals in percent, one or several; None for none.
      quantiles: probabilities, one or several; None for none.

    Raises:
      ValueError: if one is not a number, out of range, or given twice.

    Example:
      >>> level_columns("lstmx", 80, [0.5])
      {'lstmx-lo-80': 0.1, 'lstmx-hi-80': 0.9, 'lstmx_ql0.5': 0.5}
    """
    columns = interval_columns(alias, level)
    probabilities = _several("quantiles", quantiles, 1, "probabilities, such as [0.1, 0.9]")
    return columns | {f"{alias}_ql{probability:g}": probability for probability in probabilities}


def named_columns(
    alias: str, mean: np.ndarray, bounds: np.ndarray, levels: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """The columns of forecasts [..., H] and their quantiles [..., H, levels], by name."""
    return {alias: mean, **{name: bounds[..., at] for at, name in enumerate(levels)}}


def require_levels(levels: Sequence[float], head: str, calibrated: bool) -> None:
    """Raises ValueError if a head without calibration does not have the quantiles of such levels."""
    if calibrated:
        return
    # The absolute error is minimized by the median.
    if head in POINTS and {*levels} - ({0.5} if head == "mae" else {*()}):
        raise ValueError(
            f"head={head!r} forecasts points: for intervals pass calibration_windows to fit, or use another "
            "head"
        )
    if head == "quantiles":
        for level in levels:
            if not LEVELS[0] <= level <= LEVELS[-1]:
                raise ValueError(
                    f"head='quantiles' has quantiles from {LEVELS[0]} to {LEVELS[-1]}, not {level:g}: pass "
                    "calibration_windows to fit, or use another head"
                )


def _several(name: str, value: Any, end: float, meaning: str) -> list[float]:
    """One number or several, between 0 and `end`, as a list."""
    if value is None:
        return []
    items = [value] if is_number(value) else items_of(value)
    if items is None or not all(is_number(item) for item in items):
        raise ValueError(f"{name} must be numbers between 0 and {end}: {meaning}; got {value!r}")
    for item in items:
        if not 0 < item < end:
            raise ValueError(f"{name} must lie between 0 and {end}, got {item:g}")
    if len({f"{item:g}" for item in items}) < len(items):
        raise ValueError(f"{name} must be different numbers, got {value!r}")
    return [float(item) for item in items]
