"""Reads the files of each set of time series: its series, covariates and splits.

`series_sets.py` makes TFDS data sets of them.
"""

import dataclasses
import datetime
import functools
import warnings
import zoneinfo
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.datasets.series_files import Table, calendar_features, one_hot, steps_of

_SENTINEL = -9999
_MELBOURNE = "Australia/Melbourne"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_GAFA = ("AAPL", "AMZN", "FB", "GOOG")


class Series(NamedTuple):
    """One series.

    Attributes:
      id: its name.
      start: datetime64, the time of its first step.
      targets: float64 [R].
      stops: steps before which the training, validation and test parts end.
      historic, future: covariates, float64 [R, F], or None.
      static: float64 [F], or None.
    """

    id: str
    start: np.datetime64
    targets: np.ndarray
    stops: tuple[int, int, int]
    historic: np.ndarray | None = None
    future: np.ndarray | None = None
    static: np.ndarray | None = None


class SeriesTable(NamedTuple):
    """The series of a set and the names of their covariates."""

    series: list[Series]
    historic_names: tuple[str, ...] = ()
    future_names: tuple[str, ...] = ()
    static_names: tuple[str, ...] = ()


class Spec(NamedTuple):
    """A set of series, and how it is read.

    Attributes:
      files: names of its files.
      folder: possible name of the folder of the files.
      frequency, season_length, horizon: see `SeriesSet`.
      read: reads the series from its tables, in the order of `files`.
      mase_season_length: lag of the naive forecast of MASE, if it is not the season.
      package: package that contains the files, if there is one.
      standardized, log_prices, dated, zone: see `SeriesSet`.
    """

    files: tuple[str, ...]
    folder: str
    frequency: str
    season_length: int
    horizon: int
    read: Callable[[Sequence[Table]], SeriesTable]
    mase_season_length: int | None = None
    package: str | None = None
    standardized: bool = False
    log_prices: bool = False
    dated: bool = True
    zone: str | None = None


def _from_end(steps: int, validation: int, test: int) -> tuple[int, int, int]:
    return max(steps - test - validation, 0), max(steps - test, 0), steps


def _transformers(tables: Sequence[Table], *, per_hour: int) -> SeriesTable:
    month = 30 * 24 * per_hour
    stops = (12 * month, 16 * month, 20 * month)
    (table,) = tables
    if len(table.rows) < stops[-1]:
        raise ValueError(
            f"{table.path} has {len(table.rows):,} rows, the split needs {stops[-1]:,}: 20 months of 30 days"
        )
    return _columns(table, 60 // per_hour, stops)


def _jena(tables: Sequence[Table]) -> SeriesTable:
    (table,) = tables
    rows = len(table.rows)
    test = int(rows * 0.2)
    found = _columns(table, 10, (int(rows * 0.7), rows - test, rows))
    counts = {series.id: int((series.targets == _SENTINEL).sum()) for series in found.series}
    if failed := {name: count for name, count in counts.items() if count}:
        each = ", ".join(f"{name} {count}" for name, count in failed.items())
        warnings.warn(
            f"{table.path}: {sum(failed.values())} values are {_SENTINEL}, of an instrument that failed, and "
            f"are kept: {each}",
            stacklevel=2,
        )
    return found


def _columns(table: Table, minutes: int, stops: tuple[int, int, int]) -> SeriesTable:
    """Each column except the date as a series, with one step per row."""
    times = table.times("date", "s")
    if uneven := int((np.diff(times) != np.timedelta64(minutes, "m")).sum()):
        warnings.warn(
            f"{table.path}: {uneven} of {len(times):,} rows are not {minutes} minutes after the one before, "
            "but are read as if they were",
            stacklevel=2,
        )
    names = [name for name in table.header if name != "date"]
    if not names:
        raise ValueError(f"{table.path} must have columns of numbers besides the date")
    values = table.numbers(names, missing=True)
    return SeriesTable([Series(name, times[0], values[:, at], stops) for at, name in enumerate(names)])


def _m4(tables: Sequence[Table], *, horizon: int) -> SeriesTable:
    train, test = tables
    ahead = {cells[0]: row for row, cells in enumerate(test.rows)}
    series = []
    for row, (name, *_) in enumerate(train.rows):
        values = train.numbers_along(row)
        if len(values) <= horizon:
            raise train.wrong(row, f"{name} has {len(values)} values, must have more than {horizon}")
        if name not in ahead:
            raise train.wrong(row, f"{name} is not in {test.path}")
        future = test.numbers_along(ahead[name])
        if len(future) != horizon:
            raise test.wrong(ahead[name], f"{name} must have {horizon} values, has {len(future)}")
        stops = (len(values) - horizon, len(values), len(values) + horizon)
        start = np.datetime64("2000-01-02")  # a Sunday, where the weeks of pandas end
        series.append(Series(name, start, np.concatenate([values, future]), stops))
    return SeriesTable(series)


def _retail(tables: Sequence[Table]) -> SeriesTable:
    (table,) = tables
    months, turnover = table.times("Month", "M"), table.numbers(["Turnover"], missing=True)[:, 0]
    groups = table.rows_by("State", "Industry")
    of_state, states = one_hot("State", [state for state, _ in groups])
    of_industry, industries = one_hot("Industry", [industry for _, industry in groups])
    static = np.concatenate([states, industries], axis=1)
    series, names = [], ()
    end = months.max() + 1
    for (key, rows), kind in zip(groups.items(), static, strict=True):
        targets, times = _on_grid(table, rows, months, turnover)
        names, future = calendar_features(times, "MS")
        since = int((end - times[0]).astype(int))
        stops = tuple(min(stop, len(targets)) for stop in _from_end(since, 24, 24))
        series.append(Series("/".join(key), times[0], targets, stops, future=future, static=kind))
    if ended := sum(one.stops[1] == one.stops[2] for one in series):
        warnings.warn(
            f"{table.path}: {ended} of {len(series)} series end before {end - 24}, where the test begins: "
            "they are trained on only",
            stacklevel=2,
        )
    return SeriesTable(series, future_names=names, static_names=of_state + of_industry)


def _on_grid(
    table: Table, rows: np.ndarray, times: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values of the steps of a series, NaN where a step is missing, and the times of the steps."""
    steps = steps_of(table, rows, times, gaps=True)
    grid = np.full((steps[-1] + 1, *values.shape[1:]), np.nan)
    grid[steps] = values[rows]
    if absent := len(grid) - len(rows):
        warnings.warn(
            f"{table.path}: {absent} steps before line {table.lines[rows[-1]]} are missing: filled with NaN",
            stacklevel=3,
        )
    return grid, times[rows[0]] + np.arange(len(grid))


def _electricity(tables: Sequence[Table]) -> SeriesTable:
    (table,) = tables
    times = table.times("Time", "s", _utc)
    zone = zoneinfo.ZoneInfo(_MELBOURNE)
    local = [datetime.datetime.fromtimestamp(time, zone).replace(tzinfo=None) for time in times.astype(int)]
    local = np.array(local, "datetime64[s]")
    if wrong := np.flatnonzero(local.astype("datetime64[D]") != table.times("Date", "D")).tolist():
        raise table.wrong(wrong[0], f"Date must be the day in Melbourne, {local[wrong[0]]}")
    return _with_clock(
        table,
        "Demand",
        times,
        *calendar_features(local, "30min"),
        minutes=30,
        historic=(("Temperature",), table.numbers(["Temperature"], missing=True)),
        flags=("Holiday",),
    )


def _utc(cell: str) -> str:
    if not cell.endswith("Z"):
        raise ValueError
    return cell[:-1]


def _bicycles(tables: Sequence[Table]) -> SeriesTable:
    (table,) = tables
    times = table.times("date_time", "s")
    measured = ("temp", "atemp", "hum", "windspeed")
    sky, skies = one_hot("weather", table.column("weather"))
    historic = np.concatenate([table.numbers(measured, missing=True), skies], axis=1)
    return _with_clock(
        table,
        "users",
        times,
        *calendar_features(times, "h"),
        minutes=60,
        historic=(measured + sky, historic),
        flags=("holiday", "workingday"),
    )


def _with_clock(
    table: Table,
    target: str,
    times: np.ndarray,
    calendar_names: tuple[str, ...],
    calendar: np.ndarray,
    *,
    minutes: int,
    historic: tuple[tuple[str, ...], np.ndarray],
    flags: tuple[str, ...],
) -> SeriesTable:
    """The only series of a table without gaps, split between days."""
    steps_of(table, np.arange(len(times)), times, 60 * minutes, gaps=False)
    day = 24 * 60 // minutes
    days = len(times) // day
    stops = (days * 7 // 10 * day, days * 8 // 10 * day, len(times))
    future = np.concatenate([*(table.flags(name)[:, None] for name in flags), calendar], axis=1)
    targets = table.numbers([target], missing=True)[:, 0]
    series = Series(target, times[0], targets, stops, historic[1], future)
    return SeriesTable([series], historic[0], flags + calendar_names)


def _prices(tables: Sequence[Table]) -> SeriesTable:
    series = []
    for name, table in zip(("SP500", *_GAFA), tables, strict=True):
        table = dataclasses.replace(table, header=[label.lower().replace(" ", "") for label in table.header])
        dates = table.times("date", "D")
        steps_of(table, np.arange(len(dates)), dates, gaps=True)
        cuts = np.searchsorted(dates, np.array(["2016-01-01", "2017-01-01"], dates.dtype))
        series.append(Series(name, dates[0], _logs(table, "adjclose"), (*map(int, cuts), len(dates))))
    return SeriesTable(series)


def _shares(tables: Sequence[Table]) -> SeriesTable:
    (table,) = tables
    months, logs = table.times("date", "M", _plain_month), _logs(table, "price")
    series = []
    for (name,), rows in table.rows_by("symbol").items():
        targets, times = _on_grid(table, rows, months, logs)
        series.append(Series(name, times[0], targets, _from_end(len(targets), 12, 24)))
    return SeriesTable(series)


def _plain_month(cell: str) -> str:
    month, _, year = cell.split()
    return f"{year}-{1 + _MONTHS.index(month):02}"


def _logs(table: Table, name: str) -> np.ndarray:
    prices = table.numbers([name])[:, 0]
    if wrong := np.flatnonzero(prices <= 0).tolist():
        raise table.wrong(wrong[0], f"column {name!r} must be a price above 0, got {prices[wrong[0]]}")
    return np.log(prices)


def _seattle(tables: Sequence[Table]) -> SeriesTable:
    (table,) = tables
    days = table.times("date", "D", lambda cell: cell.replace("/", "-"))
    measured = ("precipitation", "temp_min", "wind")
    sky, skies = one_hot("weather", table.column("weather"))
    values = np.concatenate([table.numbers(("temp_max", *measured), missing=True), skies], axis=1)
    values, times = _on_grid(table, np.arange(len(days)), days, values)
    names, future = calendar_features(times, "D")
    stops = _from_end(len(times), 365, 365)
    series = Series("temp_max", times[0], values[:, 0], stops, values[:, 1:], future)
    return SeriesTable([series], measured + sky, names)


SETS = {
    **{
        name.lower(): Spec(
            (f"{name}.csv",),
            "ett",
            "h" if per_hour == 1 else "15min",
            24 * per_hour,
            96,
            functools.partial(_transformers, per_hour=per_hour),
            standardized=True,
        )
        for name, per_hour in {"ETTh1": 1, "ETTh2": 1, "ETTm1": 4, "ETTm2": 4}.items()
    },
    "weather": Spec(("weather.csv",), "weather", "10min", 144, 96, _jena, standardized=True),
    "m4-hourly": Spec(
        ("Hourly-train.csv", "Hourly-test.csv"),
        "m4",
        "h",
        24,
        48,
        functools.partial(_m4, horizon=48),
        dated=False,
    ),
    "m4-weekly": Spec(
        ("Weekly-train.csv", "Weekly-test.csv"),
        "m4",
        "W",
        52,
        13,
        functools.partial(_m4, horizon=13),
        mase_season_length=1,
        dated=False,
    ),
    "retail": Spec(("aus_retail.csv",), "aus_retail", "MS", 12, 24, _retail),
    "electricity": Spec(
        ("vic_electricity.csv",), "vic_electricity", "30min", 48, 48, _electricity, zone=_MELBOURNE
    ),
    "bike": Spec(("bike_sharing_hour.csv",), "bike_sharing", "h", 24, 24, _bicycles),
    "sp500": Spec(
        ("sp500-2000.csv", *(f"{name}.csv" for name in _GAFA)),
        "sp500",
        "B",
        1,
        20,
        _prices,
        log_prices=True,
        dated=False,
    ),
    "vega-weather": Spec(("seattle-weather.csv",), "vega", "D", 365, 14, _seattle, package="vega_datasets"),
    "vega-stocks": Spec(
        ("stocks.csv",), "vega", "MS", 1, 6, _shares, package="vega_datasets", log_prices=True
    ),
}
