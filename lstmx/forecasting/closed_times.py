"""Times of day and days of the week without any row, which are probably closing times.

Axes: R rows.
"""

import warnings
from typing import Any

import numpy as np

from lstmx.forecasting.offsets import require_pandas

_DAY = np.timedelta64(1, "D")
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
# Number of days, or weeks, that must have been observed.
_LEAST = 5
# Highest probability that random gaps leave a time out of all of them.
_CHANCE = 1e-3


def warn_of_closed_times(clock: np.ndarray, freq: Any, *, stacklevel: int) -> None:
    """Warns if steps are missing at the same times of every day, or on the same days of every week.

    They are counted and forecast as steps; a calendar in `freq` would leave them out.

    Args:
      clock: datetime64 [R], the times of all rows, in local time.
      freq: as from `checked_freq`; calendars and steps longer than a day are not checked.
      stacklevel: of the warning.

    Warns:
      UserWarning: names the times without rows, and an offset that leaves them out.

    Example:
      >>> days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
      >>> open_days = days[np.isin((days.astype(int) + 3) % 7, [1, 2, 3, 4, 5])]  # Tuesday to Saturday
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     warn_of_closed_times(open_days, "D", stacklevel=1)
      >>> print(str(caught[0].message).split(":")[0])
      no series has a row on Mon, Sun, which freq 'D' counts as steps
    """
    length = _length(freq)
    if length is None:
        return
    days = clock.astype("datetime64[D]")
    slots = _never(days.astype(np.int64), ((clock - days) // length).astype(int), int(_DAY // length))
    # 1970-01-01, day 0, was a Thursday; here Monday is 0.
    since_monday = days.astype(np.int64) + 3
    weekdays = _never(since_monday // 7, since_monday % 7, 7)
    where = []
    if len(slots):
        first = [str(_time(slot * length)) for slot in slots[:3]]
        where.append(f"at {', '.join(first)}{', ...' if len(slots) > 3 else ''}")
    if len(weekdays):
        where.append(f"on {', '.join(_WEEKDAYS[day] for day in weekdays)}")
    if where:
        warnings.warn(
            f"no series has a row {' or '.join(where)}, which freq {freq!r} counts as steps: they are filled "
            f"with missing values, and are forecast too. Pass {_advice(slots, weekdays, length)}"
            "integer times that count the rows of each series",
            stacklevel=stacklevel + 1,
        )


def _never(cycles: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """The places, of `size` in each cycle, without a row in any cycle, if that is unlikely to be chance."""
    counts = np.bincount(places, minlength=size)
    never = np.flatnonzero(counts == 0)
    observed = len(np.unique(cycles))
    if not len(never) or observed < _LEAST:
        return never[:0]
    there = np.unique(np.stack([cycles, places]), axis=1).shape[1]
    share = there / (observed * (size - len(never)))
    return never if size * (1 - share) ** observed < _CHANCE else never[:0]


def _length(freq: Any) -> np.timedelta64 | None:
    """The length of a step, if a day is a whole number of steps."""
    if not isinstance(freq, str):
        return None
    pd = require_pandas()
    offset = pd.tseries.frequencies.to_offset(freq)
    if not isinstance(offset, (pd.offsets.Tick, pd.offsets.Day)):
        return None
    length = pd.Timedelta(offset.freqstr if offset.freqstr[0].isdigit() else f"1{offset.freqstr}")
    length = length.to_timedelta64()
    return length if _DAY % length == np.timedelta64(0) else None


def _advice(slots: np.ndarray, weekdays: np.ndarray, length: np.timedelta64) -> str:
    """The offset that leaves the times out, as Python code followed by "or"."""
    weekmask = " ".join(name for day, name in enumerate(_WEEKDAYS) if day not in weekdays)
    mask = f"weekmask='{weekmask}'" if len(weekdays) else ""
    if not len(slots):
        return f"freq=pd.offsets.CustomBusinessDay({mask}) or " if length == _DAY else ""
    count = int(_DAY // length)
    there = np.setdiff1d(np.arange(count), slots)
    begins = there[~np.isin((there - 1) % count, there)]
    if length != np.timedelta64(1, "h") or len(begins) != 1:
        return ""
    hours = f"start='{_time(begins[0] * length)}', end='{_time((begins[0] + len(there)) % count * length)}'"
    kind = (
        f"CustomBusinessHour({mask}, {hours})" if mask else f"CustomBusinessHour({hours}, weekmask='1111111')"
    )
    return f"freq=pd.offsets.{kind} or "


def _time(since_midnight: np.timedelta64) -> str:
    minutes = int(since_midnight // np.timedelta64(1, "m"))
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
