"""Forecasting: scores and baselines compared with other systems and loops, and that the experiment learns."""

import dataclasses
import json

import jax
import numpy as np
import pandas
import pytest
import sklearn.linear_model
import utilsforecast.losses

from experiments import forecasting
from experiments.datasets.series_files import calendar_features
from experiments.datasets.series_readers import SETS
from experiments.datasets.series_sets import SeriesSet
from experiments.tasks.forecasting.baselines import LinearForecaster, last_value, seasonal_naive
from experiments.tasks.forecasting.run_forecaster import RunForecaster
from experiments.tasks.forecasting.scores import scores, skill, targets_of
from experiments.tasks.forecasting.task import Forecasting
from lstmx.data import Panel, SeriesWindows
from lstmx.forecasting import LEVELS
from lstmx.training import restore_params, train


def random_panel(lengths=(40, 31), missing=0.0):
    chance = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    targets = np.concatenate([10 + np.cumsum(chance.normal(size=length)) for length in lengths])[:, None]
    return Panel(starts, np.where(chance.random(targets.shape) < missing, np.nan, targets))


def test_scores_are_those_of_utilsforecast():
    """One window of each series, in the format of that library."""
    panel, levels = random_panel(), (0.1, 0.5, 0.9)
    windows, of = SeriesWindows(panel, 5, 6), (np.array([0, 1]), np.array([34, 25]))
    chance = np.random.default_rng(1)
    mean = chance.normal(10, 2, (2, 6))
    quantiles = np.sort(chance.normal(10, 2, (2, 6, 3)), axis=-1)
    naive = [np.abs(np.diff(panel.series(n)[:c, 0])).mean() for n, c in zip(*of, strict=True)]
    found = scores(windows, of, mean, quantiles, levels, naive_errors=np.array(naive))

    ids, steps = np.repeat(["a", "b"], 6), np.concatenate([34 + np.arange(6), 25 + np.arange(6)])
    frame = pandas.DataFrame({"unique_id": ids, "ds": steps, "y": windows.batch(*of)["target"].ravel()})
    frame["mean"], frame["median"] = mean.ravel(), quantiles[..., 1].ravel()
    train = pandas.DataFrame(
        {
            "unique_id": np.repeat(["a", "b"], of[1]),
            "ds": np.concatenate([np.arange(34), np.arange(25)]),
            "y": np.concatenate([panel.series(n)[:c, 0] for n, c in zip(*of, strict=True)]),
        }
    )
    columns = [f"q{number}" for number in range(3)]
    frame[columns] = quantiles.reshape(12, 3)
    losses = utilsforecast.losses
    pinball = losses.mqloss(frame, {"lstmx": columns}, quantiles=np.array(levels))["lstmx"].mean()
    frame["lstmx-lo-80"], frame["lstmx-hi-80"] = frame["q0"], frame["q2"]
    expected = {
        "mse": losses.mse(frame, ["mean"])["mean"].mean(),
        "mae": losses.mae(frame, ["median"])["median"].mean(),
        "smape": 200 * losses.smape(frame, ["median"])["median"].mean(),
        "mase": losses.mase(frame, ["median"], 1, train)["median"].mean(),
        "crps": 2 * pinball,
        "wql": 2 * pinball * 12 / frame["y"].abs().sum(),
        "coverage": 100 * losses.coverage(frame, ["lstmx"], 80)["lstmx"].mean(),
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_every_series_counts_once_in_mase():
    panel = random_panel()
    windows, of = SeriesWindows(panel, 5, 4), (np.array([0, 0, 1]), np.array([20, 30, 25]))
    mean = np.zeros((3, 4))
    found = scores(windows, of, mean, None, (), naive_errors=np.array([2.0, 4.0]))
    errors = np.abs(windows.batch(*of)["target"][..., 0].astype(float))
    assert found["mase"] == pytest.approx((errors[:2].mean() / 2 + errors[2].mean() / 4) / 2)
    found = scores(windows, of, mean, None, (), naive_errors=np.array([2.0, np.nan]))
    assert found["mase"] == pytest.approx(errors[:2].mean() / 2)


def test_skill_is_uncertain_as_far_as_groups_are_few():
    chance = np.random.default_rng(0)
    naive, ours = chance.random((2, 40))
    found, low, high = skill(ours, naive, np.arange(40))
    assert found == pytest.approx(1 - ours.sum() / naive.sum())
    draws = chance.integers(40, size=(4000, 40))
    several = 1 - ours[draws].sum(axis=1) / naive[draws].sum(axis=1)
    assert (low, high) == pytest.approx(np.quantile(several, (0.025, 0.975)), abs=0.02)
    # Copies of the same errors do not narrow the interval.
    twice = (np.repeat(each, 2) for each in (ours, naive, np.arange(40)))
    assert skill(*twice) == pytest.approx((found, low, high))


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("season_length", [1, 3, 7])
def test_seasonal_naive_is_the_loop(season_length, missing):
    panel = random_panel(missing=missing)
    windows = SeriesWindows(panel, 2, 9)
    of = windows.within()
    found = seasonal_naive(windows, of, season_length)
    for row, (number, cutoff) in enumerate(zip(*of, strict=True)):
        values = panel.series(number)[:cutoff, 0]
        last = next((v for v in values[::-1] if not np.isnan(v)), 0.0)
        for step in range(9):
            at = cutoff - season_length + step % season_length
            while at >= 0 and np.isnan(values[at]):
                at -= season_length
            assert found[row, step] == (values[at] if at >= 0 else last)
    if season_length == 1:
        np.testing.assert_array_equal(found, last_value(windows, of))


def test_the_linear_forecast_is_ridge_regression():
    panel = random_panel((300, 200))
    windows = SeriesWindows(panel, 6, 3)
    train = windows.within(0, 150, least_history=6)
    model = LinearForecaster(windows, train, windows.within(150, 180))
    batch = windows.batch(*train)
    xs, ys = (batch[name][..., 0].astype(np.float64) for name in ("history", "target"))
    centred, goal = xs - xs[:, -1:], ys - xs[:, -1:]
    penalty = model.penalty * np.sum(centred**2) / centred.shape[1]
    ridge = sklearn.linear_model.Ridge(alpha=penalty).fit(centred, goal)
    of = windows.within(180)
    fresh = windows.batch(*of)["history"][..., 0].astype(np.float64)
    expected = ridge.predict(fresh - fresh[:, -1:]) + fresh[:, -1:]
    np.testing.assert_allclose(model(windows, of), expected, rtol=1e-4)


def test_the_divided_linear_forecast_knows_no_units():
    panel = random_panel((300, 200))
    large = Panel(panel.starts, 1000 * panel.targets)
    found = []
    for each in (panel, large):
        windows = SeriesWindows(each, 6, 3)
        known = windows.within(0, 150, least_history=6), windows.within(150, 180)
        found.append(LinearForecaster(windows, *known, divided=True)(windows, windows.within(180)))
    np.testing.assert_allclose(found[1], 1000 * found[0], rtol=1e-4)


def waves(length=240, count=3, **options):
    """Waves of 12 steps, of different sizes, that only differ in their history."""
    chance = np.random.default_rng(0)
    steps = np.arange(length)
    series = [10**n * (3 + np.sin(2 * np.pi * (steps + n) / 12)) for n in range(count)]
    targets = np.concatenate([values * (1 + 0.01 * chance.normal(size=length)) for values in series])
    ends = [np.full(count, stop) for stop in (160, 200, length)]
    return SeriesSet(
        "made up", tuple("abc"[:count]), Panel(np.arange(count + 1) * length, targets[:, None]),
        np.full(count, np.datetime64("2020-01-01", "s")), "MS", 5, 5, 6, *ends, (), (), (), **options,
    )  # fmt: skip


def configured(**options):
    config = dataclasses.replace(forecasting.PRESETS["tiny"], **options)
    data = dataclasses.replace(config.data, input_size=18, least_history=18, batch_size=16)
    return dataclasses.replace(config, data=data)


@pytest.mark.full
@pytest.mark.parametrize("decoder", ["direct", "recurrent"])
def test_it_learns_waves(decoder, tmp_path):
    """The baselines get a wrong season length, so the model should beat them clearly."""
    base = forecasting.PRESETS["tiny"]
    steps = 150 if decoder == "direct" else 250
    config = configured(
        steps=steps,
        head="gaussian",
        paths=20,
        model=dataclasses.replace(
            base.model,
            decoder=decoder,
            hidden_size=16,
            scaler_type="standard",
            lags=(5,) if decoder == "recurrent" else (),
        ),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=2e-2, schedule="cosine"),
        loop=dataclasses.replace(base.loop, eval_every=0, checkpoint_every=0, tensorboard=False),
    )
    task = Forecasting(config, waves())
    train(
        task, tmp_path / "run", steps=steps, seed=0, optimizer=config.optimizer, loop=config.loop, quiet=True
    )
    params = restore_params(tmp_path / "run", task).items["params"]
    text, values = task.report(params, "test", tmp_path / "run")
    assert values["mase"] < 0.5 * values["scores"]["seasonal naive"]["mase"]
    assert values["smape"] < 0.3 * values["scores"]["seasonal naive"]["smape"]
    assert 40 < values["coverage"] < 100
    assert text.count("\n") == 5
    drawn = {path.name for path in (tmp_path / "run" / "plots").iterdir()}
    assert drawn >= {"curves.png"} | {f"{name}-test.png" for name in ("calibration", "errors", "forecasts")}


def test_sets_that_are_standardized_are_scored_so():
    config = configured(head="mse")
    series = waves(standardized=True)
    task = Forecasting(config, series)
    for number in range(3):
        values = task.windows.panel.series(number)[:160, 0]
        assert values.mean() == pytest.approx(0, abs=1e-9)
        assert values.std() == pytest.approx(1)
    # Every window of the test part, one step apart; their history may lie in the part before.
    _, cutoffs = task.windows_of["test"]
    assert len(cutoffs) == 3 * (40 - 6 + 1)
    assert cutoffs.min() == 200
    params, _ = task.init(jax.random.key(0))
    found = task.evaluate(params, "test")
    comparison = task.compare(params, "test")
    mean = comparison.means["lstm"]
    target = task.windows.batch(*task.windows_of["test"])["target"][..., 0]
    assert found["mse"] == pytest.approx(np.mean((mean - target) ** 2), rel=1e-5)
    assert task.scores(comparison)["lstm"]["mse"] == pytest.approx(found["mse"], rel=1e-5)


def test_a_run_on_a_standardized_set_forecasts_in_the_units_of_the_file(tmp_path):
    """Some of its series, in another order."""
    series = waves(standardized=True)
    config = configured(head="gaussian")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, know_series=True))
    task = Forecasting(config, series)
    params, _ = task.init(jax.random.key(0))
    months = pandas.date_range("2020-01-01", periods=240, freq="MS")
    parts = [
        pandas.DataFrame(
            {"unique_id": label, "ds": months, "y": series.panel.series("abc".index(label))[:, 0]}
        )
        for label in "ca"
    ]
    pandas.concat(parts).to_csv(tmp_path / "new.csv", index=False)
    found = RunForecaster(config, task.assets(), tmp_path / "new.csv").table(params, [80])
    assert found["unique_id"].tolist() == ["a"] * 6 + ["c"] * 6
    forecasts = task.forecast(params, (np.array([0, 2]), np.array([240, 240])), (0.1, 0.9))
    units = [(values[:160].mean(), values[:160].std()) for values in map(series.panel.series, (0, 2))]
    mean, deviation = np.array(units).T[..., None]
    np.testing.assert_allclose(
        found["forecast"], np.ravel(mean + deviation * forecasts.mean[..., 0]), rtol=1e-4
    )
    bounds = found[["forecast-lo-80", "forecast-hi-80"]].to_numpy().reshape(2, 6, 2)
    for at in (0, 1):
        expected = mean + deviation * forecasts.quantiles[..., 0, at]
        np.testing.assert_allclose(bounds[..., at], expected, rtol=1e-4)
    parts[0].assign(unique_id="d").to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(ValueError, match="only the series it was trained on, a, b, c; got 'd'"):
        RunForecaster(config, task.assets(), tmp_path / "new.csv")


def test_what_is_seen_in_logarithms_is_scored_in_the_units_of_the_data(tmp_path):
    """Equal to the forecast of the logarithms, transformed back."""
    series = waves()
    logs = series._replace(panel=dataclasses.replace(series.panel, targets=np.log(series.panel.targets)))
    plain = configured()
    config = dataclasses.replace(plain, data=dataclasses.replace(plain.data, log=True))
    task, of_logs = Forecasting(config, series), Forecasting(plain, logs)
    params, _ = task.init(jax.random.key(0))
    comparison, expected = task.compare(params, "test"), of_logs.compare(params, "test")
    np.testing.assert_allclose(comparison.means["lstm"], np.exp(expected.means["lstm"]), rtol=1e-5)
    np.testing.assert_allclose(comparison.quantiles, np.exp(expected.quantiles), rtol=1e-5)
    assert np.all(comparison.quantiles[..., LEVELS.index(0.5)] == comparison.means["lstm"])
    naive = seasonal_naive(SeriesWindows(series.panel, 18, 6), comparison.windows, 5)
    np.testing.assert_array_equal(comparison.means["seasonal naive"], naive)
    target = series.panel.targets.reshape(3, 240)[:, 200:]
    assert task.scores(comparison)["last value"]["mae"] == pytest.approx(
        np.abs(target[:, 4:] - comparison.means["last value"].reshape(3, 36)).mean(), rel=1e-5
    )

    months = pandas.date_range("2020-01-01", periods=240, freq="MS")
    table = pandas.DataFrame({"unique_id": "b", "ds": months, "y": series.panel.series(1)[:, 0]})
    table.to_csv(tmp_path / "new.csv", index=False)
    found = RunForecaster(config, task.assets(), tmp_path / "new.csv").table(params, [80])
    forecasts = of_logs.forecast(params, (np.array([1]), np.array([240])), (0.1,))
    np.testing.assert_allclose(found["forecast"], np.exp(forecasts.mean[0, :, 0]), rtol=1e-5)
    np.testing.assert_allclose(found["forecast-lo-80"], np.exp(forecasts.quantiles[0, :, 0, 0]), rtol=1e-5)

    series.panel.targets[250] = 0
    message = r"above 0 have logarithms, got 0 in step 10 \(2020-11-01\) of series 'b'"
    with pytest.raises(ValueError, match=message):
        Forecasting(config, series)


def test_counts_are_not_below_zero():
    series = waves()
    series.panel.targets[12] = -3
    config = dataclasses.replace(configured(), head="negative_binomial")
    with pytest.raises(ValueError, match=r"from 0 up, got -3 in step 12 .* of series 'a'"):
        Forecasting(config, series)


@pytest.mark.parametrize("name", forecasting.PRESETS)
def test_presets_smooth_the_season_of_their_set(name):
    config = forecasting.PRESETS[name]
    assert config.model.season_length in (0, SETS[config.data.name].season_length)


def test_a_season_is_smoothed():
    config = configured()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, season_length=5))
    task = Forecasting(config, waves())
    params, _ = task.init(jax.random.key(0))
    assert task.model(params).scaling.smoothing.season_length == 5
    assert np.isfinite(task.evaluate(params, "validation")["loss"])


def test_cuts_elsewhere(tmp_path):
    """The former validation part becomes the test part of a model trained on all steps before it."""
    series = waves()
    earlier = series.cut(back=40, until="test")
    stops = earlier.train_stop, earlier.validation_stop, earlier.test_stop
    assert [stop.tolist() for stop in stops] == [[160] * 3, [160] * 3, [200] * 3]
    task, whole = Forecasting(configured(), earlier), Forecasting(configured(), series)
    assert task.splits == ("train", "test")
    for name, of in (("test", "validation"), ("train", "train")):
        np.testing.assert_array_equal(task.windows_of[name], whole.windows_of[of])
    params, _ = task.init(jax.random.key(0))
    assert task.draw(params, tmp_path) == []
    assert "linear" in task.compare(params, "test").means
    with pytest.raises(ValueError, match="back must be at least 0, got -1"):
        series.cut(back=-1)
    with pytest.raises(ValueError, match="splits of made up are fixed by convention"):
        waves(standardized=True).cut(until="test")


def test_a_multivariate_model_reads_all_series_together(tmp_path):
    """The forecast of a series is that of the multivariate window, in the units of the file."""
    config = configured(head="gaussian")
    model = dataclasses.replace(config.model, multivariate=True, scaler_type="standard")
    config = dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, log=True))
    series = waves()
    task = Forecasting(config, series)
    params, _ = task.init(jax.random.key(0))
    comparison = task.compare(params, "test")
    y, _ = targets_of(task.scored, comparison.windows)
    assert y.shape == comparison.means["lstm"].shape == (3 * 6, 6)
    assert task.evaluate(params, "test")["mse"] > 0
    values = series.panel.targets.reshape(3, 240).T
    for number, row in ((0, 0), (1, 8), (2, 17)):
        cutoff = comparison.windows[1][row]
        assert comparison.windows[0][row] == number
        np.testing.assert_allclose(y[row], values[cutoff : cutoff + 6, number], rtol=1e-6)
        history = np.log(values[cutoff - 18 : cutoff])[None].astype(np.float32)
        network = task.model(params)
        forecasts = network.head.mean(network(history, np.ones_like(history, bool)))[0, :, number]
        np.testing.assert_allclose(comparison.means["lstm"][row], np.exp(forecasts), rtol=1e-4)

    months = pandas.date_range("2020-01-01", periods=240, freq="MS")
    parts = [
        pandas.DataFrame({"unique_id": label, "ds": months, "y": values[:, "abc".index(label)]})
        for label in "cab"
    ]
    pandas.concat(parts).to_csv(tmp_path / "new.csv", index=False)
    found = RunForecaster(config, task.assets(), tmp_path / "new.csv").table(params, [80])
    forecasts = np.exp(task.forecast(params, (np.array([0]), np.array([240]))).mean[0])
    np.testing.assert_allclose(found["forecast"].to_numpy().reshape(3, 6), forecasts.T, rtol=1e-5)
    for frames, message in (
        (parts[:2], "the multivariate run reads 3 series, but .b. is missing"),
        (
            (*parts[:2], parts[2][:-1]),
            "'a' has those from .* to 2039-12-01.*, 'b' those from .* to 2039-11-01",
        ),
    ):
        pandas.concat(frames).to_csv(tmp_path / "new.csv", index=False)
        with pytest.raises(ValueError, match=message):
            RunForecaster(config, task.assets(), tmp_path / "new.csv")
    with pytest.raises(ValueError, match="begin at the same time and have the same splits"):
        Forecasting(config, series._replace(train_stop=np.array([160, 161, 160])))
    known = dataclasses.replace(config, model=dataclasses.replace(model, know_series=True))
    with pytest.raises(ValueError, match="know_series has no effect with multivariate"):
        Forecasting(known, series)


def test_a_run_on_a_named_set_completes_the_covariates_of_a_file(tmp_path):
    """The forecast of a series that was cut off is that of the task at that step."""
    series = waves()
    start = np.datetime64("2020-01-01T14", "s")
    times = start + 1800 * np.arange(240).astype("timedelta64[s]")
    local = pandas.DatetimeIndex(times).tz_localize("UTC").tz_convert("Australia/Melbourne").tz_localize(None)
    calendar, features = calendar_features(local.to_numpy(), "30min")
    chance = np.random.default_rng(2)
    holiday, rain = chance.integers(0, 2, 720), chance.normal(size=720)
    panel = dataclasses.replace(
        series.panel,
        historic=rain[:, None],
        future=np.concatenate([holiday[:, None], np.tile(features, (3, 1))], axis=1),
        static=chance.normal(size=(3, 2)),
    )
    series = series._replace(
        panel=panel, start=np.full(3, start), frequency="30min", zone="Australia/Melbourne",
        historic_names=("rain",), future_names=("holiday", *calendar), static_names=("x", "y"),
    )  # fmt: skip
    config = configured(head="gaussian")
    task = Forecasting(config, series)
    params, _ = task.init(jax.random.key(0))
    cutoffs = {"c": 100, "a": 77}
    rows = {label: 240 * "abc".index(label) + np.arange(stop + 6) for label, stop in cutoffs.items()}
    parts = [
        pandas.DataFrame(
            {
                "unique_id": label,
                "ds": times[: stop + 6],
                "y": np.append(panel.targets[rows[label][:-6], 0], [np.nan] * 6),
                "holiday": holiday[rows[label]],
                "rain": rain[rows[label]],
            }
        )
        for label, stop in cutoffs.items()
    ]
    new = tmp_path / "new.csv"
    forecasts = task.forecast(params, (np.array([0, 2]), np.array([77, 100])))
    for zone in (None, "UTC", "Europe/Berlin"):
        table = pandas.concat(parts)
        if zone:
            table["ds"] = table["ds"].dt.tz_localize("UTC").dt.tz_convert(zone)
        table.to_csv(new, index=False)
        found = RunForecaster(config, task.assets(), new).table(params, [80])
        np.testing.assert_allclose(found["forecast"], forecasts.mean.ravel(), rtol=1e-5)
    table.drop(columns="holiday").to_csv(new, index=False)
    with pytest.raises(ValueError, match="holiday"):
        RunForecaster(config, task.assets(), new)
    parts[0].assign(unique_id="d").to_csv(new, index=False)
    with pytest.raises(ValueError, match="only the series it was trained on, a, b, c; got 'd'"):
        RunForecaster(config, task.assets(), new)


def test_data_that_have_changed_are_noticed():
    config = configured()
    one, other = (Forecasting(config, waves(length=length)).assets() for length in (240, 241))
    assert json.loads(one["series.json"])["shape"]["series"] == 3
    assert one != other


def test_levels_hold_the_interval_and_the_median():
    assert {0.1, 0.5, 0.9} <= set(LEVELS)
