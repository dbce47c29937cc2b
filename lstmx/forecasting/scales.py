"""Scales for networks: covariates of mean 0 and deviation 1 over what is trained on; logarithms."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lstmx.data import Panel

_KINDS = ("historic", "future", "static")


class Scales(NamedTuple):
    """What is subtracted from covariates and what they are divided by, float64 [F], by their kind."""

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
        seen = steps < np.repeat(stops, panel.lengths)
        mean, deviation = {}, {}
        for kind in _KINDS:
            values = panel.static if kind == "static" else getattr(panel, kind)[seen]
            known = ~np.isnan(values)
            count = np.maximum(known.sum(axis=0), 1)
            mean[kind] = np.sum(values, axis=0, where=known) / count
            found = np.sqrt(np.sum((values - mean[kind]) ** 2, axis=0, where=known) / count)
            deviation[kind] = np.where(found > 1e-9 * np.abs(mean[kind]), found, 1)
        return cls(mean, deviation)

    def applied(self, panel: Panel) -> Panel:
        """The panel with its covariates on the scale."""
        scaled = {kind: (getattr(panel, kind) - self.mean[kind]) / self.deviation[kind] for kind in _KINDS}
        return dataclasses.replace(panel, **scaled)


def in_logarithms(panel: Panel, ids: Sequence) -> Panel:
    """The panel with the natural logarithms of its targets.

    Args:
      panel: the series.
      ids: what they are called in errors.

    Raises:
      ValueError: if a target is not above 0.

    Example:
      >>> panel = Panel(np.array([0, 2]), np.array([[1.0], [np.e]]))
      >>> in_logarithms(panel, ["a"]).targets.ravel()
      array([0., 1.])
    """
    wrong = np.flatnonzero((panel.targets <= 0).any(axis=1))
    if len(wrong):
        number = int(np.searchsorted(panel.starts, wrong[0], side="right")) - 1
        raise ValueError(
            f"only values above 0 have logarithms, got {panel.targets[wrong[0]].min():g} in step "
            f"{wrong[0] - panel.starts[number]} of series {ids[number]!r}, and {len(wrong) - 1} more"
        )
    return dataclasses.replace(panel, targets=np.log(panel.targets))
