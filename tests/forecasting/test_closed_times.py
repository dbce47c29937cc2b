"""Closing times are detected, and random gaps are not taken for them."""

import re
import warnings

import numpy as np
import pytest

from lstmx.forecasting.frames import forecast_frame, read_frame

pd = pytest.importorskip("pandas")


def frame_of(times, label="a"):
    return pd.DataFrame({"unique_id": label, "ds": times, "y": np.arange(len(times)) + 1.0})


def hours(open_at, days=7, **on):
    times = pd.date_range("2024-01-01", periods=24 * days, freq="h")
    return times[open_at(times.hour) & ~np.isin(times.day_of_week, on.get("closed", ()))]


CLOSED = {
    "hours": (
        frame_of(hours(lambda hour: (hour >= 10) & (hour < 20))),
        "no series has a row at 00:00, 01:00, 02:00, ..., which freq 'h' counts",
    ),
    "hours across midnight": (
        frame_of(hours(lambda hour: (hour >= 22) | (hour < 3))),
        "at 03:00, 04:00, 05:00",
    ),
    "hours and a day": (
        frame_of(hours(lambda hour: (hour >= 10) & (hour < 20), days=42, closed=[6])),
        "at 00:00, 01:00, 02:00, ... or on Sun,",
    ),
    "a day": (
        frame_of([day for day in pd.date_range("2024-01-01", periods=60) if day.weekday() != 2]),
        "on Wed, which freq 'D'",
    ),
    "in a zone": (
        frame_of(hours(lambda hour: (hour >= 6) & (hour < 12), days=90).tz_localize("Europe/Berlin")),
        "at 00:00, 01:00, 02:00",
    ),
    "half hours": (
        frame_of([t for t in pd.date_range("2024-01-01", periods=480, freq="30min") if 8 <= t.hour < 12]),
        "freq '30min'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
def test_closing_times_are_named_with_a_calendar_that_has_them(name):
    df, words = CLOSED[name]
    with pytest.warns(UserWarning, match=re.escape(words)) as caught:
        assert read_frame(df).filled > 0
    # The advice works, without gaps and warnings.
    message = str(caught[0].message)
    if advice := re.search(r"freq=(pd\.offsets\.\w+\(.*?\))", message):
        series = read_frame(df, freq=eval(advice[1], {"pd": pd}))
        assert series.filled == 0
        assert forecast_frame(series, {"lstmx": np.zeros((1, 3))})["ds"].iloc[0] > df["ds"].iloc[-1]
    else:
        assert "Pass integer times" in message
        assert name in ("half hours",)


def gaps_by_chance():
    rng = np.random.default_rng(0)
    yield frame_of(pd.date_range("2024-01-01", periods=30 * 24, freq="h")[rng.random(720) < 0.6])
    yield frame_of(pd.date_range("2024-01-01", periods=90)[rng.random(90) < 0.7])
    # Two days, and rows of one night.
    yield frame_of(hours(lambda hour: hour < 12, days=2))
    # One series is open when the other is closed.
    day = hours(lambda hour: (hour >= 8) & (hour < 20))
    night = hours(lambda hour: (hour < 8) | (hour >= 20))
    yield pd.concat([frame_of(day), frame_of(night, "b")])
    yield frame_of(pd.date_range("2024-01-01", periods=40, freq="B").delete(7))
    yield frame_of(pd.date_range("2024-01-01", periods=40, freq="MS").delete(7))


@pytest.mark.parametrize("number", range(6))
def test_other_gaps_are_not_named(number):
    df = list(gaps_by_chance())[number]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_frame(df).filled > 0
