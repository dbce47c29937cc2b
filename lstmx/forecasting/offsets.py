"""Frequencies as in pandas: the values `freq=` accepts, their normal form, and their JSON.

The normal form of a frequency is its alias if the alias describes it fully, and otherwise the offset object,
with its weekmask, holidays, business hours, or the parts of a `DateOffset`.
"""

import datetime
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

# The offsets that are not fully described by their alias.
_CALENDARS = ("CustomBusinessDay", "CustomBusinessMonthBegin", "CustomBusinessMonthEnd")
_HOURS = ("BusinessHour", "CustomBusinessHour")


def require_pandas() -> ModuleType:
    """Returns pandas.

    Raises:
      ImportError: if it is not installed, with the command that installs it.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("data frames need pandas: pip install 'lstmx[forecast]'") from error
    return pandas


def checked_freq(freq: Any) -> Any:
    """Returns a frequency in normal form: an integer, an alias that pandas spells in full, or an offset.

    Args:
      freq: the step of integer times; or a pandas offset alias, a pandas offset or a duration.

    Raises:
      ValueError: if it is none of these, is below 1, or is an offset that is not supported.

    Example:
      >>> checked_freq("W"), checked_freq("1h30min"), checked_freq(2)
      ('W-SUN', '90min', 2)
      >>> import pandas as pd
      >>> checked_freq(pd.offsets.MonthEnd()), checked_freq(pd.offsets.CustomBusinessDay(weekmask="Sun Mon"))
      ('ME', <CustomBusinessDay>)
    """
    if isinstance(freq, (int, np.integer)) and not isinstance(freq, (bool, np.timedelta64)):
        if freq < 1:
            raise ValueError(f"freq must be at least 1, got {freq}")
        return int(freq)
    pd = require_pandas()
    if isinstance(freq, np.timedelta64):
        freq = pd.Timedelta(freq)
    rule = "a pandas offset alias such as 'h', 'D', 'W-SUN', 'MS' or 'QS', or the step of integer times"
    if not isinstance(freq, (str, pd.offsets.BaseOffset, datetime.timedelta)):
        raise ValueError(f"freq must be {rule}, got {freq!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # of pandas 2, where pandas 3 has an error
            offset = pd.tseries.frequencies.to_offset(freq)
    except (ValueError, FutureWarning) as error:
        raise ValueError(f"freq must be {rule}, got {freq!r}") from error
    if offset.n < 1:
        raise ValueError(f"freq must go forward, by at least 1, got {freq!r}")
    if offset.normalize or getattr(offset, "offset", None):
        raise ValueError(f"freq must keep the time of the day: no normalize and no offset, got {freq!r}")
    if isinstance(offset, pd.offsets.Week) and offset.weekday is None:
        offset = pd.offsets.Day(7 * offset.n)
    if _alias_says_all(offset):
        return offset.freqstr
    if type(offset).__name__ not in (*_CALENDARS, *_HOURS, "DateOffset"):
        raise ValueError(f"freq must be an offset that its alias {offset.freqstr!r} describes, got {freq!r}")
    start = pd.Timestamp("2001-01-01")
    try:
        moves = start + offset > start and start + 2 * offset > start + offset
    except ValueError:
        moves = False
    if not moves:
        raise ValueError(f"freq must go forward from every time, got {freq!r}")
    return offset


def freq_to_json(freq: Any) -> Any:
    """A frequency from `checked_freq` in types of JSON; the inverse of `freq_from_json`.

    Raises:
      ValueError: if a part of a `DateOffset` is not a number.

    Example:
      >>> import pandas as pd
      >>> freq_to_json(pd.offsets.CustomBusinessDay(weekmask="Sun Mon", holidays=["2024-01-01"]))
      {'offset': 'CustomBusinessDay', 'n': 1, 'weekmask': '1000001', 'holidays': ['2024-01-01']}
    """
    if isinstance(freq, (str, int)):
        return freq
    kind = type(freq).__name__
    described = {"offset": kind, "n": freq.n}
    if kind == "DateOffset":
        parts = freq.kwds
        if not all(isinstance(value, (int, float)) for value in parts.values()):
            raise ValueError(f"freq cannot be saved: the parts of a DateOffset must be numbers, got {freq!r}")
        return described | {"parts": dict(parts)}
    if kind in _HOURS:
        described |= {name: [f"{time:%H:%M}" for time in getattr(freq, name)] for name in ("start", "end")}
    if kind != "BusinessHour":
        calendar = freq.calendar
        described["weekmask"] = "".join(str(int(day)) for day in calendar.weekmask)
        described["holidays"] = calendar.holidays.astype(str).tolist()
    return described


def freq_from_json(described: Any) -> Any:
    """The frequency that `freq_to_json` described.

    Raises:
      ValueError: if it is not a frequency.

    Example:
      >>> freq_from_json("W-SUN"), freq_from_json({"offset": "DateOffset", "n": 2, "parts": {"months": 1}})
      ('W-SUN', <2 * DateOffsets: months=1>)
    """
    if not isinstance(described, Mapping):
        return checked_freq(described)
    options = dict(described)
    kind = options.pop("offset", None)
    if kind not in (*_CALENDARS, *_HOURS, "DateOffset"):
        raise ValueError(f"freq has the unknown offset {kind!r}")
    options |= options.pop("parts", {})
    return checked_freq(getattr(require_pandas().offsets, kind)(**options))


def keeps_days(offset: Any) -> bool:
    """Whether an offset leads from day to day of one calendar and keeps the time of day.

    Business hours do not, and the times of a `DateOffset` depend on the start.
    """
    return type(offset).__name__ not in (*_HOURS, "DateOffset")


def _alias_says_all(offset: Any) -> bool:
    try:
        return require_pandas().tseries.frequencies.to_offset(offset.freqstr) == offset
    except ValueError:
        return False
