"""Data frames to panels of series, and forecasts back to data frames, with Nixtla's column names.

Axes: N series, H steps of the horizon, M windows.
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstmx.data.series import Panel
from lstmx.forecasting.closed_times import warn_of_closed_times
from lstmx.forecasting.columns import (
    Keys,
    column_of,
    frame_of,
    keys_of,
    kind_of,
    numbers_of,
    read_static,
    require_columns,
    shown,
)
from lstmx.forecasting.frequencies import (
    checked_freq,
    clock_of,
    inferred_freq,
    steps_of,
    times_at,
)

# This many equal steps in a row, longer than the most common one, are another frequency rather than gaps.
_NO_GAPS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class FramePanel:
    """A panel read from a data frame, with the ids and times of its series.

    Attributes:
      panel: the series, one target each.
      ids: ids of the series, strings or integers, sorted.
      starts: times of the first steps, datetime64 or int64 [N]. With a zone they are in UTC for steps shorter
        than a day, and in local time for longer ones.
      freq: an alias, an offset, or the step of integer times, as from `checked_freq`.
      zone: time zone of the times; None for none.
      columns: names of the columns of ids, times and targets.
      historic, future, static: names of the covariates; `"name=category"` for a category.
      categories: the categories of static columns, in the order of their columns.
      filled: number of missing steps between others, which are filled with NaN.
      like: the frame that was read, without its rows.
    """

    panel: Panel
    ids: tuple[str, ...] | tuple[int, ...] = dataclasses.field(repr=False)
    starts: np.ndarray = dataclasses.field(repr=False)
    freq: Any
    zone: Any
    columns: tuple[str, str, str]
    historic: tuple[str, ...]
    future: tuple[str, ...]
    static: tuple[str, ...]
    categories: Mapping[str, tuple]
    filled: int
    like: Any = dataclasses.field(repr=False)


def read_frame(
    df: Any,
    *,
    freq: Any = None,
    id_col: str = "unique_id",
    time_col: str = "ds",
    target_col: str = "y",
    hist_exog: Sequence[str] = (),
    futr_exog: Sequence[str] = (),
    static_df: Any = None,
    stat_exog: Sequence[str] = (),
    categories: Mapping[str, Sequence] | None = None,
    gaps: str = "fill",
) -> FramePanel:
    """Reads the series of a long data frame: one row for each series and time, in any order.

    Args:
      df: a pandas or polars DataFrame; times are dates in one zone or none, ISO 8601 strings or integers.
      freq: a pandas offset alias, or an offset with its calendar, holidays or business hours; or the step of
        integer times. By default the most common step, which must be the same in every series.
      id_col, time_col, target_col: names of the columns; a target may be NaN.
      hist_exog: exogenous variables known only for the past; NaN where missing.
      futr_exog: exogenous variables known in advance, in every row.
      static_df: a DataFrame with a row for each series; other rows are ignored.
      stat_exog: columns of `static_df`. Strings and categories become a column of 0 and 1 for each category.
      categories: the categories to use, as in `FramePanel.categories`; by default those that occur.
      gaps: "fill" to fill missing steps with NaN, "refuse" to raise an error.

    Returns:
      A `FramePanel`; boolean covariates are 0 and 1.

    Raises:
      ImportError: if pandas is not installed.
      TypeError: if a frame is not a DataFrame of pandas or polars.
      ValueError: if a column is missing or has invalid values, a series has a time twice or no target at all,
        times are not on one grid, or a step is missing and gaps are refused. The message names series, time
        and row, counted from 0.

    Example:
      >>> import pandas as pd
      >>> df = pd.DataFrame({"unique_id": ["b", "a", "a"], "ds": ["2024-03", "2024-04", "2024-01"]})
      >>> series = read_frame(df.assign(y=[7, 4, 1]), freq="MS")
      >>> series.ids, series.panel.starts.tolist(), series.panel.targets[:, 0].tolist(), series.filled
      (('a', 'b'), [0, 4, 5], [1.0, nan, nan, 4.0, 7.0], 2)
    """
    if gaps not in ("fill", "refuse"):
        raise ValueError(f"gaps must be 'fill' or 'refuse', got {gaps!r}")
    historic, future, stat_exog = _names(hist_exog), _names(futr_exog), _names(stat_exog)
    require_columns(df, "df", (id_col, time_col, target_col, *historic, *future))
    keys = keys_of(df, id_col, time_col)
    order, codes = keys.order, keys.codes[keys.order]
    inferred, freq = freq is None, _freq_of(keys, freq)
    firsts = np.flatnonzero(np.diff(codes, prepend=-1))
    clock = clock_of(keys.times[order], keys.zone, freq)
    steps = _on_grid(keys, clock, clock[firsts][codes], freq, time_col)
    _check_gaps(steps, keys, freq, inferred=inferred, future=future, gaps=gaps)
    starts = np.append(0, np.cumsum(steps[np.append(firsts[1:], len(codes)) - 1] + 1))

    def laid_out(names, **rules):
        values = np.full((starts[-1], len(names)), np.nan)
        for column, name in enumerate(names):
            numbers = numbers_of(column_of(df, name), name, keys.at, **rules)
            values[starts[codes] + steps, column] = numbers[order]
        return values

    static, static_names, used = read_static(static_df, stat_exog, id_col, keys.ids, categories)
    panel = Panel(
        starts,
        laid_out([target_col], booleans=False),
        laid_out(historic),
        laid_out(future, known=np.ones(len(codes), bool)),
        static,
    )
    for number in np.flatnonzero(panel.observed == 0)[:1]:
        raise ValueError(
            f"{target_col} must not be NaN in all rows of a series, but is in series {keys.ids[number]!r}"
        )
    return FramePanel(
        panel=panel,
        ids=keys.ids,
        starts=clock[firsts],
        freq=freq,
        zone=keys.zone,
        columns=(id_col, time_col, target_col),
        historic=historic,
        future=future,
        static=static_names,
        categories=used,
        filled=int(starts[-1]) - len(codes),
        like=df.head(0),
    )


def with_future(series: FramePanel, futr_df: Any, horizon: int) -> FramePanel:
    """Adds the steps to forecast: those after the last target of each series.

    Args:
      series: the series.
      futr_df: a DataFrame with ids, times and the covariates known in advance. Rows of other series and other
        times are ignored. It takes precedence over such steps of the series. None if there are no such
        covariates, or the series have them already.
      horizon: number of steps H, at least 1.

    Returns:
      The series with a row for each of the steps, with NaN for targets and historic covariates.

    Raises:
      ImportError: if pandas is not installed.
      TypeError: if the frame is not a DataFrame of pandas or polars.
      ValueError: if a column, series or time is missing, or a time is repeated or not on the grid; or if
        `futr_df` is given, but there are no covariates known in advance.

    Example:
      >>> import pandas as pd
      >>> df = pd.DataFrame({"unique_id": 7, "ds": [10, 20, 30], "y": [1.0, 2.0, 3.0]})
      >>> with_future(read_frame(df), None, horizon=2).panel.targets[:, 0].tolist()
      [1.0, 2.0, 3.0, nan, nan]
    """
    if operator.index(horizon) < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    panel = series.panel
    lengths = np.maximum(panel.lengths, panel.observed + horizon)
    starts = np.append(0, np.cumsum(lengths))
    kept = np.arange(len(panel.targets)) + np.repeat(starts[:-1] - panel.starts[:-1], panel.lengths)

    def longer(values):
        longer = np.full((starts[-1], values.shape[1]), np.nan)
        longer[kept] = values
        return longer

    future = longer(panel.future)
    if futr_df is not None and not series.future:
        raise ValueError("futr_df has no effect: the series have no covariates known in advance (futr_exog)")
    if futr_df is not None:
        numbers, steps, values = _read_future(series, futr_df, lengths)
        future[starts[numbers] + steps] = values
    lacking = np.flatnonzero(np.isnan(future).any(axis=1))
    if len(lacking):
        number = int(np.searchsorted(starts, lacking[0], "right")) - 1
        rule = f"{', '.join(series.future)} must be known for the next {horizon} steps"
        if futr_df is None:
            raise ValueError(f"{rule}, but futr_df is not given")
        first = f"{series.ids[number]!r} at {shown(times_of(series, number, lacking[0] - starts[number])[0])}"
        raise ValueError(f"{rule}, but futr_df lacks {len(lacking)} rows, the first of series {first}")
    targets, historic = longer(panel.targets), longer(panel.historic)
    return dataclasses.replace(series, panel=Panel(starts, targets, historic, future, panel.static))


def times_of(series: FramePanel, number: int | np.ndarray, steps: int | np.ndarray) -> Any:
    """The times of steps, which may lie beyond the end of their series.

    Args:
      series: the series.
      number: the number of the series, int; or an array that broadcasts with `steps`.
      steps: steps of the series, int, at least 0.

    Returns:
      A pandas Index of the times, row by row.

    Raises:
      ValueError: if a step is below 0.

    Example:
      >>> import pandas as pd
      >>> df = pd.DataFrame({"unique_id": "a", "ds": ["2024-01-31", "2024-02-29"], "y": [1.0, 2.0]})
      >>> times_of(read_frame(df), 0, [1, 2, 3]).astype(str).tolist()
      ['2024-02-29', '2024-03-31', '2024-04-30']
    """
    number, steps = (both.ravel() for both in np.broadcast_arrays(number, steps))
    if len(steps) and steps.min() < 0:
        raise ValueError(f"steps must be at least 0, got {steps.min()}")
    return times_at(series.starts[number], steps, series.freq, series.zone)


def time_label(series: FramePanel, number: int, step: int) -> str:
    """The time of a step of a series, as short as it can be."""
    return shown(times_of(series, number, step)[0])


def forecast_frame(
    series: FramePanel,
    columns: Mapping[str, np.ndarray],
    *,
    windows: tuple[np.ndarray, np.ndarray] | None = None,
    like: Any = None,
) -> Any:
    """Forecasts as a long data frame: a column of ids, one of times, and one for each kind of forecast.

    Args:
      series: the series that are forecast.
      columns: arrays [N, H] by name, for the steps after the last target of each series.
      windows: (series, cutoffs), int [M] each, as from `SeriesWindows.within`, if the arrays are [M, H]: the
        steps from the cutoff on, which is at least 1. The frame then has a column `cutoff`, the time of the
        step before.
      like: a DataFrame of the kind to return; by default the kind that was read.

    Returns:
      A DataFrame with N * H rows, or M * H.

    Raises:
      ValueError: if the arrays differ in shape, or a name is already used.

    Example:
      >>> import pandas as pd
      >>> df = pd.DataFrame({"unique_id": "a", "ds": ["2024-03-28", "2024-03-29"], "y": [1.0, 2.0]})
      >>> print(forecast_frame(read_frame(df, freq="B"), {"lstmx": np.array([[3.0, 4.0]])}))
        unique_id         ds  lstmx
      0         a 2024-04-01    3.0
      1         a 2024-04-02    4.0
    """
    id_col, time_col, _ = series.columns
    number, cutoffs = (np.arange(len(series.ids)), series.panel.observed) if windows is None else windows
    taken = (id_col, time_col, *(["cutoff"] if windows is not None else []))
    shapes = {name: np.shape(values) for name, values in columns.items()}
    horizons = {shape[1:] for shape in shapes.values()}
    if len(horizons) != 1 or any(len(shape) != 2 or shape[0] != len(number) for shape in shapes.values()):
        raise ValueError(f"columns must all be [{len(number)}, horizon], got shapes {shapes}")
    for name in sorted({*taken} & {*columns}):
        raise ValueError(f"columns must have other names than {', '.join(taken)}, got {name!r}")
    horizon = horizons.pop()[0]
    steps = np.reshape(cutoffs, (-1, 1)) + np.arange(horizon)
    times = {time_col: times_of(series, np.reshape(number, (-1, 1)), steps)}
    if windows is not None:
        times["cutoff"] = times_of(series, number, np.asarray(cutoffs) - 1).repeat(horizon)
    ids = np.repeat(np.array(series.ids, object)[number], horizon).tolist()
    values = {name: np.asarray(values).ravel() for name, values in columns.items()}
    kind, own = kind_of(series.like if like is None else like, "like"), kind_of(series.like, "df")
    dtypes = (series.like[id_col].dtype, series.like[time_col].dtype) if kind == own else (None, None)
    return frame_of(kind, (id_col, ids), times, values, dtypes)


def _names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ValueError(
            f"hist_exog, futr_exog and stat_exog must be lists of names, got the string {names!r}"
        )
    return tuple(names)


def _freq_of(keys: Keys, freq: Any) -> Any:
    """The frequency, inferred by default, which must suit the kind of times."""
    if freq is None:
        return inferred_freq(keys.codes[keys.order], keys.times[keys.order], keys.zone, keys.ids)
    freq = checked_freq(freq)
    if isinstance(freq, int) == (keys.times.dtype.kind == "M"):
        raise ValueError(
            "freq must be an alias or offset for dates and an integer for integers, "
            f"got {freq!r}, and times of {keys.times.dtype}"
        )
    return freq


def _on_grid(keys: Keys, clock: np.ndarray, starts: np.ndarray, freq: Any, name: str) -> np.ndarray:
    """The steps of the sorted rows, int64; ValueError if a time is not on the grid or a step repeats."""
    codes, order = keys.codes[keys.order], keys.order
    steps, fits = steps_of(clock, starts, freq)
    # Two hours of an autumn night may be the same in local time.
    fits[1:] &= (np.diff(steps) > 0) | (np.diff(codes) > 0)
    for at in np.flatnonzero(~fits)[:1]:
        first = int(np.searchsorted(codes, codes[at]))
        begin = "" if at == first else f", whose grid begins with {keys.at(order[first])}"
        raise ValueError(f"{name} must be on the grid of freq {freq!r}, got {keys.at(order[at])}{begin}")
    return steps


def _check_gaps(
    steps: np.ndarray, keys: Keys, freq: Any, *, inferred: bool, future: tuple[str, ...], gaps: str
) -> None:
    """Raises ValueError for gaps that must not be, and warns of those that are probably closing times."""
    # Steps from one row of a series to the next; 0 where another series begins.
    strides = np.where(np.diff(keys.codes[keys.order]) == 0, np.diff(steps), 0)
    if inferred:
        _require_steady(strides, keys, freq)
    if future or gaps == "refuse":
        why = f"{', '.join(future)} must be known at every step" if future else "gaps='refuse'"
        _require_no_gaps(strides, keys, freq, why)
    if len(strides) and strides.max() > 1:
        warn_of_closed_times(clock_of(keys.times, keys.zone, "D"), freq, stacklevel=3)


def _require_no_gaps(strides: np.ndarray, keys: Keys, freq: Any, why: str) -> None:
    for at in np.flatnonzero(strides > 1)[:1]:
        total = (strides[strides > 1] - 1).sum()
        raise ValueError(
            f"{strides[at] - 1} steps of {freq!r} are missing after {keys.at(keys.order[at])} and before "
            f"{keys.at(keys.order[at + 1])}, {total} in all series; {why}"
        )


def _require_steady(strides: np.ndarray, keys: Keys, freq: Any) -> None:
    """Raises ValueError if a series has many equal steps in a row, longer than the others."""
    ends = np.append(np.flatnonzero(np.diff(strides)), len(strides) - 1)
    runs = np.diff(ends, prepend=-1)
    for run in np.flatnonzero((runs >= _NO_GAPS) & (strides[ends] > 1))[:1]:
        first = keys.order[ends[run] + 1 - runs[run]]
        raise ValueError(
            f"freq is required because it seems to change: {freq!r} is the most common, but {keys.at(first)} "
            f"is followed by {runs[run]} steps of {strides[ends[run]]} times that"
        )


def _read_future(
    series: FramePanel, futr_df: Any, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The covariates of a frame for the steps after the last targets: (series, steps, covariates)."""
    id_col, time_col, _ = series.columns
    require_columns(futr_df, "futr_df", (id_col, time_col, *series.future))
    keys = keys_of(futr_df, id_col, time_col)
    if keys.times.dtype.kind != series.starts.dtype.kind or (keys.zone is None) != (series.zone is None):
        raise ValueError(
            f"futr_df must have times like the series, of {series.starts.dtype} and zone {series.zone}, got "
            f"{keys.times.dtype} and {keys.zone}"
        )
    number_of = {label: number for number, label in enumerate(series.ids)}
    number = np.array([number_of.get(label, -1) for label in keys.ids])[keys.codes]
    rows = keys.order[number[keys.order] >= 0]
    number, clock = number[rows], clock_of(keys.times[rows], series.zone, series.freq)
    steps, fits = steps_of(clock, series.starts[number], series.freq)
    fits[1:] &= (np.diff(steps) > 0) | (np.diff(number) != 0)
    for at in np.flatnonzero(~fits)[:1]:
        begin = shown(times_of(series, number[at], 0)[0])
        raise ValueError(
            f"{time_col} of futr_df must be on the grid of freq {series.freq!r}, got {keys.at(rows[at])}, "
            f"whose grid begins at {begin}"
        )
    used = (steps >= series.panel.observed[number]) & (steps < lengths[number])
    known = np.isin(np.arange(len(keys.codes)), rows[used])
    values = [numbers_of(column_of(futr_df, name), name, keys.at, known=known) for name in series.future]
    return number[used], steps[used], np.stack(values, axis=1)[rows[used]]
