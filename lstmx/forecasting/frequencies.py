"""Grids of times: their frequency, the step of a time, and the time of a step.

Axes: R times.

Times are datetime64 in UTC, or without a zone, or int64. Steps shorter than a day have a fixed length. Days
and longer steps follow local time, so that a day may have 23 hours. The time that a grid counts by is called
the clock here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lstmx.forecasting.offsets import checked_freq, keeps_days, require_pandas

_DAY = np.timedelta64(1, "D")
_NAMES = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
# Starts and ends of months, quarters and years, and those of their business days.
_MONTHS = (("MS", "QS", "YS"), ("ME", "QE", "YE"), ("BMS", "BQS", "BYS"), ("BME", "BQE", "BYE"))


def clock_of(times: np.ndarray, zone: Any, freq: Any) -> np.ndarray:
    """The clock of the grid: `times`, or local time for days and longer steps in a zone."""
    if zone is None or _length(freq) is not None:
        return times
    index = require_pandas().DatetimeIndex(times)
    return index.tz_localize("UTC").tz_convert(zone).tz_localize(None).to_numpy()


def steps_of(clock: np.ndarray, starts: np.ndarray, freq: Any) -> tuple[np.ndarray, np.ndarray]:
    """The steps of times on their grids.

    Args:
      clock: [R], as from `clock_of`.
      starts: [R], the start of the grid of each.
      freq: as from `checked_freq`.

    Returns:
      (steps, fits): int64 [R], below 0 before the start; and bool [R], whether a time is on its grid.

    Example:
      >>> days = np.array(["2024-01-31", "2024-03-31", "2024-04-29"], "datetime64[s]")
      >>> steps, fits = steps_of(days, days[[0, 0, 0]], "ME")
      >>> steps[fits], fits
      (array([0, 2]), array([ True,  True, False]))
    """
    if len(clock) == 0:
        return np.zeros(0, np.int64), np.zeros(0, bool)
    length = _length(freq)
    if length is not None:
        steps = (clock - starts) // length
        return steps, clock - starts == steps * length
    offset = require_pandas().tseries.frequencies.to_offset(freq)
    if not keeps_days(offset):
        return _steps_on_chains(clock, starts, offset)
    days, first = clock.astype("datetime64[D]"), starts.astype("datetime64[D]")
    axis = _axis(offset.base, min(days.min(), first.min()), end=max(days.max(), first.max()))
    at, at_first = axis.get_indexer(days), axis.get_indexer(first)
    fits = (at >= 0) & (at_first >= 0) & (clock - days == starts - first) & ((at - at_first) % offset.n == 0)
    return (at - at_first) // offset.n, fits


def times_at(starts: np.ndarray, steps: np.ndarray, freq: Any, zone: Any) -> Any:
    """The times of steps, in their time zone.

    Args:
      starts: [R], the start of the grid of each, by its clock.
      steps: int [R], at least 0.
      freq, zone: of the grid.

    Returns:
      A pandas Index [R].

    Example:
      >>> start = np.array(["2024-03-30"], "datetime64[s]")
      >>> times_at(start[[0, 0]], np.array([1, 2]), "D", "Europe/Berlin").astype(str).tolist()
      ['2024-03-31 00:00:00+01:00', '2024-04-01 00:00:00+02:00']
    """
    pd = require_pandas()
    length = _length(freq)
    if length is not None or len(starts) == 0:
        index = pd.Index(starts + steps * length if len(starts) else starts)
    else:
        index = pd.Index(_times_at(starts, steps, pd.tseries.frequencies.to_offset(freq)))
    if zone is None:
        return index
    if length is not None:
        return index.tz_localize("UTC").tz_convert(zone)
    # Of two equal local times the first is taken, and for one that is skipped the next that exists.
    return index.tz_localize(zone, ambiguous=np.ones(len(index), bool), nonexistent="shift_forward")


def inferred_freq(codes: np.ndarray, times: np.ndarray, zone: Any, labels: Sequence) -> str | int:
    """Infers the frequency of series: their most common step, which must be the same for all.

    Args:
      codes: int [R], the number of the series of each time, increasing.
      times: [R], increasing in each series.
      zone: time zone of the times, or None.
      labels: ids of the series, for errors.

    Returns:
      An offset alias, on the calendar where the times follow one; for integers the step.

    Raises:
      ValueError: if every series has only one time, or their steps differ.

    Example:
      >>> days = np.array(["2024-01-31", "2024-02-29", "2024-05-31", "2024-06-30"], "datetime64[s]")
      >>> inferred_freq(np.array([0, 0, 0, 0]), days, None, ["a"])
      'ME'
    """
    pd = require_pandas()
    same = np.diff(codes) == 0
    if not same.any():
        raise ValueError("freq is required because it cannot be inferred: every series has one row")
    series = codes[1:][same]

    def steps(values):
        return np.diff(values)[same]

    if times.dtype.kind != "M":
        return int(_one(series, steps(times), labels, ""))
    wall = clock_of(times, zone, "D")
    common = _most_common(series, steps(wall))[1]
    if (common % _DAY != np.timedelta64(0)).any():
        step = pd.Timedelta(_one(series, steps(times), labels, ""))
        return pd.tseries.frequencies.to_offset(step).freqstr
    days = wall.astype("datetime64[D]")
    if common.min() >= 28 * _DAY and (aliases := _aliases_of_months(days)):
        months = days.astype("datetime64[M]").astype(np.int64)
        return _months(_one(series, steps(months), labels, " months"), months, aliases)
    # 1970-01-01, day 0, was a Thursday; here Monday is 0.
    weekday = (days.astype(np.int64) + 3) % 7
    working = np.busday_count("1970-01-01", days)
    weekends = np.isin(np.arange(codes[-1] + 1), codes[weekday > 4])
    if common.max() < 7 * _DAY and _are_business_days(series, steps(working), steps(days), weekends, labels):
        return checked_freq(f"{_one(series, steps(working), labels, ' business days')}B")
    step = int(_one(series, steps(days).astype(np.int64), labels, " days"))
    if step % 7 == 0 and len(np.unique(weekday)) == 1:
        return checked_freq(f"{step // 7}W-{('MON', 'TUE', 'WED', 'THU', 'FRI', 'SAT', 'SUN')[weekday[0]]}")
    return checked_freq(f"{step}D")


def _aliases_of_months(days: np.ndarray) -> tuple[str, str, str] | None:
    """The aliases in `_MONTHS` that all days are on; None if there are none."""
    pd = require_pandas()
    index = pd.DatetimeIndex(np.unique(days))
    for aliases in _MONTHS:
        if all(map(pd.tseries.frequencies.to_offset(aliases[0]).is_on_offset, index)):
            return aliases
    return None


def _are_business_days(
    series: np.ndarray, working: np.ndarray, days: np.ndarray, weekends: np.ndarray, labels: Sequence
) -> bool:
    """Whether series have no weekends, and the usual step leads across one.

    Args:
      series: int, the series of each step.
      working, days: the steps in working days and in days.
      weekends: bool [N], whether a series has times on weekends.
      labels: ids of the series, for errors.

    Raises:
      ValueError: if that holds for some series, and others have weekends.
    """
    usual = np.bincount(working).argmax()
    across = (working == usual) & (days > usual * _DAY)
    business = np.isin(np.arange(len(weekends)), series[across]) & ~weekends
    if business.any() and weekends.any():
        first, second = labels[int(business.argmax())], labels[int(weekends.argmax())]
        raise ValueError(
            f"freq is required because it cannot be inferred: {first!r} has no weekends, {second!r} has some"
        )
    return bool(business.any())


def _length(freq: Any) -> int | np.timedelta64 | None:
    """The length of every step; None on the calendar, where days and months differ in length."""
    if isinstance(freq, int):
        return freq
    pd = require_pandas()
    offset = pd.tseries.frequencies.to_offset(freq)
    # A day is of a fixed length for pandas before 3.
    fixed = isinstance(offset, pd.offsets.Tick) and not isinstance(offset, pd.offsets.Day)
    return pd.Timedelta(offset).to_timedelta64() if fixed else None


def _times_at(starts: np.ndarray, steps: np.ndarray, offset: Any) -> np.ndarray:
    if keeps_days(offset):
        first = starts.astype("datetime64[D]")
        at = _axis(offset.base, first.min(), end=first.max()).get_indexer(first) + steps * offset.n
        days = _axis(offset.base, first.min(), periods=at.max() + 1).to_numpy()[at]
        return (days.astype("datetime64[D]") + (starts - first)).astype(starts.dtype)
    times = np.full(len(starts), np.datetime64("NaT"), starts.dtype)
    for axis, rows in _chains(offset, starts, starts.max()):
        at = axis.get_indexer(starts[rows]) + steps[rows]
        times[rows] = _axis(offset, axis[0], periods=at.max() + 1).to_numpy()[at]
    return times


def _steps_on_chains(clock: np.ndarray, starts: np.ndarray, offset: Any) -> tuple[np.ndarray, np.ndarray]:
    """`steps_of` for an offset whose times depend on the start; all times before it are step -1."""
    steps = np.full(len(clock), -1)
    fits = clock < starts
    for axis, rows in _chains(offset, starts, max(clock.max(), starts.max())):
        at, first = axis.get_indexer(clock[rows]), axis.get_indexer(starts[rows])
        later = clock[rows] >= starts[rows]
        steps[rows] = np.where(later, at - first, -1)
        fits[rows] = (at >= 0) | ~later
    return steps, fits


def _chains(offset: Any, starts: np.ndarray, end: np.datetime64) -> Iterator[tuple[Any, np.ndarray]]:
    """The times that an offset gives from the first start; from the first start that is not among these; etc.

    Yields:
      (times until `end`, bool [R]: the starts among them). Starts that the offset skips are never among them.
    """
    left = np.unique(starts)
    while len(left):
        axis = _axis(offset, left[0], end=end)
        among = axis.get_indexer(left) >= 0
        if among.any():
            yield axis, np.isin(starts, left[among])
        left = left[~among][0 if among[0] else 1 :]


def _axis(offset: Any, start: np.datetime64, **end) -> Any:
    """The times of an offset from `start` on."""
    return require_pandas().date_range(start, freq=offset, **end)


def _months(step: int, months: np.ndarray, aliases: tuple[str, str, str]) -> str | int:
    """The alias for a number of months, as years or quarters if all series share their phase."""
    month, quarter, year = aliases
    for size, alias in ((12, year), (3, quarter)):
        phases = np.unique(months % size)
        if step % size == 0 and len(phases) == 1:
            # pandas calls quarters that end in March those of December.
            anchor = _NAMES[int(phases[0]) + (9 if alias.endswith("QE") else 0)]
            return checked_freq(f"{step // size}{alias}-{anchor}")
    return checked_freq(f"{step}{month}")


def _most_common(series: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most common step of each series that has any, the smallest if tied: (series, steps)."""
    order = np.lexsort((steps, series))
    series, steps = series[order], steps[order]
    changes = (np.diff(series) != 0) | (steps[1:] != steps[:-1])
    begins = np.concatenate([[0], np.flatnonzero(changes) + 1])
    counts = np.diff(np.append(begins, len(steps)))
    series, steps = series[begins], steps[begins]
    best = np.lexsort((-counts, series))
    series, firsts = np.unique(series[best], return_index=True)
    return series, steps[best][firsts]


def _one(series: np.ndarray, steps: np.ndarray, labels: Sequence, unit: str) -> Any:
    """The most common step, which must be that of every series."""
    series, steps = _most_common(series, steps)
    others = np.flatnonzero(steps != steps[0])
    if len(others):
        shown = require_pandas().Timedelta if steps.dtype.kind == "m" else int
        first, second = (f"{labels[series[at]]!r} has {shown(steps[at])}{unit}" for at in (0, others[0]))
        raise ValueError(f"freq is required because the most common steps differ: {first}, {second}")
    return steps[0]
