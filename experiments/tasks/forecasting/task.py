"""The task of the forecasting experiment: a set of series, its splits and its scores.

Axes: M windows, L steps of history, H steps of the horizon, Q quantiles.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from experiments.datasets.series_sets import SeriesSet
from experiments.tasks.forecasting.baselines import LinearForecaster, last_value, seasonal_naive
from experiments.tasks.forecasting.pictures import draw_calibration, draw_errors, draw_windows
from experiments.tasks.forecasting.scores import scores, skill, targets_of
from experiments.tasks.pictures import draw_curves
from lstmx.cells import base
from lstmx.data import Panel, SeriesWindows, Windows
from lstmx.forecasting import LEVELS, Forecasts, ForecastTask, Scales, in_logarithms, require_counts
from lstmx.models import DirectForecaster, RecurrentForecaster, head_named
from lstmx.training.progress import format_table


class Comparison(NamedTuple):
    """Forecasts of windows by the model and by baselines.

    Attributes:
      windows: the windows.
      means: [M, H] by name of the method, the model first.
      quantiles: of the model, [M, H, Q] for `lstmx.forecasting.LEVELS`; None where it forecasts points.
    """

    windows: Windows
    means: dict[str, np.ndarray]
    quantiles: np.ndarray | None


class Units(NamedTuple):
    """Mean and deviation of each series over its training part, float64 [N]."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, series: SeriesSet) -> "Units":
        """The units of a set; a constant series has a deviation of 1."""
        parts = [series.panel.series(number)[:stop] for number, stop in enumerate(series.train_stop)]
        deviation = np.array([np.nanstd(part) for part in parts])
        return cls(np.array([np.nanmean(part) for part in parts]), np.where(deviation > 0, deviation, 1))

    def standardized(self, panel: Panel) -> Panel:
        """The panel with targets in these units."""
        mean, deviation = (np.repeat(values, panel.lengths)[:, None] for values in self)
        return dataclasses.replace(panel, targets=(panel.targets - mean) / deviation)


class Shape(NamedTuple):
    """The sizes of a model that follow from the data.

    Attributes:
      horizon: number of steps to forecast.
      historic, future, static: number of covariates of each kind.
      series: number of series.
      missing: whether values may be missing.
      targets: number of series that a multivariate model reads together.
    """

    horizon: int
    historic: int
    future: int
    static: int
    series: int
    missing: bool
    targets: int = 1


def make_model(config, shape: Shape, rngs: nnx.Rngs) -> DirectForecaster | RecurrentForecaster:
    """The model of a config, with new parameters."""
    model = config.model
    common = {
        "input_size": config.data.input_size,
        "horizon": shape.horizon,
        "targets": shape.targets,
        "head": head_named(config.head, LEVELS if config.head == "quantiles" else None),
        "future": shape.future,
        "static": shape.static,
        "num_series": shape.series if model.know_series else 0,
        "rngs": rngs,
    }
    names = ("cell", "hidden_size", "num_layers", "scaler_type", "season_length", "affine", "dropout_rate")
    common |= {name: getattr(model, name) for name in names}
    if model.decoder == "recurrent":
        return RecurrentForecaster(lags=model.lags, **common)
    if model.lags:
        raise ValueError("lags require the recurrent decoder: --model.decoder recurrent")
    names = ("patch_size", "patch_stride", "readout", "linear", "shrinkage")
    own = {name: getattr(model, name) for name in names}
    return DirectForecaster(historic=shape.historic, missing=shape.missing, **own, **common)


def network_panel(config, panel: Panel, ids: Sequence[str], time_of=None) -> Panel:
    """The inputs and targets of the network of a config, of a panel that is in the units of scores.

    Args:
        config: the config.
        panel: the series.
        ids: their names, for errors.
        time_of: gives the time of a step from the numbers of its series and of the step, for errors.

    Raises:
        ValueError: if a value is below 0 and the head is for counts, or not above 0 and logarithms are read.
    """
    if config.head == "negative_binomial":
        require_counts(panel, ids, time_of)
    if config.data.log:
        panel = in_logarithms(panel, ids, time_of)
    return panel.together() if config.model.multivariate else panel


def by_series(config, forecasts: Forecasts) -> Forecasts:
    """Forecasts in the units of scores: [M, H, D] as [D * M, H], one series after the other."""
    if config.data.log:
        forecasts = Forecasts(*map(np.exp, forecasts))
    return Forecasts(*(np.concatenate(np.moveaxis(values, 2, 0)) for values in forecasts))


class Forecasting(ForecastTask):
    """The task of a config and a set of series; see `lstmx.forecasting.ForecastTask`."""

    def __init__(self, config, series: SeriesSet):
        self.config, self.set = config, series
        data = config.data
        horizon = series.horizon if data.horizon is None else data.horizon
        self.units = Units.of(series) if series.standardized else None
        panel = series.panel if self.units is None else self.units.standardized(series.panel)
        # Scores are computed series by series in these units; the inputs of the network may differ.
        self.scored = SeriesWindows(panel, data.input_size, horizon)
        every = 1 if series.standardized else horizon
        self.scored_of = splits = splits_of(series, self.scored, data.least_history, every=every)
        self.scales = Scales.of(panel, series.train_stop)
        panel = network_panel(config, self.scales.applied(panel), series.ids, series.time_label)
        if config.model.multivariate:
            if config.model.know_series:
                raise ValueError("know_series has no effect with multivariate, which always knows its series")
            splits = _together(splits, series)
        counts = (getattr(panel, kind).shape[1] for kind in ("historic", "future", "static"))
        missing = bool(np.isnan(panel.targets).any()) or data.least_history < data.input_size
        self.shape = Shape(horizon, *counts, len(series.ids), missing, panel.targets.shape[1])
        super().__init__(
            dataclasses.replace(self.scored, panel=panel),
            splits,
            lambda rngs: make_model(config, self.shape, rngs),
            batch_size=data.batch_size,
            seed=config.seed,
            loss_units="panel" if series.standardized else "window",
            paths=config.paths,
            members=config.members,
        )

    def compare(self, params, split: str) -> Comparison:
        """The forecasts of all windows of a split."""
        of, windows, config = self.scored_of[split], self.scored, self.config
        levels = () if config.head in ("mse", "mae") else LEVELS
        forecasts = by_series(config, self.forecast(params, self.windows_of[split], levels))
        means = {config.model.cell: forecasts.mean, "last value": last_value(windows, of)}
        if self.set.season_length > 1:
            means["seasonal naive"] = seasonal_naive(windows, of, self.set.season_length)
        means["linear"] = self._linear(windows, of)
        return Comparison(of, means, forecasts.quantiles if levels else None)

    @functools.cached_property
    def _linear(self) -> LinearForecaster:
        nothing = np.zeros(0, int), np.zeros(0, int)
        known = (self.scored_of.get(split, nothing) for split in ("train", "validation"))
        return LinearForecaster(self.scored, *known, divided=not self.set.standardized)

    def scores(self, comparison: Comparison) -> dict[str, dict[str, float]]:
        """The scores by method, the model last."""
        unit, (model, *simple) = self._naive_errors(), comparison.means
        return {
            name: scores(
                self.scored,
                comparison.windows,
                comparison.means[name],
                comparison.quantiles if name == model else None,
                LEVELS,
                naive_errors=unit,
            )
            for name in (*simple, model)
        }

    def _naive_errors(self) -> np.ndarray:
        """The mean error of a naive forecast before the test part, float64 [N]: the denominator of MASE."""
        errors = np.ones(len(self.set.ids))
        for number, stop in enumerate(self.set.validation_stop):
            values = self.scored.panel.series(number)[:stop, 0]
            changes = np.abs(values[self.set.mase_season_length :] - values[: -self.set.mase_season_length])
            mean = np.nanmean(changes) if np.isfinite(changes).any() else 0
            errors[number] = mean if mean > 0 else np.nan
        return errors

    def report(self, params, split: str, folder: Path) -> tuple[str, dict[str, Any]]:
        """A table of all scores, and those of the model as values; draws the pictures."""
        comparison = self.compare(params, split)
        scores_by_method = self.scores(comparison)
        self._draw(comparison, split, folder)
        units = "standardized units" if self.set.standardized else "the units of the data"
        lines = [f"forecasts of {self.windows.horizon} steps, in {units}:", format_table(scores_by_method)]
        values = {"scores": scores_by_method, **scores_by_method[self.config.model.cell]}
        if self.set.log_prices:
            values["skill"] = self._skill(comparison)
            of_all, low, high = (100 * value for value in values["skill"])
            lines.append(
                f"returns: squared errors are {of_all:.1f} % below those of the random walk, "
                f"95 % interval {low:.1f} to {high:.1f}: " + ("no skill" if low <= 0 else "skill")
            )
        return "\n".join(lines), values

    def _skill(self, comparison: Comparison) -> tuple[float, float, float]:
        """The skill of forecasts of log prices compared with a random walk, for which they stay the same."""
        y, exists = targets_of(self.scored, comparison.windows)
        ours, naive = (
            np.sum((y - comparison.means[name]) ** 2, axis=1, where=exists)
            for name in (self.config.model.cell, "last value")
        )
        # All series end on the same day.
        return skill(ours, naive, self.set.test_stop[comparison.windows[0]] - comparison.windows[1])

    def draw(self, params, folder: Path) -> list[Path]:
        """Draws curves, forecasts, errors by step and calibration, if matplotlib is installed."""
        split = "validation"
        if split not in self.windows_of:
            return [picture for picture in [self._draw_curves(folder)] if picture is not None]
        return self._draw(self.compare(params, split), split, folder)

    def _draw_curves(self, folder: Path) -> Path | None:
        return draw_curves(folder, ["loss", "mae"] if self.config.model.decoder == "direct" else ["loss"])

    def _draw(self, comparison: Comparison, split: str, folder: Path) -> list[Path]:
        plots = folder / "plots"
        y, exists = targets_of(self.scored, comparison.windows)
        errors = {
            name: np.nanmean(np.where(exists, np.abs(y - values), np.nan), axis=0)
            for name, values in comparison.means.items()
        }
        pictures = [
            self._draw_curves(folder),
            self._draw_some(comparison, plots / f"forecasts-{split}.png"),
            draw_errors(errors, plots / f"errors-{split}.png"),
        ]
        if comparison.quantiles is not None:
            shares = [np.mean(y <= comparison.quantiles[..., at], where=exists) for at in range(len(LEVELS))]
            pictures.append(draw_calibration(LEVELS, shares, plots / f"calibration-{split}.png"))
        return [picture for picture in pictures if picture is not None]

    def _draw_some(self, comparison: Comparison, path: Path) -> Path | None:
        """Draws four evenly spaced windows."""
        rows = np.linspace(0, len(comparison.windows[0]) - 1, min(4, len(comparison.windows[0]))).astype(int)
        series, cutoffs = (part[rows] for part in comparison.windows)
        batch = self.scored.batch(series, cutoffs)
        before, targets = (
            np.where(batch[f"{name}_exists"], batch[name], np.nan)[..., 0] for name in ("history", "target")
        )
        steps = cutoffs[:, None] + np.arange(-self.scored.input_size, self.scored.horizon)
        times = self.set.times(series, steps)
        names = [self.set.ids[number] for number in series]
        if times is None:
            names = [f"{name}, step {cutoff:,}" for name, cutoff in zip(names, cutoffs, strict=True)]
        shown = {name: values[rows] for name, values in comparison.means.items() if name != "last value"}
        bands = None
        if comparison.quantiles is not None:
            bands = tuple(comparison.quantiles[rows][..., LEVELS.index(level)] for level in (0.1, 0.9))
        return draw_windows(before, targets, shown, bands, names, path, times)

    def describe(self) -> str:
        """The series and windows in one line, the model in another."""
        model, data = self.config.model, self.config.data
        epochs = self.config.steps / self.batches.steps_per_epoch
        kind = f"{model.num_layers} x {model.cell} of {model.hidden_size} units, {model.decoder}"
        members = self.config.members
        if members > 1:
            kind = f"{members} networks of {kind}"
        if model.patch_size > 1 and model.decoder == "direct":
            kind += f", patches of {model.patch_size} steps"
        return (
            f"{self.set.name}: {super().describe()}; {epochs:.1f} epochs of {data.batch_size}\n"
            f"model: {kind}, {members * base.count(self.model_shapes):,} parameters"
        )

    def assets(self) -> dict[str, str]:
        """What forecasts of other series need, and a digest that shows whether the data of a run changed."""
        panel, model = self.set.panel, self.config.model
        known = model.know_series or model.multivariate or panel.static.shape[1]
        digest = hashlib.sha256(panel.starts.tobytes())
        for name in ("targets", "historic", "future", "static"):
            digest.update(getattr(panel, name).tobytes())
        kept = {
            "name": self.set.name,
            "sha256": digest.hexdigest(),
            "frequency": self.set.frequency,
            "shape": self.shape._asdict(),
            "scales": [{kind: v.tolist() for kind, v in part.items()} for part in self.scales],
            "ids": self.set.ids if known or self.units else (),
            "names": [self.set.historic_names, self.set.future_names],
            "static": panel.static.tolist(),
            "zone": self.set.zone,
            "units": self.units and [values.tolist() for values in self.units],
        }
        return {"series.json": json.dumps(kept, indent=2)}


def splits_of(
    series: SeriesSet, windows: SeriesWindows, least_history: int, *, every: int
) -> Mapping[str, Windows]:
    """The windows of each nonempty split: those whose targets lie entirely in it.

    `every` is the distance of windows, except in training.
    """
    least = {"least_history": min(least_history, windows.input_size)}
    splits = {
        "train": windows.within(0, series.train_stop, **least),
        "validation": windows.within(series.train_stop, series.validation_stop, every=every, **least),
        "test": windows.within(series.validation_stop, series.test_stop, every=every, **least),
    }
    return {name: of for name, of in splits.items() if len(of[0]) or name == "train"}


def _together(splits: Mapping[str, Windows], series: SeriesSet) -> Mapping[str, Windows]:
    """The windows of the multivariate series; all series must have the same windows."""
    stops = series.train_stop, series.validation_stop, series.test_stop, series.start
    if any((stop != stop[0]).any() for stop in stops):
        raise ValueError(
            "series of a multivariate model must begin at the same time and have the same splits"
        )
    return {name: (of[of == 0], cutoffs[of == 0]) for name, (of, cutoffs) in splits.items()}
