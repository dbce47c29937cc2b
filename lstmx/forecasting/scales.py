"""Covariates on a common scale: mean 0 and deviation 1 over what is trained on."""

import dataclasses
from collections.abc import Mapping
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
