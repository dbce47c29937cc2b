"""The forecaster of data frames: its forecasts against its task, and what users ask of it."""

import jax
import numpy as np
import pandas as pd
import pytest
from sales_frames import SMALL, STATIC, ahead, frame

from lstmx.data import SeriesWindows
from lstmx.forecasting import LSTMForecaster, read_frame
from lstmx.forecasting.fitting import fit_series, task_of


@pytest.fixture(scope="module")
def fitted():
    options = {**SMALL, "futr_exog_list": ["price"], "stat_exog_list": ["shop", "size"], "dropout_rate": 0.1}
    return LSTMForecaster(h=5, **options).fit(frame(), STATIC)


def test_predictions_are_those_of_the_model(fitted):
    df, futr_df = frame(), ahead(frame(), 5)
    found = fitted.predict(futr_df=futr_df, level=[80], quantiles=[0.3])
    assert found.columns.tolist() == ["unique_id", "ds", "lstmx", "lstmx-lo-80", "lstmx-hi-80", "lstmx_ql0.3"]
    assert found["unique_id"].tolist() == ["a"] * 5 + ["b"] * 5
    assert found["ds"].tolist() == futr_df["ds"].tolist()
    assert (found["lstmx-lo-80"] <= found["lstmx_ql0.3"]).all()
    assert (found["lstmx_ql0.3"] <= found["lstmx"]).all()
    assert (found["lstmx"] <= found["lstmx-hi-80"]).all()

    # The same computed directly: covariates on the scale of the training data, windows at the ends.
    price = np.concatenate([df.loc[df["unique_id"] == label, "price"] for label in "ab"])
    whole = pd.concat([df, futr_df.assign(y=np.nan)]).sort_values(["unique_id", "ds"])
    whole["price"] = (whole["price"] - price.mean()) / price.std()
    panel = read_frame(whole, freq="D", futr_exog=["price"]).panel
    batch = SeriesWindows(panel, 12, 5).batch(np.array([0, 1]), np.array([60, 45]))
    # Of shop=north, shop=south and size.
    static = np.array([[1.0, -1, -1], [-1, 1, 1]])
    of = fitted._fitted
    model = task_of(of.recipe, SeriesWindows(of.series.panel, 12, 5), {}, 2).model(of.params)
    inputs = {"future": batch["future"], "static": static}
    distribution = jax.jit(lambda: model(batch["history"], batch["history_exists"], **inputs))()
    np.testing.assert_allclose(found["lstmx"], np.ravel(model.head.mean(distribution)), rtol=1e-4)
    tenth = model.head.quantiles(distribution, [0.1])
    np.testing.assert_allclose(found["lstmx-lo-80"], np.ravel(tenth), rtol=1e-4)


def test_what_is_known_ahead_is_read(fitted):
    futr_df = ahead(frame(), 5)
    found = fitted.predict(futr_df=futr_df)["lstmx"]
    other = fitted.predict(futr_df=futr_df.assign(price=-futr_df["price"]))["lstmx"]
    assert np.abs(found - other).max() > 1e-3 * found.max()
    with pytest.raises(ValueError, match="price must be known for the next 5 steps"):
        fitted.predict()


def test_saved_and_loaded_it_forecasts_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "kept")
    loaded = LSTMForecaster.load(tmp_path / "kept")
    df, futr_df = frame(), ahead(frame(), 5)
    expected = fitted.predict(futr_df=futr_df, level=[90])
    pd.testing.assert_frame_equal(loaded.predict(df, STATIC, futr_df, level=[90]), expected)
    pd.testing.assert_frame_equal(loaded.predict(futr_df=futr_df, level=[90]), expected)
    fitted.save(tmp_path / "kept", save_dataset=False)
    loaded = LSTMForecaster.load(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"df is required: .* saved without its series"):
        loaded.predict(futr_df=futr_df)
    with pytest.raises(ValueError, match=r"no forecaster in .*: there is no forecaster\.json"):
        LSTMForecaster.load(tmp_path)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
@pytest.mark.parametrize(("times", "freq"), [("integers", None), ("Europe/Berlin", None), ("months", "ME")])
def test_loaded_it_has_the_series(kind, times, freq, tmp_path):
    df = frame((30, 25)).drop(columns="price")
    if times == "integers":
        df["ds"] = 5 * df.groupby("unique_id").cumcount()
    elif times == "months":
        df["ds"] = pd.Timestamp("2024-01-31") + df.groupby("unique_id").cumcount().map(pd.offsets.MonthEnd)
    else:
        df["ds"] = df["ds"].dt.tz_localize(times)
    if kind == "polars":
        df = pytest.importorskip("polars").DataFrame(df.to_dict("series"))
    forecaster = LSTMForecaster(h=3, know_series=True, **{**SMALL, "max_steps": 1}).fit(df, freq=freq)
    forecaster.save(tmp_path)
    expected, found = forecaster.predict(), LSTMForecaster.load(tmp_path).predict()
    assert type(found) is type(expected)
    assert [*found.columns] == [*expected.columns]
    for name in ("unique_id", "ds", "lstmx"):
        assert [*found[name]] == [*expected[name]]


def test_series_that_were_not_fitted_are_forecast(fitted):
    df = frame(seed=5)
    df["unique_id"] = df["unique_id"].map({"a": "new", "b": "newer"})
    static = STATIC.assign(unique_id=["new", "newer"])
    found = fitted.predict(df, static, ahead(df, 5))
    assert found["unique_id"].unique().tolist() == ["new", "newer"]
    with pytest.raises(ValueError, match="west"):
        fitted.predict(df, static.assign(shop=["north", "west"]), ahead(df, 5))


def test_cross_validation_leaves_what_was_fitted(fitted):
    futr_df = ahead(frame(), 5)
    before = fitted.predict(futr_df=futr_df)
    fitted.cross_validation(frame(), STATIC)
    pd.testing.assert_frame_equal(fitted.predict(futr_df=futr_df), before)
    fresh = LSTMForecaster(h=4, **SMALL)
    fresh.cross_validation(frame().drop(columns="price"))
    with pytest.raises(ValueError, match="not fitted"):
        fresh.predict()


@pytest.mark.full
@pytest.mark.parametrize("refit", [False, True])
def test_cross_validation_knows_nothing_of_what_it_forecasts(refit):
    df = frame().drop(columns="price")
    forecaster = LSTMForecaster(h=4, **SMALL)
    found = forecaster.cross_validation(df, n_windows=3, step_size=2, refit=refit, level=[50])
    assert found.columns.tolist() == ["unique_id", "ds", "cutoff", "lstmx", "lstmx-lo-50", "lstmx-hi-50", "y"]
    assert len(found) == 2 * 3 * 4
    merged = found.merge(df, on=["unique_id", "ds"], suffixes=("", "_given"))
    np.testing.assert_allclose(merged["y"], merged["y_given"], rtol=1e-6)
    last = df.groupby("unique_id")["ds"].max()
    for label, own in found.groupby("unique_id"):
        cutoffs = [last[label] - pd.Timedelta(days=days) for days in (8, 6, 4)]
        assert own["cutoff"].drop_duplicates().tolist() == cutoffs
        assert ((own["ds"] - own["cutoff"]).dt.days.to_numpy().reshape(3, 4) == [1, 2, 3, 4]).all()
    # Whatever comes after the first cutoff, that cutoff's forecasts are the same.
    late = df["ds"] > df["unique_id"].map(last) - pd.Timedelta(days=8)
    changed = df.assign(y=df["y"].where(~late, 1e6))
    other = LSTMForecaster(h=4, **SMALL).cross_validation(changed, n_windows=3, step_size=2, refit=refit)
    first = found["cutoff"] == found.groupby("unique_id")["cutoff"].transform("min")
    np.testing.assert_array_equal(found.loc[first, "lstmx"], other.loc[first, "lstmx"])
    assert not np.array_equal(found.loc[~first, "lstmx"], other.loc[~first, "lstmx"])


def test_validation_keeps_the_best_parameters():
    df = frame().drop(columns="price")
    options = {**SMALL, "max_steps": 30, "learning_rate": 0.3, "val_check_steps": 5}
    found = LSTMForecaster(h=4, **options).fit(df, val_size=8)
    recipe, series = found._fitted.recipe, found._fitted.series
    windows, ends = SeriesWindows(series.panel, 12, 4), series.panel.observed
    task = task_of(recipe, windows, {"validation": windows.within(ends - 8, ends)}, 2)
    kept = task.evaluate(found._fitted.params, "validation")["loss"]
    # Of the same steps, without a look at the end: the last parameters, which such a learning rate spoils.
    last = fit_series(recipe, series, ends - 8, {})
    assert kept < task.evaluate(last.params, "validation")["loss"]


def test_it_beats_the_season_it_has_to_learn():
    """Both series at once, of different sizes, whose week no one names."""
    df = frame((200, 180)).drop(columns="price")
    steps = df.groupby("unique_id").cumcount()
    df["y"] = np.where(df["unique_id"] == "a", 10, 1000) * (5 + np.sin(2 * np.pi * steps / 7))
    options = {**SMALL, "max_steps": 150, "learning_rate": 1e-2, "input_size": 14}
    found = LSTMForecaster(h=7, **options).cross_validation(df, level=[80])
    scale = np.where(found["unique_id"] == "a", 10, 1000)
    assert (np.abs(found["lstmx"] - found["y"]) / scale).mean() < 0.15


def test_logarithms_are_those_of_the_frame(tmp_path):
    df = frame().drop(columns="price")
    df["y"] = df["y"].abs() + 0.1
    forecaster = LSTMForecaster(h=4, log=True, **SMALL).fit(df)
    found = forecaster.predict(level=[80])
    expected = LSTMForecaster(h=4, **SMALL).fit(df.assign(y=np.log(df["y"]))).predict(level=[80])
    columns = ["lstmx", "lstmx-lo-80", "lstmx-hi-80"]
    np.testing.assert_allclose(found[columns], np.exp(expected[columns]), rtol=1e-5)
    forecaster.save(tmp_path)
    pd.testing.assert_frame_equal(LSTMForecaster.load(tmp_path).predict(df, level=[80]), found)
    with pytest.raises(ValueError, match=r"got -3 in step 1 \(2024-01-02\) of series 'a'"):
        forecaster.fit(df.assign(y=np.where(df.index == 1, -3, df["y"])))


def test_a_season_is_smoothed():
    """Without an update, what goes on is the season."""
    days = pd.date_range("2024-01-01", periods=35, freq="D")
    y = np.resize([5.0, 1.0, 2.0, 2.0, 4.0, 9.0, 7.0], 35)
    df = pd.DataFrame({"unique_id": "a", "ds": days, "y": y})
    options = {**SMALL, "input_size": 21, "max_steps": 1, "learning_rate": 1e-9, "know_series": True}
    found = LSTMForecaster(h=7, season_length=7, **options).fit(df).predict()
    plain = LSTMForecaster(h=7, **options).fit(df).predict()
    spread = y[:21].std()
    assert np.corrcoef(found["lstmx"], y[:7])[0, 1] > 0.95
    assert np.abs(found["lstmx"] - y[:7]).mean() < spread
    assert np.abs(plain["lstmx"] - y[:7]).mean() > spread


@pytest.mark.parametrize("decoder", ["direct", "recurrent"])
def test_the_same_seed_gives_the_same_forecasts(decoder):
    df = frame().drop(columns="price")
    options = {**SMALL, "decoder": decoder, "max_steps": 3, "know_series": True, "head": "gaussian"}
    first, second, other = (
        LSTMForecaster(h=3, random_seed=seed, **options).fit(df).predict(level=[80]) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(first, second)
    assert not np.allclose(first["lstmx"], other["lstmx"])
    assert np.isfinite(first[["lstmx", "lstmx-lo-80", "lstmx-hi-80"]]).all(axis=None)


@pytest.mark.full
def test_several_members(tmp_path):
    df = frame().drop(columns="price")
    one, several = (LSTMForecaster(h=3, members=members, **SMALL).fit(df) for members in (1, 2))
    found = several.predict(level=[80])
    assert not np.allclose(found["lstmx"], one.predict()["lstmx"])
    assert (found["lstmx-lo-80"] < found["lstmx-hi-80"]).all()
    several.save(tmp_path)
    pd.testing.assert_frame_equal(LSTMForecaster.load(tmp_path).predict(level=[80]), found)


@pytest.mark.full
def test_lagged_values_are_read():
    """What each series repeats, no network of eight units keeps in mind."""
    days = pd.date_range("2024-01-01", periods=88, freq="D")
    rhythms = np.random.default_rng(0).normal(size=(20, 8))
    parts = [{"unique_id": str(n), "ds": days, "y": np.tile(y, 11)} for n, y in enumerate(rhythms)]
    df = pd.concat(map(pd.DataFrame, parts))
    options = {**SMALL, "input_size": 16, "max_steps": 150, "learning_rate": 2e-2, "batch_size": 128}
    options |= {"decoder": "recurrent", "head": "gaussian", "encoder_hidden_size": 8}
    found = LSTMForecaster(h=8, lags=[8], **options).cross_validation(df)
    plain = LSTMForecaster(h=8, **options).cross_validation(df)
    assert np.abs(found["lstmx"] - found["y"]).mean() < 0.1
    assert np.abs(plain["lstmx"] - plain["y"]).mean() > 0.3


def test_polars_frames_come_back_as_such():
    polars = pytest.importorskip("polars")
    df = frame().drop(columns="price")
    expected = LSTMForecaster(h=3, **SMALL).fit(df).predict()
    forecaster = LSTMForecaster(h=3, **SMALL).fit(polars.DataFrame(df.to_dict("series")))
    found = forecaster.predict()
    assert isinstance(found, polars.DataFrame)
    assert isinstance(forecaster.history, polars.DataFrame)
    np.testing.assert_allclose(found["lstmx"].to_numpy(), expected["lstmx"])


def test_gaps_short_and_constant_series():
    df = frame().drop(columns="price")
    df = df.drop(index=[5, 6, 20])
    days = pd.date_range("2024-01-01", periods=30, freq="D")
    constant = pd.DataFrame({"unique_id": "c", "ds": days, "y": 7.0})
    short = pd.DataFrame({"unique_id": "d", "ds": days[:2], "y": [1.0, 2.0]})
    whole = pd.concat([df, constant, short])
    forecaster = LSTMForecaster(h=3, **SMALL)
    with pytest.warns(UserWarning, match="1 of 4 series are not trained on, .* fewer than 4 steps .* 'd'"):
        forecaster.fit(whole)
    found = forecaster.predict()
    assert len(found) == 12
    assert np.isfinite(found["lstmx"]).all()
    with pytest.raises(ValueError, match="gaps='refuse'"):
        forecaster.fit(whole, gaps="refuse")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda df: LSTMForecaster(h=3).predict(), "not fitted: call fit first"),
        (lambda df: LSTMForecaster(h=3).fit(df, val_size=2), "at least h, which is 3, got 2"),
        (lambda df: LSTMForecaster(h=90).fit(df), "no window to train on: no series has 90 steps"),
        (lambda df: LSTMForecaster(h=20).cross_validation(df, n_windows=3), "'a' has 60 steps, .* need 61"),
        (lambda df: LSTMForecaster(h=3, futr_exog_list=["tax"]).fit(df), "tax"),
        (lambda df: LSTMForecaster(h=3, **SMALL).fit(df).predict(level=[99]), "not 0.005: pass calibration_"),
        (lambda df: LSTMForecaster(h=3, head="mse", **SMALL).fit(df).predict(level=[80]), "forecasts points"),
    ],
)
def test_errors(run, message):
    with pytest.raises(ValueError, match=message):
        run(frame())
