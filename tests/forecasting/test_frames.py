"""Data frames to panels and back, compared with loops over rows; and the messages for invalid frames."""

import datetime
import decimal
import sys
import zoneinfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmx.data.series import SeriesWindows
from lstmx.forecasting.frames import forecast_frame, read_frame, times_of, with_future

pd = pytest.importorskip("pandas")
NAN = float("nan")
FREQS = {
    "h": "2024-03-30 22:00",
    "15min": "2024-01-01 00:07",
    "12h": "2024-01-01 06:00",
    "D": "2024-02-27 06:30",
    "3D": "2024-02-27",
    "B": "2024-02-28",
    "W-SUN": "2023-12-17",
    "2W-WED": "2023-12-20",
    "MS": "2023-11-01",
    "2MS": "2023-11-01",
    "ME": "2023-11-30",
    "BMS": "2023-12-01",
    "BME": "2023-11-30",
    "QS-JAN": "1969-04-01",
    "QS-FEB": "2023-05-01",
    "QE-DEC": "2023-03-31",
    "QE-NOV": "2023-02-28",
    "YS-JAN": "1850-01-01",
    "YE-MAR": "2001-03-31",
    1: 5,
    12: -7,
}


def later(start, freq, steps):
    """The time a number of steps after another, by adding one step at a time."""
    if isinstance(freq, int):
        return start + freq * steps
    time, offset = pd.Timestamp(start), pd.tseries.frequencies.to_offset(freq)
    for _ in range(steps):
        time = time + offset
    return time


def ragged(freq, seed=0, missing=0.1):
    """Shuffled rows of three series with their own starts and ends, and with missing steps."""
    chance = np.random.default_rng(seed)
    rows = []
    for name, first, length in (("b", 0, 30), ("a", 4, 25), ("c", 2, 9)):
        for step in range(length):
            if 2 <= step < length - 1 and chance.random() < missing:
                continue
            time = later(FREQS[freq], freq, first + step)
            y = NAN if chance.random() < 0.1 and step != 1 else chance.normal()
            rows.append((name, time, y, chance.normal() if step % 3 else NAN))
    chance.shuffle(rows)
    return rows


def panel_by_hand(rows, freq):
    """Times, targets and covariates of each series, step by step."""
    series = {}
    for name in sorted({row[0] for row in rows}):
        of = {row[1]: row[2:] for row in rows if row[0] == name}
        times, values = [min(of)], [of[min(of)]]
        while times[-1] < max(of):
            times.append(later(times[-1], freq, 1))
            values.append(of.get(times[-1], (NAN, NAN)))
        series[name] = (times, np.array(values))
    return series


@pytest.mark.parametrize("inferred", [False, True])
@pytest.mark.parametrize("freq", FREQS)
def test_a_panel_is_what_a_loop_makes(freq, inferred):
    rows = ragged(freq)
    df = pd.DataFrame(rows, columns=["unique_id", "ds", "y", "x"])
    series = read_frame(df, freq=None if inferred else freq, hist_exog=["x"])
    truth = panel_by_hand(rows, freq)
    assert (series.freq, series.ids, series.historic) == (freq, ("a", "b", "c"), ("x",))
    assert series.filled == sum(len(times) for times, _ in truth.values()) - len(rows) > 0
    for number, (times, values) in enumerate(truth.values()):
        np.testing.assert_array_equal(series.panel.series(number)[:, 0], values[:, 0])
        rows_of = slice(*series.panel.starts[number : number + 2])
        np.testing.assert_array_equal(series.panel.historic[rows_of, 0], values[:, 1])
        further = [*times, later(times[-1], freq, 1), later(times[-1], freq, 2)]
        assert times_of(series, number, np.arange(len(further))).tolist() == further
        assert series.starts[number] == (times[0] if isinstance(freq, int) else np.datetime64(times[0]))


@settings(max_examples=25)
@given(st.data(), st.sampled_from(["h", "D", "B", "W-SUN", "ME", "QS-JAN", 12]), st.sampled_from([str, int]))
def test_any_frame_comes_back(data, freq, label):
    rows = []
    for name in data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4, unique=True)):
        first = data.draw(st.integers(0, 5))
        there = [True, *data.draw(st.lists(st.booleans(), max_size=12)), True]
        for step in np.flatnonzero(there):
            y = 1.5 if step == 0 else data.draw(st.sampled_from([NAN, 0.25, -3.0]))
            rows.append((label(name), later(FREQS[freq], freq, first + step), y))
    df = pd.DataFrame(data.draw(st.permutations(rows)), columns=["who", "when", "what"])
    series = read_frame(df, freq=freq, id_col="who", time_col="when", target_col="what")
    panel = series.panel
    numbers = np.repeat(np.arange(len(panel)), panel.lengths)
    steps = np.concatenate([np.arange(length) for length in panel.lengths])
    back = pd.DataFrame(
        {
            "who": [series.ids[number] for number in numbers],
            "when": times_of(series, numbers, steps),
            "what": panel.targets[:, 0],
        }
    )
    assert len(back) == len(df) + series.filled
    joined = df.merge(back, on=["who", "when"], how="outer", suffixes=("", "_back"), indicator=True)
    assert set(joined["_merge"]) <= {"both", "right_only"}
    assert joined["what"].equals(joined["what_back"])


def frame(days, ids="a", y=1.0, **columns):
    return pd.DataFrame({"unique_id": ids, "ds": days, "y": y, **columns})


def example(**columns):
    """Two series of three days; rows 0, 2 and 4 are those of "a"."""
    days = [f"2024-01-0{day}" for day in (1, 1, 2, 2, 3, 3)]
    columns = {"y": np.arange(6.0), "x": np.arange(6.0), **columns}
    return pd.DataFrame({"unique_id": ["a", "b"] * 3, "ds": days, **columns})


BERLIN, UTC = zoneinfo.ZoneInfo("Europe/Berlin"), datetime.UTC
STRINGS = [
    f"2024-01-0{day}T00:00+0{hour}:00" for day, hour in ((1, 1), (1, 1), (2, 1), (2, 1), (3, 2), (3, 2))
]
AWARE = [datetime.datetime(2024, 1, 1 + at // 2, tzinfo=BERLIN if at < 4 else UTC) for at in range(6)]
STATIC = pd.DataFrame({"unique_id": ["b", "a"], "size": [2, 1], "kind": ["u", "v"], "open": [True, False]})


@pytest.mark.parametrize(
    ("df", "message"),
    [
        (
            example(y=[0, 1, "12,5", 3, 4, 5]),
            r"y must hold numbers, got '12,5' in series 'a' at 2024-01-02 \(row 2\)",
        ),
        (
            example(y=["1"] * 5 + ["n/a"]),
            r"y must hold numbers, got '1' in series 'a' at 2024-01-01 \(row 0\)",
        ),
        (example(y=[True] * 6), "y must hold numbers, got True in series 'a'"),
        (example(y=[1j] * 6), "y must hold numbers, got 1j in series 'a'"),
        (
            example(y=[0, 1, 2, np.inf, 4, 5]),
            r"y must not be infinite, got inf in series 'b' at 2024-01-02 \(row 3\)",
        ),
        (example(y=[0, NAN] * 3), "y must not be NaN in all rows of a series, but is in series 'b'"),
        (
            example(x=[0, 1, 2, "no", 4, 5]),
            r"x must hold numbers, got 'no' in series 'b' at 2024-01-02 \(row 3\)",
        ),
        (example(x=[0, 1, 2, -np.inf, 4, 5]), "x must not be infinite, got -inf in series 'b'"),
        (example(x=[0, 1, 2, 3, NAN, 5]), r"x must be known, got NaN in series 'a' at 2024-01-03 \(row 4\)"),
        (example(ds=["2024-01-01"] * 6), r"series 'a' at 2024-01-01 \(row 0\) again in row 2; 4 rows"),
        (
            example(ds=["2024-01-01", "soon"] * 3),
            r"ISO 8601 strings or integers, got 'soon' in series 'b' \(row 1\)",
        ),
        (example(ds=["now"] * 6), r"got 'now' in series 'a' \(row 0\)"),
        (example(ds=["01/02/2024"] * 6), "got '01/02/2024' in series 'a'"),
        (example(ds=["2024-01-01", None] * 3), r"ds must not be missing, but is in series 'b' \(row 1\)"),
        (example(ds=[2020.5] * 6), "ds must hold dates.*, got 2020.5 in .*, a column of float64"),
        (example(ds=["2024-01-01", 5] * 3), r"got 5 in series 'b' \(row 1\)"),
        (
            example(ds=STRINGS),
            r"one time zone or none .*, got .*\+01:00 and .*\+02:00 in series 'a' \(row 4\)",
        ),
        (example(ds=AWARE), r"one time zone or none .*, got .*\+01:00 and .*\+00:00 in series 'a' \(row 4\)"),
        (example(unique_id=["a", None] * 3), "unique_id must not be missing, but is in row 1"),
        (example(unique_id=["a", 7] * 3), "unique_id must be all strings or all integers, got 7 in row 1"),
        (
            example(unique_id=[1.0, 2.0] * 3),
            "unique_id must be all strings or all integers, got 1.0 in row 0",
        ),
        (example().drop(columns="y"), r"df must have a column 'y', got \['unique_id', 'ds', 'x'\]"),
        (example().rename(columns={"unique_id": "Unique_ID"}), "did you mean 'Unique_ID'"),
        (example().set_index("unique_id"), "did you mean the index"),
        (example()[:0], "df must have rows, got none"),
        (pd.concat([example(), example()[["y"]]], axis=1), "df must have one column 'y'"),
        (
            example()[[True, True, False, True, True, True]],
            r"1 steps of 'D' .* series 'a' at 2024-01-01 \(row 0\)",
        ),
    ],
)
def test_bad_frames_are_refused(df, message):
    with pytest.raises(ValueError, match=message):
        read_frame(df, freq="D", futr_exog=["x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaps": "drop"}, "gaps must be 'fill' or 'refuse', got 'drop'"),
        ({"futr_exog": "x"}, "stat_exog must be lists of names, got the string 'x'"),
        ({"futr_exog": ["x"], "hist_exog": ["x"]}, "one column 'x', used for one purpose"),
        ({"target_col": "ds"}, "one column 'ds', used for one purpose"),
        ({"static_df": STATIC}, "static_df and stat_exog, .*, must be given together"),
        ({"stat_exog": ["size"]}, "static_df and stat_exog, .*, must be given together"),
        ({"static_df": STATIC[:1], "stat_exog": ["size"]}, "must have a row for series 'a'; 1 are missing"),
        (
            {"static_df": pd.concat([STATIC] * 2), "stat_exog": ["size"]},
            "one row for each .*, got several for 'a'",
        ),
        (
            {"static_df": STATIC, "stat_exog": ["sizes"]},
            r"static_df must have a column 'sizes', .* mean 'size'",
        ),
        (
            {"static_df": STATIC.assign(size=[1, NAN]), "stat_exog": ["size"]},
            "size must be known, got NaN in .* 'a'",
        ),
        (
            {"static_df": STATIC.assign(kind=["u", None]), "stat_exog": ["kind"]},
            "kind must not be missing.*'a'",
        ),
        (
            {"static_df": STATIC, "stat_exog": ["kind"], "categories": {"kind": ["u", "w"]}},
            "kind must be one of 'u', 'w', got 'v' in series 'a'",
        ),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        read_frame(example(), **options)


def test_gaps_are_refused_on_request():
    df = frame([1, 2, 4, 5, 9, 10, 11])
    with pytest.raises(
        ValueError, match=r"1 steps of 1 .* 'a' at 2 \(row 1\) and .* at 4 \(row 2\), 4 in all"
    ):
        read_frame(df, gaps="refuse")
    assert read_frame(df[:2], gaps="refuse").filled == 0


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="df must be a pandas or polars DataFrame, got dict"):
        read_frame({"unique_id": [1]})


def test_numbers_may_be_of_many_kinds():
    y = [decimal.Decimal("0.5"), None, 2, np.float32(3.5), 4, pd.NA]
    x = pd.array([True, False, None, True, True, False], dtype="boolean")
    series = read_frame(example(y=y, x=x), hist_exog=["x"])
    np.testing.assert_array_equal(series.panel.targets[:, 0], [0.5, 2, 4, NAN, 3.5, NAN])
    np.testing.assert_array_equal(series.panel.historic[:, 0], [1, NAN, 1, 0, 1, 0])
    constant = read_frame(example(y=np.ones(6, int)).astype({"unique_id": "category"}))
    assert (constant.panel.targets == 1).all()
    assert constant.ids == ("a", "b")


def test_static_covariates():
    options = {"static_df": STATIC, "stat_exog": ["size", "kind", "open"]}
    series = read_frame(example(), **options)
    assert series.static == ("size", "kind=u", "kind=v", "open")
    assert series.panel.static.tolist() == [[1, 0, 1, 0], [2, 1, 0, 1]]
    assert series.categories == {"kind": ("u", "v")}
    only_b = example()[1::2]
    again = read_frame(only_b, categories=series.categories, **options)
    assert (again.static, again.panel.static.tolist()) == (series.static, [[2, 1, 0, 1]])
    coded = read_frame(only_b, static_df=STATIC, stat_exog=["size"], categories={"size": (1, 2, 3)})
    assert (coded.static, coded.panel.static.tolist()) == (("size=1", "size=2", "size=3"), [[0, 1, 0]])


def test_the_future_begins_after_the_last_target():
    df = example(y=[0, 1, 2, 3, NAN, 5])  # "a" ends one day before its last row
    ahead = pd.DataFrame({"unique_id": ["b", "a", "a", "b", "z"], "x": [15.0, 24, 23, 14, NAN]})
    ahead["ds"] = ["2024-01-05", "2024-01-04", "2024-01-03", "2024-01-04", "2024-01-04"]
    series = read_frame(df, futr_exog=["x"])
    longer = with_future(series, ahead, 2)
    assert longer.panel.starts.tolist() == [0, 4, 9]
    np.testing.assert_array_equal(longer.panel.targets[:, 0], [0, 2, NAN, NAN, 1, 3, 5, NAN, NAN])
    assert longer.panel.future[:, 0].tolist() == [0, 2, 23, 24, 1, 3, 5, 14, 15]
    batch = SeriesWindows(longer.panel, 2, 2).batch(np.arange(2), longer.panel.observed)
    assert batch["future"][..., 0].tolist() == [[0, 2, 23, 24], [3, 5, 14, 15]]
    again = with_future(longer, None, 2)
    np.testing.assert_array_equal(again.panel.future, longer.panel.future)
    result = forecast_frame(
        longer, {"f": np.array([[1, 2], [3, 4]]), "f-lo-80": np.zeros((2, 2), np.float32)}
    )
    assert result.columns.tolist() == ["unique_id", "ds", "f", "f-lo-80"]
    assert result["ds"].dt.day.tolist() == [3, 4, 4, 5]
    assert result["unique_id"].tolist() == ["a", "a", "b", "b"]
    assert result["f"].tolist() == [1, 2, 3, 4]
    plain = with_future(read_frame(df, hist_exog=["x"]), None, 2)
    np.testing.assert_array_equal(plain.panel.historic[:, 0], [0, 2, 4, NAN, 1, 3, 5, NAN, NAN])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ahead: None, "x must be known for the next 2 steps, but futr_df is not given"),
        (lambda ahead: ahead[["unique_id", "ds"]], "futr_df must have a column 'x'"),
        (
            lambda ahead: ahead[ahead["unique_id"] == "a"],
            "lacks 2 rows, the first of series 'b' at 2024-01-04",
        ),
        (lambda ahead: ahead[1:], "lacks 1 rows, the first of series 'a' at 2024-01-04"),
        (
            lambda ahead: ahead.assign(x=[1, 2, NAN, 4]),
            r"x must be known, got NaN in series 'b' at 2024-01-04 \(row 2\)",
        ),
        (lambda ahead: ahead.assign(x="no"), "x must hold numbers, got 'no' in series 'a' at 2024-01-04"),
        (
            lambda ahead: pd.concat([ahead, ahead]),
            r"series 'a' at 2024-01-04 \(row 0\) again in row 4; 4 rows",
        ),
        (
            lambda ahead: ahead.assign(ds=ahead["ds"] + "T05"),
            "freq 'D', got series 'a' at 2024-01-04 05:00:00 .* at 2024-01-01$",
        ),
        (lambda ahead: ahead.assign(ds=[4, 5, 4, 5]), "times like the series, of datetime64.*, got int64"),
    ],
)
def test_a_future_that_is_not_known_is_refused(change, message):
    series = read_frame(example(), futr_exog=["x"])
    ahead = frame(["2024-01-04", "2024-01-05"] * 2, ["a", "a", "b", "b"], x=1.0)
    assert len(with_future(series, ahead, 2).panel.future) == 10
    with pytest.raises(ValueError, match=message):
        with_future(series, change(ahead), 2)


def test_windows_of_forecasts_have_their_cutoffs():
    series = read_frame(example())
    windows = SeriesWindows(series.panel, 1, 1).within()
    truth = SeriesWindows(series.panel, 1, 1).batch(*windows)["target"][..., 0]
    result = forecast_frame(series, {"y": truth, "f": truth + 1}, windows=windows)
    assert result.columns.tolist() == ["unique_id", "ds", "cutoff", "y", "f"]
    assert (result["ds"] - result["cutoff"] == pd.Timedelta("1D")).all()
    merged = result.merge(example().assign(ds=lambda df: pd.to_datetime(df["ds"])), on=["unique_id", "ds"])
    assert len(merged) == 4
    assert (merged["y_x"] == merged["y_y"]).all()


def test_forecasts_must_fit():
    series = read_frame(example())
    with pytest.raises(ValueError, match=r"columns must all be \[2, horizon\], got shapes {'f': \(3, 2\)}"):
        forecast_frame(series, {"f": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"columns must all be \[2, horizon\]"):
        forecast_frame(series, {"f": np.zeros((2, 2)), "g": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="other names than unique_id, ds, got 'ds'"):
        forecast_frame(series, {"ds": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        times_of(series, 0, -1)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        with_future(series, None, 0)


def test_without_pandas_it_is_said_what_to_install(monkeypatch):
    df = example()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'lstmx\[forecast\]'"):
        read_frame(df)


POLARS = {"Date": "D", "ms": "D", "us": "h", "ns": "ME", "Int32": 12}


@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
@pytest.mark.parametrize("kind", POLARS)
def test_polars_is_read_like_pandas_and_comes_back(kind, zone):
    pl = pytest.importorskip("polars")
    zone = zone if kind in ("ms", "us", "ns") else None
    freq = POLARS[kind]
    rows = ragged(freq)
    frames = []
    for library in (pl, pd):
        data = {name: [row[at] for row in rows] for at, name in enumerate(("unique_id", "ds", "y", "x"))}
        if kind == "Date":
            data["ds"] = [time.date() for time in data["ds"]]
        frames.append(library.DataFrame(data))
    types = {"Date": pl.Date, "Int32": pl.Int32}
    df = frames[0].with_columns(
        pl.col("ds").cast(types.get(kind) or pl.Datetime(kind)), pl.col("y").fill_nan(None)
    )
    df = df.with_columns(pl.col("unique_id").cast(pl.Categorical))
    if zone is not None:
        df = df.with_columns(pl.col("ds").dt.replace_time_zone(zone))
        frames[1]["ds"] = frames[1]["ds"].dt.tz_localize(zone)
    series, truth = (read_frame(each, hist_exog=["x"]) for each in (df, frames[1]))
    assert (series.ids, series.freq, series.filled) == (truth.ids, freq, truth.filled)
    np.testing.assert_array_equal(series.panel.targets, truth.panel.targets)
    np.testing.assert_array_equal(series.panel.historic, truth.panel.historic)
    result = forecast_frame(series, {"f": np.arange(6.0).reshape(3, 2)})
    assert isinstance(result, pl.DataFrame)
    assert result.schema == {**df.select("unique_id", "ds").schema, "f": pl.Float64}
    expected = forecast_frame(truth, {"f": np.arange(6.0).reshape(3, 2)})
    assert result["ds"].to_list() == [t.date() if kind == "Date" else t for t in expected["ds"]]
    windows = (np.array([0, 1, 2]), truth.panel.observed - 2)
    past = forecast_frame(series, {"f": np.zeros((3, 2))}, windows=windows)
    assert past.select("unique_id", "ds").join(df, on=["unique_id", "ds"]).shape[0] > 3
    for one, like, other in ((truth, df, pl.DataFrame), (series, frames[1], pd.DataFrame)):
        crossed = forecast_frame(one, {"f": np.zeros((3, 2))}, like=like)
        assert isinstance(crossed, other)
        assert crossed["ds"].to_list() == expected["ds"].tolist()


def test_polars_has_covariates_and_errors_too():
    pl = pytest.importorskip("polars")
    days = [datetime.date(2024, 1, day) for day in (1, 2, 3)]
    df = pl.DataFrame({"unique_id": [2, 2, 2, 1, 1, 1], "ds": days * 2, "y": [1, None, 3, 4, 5, 6]})
    df = df.with_columns(
        x=pl.Series([True, False] * 3), price=pl.Series(["1.50"] * 6).cast(pl.Decimal(10, 2))
    )
    static = pl.DataFrame(
        {"unique_id": [1, 2], "kind": pl.Series(["v", "u"], dtype=pl.Enum(["v", "u", "t"]))}
    )
    options = {"futr_exog": ["x", "price"], "static_df": static, "stat_exog": ["kind"]}
    series = read_frame(df, **options)
    assert (series.ids, series.static) == ((1, 2), ("kind=u", "kind=v"))
    assert series.panel.static.tolist() == [[0, 1], [1, 0]]
    assert series.panel.future.tolist() == [[0, 1.5], [1, 1.5], [0, 1.5], [1, 1.5], [0, 1.5], [1, 1.5]]
    ahead = pl.DataFrame(
        {"unique_id": [1, 2], "ds": [datetime.date(2024, 1, 4)] * 2, "x": [1, 0], "price": [2.5, 3]}
    )
    for futr_df in (ahead, ahead.to_pandas()):
        future = with_future(series, futr_df, 1).panel.future
        assert future[[3, 7]].tolist() == [[1, 2.5], [0, 3]]
    hours = forecast_frame(read_frame(df, freq="12h"), {"f": np.zeros((2, 1))})
    assert hours["ds"].to_list() == [datetime.datetime(2024, 1, 3, 12)] * 2
    bad = df.with_columns(y=pl.Series(["1", "n/a", None, "4", "5", "6"]))
    with pytest.raises(ValueError, match=r"y must hold numbers, got '1' in series 2 at 2024-01-01 \(row 0\)"):
        read_frame(bad)
    with pytest.raises(ValueError, match=r"ds must not be missing, but is in series 2 \(row 0\)"):
        read_frame(df.with_columns(ds=None))
    with pytest.raises(TypeError, match="df must be a pandas or polars DataFrame, got LazyFrame"):
        read_frame(df.lazy())
