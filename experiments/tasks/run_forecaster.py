"""Forecasts of other series by a trained model.

Axes: N series, L steps of history, H steps of the horizon.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.datasets.series_table import columns_of, read_table
from experiments.tasks.forecast_pictures import draw_windows
from experiments.tasks.forecasting import STANDARDIZED, Shape, make_model
from lstmx.data import SeriesWindows
from lstmx.forecasting import ForecastTask, Scales, forecast_frame, with_future

# A picture of more series could not be read.
_DRAWN = 4


class RunForecaster:
    """The series of a file and the model of a run.

    Args:
      config: the run's.
      assets: the run's.
      path: a CSV file with the columns that the run was trained on; of a run on a named set, with the columns
        unique_id, ds and y.

    Attributes:
      series: the series, with the steps to forecast.
      task: the model and how it forecasts.

    Raises:
      FileNotFoundError, ValueError: as of `experiments.datasets.series_table.read_table`; or if the run knows
        each of its series, and these are others, or it needs covariates that a file cannot have.
    """

    def __init__(self, config, assets: Mapping[str, str], path: Path):
        kept, data = json.loads(assets["series.json"]), config.data
        shape = Shape(**kept["shape"])
        columns = columns_of(data)
        if kept["name"] != "table":
            if shape.historic or shape.future or shape.static:
                raise ValueError(f"a run on {kept['name']} reads covariates that only its own series have")
            columns |= {"id_col": "unique_id", "time_col": "ds", "target_col": "y"}
        columns["frequency"] = _frequency(kept["frequency"])
        series = read_table(path, **columns)
        if kept["ids"] and list(series.ids) != kept["ids"]:
            raise ValueError(f"the run knows the series {', '.join(kept['ids'])}, and forecasts only them")
        self.series = with_future(series, None, shape.horizon)
        mean, deviation = ({kind: np.array(v) for kind, v in part.items()} for part in kept["scales"])
        panel = Scales(mean, deviation).applied(self.series.panel)
        # The models of these sets normalize windows; what is left is of the order of 1 in any units.
        self._point = config.head in ("mse", "mae")
        self.task = ForecastTask(
            SeriesWindows(panel, data.input_size, shape.horizon),
            {},
            lambda rngs: make_model(config, shape, rngs),
            batch_size=data.batch_size,
            seed=config.seed,
            loss_units="panel" if kept["name"] in STANDARDIZED else "window",
            paths=config.paths,
        )
        self._name = config.model.cell

    @property
    def _windows(self) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(self.series.ids)), self.series.panel.observed

    def table(self, params, level: Sequence[float]) -> Any:
        """Forecasts as a pandas DataFrame: ids, times, `forecast`, and the bounds of intervals.

        Args:
          params: the parameters.
          level: widths of the intervals in percent; of no use where only points are forecast.
        """
        bounds = {}
        for width in () if self._point else level:
            if not 0 < width < 100:
                raise ValueError(f"level must lie between 0 and 100 percent, got {width:g}")
            for side, sign in (("lo", -1), ("hi", 1)):
                bounds[f"forecast-{side}-{width:g}"] = round(0.5 + sign * width / 200, 6)
        found = self.task.forecast(params, self._windows, tuple(bounds.values()))
        several = {name: found.quantiles[..., 0, at] for at, name in enumerate(bounds)}
        return forecast_frame(self.series, {"forecast": found.mean[..., 0], **several})

    def plot(self, params, path: Path) -> None:
        """Draws the first series and their forecasts.

        Raises:
          ImportError: if matplotlib is not installed.
        """
        series, cutoffs = (part[:_DRAWN] for part in self._windows)
        found = self.task.forecast(params, (series, cutoffs), () if self._point else (0.1, 0.9))
        batch = self.task.windows.batch(series, cutoffs)
        history = np.where(batch["history_exists"], batch["history"], np.nan)[..., 0]
        bands = None if self._point else (found.quantiles[..., 0, 0], found.quantiles[..., 0, 1])
        nothing = np.full(found.mean.shape[:2], np.nan)
        names = [str(label) for label in self.series.ids[:_DRAWN]]
        drawn = draw_windows(history, nothing, {self._name: found.mean[..., 0]}, bands, names, path)
        if drawn is None:
            raise ImportError("pictures need matplotlib: pip install 'lstmx[forecast]'")


def _frequency(kept: str) -> str | int:
    return int(kept) if kept.isdigit() else kept
