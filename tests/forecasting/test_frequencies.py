"""Inferred frequencies, when they cannot be inferred, and hours and days in a time zone."""

import datetime

import numpy as np
import pytest

from lstmx.forecasting.frames import forecast_frame, read_frame, times_of, with_future

pd = pytest.importorskip("pandas")


def frame(days, ids="a", y=1.0, **columns):
    return pd.DataFrame({"unique_id": ids, "ds": days, "y": y, **columns})


def several(*days):
    return pd.concat([frame(times, name) for name, times in zip("abcd", days, strict=False)])


def dates(start, periods, freq):
    return pd.date_range(start, periods=periods, freq=freq)


@pytest.mark.parametrize(
    ("df", "freq"),
    [
        (frame(["2024-01-04", "2024-01-05", "2024-01-06"]), "D"),  # as far as Saturday
        (frame(["2024-01-03", "2024-01-04", "2024-01-05"]), "D"),  # one week, nothing tells
        (frame(["2024-01-04", "2024-01-05", "2024-01-08"]), "B"),
        (several(["2024-01-03", "2024-01-04"], ["2024-01-05", "2024-01-08"]), "B"),
        (frame(dates("2024-01-01", 9, "2B")), "2B"),
        (frame(dates("2024-01-01", 9, "3B")), "3B"),
        (frame(dates("2024-01-01", 9, "W-TUE")), "W-TUE"),
        (frame(dates("2024-01-01", 9, "4D")), "4D"),
        (frame(["2024-02-01", "2024-03-01"]), "MS"),  # 29 days, 28 in other years
        (frame(["2023-02-28", "2024-02-29"]), "YE-FEB"),
        (several(["2024-01-07", "2024-01-14"], ["2024-01-08", "2024-01-15"]), "7D"),
        (several(["2024-01-01", "2024-04-01"], ["2024-02-01", "2024-05-01"]), "3MS"),
        (several(dates("2024-01-01", 9, "h"), dates("2024-01-05", 1, "h")), "h"),
        (frame([10, 20, 30, 50]), 10),
        (frame([3, 1, 2]).astype({"ds": "Int64"}), 1),
    ],
)
def test_the_frequency_is_told(df, freq):
    assert read_frame(df).freq == freq
    assert read_frame(df, freq=freq).freq == freq


@pytest.mark.parametrize(
    ("df", "message"),
    [
        (frame(["2024-01-01"]), "freq is required because it cannot be inferred: every series has one row"),
        (
            several(dates("2024-01-01", 9, "h"), dates("2024-01-01", 9, "2h")),
            "most common steps differ: 'a' has 0 days 01:00:00, 'b' has 0 days 02:00:00",
        ),
        (several(dates("2024", 9, "MS"), dates("2024", 9, "QS")), "'a' has 1 months, 'b' has 3 months"),
        (several(dates("2024", 9, "D"), dates("2024", 9, "W")), "'a' has 1 days, 'b' has 7 days"),
        (several([1, 2, 3], [1, 3, 5]), "'a' has 1, 'b' has 2"),
        (several(dates("2024", 9, "D"), dates("2024", 9, "B")), "'b' has no weekends, 'a' has some"),
        (
            frame([*dates("2024-01-01", 48, "h"), *dates("2024-01-03", 7, "D")]),
            r"'h' is the most common, but .* at 2024-01-03 \(row 48\) is followed by 6 steps of 24 times",
        ),
        (
            frame([*dates("2024-01-01", 9, "D"), pd.Timestamp("2024-01-10 06:00")]),
            r"grid of freq 'D', got series 'a' at 2024-01-10 06:00:00 \(row 9\), whose grid begins with "
            r"series 'a' at 2024-01-01 \(row 0\)",
        ),
        (frame([1, 5, 9, 11]), r"grid of freq 4, got series 'a' at 11 \(row 3\)"),
    ],
)
def test_mixed_frequencies_are_refused(df, message):
    with pytest.raises(ValueError, match=message):
        read_frame(df)


@pytest.mark.parametrize(
    ("days", "freq", "message"),
    [
        (["2024-01-01"], "M", "freq must be a pandas offset alias .* got 'M'"),
        (["2024-01-01"], 1.5, "freq must be a pandas offset alias .* got 1.5"),
        (["2024-01-01"], True, "freq must be a pandas offset alias .* got True"),
        (["2024-01-01"], "-1D", "freq must go forward, by at least 1, got '-1D'"),
        (["2024-01-01"], "bh", "ds must be on the grid of freq 'bh', got series 'a' at 2024-01-01"),
        (["2024-01-01"], 0, "freq must be at least 1, got 0"),
        (["2024-01-01"], 1, "an integer for integers, got 1, and times of datetime64"),
        ([1, 2], "D", "an alias or offset for dates and .* got 'D', and times of int64"),
        (["2024-01-02"], "MS", r"the grid of freq 'MS', got series 'a' at 2024-01-02 \(row 0\)$"),
        (["2024-01-01", "2024-01-02"], "2D", r"got series 'a' at 2024-01-02 \(row 1\), whose"),
        (["2024-01-01", "2024-01-04"], "2D", r"got series 'a' at 2024-01-04 \(row 1\), whose"),
        (["2024-01-01 10:00", "2024-01-02 11:00"], "D", "got series 'a' at 2024-01-02 11:00:00"),
    ],
)
def test_a_frequency_that_is_wrong_is_refused(days, freq, message):
    with pytest.raises(ValueError, match=message):
        read_frame(frame(days), freq=freq)


def test_hours_are_counted_in_utc_and_days_on_the_wall():
    berlin = pd.date_range("2024-03-30", periods=4, freq="D", tz="Europe/Berlin")
    series = read_frame(frame(berlin), freq="D")
    assert (series.freq, str(series.zone), series.filled) == ("D", "Europe/Berlin", 0)
    assert read_frame(frame(berlin)).freq == "D"
    ahead = times_of(series, 0, [3, 4])
    assert [str(time) for time in ahead] == ["2024-04-02 00:00:00+02:00", "2024-04-03 00:00:00+02:00"]
    night = pd.date_range("2024-10-26 22:00", periods=6, freq="h", tz="UTC").tz_convert("Europe/Berlin")
    series = read_frame(frame(night[:4]))
    assert (series.freq, series.filled) == ("h", 0)
    assert (times_of(series, 0, [3, 4, 5]) == night[3:]).all()
    result = forecast_frame(series, {"f": np.zeros((1, 2))})
    assert result["ds"].tolist() == night[4:].tolist()
    assert result["ds"].dtype == frame(night)["ds"].dtype
    other = frame(night[4:].tz_convert("Asia/Tokyo"), x=[1.0, 2.0])
    known = read_frame(frame(night[:4], x=0.0), futr_exog=["x"])
    assert with_future(known, other, 2).panel.future[:, 0].tolist() == [0, 0, 0, 0, 1, 2]
    with pytest.raises(ValueError, match=r"times like .* zone Europe/Berlin, got .* and None"):
        with_future(known, other.assign(ds=other["ds"].dt.tz_localize(None)), 2)
    twice = pd.Series(["2024-10-26T00:30Z", "2024-10-27T00:30Z", "2024-10-27T01:30Z"]).pipe(pd.to_datetime)
    with pytest.raises(ValueError, match=r"got series 'a' at 2024-10-27 02:30:00\+01:00 \(row 2\)"):
        read_frame(frame(twice.dt.tz_convert("Europe/Berlin")), freq="D")
    known = read_frame(frame(twice[:1].dt.tz_convert("Europe/Berlin"), x=0), futr_exog=["x"], freq="D")
    with pytest.raises(
        ValueError, match=r"of futr_df .* got series 'a' at 2024-10-27 01:30:00\+00:00 \(row 1\)"
    ):
        with_future(known, frame(twice[1:], x=0), 1)
    spring = read_frame(frame(pd.DatetimeIndex(["2024-03-30 02:30"], tz="Europe/Berlin")), freq="D")
    skipped = ["2024-03-31 03:00:00+02:00", "2024-04-01 02:30:00+02:00"]
    assert [str(time) for time in times_of(spring, 0, [1, 2])] == skipped
    fixed = read_frame(frame(["2024-01-01T00:00+01:00", "2024-01-02T00:00+01:00"]))
    assert str(times_of(fixed, 0, 2)[0]) == "2024-01-03 00:00:00+01:00"


@pytest.mark.parametrize(
    "days",
    [
        ["2024-01-01", "2024-01-02"],
        ["20240101", "2024-01-02T00:00"],
        [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)],
        [datetime.datetime(2024, 1, 1), pd.Timestamp("2024-01-02")],
        np.array(["2024-01-01", "2024-01-02"], "datetime64[ns]"),
    ],
    ids=str,
)
def test_dates_may_be_written_in_many_ways(days):
    for kind in (object, None):
        series = read_frame(frame(pd.Series(days, dtype=kind)))
        assert series.freq == "D"
        assert times_of(series, 0, 3)[0] == pd.Timestamp("2024-01-04")
