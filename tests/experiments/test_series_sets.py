"""Sets of time series: files, values, splits, and the messages for invalid files."""

import doctest
import gzip
import importlib.util
import lzma
import time

import numpy as np
import pytest

from experiments.datasets import series_files, series_sets
from experiments.datasets.series_files import calendar_features
from experiments.datasets.series_sets import load_series

needs_vega = pytest.mark.skipif(importlib.util.find_spec("vega_datasets") is None, reason="no vega_datasets")


def rows(header, *lines):
    return "\n".join([header, *lines]) + "\n"


def bicycles(days=20):
    times = np.datetime64("2024-01-01T00", "h") + np.arange(24 * days)
    return rows(
        "date_time,holiday,workingday,weather,temp,atemp,hum,windspeed,users,month",
        *(
            f"{t}:00:00,{float(n < 24)},1.0,{('rain', 'clear')[n % 2]},{n}.5,0,1,2,{n % 24},1".replace(
                "T", " "
            )
            for n, t in enumerate(times)
        ),
    )


def electricity(first, days, shift_dates=0):
    """Half hours, from UTC 14:00 (midnight in Melbourne's standard time, 01:00 in summer)."""
    times = np.datetime64(f"{first}T14:00:00") + np.arange(48 * days) * np.timedelta64(30, "m")
    offset = np.where(times < np.datetime64("2012-03-31T16:00:00"), 11, 10)
    dates = (times + offset * np.timedelta64(1, "h")).astype("datetime64[D]") + shift_dates
    lines = (f"{t}Z,{n}.25,20,{d},TRUE" for n, (t, d) in enumerate(zip(times, dates, strict=True)))
    return rows("Time,Demand,Temperature,Date,Holiday", *lines)


def retail(*, without=()):
    months = np.datetime64("2000-01", "M") + np.arange(96)
    lines = [f'A,"x, y",1,{month},{n}' for n, month in enumerate(months) if n not in without]
    lines += [f"B,z,2,{month},{n}" for n, month in enumerate(months[:60])]
    return rows("State,Industry,Series ID,Month,Turnover", *lines)


def prices(label, days, first="2015-01-01"):
    dates = np.busday_offset(first, np.arange(days), "forward")
    return rows(f"Date,Close,{label}", *(f"{date},1,{n + 1}" for n, date in enumerate(dates)))


def m4(*values):
    width = max(map(len, values))
    lines = (f'"W{n}",' + ",".join([*v, *[""] * (width - len(v))]) for n, v in enumerate(values, 1))
    return rows(",".join(f'"V{n + 1}"' for n in range(width + 1)), *lines)


def jena(count=1000, sentinel=()):
    times = np.datetime64("2020-01-01T00:10") + np.arange(count) * np.timedelta64(10, "m")
    values = ((n % 7, -9999 if n in sentinel else n % 11) for n in range(count))
    lines = (f"{t},{a},{b}".replace("T", " ") for t, (a, b) in zip(times, values, strict=True))
    return rows("date,a,W/m²", *lines)


def numbers(count, last="1"):
    return [*map(str, range(2, count + 1)), last]


M4 = {"Weekly-train.csv": m4(numbers(30), numbers(40)), "Weekly-test.csv": m4(numbers(13), numbers(13))}
STOCKS = {
    "sp500-2000.csv": prices("adjclose", 700, "2014-12-01"),
    **{f"{name}.csv": prices("Adj Close", 600) for name in ("AAPL", "AMZN", "FB", "GOOG")},
}


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
        with opener(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def load(tmp_path):
    def load(name, files=(), path=None):
        write(tmp_path / "files", dict(files))
        return load_series(name, path or tmp_path / "files", tmp_path / "data")

    return load


@needs_vega
def test_docstring_examples():
    for module in (series_sets, series_files):
        results = doctest.testmod(module)
        assert results.attempted >= 3
        assert results.failed == 0


def test_calendars_are_periodic_and_as_fine_as_the_steps():
    hours = np.datetime64("2023-12-25T00", "h") + np.arange(24 * 21)
    names, features = calendar_features(hours, "h")
    assert names == ("day_sin", "day_cos", "week_sin", "week_cos", "year_sin", "year_cos")
    assert features.shape == (24 * 21, 6)
    np.testing.assert_allclose(features[24:, :2], features[:-24, :2], atol=1e-12)
    np.testing.assert_allclose(features[168:, 2:4], features[:-168, 2:4], atol=1e-12)
    np.testing.assert_allclose(features[[0, 168]][:, 2:4], [[0, 1], [0, 1]], atol=1e-12)  # Mondays
    np.testing.assert_allclose(features[7 * 24, 4:], [0, 1], atol=1e-12)  # New Year
    np.testing.assert_allclose(features[:, ::2] ** 2 + features[:, 1::2] ** 2, 1)
    # Before 1970, and the middle of a year with and of one without a leap day.
    days = np.array(["1968-07-02", "2023-07-02T12"], "datetime64[h]")
    np.testing.assert_allclose(calendar_features(days, "D")[1][:, 2:], [[0, -1], [0, -1]], atol=1e-12)
    np.testing.assert_allclose(calendar_features(days[:1], "h")[1][0, :2], [0, 1], atol=1e-12)
    widths = {"15min": 6, "30min": 6, "D": 4, "B": 4, "W": 2, "MS": 2}
    assert {key: calendar_features(hours, key)[1].shape[1] for key in widths} == widths
    with pytest.raises(ValueError, match="frequency must be one of s, min, h, D, B, W and MS, got 'Q'"):
        calendar_features(hours, "Q")


def test_columns_of_a_table_are_series(load):
    found = load("weather", {"weather.csv": jena()})
    assert (found.ids, found.frequency, found.season_length, found.horizon) == (
        ("a", "W/m²"),
        "10min",
        144,
        96,
    )
    assert found.panel.lengths.tolist() == [1000, 1000]
    assert [stops.tolist() for stops in found[8:11]] == [[700, 700], [800, 800], [1000, 1000]]
    np.testing.assert_array_equal(found.panel.series(1)[:, 0], np.arange(1000) % 11)
    assert found.start.tolist() == [np.datetime64("2020-01-01T00:10:00").item()] * 2
    assert (found.panel.historic.shape[1], found.panel.future.shape[1], found.panel.static.shape) == (
        0,
        0,
        (2, 0),
    )


def test_latin_1_sentinels_and_uneven_rows(load):
    content = jena(sentinel=(3, 990)).replace("2020-01-01 00:20", "2020-01-01 00:10")
    with (
        pytest.warns(UserWarning, match=r"2 of 1,000 rows are not 10 minutes after the one before"),
        pytest.warns(UserWarning, match=r"2 values are -9999, .* that failed, and are kept: W/m² 2"),
    ):
        found = load("weather", {"weather.csv.gz": content.encode("latin-1")})
    assert found.ids == ("a", "W/m²")
    assert found.panel.series(1)[3] == -9999


def test_missing_values_are_counted(load):
    content = jena().replace("00:30,2,2", "00:30,,NA")
    with pytest.warns(UserWarning, match=r"weather\.csv: 2 of 2,000 values are missing"):
        found = load("weather", {"weather.csv": content})
    assert np.argwhere(np.isnan(found.panel.targets)).tolist() == [[2, 0], [1002, 0]]


def test_m4_is_ragged_and_its_test_is_a_file(load):
    found = load("m4-weekly", M4)
    assert (found.ids, found.season_length, found.mase_season_length, found.horizon) == (
        ("W1", "W2"),
        52,
        1,
        13,
    )
    assert [stops.tolist() for stops in found[8:11]] == [[17, 27], [30, 40], [43, 53]]
    np.testing.assert_array_equal(found.panel.series(0)[:, 0], [*range(2, 31), 1, *range(2, 14), 1])
    assert found.times(np.array([0]), np.array([[3]])) is None


def test_retail_ends_with_the_calendar(load):
    with (
        pytest.warns(UserWarning, match="2 steps before line 95 are missing"),
        pytest.warns(UserWarning, match="1 of 2 series end before 2006-01, where the test begins"),
    ):
        found = load("retail", {"aus_retail.csv": retail(without=(50, 51))})
    assert found.ids == ("A/x, y", "B/z")
    assert [stops.tolist() for stops in found[8:11]] == [[48, 48], [72, 60], [96, 60]]
    assert np.flatnonzero(np.isnan(found.panel.targets)).tolist() == [50, 51]
    assert found.static_names == ("State=A", "State=B", "Industry=x, y", "Industry=z")
    assert found.panel.static.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert found.future_names == ("year_sin", "year_cos")
    np.testing.assert_allclose(found.panel.future[[0, 12, 96]], [[0, 1]] * 3, atol=1e-12)
    times = found.times(np.array([1, 0]), np.array([[-1, 0], [11, 12]]))
    months = times.astype("datetime64[M]") - found.start[[1, 0]].astype("datetime64[M]")[:, None]
    assert months.astype(int).tolist() == [[0, 0], [11, 12]]


def test_electricity_has_the_calendar_of_melbourne(load):
    found = load("electricity", {"vic_electricity.csv": electricity("2012-03-24", 20)})
    assert (found.ids, found.frequency, found.historic_names) == (("Demand",), "30min", ("Temperature",))
    assert [int(stops[0]) for stops in found[8:11]] == [14 * 48, 16 * 48, 20 * 48]
    assert found.start[0] == np.datetime64("2012-03-24T14:00:00")
    assert found.future_names[:3] == ("Holiday", "day_sin", "day_cos")
    assert (found.panel.future[:, 0] == 1).all()
    clock = np.round(np.arctan2(*found.panel.future[:, 1:3].T) / (2 * np.pi) * 24 % 24, 6)
    # Summer time ends on 1 April 2012: the clocks show from 2:00 to 2:30 twice.
    assert clock[:2].tolist() == [1, 1.5]
    at = 7 * 48
    assert clock[at : at + 8].tolist() == [1, 1.5, 2, 2.5, 2, 2.5, 3, 3.5]


def test_bicycles_have_weather_and_holidays(load):
    found = load("bike", {"bike_sharing_hour.csv": bicycles()})
    assert found.historic_names == ("temp", "atemp", "hum", "windspeed", "weather=clear", "weather=rain")
    assert found.future_names[:2] == ("holiday", "workingday")
    assert found.panel.historic[1].tolist() == [1.5, 0, 1, 2, 1, 0]
    assert found.panel.future[[23, 24], 0].tolist() == [1, 0]
    assert [int(stops[0]) for stops in found[8:11]] == [14 * 24, 16 * 24, 20 * 24]


def test_prices_are_cut_on_the_same_day(load):
    found = load("sp500", STOCKS)
    assert found.ids == ("SP500", "AAPL", "AMZN", "FB", "GOOG")
    assert found.panel.lengths.tolist() == [700, 600, 600, 600, 600]
    first = np.busday_count(["2014-12-01", "2015-01-01"], "2016-01-01")
    second = np.busday_count(["2014-12-01", "2015-01-01"], "2017-01-01")
    assert found.train_stop.tolist() == [first[0], *[first[1]] * 4]
    assert found.validation_stop.tolist() == [second[0], *[second[1]] * 4]
    np.testing.assert_array_equal(found.panel.series(1)[:, 0], np.log(np.arange(1, 601)))


def test_a_folder_above_and_a_single_file_are_found(load, tmp_path):
    found = load("weather", {"weather/weather.csv.xz": jena(), "other.csv": jena()})
    again = load("weather", path=tmp_path / "files" / "other.csv")
    np.testing.assert_array_equal(found.panel.targets, again.panel.targets)
    write(tmp_path / "data" / "downloads" / "manual" / "weather", {"weather.csv": jena(980)})
    manual = load_series("weather", data_dir=tmp_path / "data")
    assert manual.panel.lengths.tolist() == [980, 980]
    assert len(list((tmp_path / "data" / "time_series").iterdir())) == 2


def test_prepared_series_are_read_without_their_files(load, tmp_path):
    expected = load("bike", {"bike_sharing_hour.csv": bicycles()})
    (tmp_path / "files" / "bike_sharing_hour.csv").unlink()
    found = load_series("bike", data_dir=tmp_path / "data")
    for name in ("targets", "historic", "future", "static"):
        np.testing.assert_array_equal(getattr(found.panel, name), getattr(expected.panel, name))
    assert found[0:2] == expected[0:2]
    assert found[3:8] == expected[3:8]
    with pytest.raises(
        FileNotFoundError, match=r"files/bike_sharing; .* read without a path: .*/bike-\w{12}/1"
    ):
        load("bike")
    load("bike", {"bike_sharing_hour.csv": bicycles(21)})
    with pytest.raises(FileNotFoundError, match=r"1\.0\.0 or .*delete all but one"):
        load_series("bike", data_dir=tmp_path / "data")


@needs_vega
def test_series_of_vega_need_no_files(tmp_path):
    weather = load_series("vega-weather", data_dir=tmp_path)
    assert weather.panel.lengths.tolist() == [1461]
    assert [int(stops[0]) for stops in weather[8:11]] == [731, 1096, 1461]
    assert weather.historic_names[:4] == ("precipitation", "temp_min", "wind", "weather=drizzle")
    assert weather.panel.targets[[0, -1], 0].tolist() == [12.8, 5.6]
    stocks = load_series("vega-stocks", data_dir=tmp_path)
    assert stocks.ids == ("MSFT", "AMZN", "IBM", "GOOG", "AAPL")
    assert stocks.panel.lengths.tolist() == [123, 123, 123, 68, 123]
    assert stocks.start.astype("datetime64[M]").astype(str).tolist() == ["2000-01"] * 3 + [
        "2004-08",
        "2000-01",
    ]
    assert (stocks.train_stop - stocks.test_stop == -36).all()
    np.testing.assert_allclose(np.exp(stocks.panel.targets[[0, -1], 0]), [39.81, 223.02])


def test_without_vega_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install vega_datasets, or pass the folder of stocks\.csv"):
        load_series("vega-stocks", data_dir=tmp_path)


BAD = {
    "no file": (
        "etth1",
        {},
        r"looked for ETTh1\.csv .* in .*files or .*/ett; put them there, or .*--data.path",
    ),
    "one file": (
        "m4-hourly",
        {"m4/Hourly-train.csv": "x"},
        r"found Hourly-train\.csv, but not Hourly-test\.csv",
    ),
    "name": ("etth3", {}, "name must be one of etth1, etth2, .*vega-stocks, got 'etth3'"),
    "empty": ("weather", {"weather.csv": ""}, r"weather\.csv is empty"),
    "header": ("weather", {"weather.csv": "date,a\n"}, r"weather\.csv is empty: it must have a header and"),
    "date alone": ("weather", {"weather.csv": "date\n2020-01-01\n"}, "columns of numbers besides the date"),
    "nul": ("weather", {"weather.csv": "date,a\n\0,1\n"}, r"weather\.csv is not text"),
    "twice": ("weather", {"weather.csv": "date,a,a\n1,2,3\n"}, "line 1: two columns have the same name"),
    "cells": (
        "weather",
        {"weather.csv": jena().replace("01:00,5,5", "01:00,5")},
        r"weather\.csv, line 7: 2 cells, but the header has 3",
    ),
    "quotes": ("weather", {"weather.csv": 'date,a\n"1,2\n'}, r"weather\.csv, line 2: unexpected end of data"),
    "number": (
        "weather",
        {"weather.csv": jena().replace("01:00,5,5", "01:00,5,five")},
        r"weather\.csv, line 7: column 'W/m²' must be a number, got 'five'",
    ),
    "infinite": (
        "weather",
        {"weather.csv": jena().replace("01:00,5,5", "01:00,inf,5")},
        r"weather\.csv, line 7: column 'a' must be a number, got 'inf'",
    ),
    "time": (
        "weather",
        {"weather.csv": jena().replace("2020-01-01 01:00", "1 January")},
        r"weather\.csv, line 7: column 'date' must be a time, got '1 January'",
    ),
    "no time": (
        "weather",
        {"weather.csv": jena().replace("2020-01-01 01:00", "")},
        r"weather\.csv, line 7: column 'date' must be a time, got ''",
    ),
    "short": (
        "weather",
        {"weather.csv": jena(300)},
        "the validation part needs 96 steps in at least one series, the longest has 30",
    ),
    "rows": ("etth1", {"ETTh1.csv": jena()}, r"ETTh1\.csv has 1,000 rows, the split needs 14,400"),
    "column": (
        "retail",
        {"aus_retail.csv": jena()},
        r"aus_retail\.csv must have a column 'Month', got 'date', 'a'",
    ),
    "month twice": (
        "retail",
        {"aus_retail.csv": retail().replace("2000-05", "2000-04")},
        r"line 6: 2000-04 must be a whole number of steps of 1 M after 2000-04",
    ),
    "hour absent": (
        "bike",
        {"bike_sharing_hour.csv": bicycles().replace("2024-01-02 03:00:00", "2024-01-02 03:30:00")},
        r"line 29: 2024-01-02T03:30:00 must be one step of 3600 s after 2024-01-02T02:00:00",
    ),
    "flag": (
        "bike",
        {"bike_sharing_hour.csv": bicycles().replace(",1.0,1.0,", ",2.0,1.0,")},
        r"line 2: column 'holiday' must be true or false, got '2.0'",
    ),
    "zone": (
        "electricity",
        {"vic_electricity.csv": electricity("2012-03-24", 20).replace("Z", "")},
        r"line 2: column 'Time' must be a time, got '2012-03-24T14:00:00'",
    ),
    "local day": (
        "electricity",
        {"vic_electricity.csv": electricity("2012-03-24", 20, shift_dates=1)},
        r"line 2: Date must be the day in Melbourne, 2012-03-25T01:00:00",
    ),
    "free share": (
        "sp500",
        {**STOCKS, "FB.csv": STOCKS["FB.csv"].replace(",1,2\n", ",1,-2\n")},
        r"FB\.csv, line 3: column 'adjclose' must be a price above 0, got -2.0",
    ),
    "m4 gap": (
        "m4-weekly",
        {**M4, "Weekly-train.csv": M4["Weekly-train.csv"].replace(",4,", ",,", 1)},
        r"Weekly-train\.csv, line 2: column 'V4' must be a number, got ''",
    ),
    "m4 short": (
        "m4-weekly",
        {**M4, "Weekly-train.csv": m4(numbers(30), numbers(13))},
        r"Weekly-train\.csv, line 3: W2 has 13 values, must have more than 13",
    ),
    "m4 other": (
        "m4-weekly",
        {**M4, "Weekly-test.csv": m4(numbers(13))},
        r"line 3: W2 is not in .*-test\.csv",
    ),
    "m4 test": (
        "m4-weekly",
        {**M4, "Weekly-test.csv": m4(numbers(13), numbers(12))},
        r"Weekly-test\.csv, line 3: W2 must have 13 values, has 12",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(load, case):
    name, files, message = BAD[case]
    start = time.perf_counter()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(name, files)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_a_truncated_archive_is_named(load, tmp_path, suffix):
    write(tmp_path / "files", {f"weather.csv{suffix}": jena()})
    file = tmp_path / "files" / f"weather.csv{suffix}"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"weather\.csv\{suffix} is not a whole \{suffix} file"):
        load("weather")


def test_a_damaged_copy_is_named(load, tmp_path):
    load("weather", {"weather.csv": jena()})
    (copy,) = (tmp_path / "data").glob("time_series/weather-*/1.0.0/*.array_record*")
    copy.write_bytes(b"\0" * copy.stat().st_size)
    with pytest.raises(RuntimeError, match=r"is damaged .* delete this folder and run again"):
        load("weather")
