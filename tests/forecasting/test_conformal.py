"""Intervals by errors: they hold what they promise, whatever is wrong with the forecasts."""

import numpy as np
import pandas as pd
import pytest

from lstmx.forecasting import LSTMForecaster
from lstmx.forecasting.conformal import Conformal

LEVELS = (0.05, 0.1, 0.9, 0.95)


@pytest.mark.parametrize("windows", [30, 300])
def test_values_lie_below_quantiles_as_often_as_they_say(windows):
    """Skewed errors of a width that differs, of forecasts that are off, over many draws."""
    chance = np.random.default_rng(0)
    below = []
    for _ in range(400):
        width = chance.uniform(0.5, 4, (windows + 50, 3))
        forecast = chance.normal(0, 5, (windows + 50, 3))
        targets = forecast + width * (chance.exponential(2, width.shape) - 0.3)
        conformal = Conformal.of(targets[:windows], forecast[:windows], width[:windows])
        found = conformal.quantiles(forecast[windows:], width[windows:], LEVELS)
        below.append((targets[windows:, :, None] < found).mean(axis=0))
    shares = np.mean(below, axis=0)
    # The standard error of a share over the draws is below 0.002.
    slack = 0.006
    assert (shares[:, :2] <= np.array(LEVELS[:2]) + slack).all()
    assert (shares[:, 2:] >= np.array(LEVELS[2:]) - slack).all()
    # No further off than the one rank that the correction may cost.
    assert np.abs(shares - LEVELS).max() < 1 / windows + slack


def noisy(count=30, steps=120):
    """Series whose noise has another size each."""
    chance, days = np.random.default_rng(1), pd.date_range("2024-01-01", periods=steps, freq="D")
    parts = []
    for number in range(count):
        wave = 3 * np.sin(2 * np.pi * (np.arange(steps) + number) / 7)
        y = 50 + (wave + chance.normal(0, 1, steps)) * chance.uniform(0.2, 5)
        parts.append(pd.DataFrame({"unique_id": f"{number:02}", "ds": days, "y": y}))
    return pd.concat(parts)


@pytest.mark.full
@pytest.mark.parametrize(("head", "log"), [("gaussian", False), ("quantiles", True), ("mse", False)])
def test_a_calibrated_forecaster_covers_what_it_says(head, log, tmp_path):
    """Hardly trained, its own intervals are far off."""
    df = noisy()
    options = {"input_size": 14, "encoder_hidden_size": 4, "max_steps": 40, "linear": False, "log": log}
    forecaster = LSTMForecaster(h=4, head=head, **options)
    found = forecaster.cross_validation(df, n_windows=6, calibration_windows=5, level=[80, 50])
    for width in (80, 50):
        inside = found["y"].between(found[f"lstmx-lo-{width}"], found[f"lstmx-hi-{width}"])
        assert abs(100 * inside.mean() - width) < 4, inside.mean()
    if head != "mse":
        plain = forecaster.cross_validation(df, n_windows=6, level=[80])
        inside = plain["y"].between(plain["lstmx-lo-80"], plain["lstmx-hi-80"])
        assert abs(100 * inside.mean() - 80) > 6, inside.mean()
    fitted = forecaster.fit(df, calibration_windows=5)
    fitted.save(tmp_path)
    again = LSTMForecaster.load(tmp_path).predict(level=[90], quantiles=[0.3])
    pd.testing.assert_frame_equal(again, fitted.predict(level=[90], quantiles=[0.3]))
    assert (again["lstmx-lo-90"] < again["lstmx_ql0.3"]).all()
    assert (again["lstmx_ql0.3"] < again["lstmx-hi-90"]).all()


def test_counts_stay_counts():
    days, chance = pd.date_range("2024-01-01", periods=60, freq="D"), np.random.default_rng(0)
    parts = [{"unique_id": str(n), "ds": days, "y": chance.poisson(0.4, 60)} for n in range(6)]
    options = {"input_size": 8, "encoder_hidden_size": 4, "max_steps": 20, "scaler_type": "mean"}
    forecaster = LSTMForecaster(h=4, head="negative_binomial", **options)
    fitted = forecaster.fit(pd.concat(map(pd.DataFrame, parts)), calibration_windows=5)
    found = fitted.predict(level=[80])
    mean, low, high = (found[f"lstmx{name}"] for name in ("", "-lo-80", "-hi-80"))
    assert (low >= 0).all()
    assert (low < mean).all()
    assert (high > mean).all()


def test_calibration_that_cannot_be():
    df = noisy(2, 20)
    forecaster = LSTMForecaster(h=4, input_size=8, encoder_hidden_size=4, max_steps=1, head="mse")
    with pytest.raises(ValueError, match="for intervals pass calibration_windows to fit, or use"):
        forecaster.fit(df).predict(level=[80])
    for windows, message in (
        (-1, "calibration_windows must be an integer of at least 0, got -1"),
        (30, "calibration_windows=30 needs a series of at least 5 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            forecaster.fit(df.groupby("unique_id").head(4), calibration_windows=windows)
    forecaster.fit(df, calibration_windows=1)
    with pytest.raises(ValueError, match=r"quantile 0.1 needs at least 9 errors .* there are 8"):
        forecaster.predict(level=[80])
    with pytest.raises(ValueError, match=r"quantiles must lie between 0 and 1, got 1\.5"):
        forecaster.predict(quantiles=[1.5])


def test_each_step_has_errors_of_its_own_if_there_are_enough():
    chance = np.random.default_rng(0)
    sizes = np.array([1.0, 10.0])
    targets = chance.normal(size=(150, 2)) * sizes
    targets[:40, 1] = np.nan
    nothing, one = np.zeros((150, 2)), np.ones((150, 2))
    found = Conformal.of(targets, nothing, one).quantiles(nothing[:1], one[:1], (0.1, 0.9))[0]
    assert 5 < (found[1, 1] - found[1, 0]) / (found[0, 1] - found[0, 0]) < 20
    shared = Conformal.of(targets[:90], nothing[:90], one[:90])
    assert shared.errors.shape == (1, 90 + 50)


def test_too_few_errors():
    conformal = Conformal.of(np.arange(8.0)[:, None], np.zeros((8, 1)), np.ones((8, 1)))
    with pytest.raises(ValueError, match=r"the quantile 0.1 needs at least 9 errors .* and there are 8"):
        conformal.quantiles(np.zeros((1, 1)), np.ones((1, 1)), (0.1,))
    nine = Conformal.of(np.arange(9.0)[:, None], np.zeros((9, 1)), np.ones((9, 1)))
    assert nine.quantiles(np.zeros((1, 1)), np.ones((1, 1)), (0.1, 0.9)).ravel().tolist() == [0, 8]
