"""Arguments of the forecaster: refused at once, under the names that the user wrote."""

import dataclasses
import json

import numpy as np
import pytest
from sales_frames import SMALL, frame

from lstmx.forecasting import LSTMForecaster
from lstmx.forecasting.arguments import Recipe
from lstmx.forecasting.levels import interval_columns, level_columns

NAN = float("nan")
SIZES = ("h", "encoder_hidden_size", "encoder_n_layers", "patch_size", "members", "max_steps", "batch_size")
WRONG = {
    **dict.fromkeys((*SIZES, "input_size", "val_check_steps"), (0, -5, True, 2.5, "3", NAN)),
    **dict.fromkeys(("head", "decoder", "cell", "scaler_type"), ("lstmm", None, 1, ["mse"])),
    **dict.fromkeys(("linear", "log", "know_series", "start_padding", "quiet"), (1, None, "no")),
    **dict.fromkeys(("shrinkage", "dropout_rate"), (-0.1, 1, 1.5, NAN, "0.1", True)),
    **dict.fromkeys(
        ("hist_exog_list", "futr_exog_list", "stat_exog_list"), (None, 3, [3], ["a", "a"], {"a": 1})
    ),
    "lags": [7, "7", [1], [2.5], [True], [2, 2], [100], None],
    "season_length": [-1, 1, 7.0, True],
    "learning_rate": [0, -1e-3, NAN, float("inf"), "0.1", True],
    "random_seed": [-1, 1.5, "x", True, 2**63, None],
    "alias": ["", None, 3],
}


def test_there_are_wrong_values_of_each_argument():
    names = {field.name for field in dataclasses.fields(LSTMForecaster)}
    assert {*WRONG} == names == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_wrong_values_are_refused_by_name(name, value):
    options = {"h": 3} | ({"decoder": "recurrent"} if name == "lags" else {}) | {name: value}
    with pytest.raises(ValueError, match=rf"^{name} must .*got"):
        LSTMForecaster(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "recurrent", "patch_size": 2}, "patch_size requires decoder='direct'"),
        ({"decoder": "recurrent", "shrinkage": 0.1}, "shrinkage requires decoder='direct'"),
        ({"decoder": "recurrent", "hist_exog_list": "a"}, "hist_exog_list requires decoder='direct'"),
        ({"lags": [7]}, "lags require decoder='recurrent'"),
        ({"patch_size": 10}, "patch_size must be at most input_size, which is 9, got 10"),
        ({"hist_exog_list": ["a"], "futr_exog_list": ["a"]}, "must not share a column, got 'a'"),
        ({"log": True, "head": "negative_binomial"}, "log requires a head of real values"),
        ({"shrinkage": 0.1, "head": "negative_binomial"}, "shrinkage requires a head of real values"),
    ],
)
def test_arguments_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        LSTMForecaster(h=3, **options)


def test_integers_of_numpy_and_ranges_are_taken(tmp_path):
    df = frame().drop(columns="price")
    numbers = {name: np.int64(value) for name, value in SMALL.items() if isinstance(value, int)}
    options = {**SMALL, **numbers, "max_steps": np.uint8(1), "dropout_rate": np.float32(0), "log": np.False_}
    options |= {"lags": range(2, 4), "decoder": "recurrent", "head": np.str_("gaussian")}
    forecaster = LSTMForecaster(h=np.int64(3), **options)
    assert (forecaster.h, forecaster.lags, forecaster.log) == (3, (2, 3), False)
    assert type(forecaster.h) is type(forecaster.max_steps) is int
    forecaster.fit(df, val_size=np.int32(3)).save(tmp_path)
    assert json.loads((tmp_path / "forecaster.json").read_text())["arguments"]["lags"] == [2, 3]
    assert LSTMForecaster.load(tmp_path).lags == (2, 3)


@pytest.mark.parametrize("names", ["price", ["price"], ("price",), np.array(["price"])])
def test_one_name_is_one_column(names):
    for name in ("hist_exog_list", "futr_exog_list", "stat_exog_list"):
        assert getattr(LSTMForecaster(h=3, **{name: names}), name) == ("price",)


def test_arguments_that_were_changed_are_checked_again():
    forecaster = LSTMForecaster(h=3, **SMALL)
    forecaster.max_steps = 0
    with pytest.raises(ValueError, match="max_steps must be an integer of at least 1, got 0"):
        forecaster.fit(frame())


@pytest.mark.parametrize("name", ["level", "quantiles"])
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("80", "must be numbers between"),
        (["80"], "must be numbers between"),
        ({"80": 1}, "must be numbers between"),
        ([True], "must be numbers between"),
        (True, "must be numbers between"),
        ([None], "must be numbers between"),
        ([NAN], "must lie between"),
        (0, "must lie between"),
        ([-0.5], "must lie between"),
        ([100], "must lie between"),
        ([0.5, 0.5], "must be different numbers"),
    ],
)
def test_wrong_levels_are_refused_before_training(name, value, rule):
    with pytest.raises(ValueError, match=f"^{name} {rule}.*got"):
        LSTMForecaster(h=3).cross_validation(None, **{name: value})


def test_columns_of_intervals_check_their_widths():
    assert interval_columns("y", 80) == interval_columns("y", [80.0]) == {"y-lo-80": 0.1, "y-hi-80": 0.9}
    for widths in ("80", ["80"], [True]):
        with pytest.raises(ValueError, match="level must be numbers between 0 and 100"):
            interval_columns("y", widths)


def test_one_level_is_taken():
    expected = {"y-lo-80": 0.1, "y-hi-80": 0.9, "y_ql0.3": 0.3}
    for level, quantiles in ((80, 0.3), (np.int64(80), np.float64(0.3)), (np.array([80.0]), (0.3,))):
        assert level_columns("y", level, quantiles) == expected
    assert level_columns("y", [], None) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": -3}, "val_size must be an integer of at least 0, got -3"),
        ({"val_size": True}, "val_size must be an integer of at least 0, got True"),
        ({"val_size": 2}, "val_size must be 0 or at least h, which is 3, got 2"),
        ({"calibration_windows": -1}, "calibration_windows must be an integer of at least 0, got -1"),
        ({"calibration_windows": True}, "calibration_windows must be an integer of at least 0, got True"),
        ({"warm_start": 1}, "warm_start must be True or False, got 1"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "cross_validation"])
def test_arguments_of_training_are_checked_first(method, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(LSTMForecaster(h=3), method)(None, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_windows": 0}, "n_windows must be an integer of at least 1, got 0"),
        ({"n_windows": True}, "n_windows must be an integer of at least 1, got True"),
        ({"n_windows": 2, "step_size": 0}, "step_size must be an integer of at least 1, got 0"),
        ({"n_windows": 2, "step_size": 1.0}, r"step_size must be an integer of at least 1, got 1\.0"),
        ({"n_windows": 2, "refit": "no"}, "refit must be True or False, got 'no'"),
        ({"step_size": 2}, "step_size=2 has no effect with n_windows=1"),
        ({"refit": True}, "refit=True has no effect with n_windows=1"),
        ({"n_windows": 2, "warm_start": True}, "warm_start has no effect without refit"),
        (
            {"n_windows": 2, "warm_start": True, "refit": True, "calibration_windows": 2},
            "calibration_windows cannot be combined with warm_start",
        ),
    ],
)
def test_arguments_of_cross_validation_are_checked_first(options, message):
    with pytest.raises(ValueError, match=message):
        LSTMForecaster(h=3).cross_validation(None, **options)


@pytest.mark.parametrize(
    ("head", "options"),
    [("mse", {"level": 80}), ("mae", {"quantiles": 0.4}), ("quantiles", {"level": [80, 99]})],
)
def test_quantiles_that_a_head_does_not_have_are_refused_before_training(head, options):
    with pytest.raises(ValueError, match=f"^head='{head}' .*pass calibration_windows to fit, or use another"):
        LSTMForecaster(h=3, head=head).cross_validation(None, **options)


def test_static_features_without_a_frame_are_refused():
    forecaster = LSTMForecaster(h=3, **{**SMALL, "max_steps": 1}).fit(frame().drop(columns="price"))
    with pytest.raises(ValueError, match="static_df requires df"):
        forecaster.predict(static_df=frame())
