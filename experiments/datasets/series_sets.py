"""Time series for forecasting, as TFDS data sets without TensorFlow.

`load_series` reads one of these, from files that you have:

    etth1 etth2 ettm1 ettm2   ETTh1.csv, ...: seven loads and temperatures of transformers (Zhou et al. 2021)
    weather       weather.csv: 21 instruments in Jena in 2020, as in the benchmarks of Wu et al. 2021
    m4-hourly     Hourly-train.csv, Hourly-test.csv: 414 series of the M4 competition (Makridakis et al. 2020)
    m4-weekly     Weekly-train.csv, Weekly-test.csv: its 359 weekly series
    retail        aus_retail.csv: turnover of shops in Australia by state and industry, monthly
    electricity   vic_electricity.csv: demand in Victoria, half-hourly, with temperature and holidays
    bike          bike_sharing_hour.csv: bicycles rented in Washington, hourly, with the weather
    sp500         sp500-2000.csv, AAPL.csv, AMZN.csv, FB.csv, GOOG.csv: log prices at the end of trading days
    vega-weather  seattle-weather.csv: the highest temperature of the day in Seattle
    vega-stocks   stocks.csv: log prices of five shares, monthly

The last two come with the package vega_datasets, the others are looked for in a folder.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from experiments.datasets.compressed import read_content
from experiments.datasets.preparing import DamagedError, load_prepared
from experiments.datasets.series_files import find_files, missing_files, read_table
from experiments.datasets.series_readers import SETS, SeriesTable
from lstmx.data import text_of
from lstmx.data.series import Panel
from lstmx.forecasting.frequencies import times_at

NAMES = tuple(SETS)
_SPLIT = "series"


class SeriesSet(NamedTuple):
    """A set of series and its splits.

    The training part of a series ends before `train_stop`, the validation part before `validation_stop`, and
    the test part before `test_stop`; the history that a forecast reads may reach back into earlier parts.

    Attributes:
      name: one of `NAMES`.
      ids: name of each series N; for a table with one column per series, the name of the column.
      panel: the series, targets [R, 1].
      start: datetime64[s] [N], the time of the first step of each.
      frequency: pandas alias of the frequency.
      season_length: steps per season; 1 for none.
      mase_season_length: lag of the naive forecast that MASE divides by.
      horizon: usual number of steps to forecast.
      train_stop, validation_stop, test_stop: int64 [N], steps of each series.
      historic_names, future_names, static_names: names of the columns of the panel.
      standardized: whether, by convention, series are scored after standardizing each by its mean and
        deviation over the training part.
      log_prices: whether the values are logarithms of prices.
      dated: whether the times of steps follow from `start` and `frequency`: they do not if dates are made up,
        or days without trading are left out.
      zone: time zone of the calendar features, if times are in UTC.
    """

    name: str
    ids: tuple[str, ...]
    panel: Panel
    start: np.ndarray
    frequency: str
    season_length: int
    mase_season_length: int
    horizon: int
    train_stop: np.ndarray
    validation_stop: np.ndarray
    test_stop: np.ndarray
    historic_names: tuple[str, ...]
    future_names: tuple[str, ...]
    static_names: tuple[str, ...]
    standardized: bool = False
    log_prices: bool = False
    dated: bool = True
    zone: str | None = None

    def times(self, series: np.ndarray, steps: np.ndarray) -> np.ndarray | None:
        """The times of steps of series, datetime64, for labels; None if they are not known.

        Args:
          series: int [M], the numbers of the series.
          steps: int [M, T]; steps before the first count as the first.
        """
        if not self.dated or importlib.util.find_spec("pandas") is None:
            return None
        starts = np.broadcast_to(self.start[series][:, None], steps.shape).ravel()
        return (
            times_at(starts, np.maximum(steps, 0).ravel(), self.frequency, None)
            .to_numpy()
            .reshape(steps.shape)
        )

    def time_label(self, number: int, step: int) -> str | None:
        """The time of a step of a series, as text; None if it is not known."""
        times = self.times(np.array([number]), np.array([[step]]))
        return None if times is None else str(times[0, 0].astype("datetime64[s]")).removesuffix("T00:00:00")

    def cut(self, *, back: int = 0, until: Literal["validation", "test"] = "validation") -> "SeriesSet":
        """The set with other splits.

        Args:
          back: number of steps by which all parts end earlier.
          until: whether the training part ends before the `"validation"` part or before the `"test"` part,
            so that there is no validation part.

        Raises:
          ValueError: if back is below 0, or the splits of the set are fixed by convention.
        """
        if back < 0:
            raise ValueError(f"back must be at least 0, got {back}")
        if self.standardized and (back or until == "test"):
            raise ValueError(f"the splits of {self.name} are fixed by convention")
        train, validation, test = (
            np.maximum(stop - back, 0) for stop in (self.train_stop, self.validation_stop, self.test_stop)
        )
        train = validation if until == "test" else train
        return self._replace(train_stop=train, validation_stop=validation, test_stop=test)


def load_series(
    name: str, path: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None
) -> SeriesSet:
    """Reads a set of series through TFDS, preparing it the first time.

    The prepared copy is named after the content of the files. Without a path and without files, a copy that
    was prepared before is read. The training, validation and test parts are:

    * etth, ettm: 12, 4 and 4 months of 30 days; the rest is not used.
    * weather: 70, 10 and 20 %. Rows are read as equally spaced, and the -9999 of instruments that failed are
      not removed, as in all published results; a warning counts both.
    * m4: the test file is the test part, the last horizon of the training file the validation part. Weekly
      MASE is that of the competition, without a season. The files have no dates: all series are made to begin
      on 2 January 2000.
    * retail: the last 24 months of the whole set are the test part, the 24 before the validation part; series
      that ended earlier are only trained on. Static: state and industry.
    * electricity, bike: whole days, 70, 10 and 20 %. Electricity is in UTC, so that its steps are even, with
      a calendar in the time of Melbourne. Bicycles are in local time of Washington; in their file, hours that
      were not recorded, such as 36 of Hurricane Sandy in the test part, repeat the hour before, including its
      holiday flag.
    * sp500: test from 2017 on, validation 2016, in all series; steps are trading days.
    * vega-weather: test the last 365 days, validation the 365 before; vega-stocks: the last 24 months and the
      12 before.

    Args:
      name: one of `NAMES`.
      path: the folder of its files, or the one above it; a single file may have any name. By default
        `downloads/manual` in the folder of TFDS; for `"vega-*"` the folder of the package.
      data_dir: where TFDS stores its data sets; None for the default of TFDS.

    Returns:
      The series and their splits.

    Raises:
      FileNotFoundError: if files are missing; names them, and where they were looked for.
      ImportError: if vega_datasets is not installed and no path given for `"vega-*"`.
      ValueError: if the name is unknown, or a file is invalid; names line and column.
      PermissionError: if the series have to be prepared and data_dir is not writable.
      RuntimeError: if preparing fails, or if the prepared copy is damaged.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     weather = load_series("vega-weather", data_dir=folder)
      >>> weather.ids, weather.start, weather.panel.lengths
      (('temp_max',), array(['2012-01-01T00:00:00'], dtype='datetime64[s]'), array([1461]))
    """
    if name not in SETS:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    config = _config(name, path, pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser())
    return load_prepared(TimeSeries, config, data_dir, lambda records: _series_set(name, records[_SPLIT]))


@dataclasses.dataclass(eq=False, kw_only=True)
class TimeSeriesConfig(tfds.core.BuilderConfig):
    """The config of a set, named after the content of its files.

    Attributes:
      source: one of `NAMES`.
      files: path and content of each file; empty for a copy that is already prepared.
    """

    source: str
    files: list[tuple[pathlib.Path, bytes]] = dataclasses.field(default_factory=list, repr=False)


class TimeSeries(tfds.core.GeneratorBasedBuilder):
    """Series in order, one record each.

    `values` are the steps: the target, the historic covariates and the future ones. `columns` has the names
    of these and the static covariates as JSON; `start` is in seconds since 1970.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, config: TimeSeriesConfig, **kwargs):
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        table = {"shape": (None, None), "dtype": np.float64, "encoding": "zlib"}
        features = {
            "id": tfds.features.Text(),
            "start": tfds.features.Scalar(np.int64),
            "stops": tfds.features.Tensor(shape=(3,), dtype=np.int64),
            "values": tfds.features.Tensor(**table),
            "static": tfds.features.Tensor(**table),
            "columns": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Time series.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self.builder_config
        tables = [read_table(path, content) for path, content in config.files]
        return {_SPLIT: self._generate_examples(_checked(config, SETS[config.source].read(tables)))}

    def _generate_examples(self, found: SeriesTable) -> Iterator:
        columns = json.dumps([found.historic_names, found.future_names, found.static_names])
        for key, series in enumerate(found.series):
            parts = (series.targets[:, None], series.historic, series.future)
            yield (
                key,
                {
                    "id": series.id,
                    "start": int(series.start.astype("datetime64[s]").astype(np.int64)),
                    "stops": np.array(series.stops, np.int64),
                    "values": np.concatenate([part for part in parts if part is not None], axis=1),
                    "static": np.zeros((1, 0)) if series.static is None else series.static[None],
                    "columns": columns,
                },
            )


def _checked(config: TimeSeriesConfig, found: SeriesTable) -> SeriesTable:
    horizon = SETS[config.source].horizon
    stops = np.array([(0, *series.stops) for series in found.series])
    for part, steps in zip(("training", "validation", "test"), np.diff(stops).max(axis=0), strict=True):
        if steps < horizon:
            paths = ", ".join(str(path) for path, _ in config.files)
            raise ValueError(
                f"{paths}: the {part} part needs {horizon} steps in at least one series, the longest has "
                f"{steps}"
            )
    return found


def _config(name: str, path: str | os.PathLike | None, root: pathlib.Path) -> TimeSeriesConfig:
    chosen = SETS[name]
    if path is not None:
        path = pathlib.Path(path).expanduser().absolute()
        folders = [path, path / chosen.folder]
    elif chosen.package:
        package = importlib.util.find_spec(chosen.package)  # not imported: it would import pandas
        folders = [pathlib.Path(at, "_data") for at in package.submodule_search_locations] if package else []
    else:
        folders = [root / "downloads" / "manual", root / "downloads" / "manual" / chosen.folder]
    if path is not None and path.is_file() and len(chosen.files) == 1:
        files = {chosen.files[0]: path}
    else:
        files = find_files(chosen.files, folders)
    if files:
        contents = [(files[file], read_content(files[file])) for file in chosen.files]
        digests = "".join(hashlib.sha256(content).hexdigest() for _, content in contents)
        digest = hashlib.sha256(digests.encode()).hexdigest()
        return TimeSeriesConfig(name=f"{name}-{digest[:12]}", source=name, files=contents)
    copies = sorted(root.glob(f"{TimeSeries.name}/{name}-*/{TimeSeries.VERSION}/dataset_info.json"))
    if path is None and len(copies) == 1:
        return TimeSeriesConfig(name=copies[0].parent.parent.name, source=name)
    if not folders:
        raise ImportError(
            f"{name!r} comes with {chosen.package}: pip install {chosen.package}, or pass the folder of "
            f"{', '.join(chosen.files)} as --data.path FOLDER"
        )
    rest = "put them there, or pass the folder that has them as --data.path FOLDER"
    if copies:
        rest += f"; prepared before and read without a path: {' or '.join(str(c.parent) for c in copies)}"
        rest += " (delete all but one)" * (len(copies) > 1)
    raise FileNotFoundError(f"no files of {name!r}: {missing_files(chosen.files, folders)}; {rest}")


def _series_set(name: str, records: Sequence) -> SeriesSet:
    rows = [records[at] for at in range(len(records))]
    historic, future, static = (tuple(names) for names in json.loads(text_of(rows[0], "columns")))
    values = np.concatenate([row["values"] for row in rows])
    if values.shape[1] != 1 + len(historic) + len(future):
        raise DamagedError(f"{values.shape[1]} columns, must be {1 + len(historic) + len(future)}")
    stops = np.array([row["stops"] for row in rows], np.int64)
    panel = Panel(
        np.cumsum([0, *(len(row["values"]) for row in rows)]),
        values[:, :1],
        values[:, 1 : 1 + len(historic)],
        values[:, 1 + len(historic) :],
        np.concatenate([row["static"] for row in rows]),
    )
    chosen = SETS[name]
    return SeriesSet(
        name=name,
        ids=tuple(text_of(row, "id") for row in rows),
        panel=panel,
        start=np.array([int(row["start"]) for row in rows], "datetime64[s]"),
        frequency=chosen.frequency,
        season_length=chosen.season_length,
        mase_season_length=chosen.mase_season_length or chosen.season_length,
        horizon=chosen.horizon,
        train_stop=stops[:, 0],
        validation_stop=stops[:, 1],
        test_stop=stops[:, 2],
        historic_names=historic,
        future_names=future,
        static_names=static,
        standardized=chosen.standardized,
        log_prices=chosen.log_prices,
        dated=chosen.dated,
        zone=chosen.zone,
    )
