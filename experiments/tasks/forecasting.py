"""The forecasting task of the experiment: a set of series, its splits and its scores.

Axes: M windows, L steps of history, H steps of the horizon, Q quantiles.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from experiments.datasets.series_sets import SeriesSet
from experiments.tasks.forecast_baselines import LinearForecaster, last_value, seasonal_naive
from experiments.tasks.forecast_pictures import draw_calibration, draw_errors, draw_windows
from experiments.tasks.forecast_scores import scores, skill, targets_of
from experiments.tasks.pictures import draw_curves
from lstmx.cells import base
from lstmx.data import Panel, SeriesWindows
from lstmx.forecasting import LEVELS, ForecastTask, Scales
from lstmx.models import DirectForecaster, RecurrentForecaster, head_named

Windows = tuple[np.ndarray, np.ndarray]
# Sets of logarithms of prices, and sets that are standardized and scored so by convention.
LOG_PRICES = ("sp500", "vega-stocks")
STANDARDIZED = ("etth1", "etth2", "ettm1", "ettm2", "weather")


class Shape(NamedTuple):
    """What a model is made for, beside its config.

    Attributes:
      horizon: steps to forecast.
      historic, future, static: how many covariates there are of each kind.
      series: how many series.
      missing: whether values may be missing.
    """

    horizon: int
    historic: int
    future: int
    static: int
    series: int
    missing: bool

    @classmethod
    def of(cls, panel: Panel, horizon: int, missing: bool) -> "Shape":
        """That of a panel."""
        counts = (getattr(panel, kind).shape[1] for kind in ("historic", "future", "static"))
        return cls(horizon, *counts, len(panel), missing)


def make_model(config, shape: Shape, rngs: nnx.Rngs) -> DirectForecaster | RecurrentForecaster:
    """The model of a config, with fresh parameters."""
    model = config.model
    common = {
        "input_size": config.data.input_size,
        "horizon": shape.horizon,
        "head": head_named(config.head, LEVELS if config.head == "quantiles" else None),
        "future": shape.future,
        "static": shape.static,
        "num_series": shape.series if model.know_series else 0,
        "rngs": rngs,
    }
    names = ("cell", "hidden_size", "num_layers", "scaling", "affine", "dropout_rate")
    common |= {name: getattr(model, name) for name in names}
    if model.decoder == "recurrent":
        return RecurrentForecaster(**common)
    names = ("patch_size", "patch_stride", "readout", "linear")
    own = {name: getattr(model, name) for name in names}
    return DirectForecaster(historic=shape.historic, missing=shape.missing, **own, **common)


class Forecasting(ForecastTask):
    """The task of a config and a set of series; see `lstmx.forecasting.ForecastTask`."""

    def __init__(self, config, series: SeriesSet):
        self.config, self.set = config, series
        data = config.data
        self.standardized = series.name in STANDARDIZED
        panel = standardized(series) if self.standardized else series.panel
        self.scales = Scales.of(panel, series.train_stop)
        panel = self.scales.applied(panel)
        missing = bool(np.isnan(panel.targets).any()) or data.least_history < data.input_size
        self.shape = Shape.of(panel, series.horizon if data.horizon is None else data.horizon, missing)
        horizon, windows = self.shape.horizon, SeriesWindows(panel, data.input_size, self.shape.horizon)
        super().__init__(
            windows,
            splits_of(series, windows, data.least_history, every=1 if self.standardized else horizon),
            lambda rngs: make_model(config, self.shape, rngs),
            batch_size=data.batch_size,
            seed=config.seed,
            loss_units="panel" if self.standardized else "window",
            paths=config.paths,
        )

    def said(self, params, of: Windows) -> tuple[np.ndarray, np.ndarray | None]:
        """The means [M, H] that the model forecasts, and where there are any its quantiles [M, H, Q]."""
        levels = () if self.config.head in ("mse", "mae") else LEVELS
        found = self.forecast(params, of, levels)
        return found.mean[..., 0], found.quantiles[..., 0, :] if levels else None

    def simple(self, of: Windows) -> dict[str, np.ndarray]:
        """The simple forecasts of windows [M, H], by their names."""
        found = {"last value": last_value(self.windows, of)}
        if self.set.season > 1:
            found["seasonal naive"] = seasonal_naive(self.windows, of, self.set.season)
        return {**found, "linear": self._linear(self.windows, of)}

    @functools.cached_property
    def _linear(self) -> LinearForecaster:
        known = (self.windows_of[split] for split in ("train", "validation"))
        return LinearForecaster(self.windows, *known, divided=not self.standardized)

    def scores(self, params, split: str) -> dict[str, dict[str, float]]:
        """The scores of the model and of the simple forecasts on the same windows, by their names."""
        of, unit = self.windows_of[split], self._naive_errors()
        simple = {name: (mean, None) for name, mean in self.simple(of).items()}
        return {
            name: scores(self.windows, of, mean, quantiles, LEVELS, naive_errors=unit)
            for name, (mean, quantiles) in {**simple, self.config.model.cell: self.said(params, of)}.items()
        }

    def _naive_errors(self) -> np.ndarray:
        """The mean error of a naive forecast on what was there before the test, float64 [N]: MASE's unit."""
        errors = np.ones(len(self.set.ids))
        for number, stop in enumerate(self.set.validation_stop):
            values = self.windows.panel.series(number)[:stop, 0]
            changes = np.abs(values[self.set.mase_season :] - values[: -self.set.mase_season])
            mean = np.nanmean(changes) if np.isfinite(changes).any() else 0
            errors[number] = mean if mean > 0 else np.nan
        return errors

    def report(self, params, split: str, folder: Path) -> tuple[str, dict[str, Any]]:
        """A table of the scores of all forecasts, and those of the model as values; draws the pictures."""
        found = self.scores(params, split)
        self.draw(params, folder, split)
        units = "standardized units" if self.standardized else "the units of the data"
        names = list(dict.fromkeys(name for each in found.values() for name in each))
        lines = [f"forecasts of {self.windows.horizon} steps, in {units}:"]
        lines.append(f"  {'':<16}" + "".join(f"{name:>12}" for name in names))
        for method, each in found.items():
            cells = (f"{each[name]:>12.4f}" if name in each else f"{'-':>12}" for name in names)
            lines.append(f"  {method:<16}" + "".join(cells))
        values = {"scores": found, **found[self.config.model.cell]}
        if self.set.name in LOG_PRICES:
            values["skill"] = self._skill(params, split)
            of_all, low, high = (100 * value for value in values["skill"])
            lines.append(
                f"returns: squared errors are {of_all:.1f} % below those of the random walk, "
                f"95 % interval {low:.1f} to {high:.1f}: " + ("no skill" if low <= 0 else "skill")
            )
        return "\n".join(lines), values

    def _skill(self, params, split: str) -> tuple[float, float, float]:
        """Of forecasts of logarithms of prices, which a random walk takes to stay: those of returns."""
        of = self.windows_of[split]
        y, exists = targets_of(self.windows, of)
        ours, naive = (
            np.sum((y - mean) ** 2, axis=1, where=exists)
            for mean in (self.said(params, of)[0], last_value(self.windows, of))
        )
        # All series end on the same day.
        return skill(ours, naive, self.set.test_stop[of[0]] - of[1])

    def draw(self, params, folder: Path, split: str = "validation") -> list[Path]:
        """Draws curves, forecasts, errors by horizon and calibration, where matplotlib is installed."""
        of, plots = self.windows_of[split], folder / "plots"
        mean, quantiles = self.said(params, of)
        forecasts = {self.config.model.cell: mean, **self.simple(of)}
        some = np.linspace(0, len(of[0]) - 1, min(4, len(of[0]))).astype(int)
        batch = self.windows.batch(of[0][some], of[1][some])
        before, came = (
            np.where(batch[f"{name}_exists"], batch[name], np.nan)[..., 0] for name in ("history", "target")
        )
        y, exists = targets_of(self.windows, of)
        errors = {
            name: np.nanmean(np.where(exists, np.abs(y - values), np.nan), axis=0)
            for name, values in forecasts.items()
        }
        names = [f"{self.set.ids[n]}, step {c:,}" for n, c in zip(of[0][some], of[1][some], strict=True)]
        shown = {name: forecasts[name][some] for name in forecasts if name != "last value"}
        bands = (
            None if quantiles is None else tuple(quantiles[some][..., LEVELS.index(p)] for p in (0.1, 0.9))
        )
        pictures = [
            draw_curves(folder, ["loss", "mae"] if self.config.model.decoder == "direct" else ["loss"]),
            draw_windows(before, came, shown, bands, names, plots / f"forecasts-{split}.png"),
            draw_errors(errors, plots / f"errors-{split}.png"),
        ]
        if quantiles is not None:
            shares = [np.mean(y <= quantiles[..., at], where=exists) for at in range(len(LEVELS))]
            pictures.append(draw_calibration(LEVELS, shares, plots / f"calibration-{split}.png"))
        return [picture for picture in pictures if picture is not None]

    def describe(self) -> str:
        """The series, the windows and the model, in a line each."""
        model, data = self.config.model, self.config.data
        epochs = self.config.steps / self.batches.steps_per_epoch
        kind = f"{model.num_layers} x {model.cell} of {model.hidden_size} units, {model.decoder}"
        if model.patch_size > 1 and model.decoder == "direct":
            kind += f", patches of {model.patch_size} steps"
        return (
            f"{self.set.name}: {super().describe()}; {epochs:.1f} epochs of {data.batch_size}\n"
            f"model: {kind}, {base.count(self.model_shapes):,} parameters"
        )

    def assets(self) -> dict[str, str]:
        """What is needed to forecast other series, and by what a run notices that its own have changed."""
        panel = self.set.panel
        digest = hashlib.sha256(panel.starts.tobytes())
        for name in ("targets", "historic", "future", "static"):
            digest.update(getattr(panel, name).tobytes())
        kept = {
            "name": self.set.name,
            "sha256": digest.hexdigest(),
            "frequency": self.set.frequency,
            "shape": self.shape._asdict(),
            "scales": [{kind: v.tolist() for kind, v in part.items()} for part in self.scales],
            "ids": self.set.ids if self.config.model.know_series else (),
        }
        return {"series.json": json.dumps(kept, indent=2)}


def standardized(series: SeriesSet) -> Panel:
    """The targets of each series with mean 0 and deviation 1 over its training part."""
    panel = series.panel
    targets = panel.targets.copy()
    for number, stop in enumerate(series.train_stop):
        values = panel.series(number)
        deviation = np.nanstd(values[:stop])
        rows = slice(panel.starts[number], panel.starts[number + 1])
        targets[rows] = (values - np.nanmean(values[:stop])) / (deviation if deviation > 0 else 1)
    return dataclasses.replace(panel, targets=targets)


def splits_of(
    series: SeriesSet, windows: SeriesWindows, least_history: int, *, every: int
) -> Mapping[str, Windows]:
    """The windows of each split: those whose targets lie in it wholly; `every` holds of all but training."""
    least = {"least_history": min(least_history, windows.input_size)}
    return {
        "train": windows.within(0, series.train_stop, **least),
        "validation": windows.within(series.train_stop, series.validation_stop, every=every, **least),
        "test": windows.within(series.validation_stop, series.test_stop, every=every, **least),
    }
