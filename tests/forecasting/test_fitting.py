"""Fitting: in memory, interrupted, and from fitted parameters."""

import os
import signal
import subprocess
import tempfile
import threading

import jax
import numpy as np
import pandas as pd
import pytest
from sales_frames import SMALL, STATIC, ahead, frame

from lstmx.forecasting import LSTMForecaster
from lstmx.forecasting.task import ForecastTask
from lstmx.training import NonFiniteError

PLAIN = frame().drop(columns="price")


def interrupting(monkeypatch, at):
    """Ctrl-C while the batch of a step is made."""
    make = ForecastTask.batch

    def batch(task, step):
        if step == at:
            signal.raise_signal(signal.SIGINT)
        return make(task, step)

    monkeypatch.setattr(ForecastTask, "batch", batch)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_reaches_the_caller_and_leaves_what_was_fitted(monkeypatch):
    fitted, fresh = LSTMForecaster(h=3, **SMALL).fit(PLAIN), LSTMForecaster(h=3, **SMALL)
    expected = fitted.predict()
    interrupting(monkeypatch, 5)
    for forecaster in (fitted, fresh):
        with pytest.raises(KeyboardInterrupt):
            forecaster.fit(PLAIN.assign(y=-PLAIN["y"]), val_size=3)
    pd.testing.assert_frame_equal(fitted.predict(), expected)
    with pytest.raises(ValueError, match="not fitted: call fit first"):
        fresh.predict()


def test_fit_leaves_disk_processes_and_signals_alone(monkeypatch):
    expected = LSTMForecaster(h=3, **SMALL).fit(PLAIN, val_size=3).predict()

    def refuse(*args, **kwargs):
        raise AssertionError("fit trains in memory")

    for owner, name in (
        (os, "fsync"),
        (subprocess, "Popen"),
        (tempfile, "mkdtemp"),
        (tempfile, "mkstemp"),
        (signal, "signal"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(LSTMForecaster(h=3, **SMALL).fit(PLAIN, val_size=3))
    )
    thread.start()
    thread.join()
    pd.testing.assert_frame_equal(results[0].predict(), expected)


def test_a_loss_that_is_not_finite_names_the_learning_rate():
    forecaster = LSTMForecaster(h=3, **{**SMALL, "learning_rate": 1e38, "head": "mse", "max_steps": 30})
    with pytest.raises(NonFiniteError, match=r"^not finite at step .* use a smaller learning_rate") as error:
        forecaster.fit(PLAIN)
    assert "which is 1e+38" in str(error.value)
    assert "--" not in str(error.value)
    assert "checkpoint" not in str(error.value)


def leaves(forecaster):
    return jax.tree.leaves(forecaster._fitted.params)


@pytest.fixture(scope="module")
def trained():
    options = {**SMALL, "futr_exog_list": ["price"], "stat_exog_list": ["shop", "size"], "know_series": True}
    return LSTMForecaster(h=3, **options).fit(frame(), STATIC)


def test_a_warm_start_begins_with_the_fitted_parameters(trained, tmp_path):
    trained.save(tmp_path)
    forecaster = LSTMForecaster.load(tmp_path)
    before = [np.array(leaf) for leaf in leaves(forecaster)]
    forecaster.max_steps, forecaster.learning_rate = 1, 1e-12
    # Other values, whose own scales would differ.
    later = frame(seed=1)
    later["price"] = 100 + 10 * later["price"]
    forecaster.fit(later, STATIC, warm_start=True)
    for found, expected in zip(leaves(forecaster), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    kept, first = forecaster._fitted.scales, trained._fitted.scales
    for part in (0, 1):
        for kind in ("future", "static"):
            np.testing.assert_array_equal(kept[part][kind], first[part][kind])
    # Forecasts are those of the loaded network, given the new series.
    found = forecaster.predict(futr_df=ahead(later, 3))
    expected = LSTMForecaster.load(tmp_path).predict(later, STATIC, ahead(later, 3))
    np.testing.assert_allclose(found["lstmx"], expected["lstmx"], rtol=1e-5)
    # From scratch they are not.
    forecaster.fit(later, STATIC)
    assert not np.allclose(forecaster.predict(futr_df=ahead(later, 3))["lstmx"], expected["lstmx"], rtol=1e-3)


def test_a_warm_start_trains_on():
    options = {**SMALL, "max_steps": 20, "learning_rate": 1e-2}
    forecaster = LSTMForecaster(h=3, **options).fit(PLAIN)
    first = [np.array(leaf) for leaf in leaves(forecaster)]
    forecaster.fit(PLAIN, warm_start=True, val_size=3)
    assert any(not np.array_equal(a, b) for a, b in zip(leaves(forecaster), first, strict=True))
    again = LSTMForecaster(h=3, **options).fit(PLAIN).fit(PLAIN, warm_start=True, val_size=3)
    pd.testing.assert_frame_equal(again.predict(), forecaster.predict())


def hourly():
    hours = pd.to_timedelta(frame().groupby("unique_id").cumcount(), unit="h")
    return frame().assign(ds=pd.Timestamp("2024-01-01") + hours)


def renamed():
    return frame().replace({"unique_id": {"b": "new"}}), STATIC.assign(unique_id=["a", "new"])


@pytest.mark.parametrize(
    ("change", "run", "message"),
    [
        ({}, lambda f: LSTMForecaster(h=3).fit(PLAIN, warm_start=True), "not fitted: call fit first"),
        ({"encoder_hidden_size": 7}, None, "needs the same encoder_hidden_size: fitted with 6, got 7"),
        ({"futr_exog_list": ["tax"]}, None, r"the same futr_exog_list: fitted with \('price',\), got \('tax"),
        ({}, lambda f: f.fit(frame(), STATIC, warm_start=True, calibration_windows=1), "cannot be combined"),
        ({}, lambda f: f.fit(*renamed(), warm_start=True), "only the series it was fitted to, got 'new'"),
        ({}, lambda f: f.fit(frame(), STATIC.assign(shop=["north", "west"]), warm_start=True), "west"),
        ({}, lambda f: f.fit(hourly(), STATIC, warm_start=True, freq="h"), "the same freq: .*'D', got 'h'"),
    ],
)
def test_a_warm_start_that_cannot_be(trained, tmp_path, change, run, message):
    trained.save(tmp_path)
    forecaster = LSTMForecaster.load(tmp_path)
    for name, value in change.items():
        setattr(forecaster, name, value)
    with pytest.raises(ValueError, match=message):
        (run or (lambda f: f.fit(frame(), STATIC, warm_start=True)))(forecaster)
    pd.testing.assert_frame_equal(
        forecaster.predict(futr_df=ahead(frame(), 3)), trained.predict(futr_df=ahead(frame(), 3))
    )


def test_cross_validation_with_warm_starts():
    options = {**SMALL, "max_steps": 1, "learning_rate": 1e-12}
    forecaster = LSTMForecaster(h=3, **options)
    once = forecaster.cross_validation(PLAIN, n_windows=2)
    found = forecaster.cross_validation(PLAIN, n_windows=2, refit=True, warm_start=True)
    # With no learning to speak of, the parameters stay.
    np.testing.assert_allclose(found["lstmx"], once["lstmx"], rtol=1e-5)


def test_changes_after_fit_do_not_reach_the_fitted_network(trained):
    expected = trained.predict(futr_df=ahead(frame(), 3))
    trained.h, trained.encoder_hidden_size = 5, 9
    try:
        pd.testing.assert_frame_equal(trained.predict(futr_df=ahead(frame(), 3)), expected)
    finally:
        trained.h, trained.encoder_hidden_size = 3, 6


def test_values_that_the_head_cannot_have_are_refused_before_training():
    import pandas as pd

    df = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=30), "y": 5.0})
    df.loc[7, "y"], df.loc[9, "y"] = -2, 0
    counts = LSTMForecaster(h=2, head="negative_binomial", decoder="recurrent", max_steps=1)
    with pytest.raises(ValueError, match=r"0 up, got -2 in step 7 \(2024-01-08\) of series 'a'$"):
        counts.fit(df)
    logarithms = LSTMForecaster(h=2, log=True, max_steps=1)
    with pytest.raises(ValueError, match=r"got -2 in step 7 \(2024-01-08\) of series 'a', and 1 more"):
        logarithms.fit(df)
    assert counts.fit(df.assign(y=df["y"].clip(0))).predict()["lstmx"].ge(0).all()
