"""Scales for networks: covariates of mean 0 and deviation 1 over the training steps; logarithms; counts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lstmx.data import Panel

_KINDS = ("historic", "future", "static")


class Scales(NamedTuple):
    """Means and deviations of covariates, float64 [F], by kind: historic, future, static."""

    mean: Mapping[str, np.ndarray]
    deviation: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, panel: Panel, stops: np.ndarray) -> "Scales":
        """Means and deviations over the steps of each series before `stops`, int [N].

        A covariate that does not vary has a deviation of 1.

        Example:
          >>> panel = Panel(np.array([0, 3]), np.zeros((3, 1)), future=np.array([[1.0], [3.0], [9.0]]))
          >>> scales = Scales.of(panel, np.array([2]))
          >>> scales.applied(panel).future[:, 0].tolist()
          [-1.0, 1.0, 7.0]
        """
        steps = np.arange(panel.starts[-1]) - np.repeat(panel.starts[:-1], panel.lengths)
        training = steps < np.repeat(stops, panel.lengths)
        mean: dict[str, np.ndarray] = {}
        deviation: dict[str, np.ndarray] = {}
        for kind in _KINDS:
            values = getattr(panel, kind)
            values = values if kind == "static" else values[training]
            known = ~np.isnan(values)
            count = np.maximum(known.sum(axis=0), 1)
            mean[kind] = np.sum(values, axis=0, where=known) / count
            spread = np.sqrt(np.sum((values - mean[kind]) ** 2, axis=0, where=known) / count)
            deviation[kind] = np.where(spread > 1e-9 * np.abs(mean[kind]), spread, 1)
        return cls(mean, deviation)

    def applied(self, panel: Panel) -> Panel:
        """The panel with scaled covariates."""
        scaled = {kind: (getattr(panel, kind) - self.mean[kind]) / self.deviation[kind] for kind in _KINDS}
        return dataclasses.replace(panel, **scaled)


TimeOf = Callable[[int, int], object]


def in_logarithms(panel: Panel, ids: Sequence, time_of: TimeOf | None = None) -> Panel:
    """The panel with the natural logarithms of its targets.

    Args:
      panel: the series.
      ids: names of the series, for errors.
      time_of: gives the time of a step from the numbers of its series and of the step, for errors.

    Raises:
      ValueError: if a target is not above 0.

    Example:
      >>> panel = Panel(np.array([0, 2]), np.array([[1.0], [np.e]]))
      >>> in_logarithms(panel, ["a"]).targets.ravel()
      array([0., 1.])
    """
    _refuse(panel.targets <= 0, "only values above 0 have logarithms", panel, ids, time_of)
    return dataclasses.replace(panel, targets=np.log(panel.targets))


def require_counts(panel: Panel, ids: Sequence, time_of: TimeOf | None = None) -> None:
    """Checks that targets can be counts, as the head `"negative_binomial"` requires.

    Args:
      panel, ids, time_of: as of `in_logarithms`.

    Raises:
      ValueError: if a target is below 0.

    Example:
      >>> require_counts(Panel(np.array([0, 2]), np.array([[1.0], [-2.0]])), ["a"])
      Traceback (most recent call last):
      ValueError: head="negative_binomial" takes only values from 0 up, got -2 in step 1 of series 'a'
    """
    rule = 'head="negative_binomial" takes only values from 0 up'
    _refuse(panel.targets < 0, rule, panel, ids, time_of)


def _refuse(wrong: np.ndarray, rule: str, panel: Panel, ids: Sequence, time_of: TimeOf | None) -> None:
    """Raises ValueError with the first of the wrong targets, if there are any."""
    rows, columns = np.nonzero(wrong)
    if not len(rows):
        return
    number = int(np.searchsorted(panel.starts, rows[0], side="right")) - 1
    step = int(rows[0] - panel.starts[number])
    time = None if time_of is None else time_of(number, step)
    time = "" if time is None else f" ({time})"
    more = f", and {len(rows) - 1} more" if len(rows) > 1 else ""
    value = panel.targets[rows[0], columns[0]]
    raise ValueError(f"{rule}, got {value:g} in step {step}{time} of series {ids[number]!r}{more}")
