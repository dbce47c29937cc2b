"""Offsets of pandas with their calendars, holidays, business hours and parts."""

import datetime
import json

import numpy as np
import pytest

from lstmx.forecasting import LSTMForecaster
from lstmx.forecasting.frames import forecast_frame, read_frame, with_future
from lstmx.forecasting.offsets import checked_freq, freq_from_json, freq_to_json

pd = pytest.importorskip("pandas")
holiday = pytest.importorskip("pandas.tseries.holiday")
offsets = pd.offsets

HOLIDAYS = ["2024-02-06", "2024-02-29", "2024-03-29", "2024-05-01"]
OFFSETS = {
    "weekmask": offsets.CustomBusinessDay(weekmask="Sun Mon Tue Thu"),
    "every second, holidays": offsets.CustomBusinessDay(n=2, holidays=HOLIDAYS),
    "calendar of NumPy": offsets.CustomBusinessDay(calendar=np.busdaycalendar("1111110", HOLIDAYS)),
    "calendar of pandas": offsets.CustomBusinessDay(
        calendar=holiday.AbstractHolidayCalendar(
            rules=[holiday.Holiday("last of February", month=2, day=28)]
        )
    ),
    "ends of custom months": offsets.CustomBusinessMonthEnd(holidays=HOLIDAYS, weekmask="Mon Tue Wed Thu"),
    "starts of custom months": offsets.CustomBusinessMonthBegin(weekmask="Wed"),
    "business hours": offsets.BusinessHour(start="10:00", end="20:00"),
    "two shifts": offsets.BusinessHour(start=["09:00", "13:00"], end=["12:00", "18:00"]),
    "every third hour": offsets.BusinessHour(n=3, start="08:00", end="16:00"),
    "custom hours": offsets.CustomBusinessHour(
        weekmask="Sat Sun Mon", holidays=HOLIDAYS, start="21:00", end="02:00"
    ),
    "months of a DateOffset": offsets.DateOffset(months=1),
    "parts of a DateOffset": offsets.DateOffset(n=2, days=1, hours=6),
    "week of no day": offsets.Week(2),
    "week": offsets.Week(weekday=3),
    "quarter": offsets.QuarterEnd(startingMonth=2),
    "last week of the month": offsets.LastWeekOfMonth(weekday=2),
    "week of the month": offsets.WeekOfMonth(week=1, weekday=4),
    "semi-months": offsets.SemiMonthEnd(day_of_month=10),
    "fiscal year": offsets.FY5253(weekday=4, startingMonth=1, variation="last"),
    "business days": offsets.BDay(2),
    "hours": offsets.Hour(6),
    "duration": pd.Timedelta("90min"),
    "duration of Python": datetime.timedelta(hours=36),
    "duration of NumPy": np.timedelta64(20, "m"),
    "alias of a calendar": "C",
    "alias of hours": "bh",
}  # fmt: skip
offsets_named = pytest.mark.parametrize("name", OFFSETS)


def grid(freq, steps=30):
    freq = pd.Timedelta(freq) if isinstance(freq, np.timedelta64) else freq
    return pd.date_range("2024-01-03 13:00", periods=steps, freq=freq)


def frame_of(times, label="a"):
    return pd.DataFrame({"unique_id": label, "ds": times, "y": np.arange(len(times)) + 1.0})


@offsets_named
@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_forecasts_continue_the_grid_of_pandas(name, zone):
    freq, times = OFFSETS[name], grid(OFFSETS[name])
    # A second series begins later and has a gap.
    df = pd.concat([frame_of(times[:20]), frame_of(times[4:20], "b").drop(3)])
    df["ds"] = df["ds"].dt.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")
    series = read_frame(df, freq=freq)
    assert series.filled == 1
    again = read_frame(df, freq=freq_from_json(json.loads(json.dumps(freq_to_json(series.freq)))))
    expected = times[20:]
    offset = pd.tseries.frequencies.to_offset(series.freq)
    fixed = isinstance(offset, offsets.Tick) and not isinstance(offset, offsets.Day)
    if zone is not None and fixed:  # Hours that have passed, whatever the clock shows.
        expected = pd.date_range(df["ds"].iloc[0], periods=30, freq=series.freq)[20:].tz_localize(None)
    for read in (series, again, with_future(series, None, 10)):
        got = forecast_frame(read, {"lstmx": np.zeros((2, 10))})["ds"].dt.tz_localize(None)
        assert got.tolist() == [*expected, *expected]


@offsets_named
def test_cutoffs_are_on_the_grid(name):
    times = grid(OFFSETS[name])
    series = read_frame(frame_of(times), freq=OFFSETS[name])
    windows = np.array([0, 0]), np.array([25, 27])
    found = forecast_frame(series, {"lstmx": np.zeros((2, 3))}, windows=windows)
    assert found["ds"].tolist() == [*times[25:28], *times[27:30]]
    assert found["cutoff"].tolist() == [times[24]] * 3 + [times[26]] * 3


def test_days_that_a_calendar_excludes_are_on_no_grid():
    freq = offsets.CustomBusinessDay(weekmask="Mon Tue Wed Thu")
    df = frame_of(pd.date_range("2024-01-01", periods=5))
    with pytest.raises(
        ValueError, match=r"ds must be on the grid of freq <CustomBusinessDay>, got series 'a' at 2024-01-05"
    ):
        read_frame(df, freq=freq)
    hours = frame_of(pd.date_range("2024-01-01 16:00", periods=4, freq="h"))
    with pytest.raises(ValueError, match=r"grid of freq 'bh', got series 'a' at 2024-01-01 17:00"):
        read_frame(hours, freq="bh")


def test_series_on_different_chains_of_one_offset():
    freq = offsets.BusinessHour(start="09:00", end="12:00")
    first, second = (
        pd.date_range(f"2024-01-01 {start}", periods=9, freq=freq) for start in ("09:00", "09:30")
    )
    series = read_frame(pd.concat([frame_of(first[:6]), frame_of(second[:6], "b")]), freq=freq)
    assert forecast_frame(series, {"lstmx": np.zeros((2, 3))})["ds"].tolist() == [*first[6:], *second[6:]]


@pytest.mark.parametrize(
    "freq",
    [
        True, 0, -2, np.int64(-1), 1.5, "banana", "0D", "-1D", pd.Timedelta(0), pd.Timedelta("-1h"), ["D"],
        offsets.Day(-1), offsets.MonthEnd(normalize=True), offsets.CustomBusinessDay(normalize=True),
        offsets.BusinessDay(offset=datetime.timedelta(hours=2)), offsets.DateOffset(hour=3),
        offsets.DateOffset(months=-1), offsets.Easter(),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_frequency_is_refused(freq):
    with pytest.raises(ValueError, match=r"^freq must"):
        checked_freq(freq)


def test_what_cannot_be_written_is_refused():
    from dateutil.relativedelta import FR

    freq = checked_freq(offsets.DateOffset(weeks=1, weekday=FR))
    with pytest.raises(ValueError, match="the parts of a DateOffset must be numbers"):
        freq_to_json(freq)
    with pytest.raises(ValueError, match="freq has the unknown offset 'Nonsense'"):
        freq_from_json({"offset": "Nonsense", "n": 1})


def test_a_saved_forecaster_keeps_the_calendar(tmp_path):
    freq = offsets.CustomBusinessDay(weekmask="Mon Tue Wed Thu", holidays=["2024-02-27"])
    times = pd.date_range("2024-01-01", periods=40, freq=freq)
    forecaster = LSTMForecaster(h=4, input_size=6, encoder_hidden_size=2, max_steps=1)
    expected = pd.date_range(times[-1], periods=5, freq=freq)[1:].tolist()
    forecaster.fit(frame_of(times), freq=freq)
    assert forecaster.predict()["ds"].tolist() == expected
    forecaster.save(tmp_path / "forecaster")
    loaded = LSTMForecaster.load(tmp_path / "forecaster")
    assert loaded.predict()["ds"].tolist() == expected
    assert loaded.predict(frame_of(times[:-2]))["ds"].tolist() == [*times[-2:], *expected[:2]]
