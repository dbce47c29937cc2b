"""Callbacks of a fit, the training log that stays, and training that a callback ends."""

import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from sales_frames import SMALL, frame

from lstmx.data import SeriesWindows
from lstmx.forecasting import LSTMForecaster
from lstmx.forecasting.fitting import task_of
from lstmx.forecasting.task import ForecastTask

PLAIN = frame((40, 30)).drop(columns="price")
OPTIONS = {**SMALL, "encoder_hidden_size": 3, "max_steps": 12, "val_check_steps": 4}


def test_callbacks_see_the_records_of_the_history(tmp_path):
    seen, spoiled = [], []

    def spoil(record):
        spoiled.append(dict(record))
        record.clear()

    forecaster = LSTMForecaster(h=3, **OPTIONS)
    forecaster.fit(PLAIN, val_size=3, callbacks=[spoil, seen.append])
    assert spoiled == seen
    assert [r["step"] for r in seen if r["split"] == "train"] == [*range(1, 13)]
    assert [r["step"] for r in seen if r["split"] == "validation"] == [4, 8, 12]
    history = forecaster.history
    assert history["step"].tolist() == [r["step"] for r in seen]
    assert history["loss"].tolist() == [r["loss"] for r in seen]
    for name in ("grad_norm", "mae"):
        np.testing.assert_array_equal(history[name], [r.get(name, np.nan) for r in seen])
        assert history[name].isna().any()
    for dataset in (True, False):
        forecaster.save(tmp_path, save_dataset=dataset)
        pd.testing.assert_frame_equal(LSTMForecaster.load(tmp_path).history, history)
    # A fit that fails leaves the history as it was.
    with pytest.raises(ZeroDivisionError):
        forecaster.fit(PLAIN, callbacks=lambda record: 1 / 0)
    pd.testing.assert_frame_equal(forecaster.history, history)


@pytest.mark.full
def test_callbacks_see_the_network_that_is_kept():
    seen = []
    forecaster = LSTMForecaster(h=3, **OPTIONS).fit(PLAIN, calibration_windows=1, callbacks=seen.append)
    assert [record["step"] for record in seen] == [*range(1, 13)]
    assert forecaster.history["loss"].tolist() == [record["loss"] for record in seen]


def batches_of(monkeypatch):
    """The steps whose batches are drawn from now on."""
    steps, make = [], ForecastTask.batch
    monkeypatch.setattr(ForecastTask, "batch", lambda task, step: (steps.append(step), make(task, step))[1])
    return steps


def test_a_callback_ends_the_training(monkeypatch):
    steps, answers = batches_of(monkeypatch), []

    def enough(record):
        # Only True ends it: other values are what a function happens to return.
        answers.append(np.True_ if record["step"] == 5 else record["step"])
        return answers[-1]

    with warnings.catch_warnings():
        # It is not that no validation loss was finite.
        warnings.simplefilter("error")
        forecaster = LSTMForecaster(h=3, **{**OPTIONS, "val_check_steps": 10})
        forecaster.fit(PLAIN, val_size=3, callbacks=enough)
    assert steps == [*range(6)]
    assert forecaster.history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(forecaster.predict()["lstmx"]).all()


def test_training_that_ends_early_keeps_the_best_so_far(monkeypatch):
    steps = batches_of(monkeypatch)
    options = {**OPTIONS, "max_steps": 40, "learning_rate": 0.3}
    forecaster = LSTMForecaster(h=3, **options)
    forecaster.fit(PLAIN, val_size=6, callbacks=lambda record: record["step"] == 12)
    assert len(steps) == 13
    fitted, ends = forecaster._fitted, forecaster._fitted.series.panel.observed
    windows = SeriesWindows(fitted.series.panel, 12, 3)
    task = task_of(fitted.recipe, windows, {"validation": windows.within(ends - 6, ends)}, 2)
    losses = forecaster.history.query("split == 'validation'")["loss"]
    assert len(losses) == 3
    assert task.evaluate(jax.device_get(fitted.params), "validation")["loss"] == losses.min()


@pytest.mark.parametrize("callbacks", [5, "print", [print, None], {"loss": print}])
def test_callbacks_that_are_none(callbacks):
    with pytest.raises(ValueError, match=r"^callbacks must be functions of one record, got"):
        LSTMForecaster(h=3, **OPTIONS).fit(PLAIN, callbacks=callbacks)


def test_without_a_fit_there_is_no_history():
    with pytest.raises(ValueError, match="not fitted: call fit first"):
        LSTMForecaster(h=3).history  # noqa: B018
