"""Forecasts of the series of a file by a trained model.

Axes: N series, L steps of history, H steps of the horizon.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.datasets.series_files import calendar_features
from experiments.datasets.series_table import columns_of, read_table
from experiments.tasks.forecasting.pictures import draw_windows
from experiments.tasks.forecasting.task import Shape, Units, by_series, make_model, network_panel
from lstmx.data import Panel, SeriesWindows
from lstmx.forecasting import (
    ForecastTask,
    FramePanel,
    Scales,
    forecast_frame,
    interval_columns,
    times_of,
    with_future,
)

# More series would not fit into a readable picture.
_DRAWN = 4


class RunForecaster:
    """The series of a file and the model of a run.

    Args:
      config: config of the run.
      assets: assets of the run.
      path: a CSV file with the columns that the run was trained on. For a run on a named set these are
        unique_id, ds, y and its covariates by name, without those of the calendar.

    Attributes:
      series: the series, with the steps to forecast.
      task: the model and how it forecasts.

    Raises:
      FileNotFoundError, ValueError: as from `experiments.datasets.series_table.read_table`.
      ValueError: if a series is not one of those that the run was trained on, but the model has to know it.
    """

    def __init__(self, config, assets: Mapping[str, str], path: Path):
        kept, data = json.loads(assets["series.json"]), config.data
        shape = Shape(**kept["shape"])
        self.series = with_future(read_table(path, **_columns_of_file(kept, data)), None, shape.horizon)
        ids = tuple(map(str, self.series.ids))
        places = _places(ids, kept["ids"])
        mean, deviation = ({kind: np.array(v) for kind, v in part.items()} for part in kept["scales"])
        panel = self.series.panel if kept["name"] == "table" else _completed(self.series, kept, places)
        panel = Scales(mean, deviation).applied(panel)
        self._mean, self._deviation = np.zeros((len(ids), 1)), np.ones((len(ids), 1))
        if kept["units"]:
            units = Units(*(np.array(values)[places] for values in kept["units"]))
            panel = units.standardized(panel)
            self._mean, self._deviation = units.mean[:, None], units.deviation[:, None]
        panel = _placed(panel, places, max(len(kept["ids"]), len(ids)))
        ends = self.series.panel.observed
        self._config, self._windows, self._rows = config, (places, ends), slice(None)
        if config.model.multivariate:
            _require_together(self.series, kept["ids"])
            self._windows, self._rows = (np.zeros(1, int), ends[:1]), places
        panel = network_panel(config, panel, kept["ids"] or ids)
        self.task = ForecastTask(
            SeriesWindows(panel, data.input_size, shape.horizon),
            {},
            lambda rngs: make_model(config, shape, rngs),
            batch_size=data.batch_size,
            seed=config.seed,
            paths=config.paths,
            members=config.members,
        )
        self._name, self._point = config.model.cell, config.head in ("mse", "mae")

    def table(self, params, level: Sequence[float]) -> Any:
        """Forecasts as a pandas DataFrame: ids, times, `forecast`, and interval bounds.

        Args:
          params: the parameters.
          level: widths of the intervals in percent; ignored for point forecasts.
        """
        return forecast_frame(self.series, self._columns(params, () if self._point else level))

    def _columns(self, params, level: Sequence[float]) -> dict[str, np.ndarray]:
        """The columns of forecasts, [N, H] each, in the units of the file."""
        bounds = interval_columns("forecast", level)
        forecasts = by_series(self._config, self.task.forecast(params, self._windows, tuple(bounds.values())))
        columns = {"forecast": forecasts.mean}
        columns |= {name: forecasts.quantiles[..., at] for at, name in enumerate(bounds)}
        return {name: self._mean + self._deviation * values[self._rows] for name, values in columns.items()}

    def plot(self, params, path: Path) -> None:
        """Draws the first series and their forecasts.

        Raises:
          ImportError: if matplotlib is not installed.
        """
        columns = self._columns(params, () if self._point else (80,))
        forecast, *bands = (values[:_DRAWN] for values in columns.values())
        panel, size = self.series.panel, self.task.windows.input_size
        cutoffs = panel.observed[:_DRAWN]
        steps = cutoffs[:, None] + np.arange(-size, self.task.windows.horizon)
        index = times_of(self.series, np.arange(len(cutoffs))[:, None], np.maximum(steps, 0))
        index = index if self.series.zone is None else index.tz_localize(None)
        times = index.to_numpy().reshape(steps.shape)
        batch = SeriesWindows(panel, size, 1).batch(np.arange(len(cutoffs)), cutoffs)
        history = np.where(batch["history_exists"], batch["history"], np.nan)[..., 0]
        nothing = np.full(forecast.shape, np.nan)
        names = [str(label) for label in self.series.ids[:_DRAWN]]
        forecasts = {self._name: forecast}
        if draw_windows(history, nothing, forecasts, tuple(bands) or None, names, path, times) is None:
            raise ImportError("pictures need matplotlib: pip install 'lstmx[forecast]'")


def _columns_of_file(kept: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """The arguments of `read_table` for a file to forecast."""
    columns = dict(columns_of(data))
    if kept["name"] != "table":
        columns |= {"id_col": "unique_id", "time_col": "ds", "target_col": "y"}
        columns |= dict(zip(("historic", "future"), _own_columns(kept), strict=True))
    columns["frequency"] = int(kept["frequency"]) if kept["frequency"].isdigit() else kept["frequency"]
    return columns


def _places(ids: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """The number of each series in training; arbitrary if the model does not know series."""
    for label in ids:
        if known and label not in known:
            named = ", ".join(known)
            raise ValueError(f"the run forecasts only the series it was trained on, {named}; got {label!r}")
    return np.array([known.index(label) if known else number for number, label in enumerate(ids)])


def _own_columns(kept: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The historic and future covariates of a named set that a file must have."""
    historic, future = map(tuple, kept["names"])
    if future:
        calendar, _ = calendar_features(np.array(["2000-01-01"], "datetime64[s]"), kept["frequency"])
        future = tuple(name for name in future if name not in calendar)
    return historic, future


def _completed(series: FramePanel, kept: Mapping[str, Any], places: np.ndarray) -> Panel:
    """The series with the calendar and the static features of a named set."""
    panel = series.panel
    if panel.static.shape != (len(panel), len(kept["static"][0])):
        panel = dataclasses.replace(panel, static=np.array(kept["static"])[places])
    if not kept["names"][1]:
        return panel
    number = np.repeat(np.arange(len(panel)), panel.lengths)
    index = times_of(series, number, np.arange(panel.starts[-1]) - panel.starts[number])
    if kept["zone"] and index.tz is None:
        index = index.tz_localize("UTC")
    if index.tz is not None:
        index = index.tz_convert(kept["zone"] or index.tz).tz_localize(None)
    names, features = calendar_features(index.to_numpy(), kept["frequency"])
    known = dict(zip((*series.future, *names), (*panel.future.T, *features.T), strict=True))
    future = np.stack([known[name] for name in kept["names"][1]], axis=1)
    return dataclasses.replace(panel, future=future)


def _require_together(series: FramePanel, ids: Sequence[str]) -> None:
    """Raises ValueError unless all series of a multivariate model are there, over the same steps."""
    for label in ids:
        if label not in map(str, series.ids):
            raise ValueError(f"the multivariate run reads {len(ids)} series, but {label!r} is missing")
    ends = [str(times_of(series, number, end - 1)[0]) for number, end in enumerate(series.panel.observed)]
    for label, start, end in zip(series.ids, series.starts, ends, strict=True):
        if (start, end) != (series.starts[0], ends[0]):
            raise ValueError(
                f"series of a multivariate model must have the same steps: {series.ids[0]!r} has those from "
                f"{series.starts[0]} to {ends[0]}, {label!r} those from {start} to {end}"
            )


def _placed(panel: Panel, places: np.ndarray, count: int) -> Panel:
    """The series at their places in a panel of `count` series, whose other series have no steps."""
    lengths = np.zeros(count, int)
    lengths[places] = panel.lengths
    order = np.argsort(places)
    rows = np.concatenate([np.arange(panel.starts[n], panel.starts[n + 1]) for n in order])
    static = np.zeros((count, panel.static.shape[1]))
    static[places] = panel.static
    parts = {name: getattr(panel, name)[rows] for name in ("targets", "historic", "future")}
    return dataclasses.replace(panel, starts=np.append(0, np.cumsum(lengths)), static=static, **parts)
