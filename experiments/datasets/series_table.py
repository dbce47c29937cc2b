"""Your own series: a table in a CSV file, with one row for each series and time."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.datasets.csv_dialect import delimiter_of, named_delimiter
from experiments.datasets.series_sets import SeriesSet
from lstmx.forecasting import FramePanel, read_frame, require_pandas

# The column of ids that a table of one series gets.
_ID = "unique_id"
# Steps per season by the first letters of a pandas alias, the longest that fits: a day for steps shorter than
# a day, a week for days, a year for longer steps.
_SEASONS = {"s": 86_400, "min": 1440, "h": 24, "D": 7, "B": 5, "W": 52, "M": 12, "BM": 12, "Q": 4, "BQ": 4}


def read_table(
    path: str | pathlib.Path,
    *,
    id_col: str | None,
    time_col: str,
    target_col: str,
    historic: Sequence[str] = (),
    future: Sequence[str] = (),
    frequency: str | int | None = None,
    delimiter: str | None = None,
) -> FramePanel:
    """Reads a CSV file of series, with commas, semicolons or tabs, compressed (.gz, .xz, ...) or not.

    Args:
      path: the file, with a header.
      id_col: column of the names of series; None for a single series, which is named after its target.
      time_col, target_col: columns of the times, ISO 8601 or integers, and of the values.
      historic: columns known only for the past.
      future: columns known in advance.
      frequency: a pandas alias, or the step of integer times; inferred by default.
      delimiter: one character, or `tab`; recognised by the header if not given.

    Returns:
      The series, as from `lstmx.forecasting.read_frame`.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if pandas is not installed.
      ValueError: if it is not a table, or a value is invalid; names series, row and column.
    """
    pandas, path, delimiter = require_pandas(), pathlib.Path(path), named_delimiter(delimiter)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")

    def read(delimiter: str, **options) -> Any:
        # With "utf-8-sig" a byte order mark is no part of the first name.
        return pandas.read_csv(path, sep=delimiter, encoding="utf-8-sig", **options)

    try:
        if delimiter is None:
            names = [time_col, target_col]
            delimiter = delimiter_of(lambda delimiter: read(delimiter, nrows=0).columns, names)
        df = read(delimiter, dtype=None if id_col is None else {id_col: str})
    except (UnicodeDecodeError, pandas.errors.ParserError, pandas.errors.EmptyDataError, OSError) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    if id_col is None:
        df = df.assign(**{_ID: target_col})
    return read_frame(
        df,
        freq=frequency,
        id_col=id_col or _ID,
        time_col=time_col,
        target_col=target_col,
        hist_exog=tuple(historic),
        futr_exog=tuple(future),
    )


def table_set(
    series: FramePanel, *, horizon: int | None, season_length: int | None, splits: Sequence[float]
) -> SeriesSet:
    """The set of a table, each series split by shares.

    Args:
      series: the series.
      horizon: number of steps to forecast; by default a season.
      season_length: steps per season; by default the usual one for the frequency.
      splits: shares of the training, validation and test parts of each series.

    Returns:
      The set, named `table`.

    Raises:
      ValueError: if an argument is out of range, or no series is long enough for the splits.

    Example:
      >>> import pandas as pd
      >>> df = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=100), "y": 1.0})
      >>> found = table_set(read_frame(df), horizon=None, season_length=None, splits=(70, 15, 15))
      >>> found.season_length, found.horizon, found.train_stop, found.validation_stop, found.test_stop
      (7, 7, array([70]), array([85]), array([100]))
    """
    shares = np.asarray(splits, float)
    if len(shares) != 3 or (shares <= 0).any():
        raise ValueError(f"splits must be three positive numbers, got {tuple(splits)}")
    if season_length is None:
        season_length = _season_length(series.freq)
    if season_length < 1:
        raise ValueError(f"season_length must be at least 1, got {season_length}")
    horizon, ends = season_length if horizon is None else horizon, series.panel.observed
    cuts = np.floor(np.outer(ends, np.cumsum(shares)[:2] / shares.sum())).astype(np.int64)
    longest = np.array([cuts[:, 0].max(), (cuts[:, 1] - cuts[:, 0]).max(), (ends - cuts[:, 1]).max()])
    for part, steps in zip(("training", "validation", "test"), longest, strict=True):
        if steps < horizon:
            raise ValueError(
                f"the {part} part needs the {horizon} steps of a forecast in at least one series, the "
                f"longest has {steps}: use a smaller horizon or other splits"
            )
    integers = series.starts.dtype.kind != "M"
    return SeriesSet(
        "table", tuple(map(str, series.ids)), series.panel,
        np.zeros(len(ends), "datetime64[s]") if integers else series.starts.astype("datetime64[s]"),
        str(series.freq), season_length, season_length, horizon, cuts[:, 0], cuts[:, 1], ends,
        series.historic, series.future, series.static, dated=not integers,
    )  # fmt: skip


def columns_of(data: Any) -> Mapping[str, Any]:
    """The arguments of `read_table` from the data of a config."""
    return {
        "id_col": data.id,
        "time_col": data.time,
        "target_col": data.target,
        "historic": data.historic,
        "future": data.future,
        "delimiter": data.delimiter,
        "frequency": int(data.frequency) if (data.frequency or "").isdigit() else data.frequency,
    }


def _season_length(frequency: str | int) -> int:
    """The steps per season of a frequency; fewer for a step of several units.

    Example:
      >>> [_season_length(frequency) for frequency in ("h", "15min", "W-SUN", "MS", "QS-JAN", "YS-JAN", 3)]
      [24, 96, 52, 12, 4, 1, 1]
    """
    if isinstance(frequency, int):
        return 1
    letters = frequency.lstrip("0123456789")
    count = int(frequency[: len(frequency) - len(letters)] or 1)
    fits = [name for name in _SEASONS if letters.split("-")[0].startswith(name)]
    return max(_SEASONS[max(fits, key=len)] // count, 1) if fits else 1
