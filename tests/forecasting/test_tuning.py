"""Tuning: against cross-validation and a fit of the same arguments; the search with made-up forecasts."""

import builtins
import math
import statistics

import jax
import numpy as np
import pandas as pd
import pytest

from lstmx.forecasting import LSTMForecaster, rolling, tuning
from lstmx.sweeps import SweepError

PERIOD = 9
SMALL = {
    "input_size": PERIOD,
    "encoder_hidden_size": 4,
    "max_steps": 40,
    "learning_rate": 2e-2,
    "batch_size": 32,
    "dropout_rate": 0.0,
}


def rhythm(lengths=(100,), seed=0):
    """Series that repeat themselves, each what it draws at the beginning."""
    chance = np.random.default_rng(seed)
    parts = []
    for number, length in enumerate(lengths):
        y = 10**number * (np.resize(chance.normal(size=PERIOD), length) + 0.01 * chance.normal(size=length))
        parts.append(pd.DataFrame({"unique_id": "abc"[number], "ds": np.arange(length), "y": y}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def tuned():
    base = LSTMForecaster(h=6, **SMALL)
    space = {"input_size": [2, PERIOD]}
    return base.tune(rhythm(), space, n_windows=2, refit=False, loss="mae"), base


def test_the_best_sees_the_whole_period_and_is_fitted_to_all_data(tuned):
    (best, trials), base = tuned
    assert trials.columns.tolist() == ["number", "state", "loss", "seconds", "input_size", "error"]
    assert trials["input_size"].tolist() == [PERIOD, 2]
    assert trials["number"].tolist() == [1, 0]
    assert trials["loss"][0] < 0.6 * trials["loss"][1]
    assert trials["state"].tolist() == ["complete"] * 2
    assert (trials["seconds"] > 0).all()
    expected = LSTMForecaster(h=6, **SMALL).fit(rhythm()).predict()
    pd.testing.assert_frame_equal(best.predict(), expected)
    assert expected["ds"].min() == 100
    # What was tuned is not fitted, and keeps its arguments.
    assert base.input_size == PERIOD
    with pytest.raises(ValueError, match="not fitted"):
        base.predict()


@pytest.mark.parametrize("refit", [False, pytest.param(True, marks=pytest.mark.full)])
def test_losses_are_those_of_cross_validation(tuned, refit):
    (_, trials), _ = tuned
    forecaster = LSTMForecaster(h=6, **SMALL)
    if refit:
        space = {"input_size": [PERIOD]}
        trials = forecaster.tune(rhythm(), space, n_windows=2, refit=True, loss="mae").trials
    found = forecaster.cross_validation(rhythm(), n_windows=2, refit=refit)
    assert trials["loss"][0] == pytest.approx((found["lstmx"] - found["y"]).abs().mean(), rel=1e-5)


def test_trials_know_nothing_of_what_they_forecast(monkeypatch):
    kept = []

    def recorded(*args, **kwargs):
        for mean, bounds in rolling.rolling_forecasts(*args, **kwargs):
            kept.append(mean)
            yield mean, bounds

    monkeypatch.setattr(tuning, "rolling_forecasts", recorded)
    monkeypatch.setattr(LSTMForecaster, "fit", lambda self, *args, **kwargs: self)
    df, options = rhythm(), {**SMALL, "max_steps": 2}
    for last in (df["y"], df["y"].where(df["ds"] < 94, 1e6)):
        LSTMForecaster(h=6, **options).tune(df.assign(y=last), {"input_size": [3]}, n_windows=1)
    assert len(kept) == 2
    np.testing.assert_array_equal(*kept)


# With made-up forecasts, which miss the targets by `learning_rate`.


@pytest.fixture
def quick(monkeypatch):
    """Replaces training; returns the arguments of each trial and of the last fit."""
    seen = {"trials": [], "fits": []}

    def forecasts(recipe, series, cutoffs, names, *, refit, **options):
        seen["trials"].append(recipe)
        truth = np.nan_to_num(rolling.targets_after(series, cutoffs, recipe.h))
        for at in range(cutoffs.shape[1]):
            yield truth[:, at : at + 1] + recipe.learning_rate, None

    def fit(self, df, static_df=None, **options):
        seen["fits"].append((self, df, options))
        return self

    monkeypatch.setattr(tuning, "rolling_forecasts", forecasts)
    monkeypatch.setattr(LSTMForecaster, "fit", fit)
    return seen


RATES = {"learning_rate": "log:1e-3:1"}


def python_loss(loss, df, h, n_windows, miss, lag=1):
    """Loops over series and steps, in float64."""
    per_series, everything = [], []
    for _, own in df.groupby("unique_id"):
        y = own["y"].tolist()
        first = len(y) - h * n_windows
        targets = [value for value in y[first:] if not math.isnan(value)]
        each = {
            "mae": lambda v: abs(miss),
            "mse": lambda v: miss**2,
            "smape": lambda v: 200 * abs(miss) / (abs(v) + abs(v + miss)),
            "mase": lambda v: abs(miss),
        }[loss]
        errors = [each(value) for value in targets]
        changes = [abs(y[t] - y[t - lag]) for t in range(lag, first)]
        changes = [change for change in changes if not math.isnan(change)]
        everything += errors
        if changes and sum(changes) > 0:
            per_series.append(statistics.fmean(errors) / statistics.fmean(changes))
    return statistics.fmean(per_series if loss == "mase" else everything)


@pytest.mark.parametrize("season", [0, 4])
@pytest.mark.parametrize("loss", tuning.LOSSES)
def test_losses_are_those_of_a_loop(quick, loss, season):
    df = rhythm((60, 50, 40))
    df.loc[df["unique_id"] == "c", "y"] = 3.0  # It never changes, so it has no MASE.
    df.loc[[5, 50, 57, 100], "y"] = np.nan
    forecaster = LSTMForecaster(h=4, input_size=8, season_length=season)
    trials = forecaster.tune(df, {"learning_rate": [0.25]}, n_windows=3, loss=loss).trials
    expected = python_loss(loss, df, 4, 3, 0.25, season or 1)
    assert trials["loss"].tolist() == [pytest.approx(expected, rel=1e-6)]


def test_trials_are_pruned_by_the_median_after_each_window(quick):
    df = rhythm((60,))
    trials = LSTMForecaster(h=4).tune(df, RATES, n_trials=15, n_windows=3, loss="mae").trials
    complete = []
    for number, row in trials.set_index("number").sort_index().iterrows():
        loss = row["learning_rate"]
        assert row["loss"] == pytest.approx(loss, rel=1e-4)
        worse = len(complete) >= 5 and loss > statistics.median(complete)
        assert row["state"] == ("pruned" if worse else "complete"), number
        if not worse:
            complete.append(loss)
    states = trials["state"].tolist()
    assert states == ["complete"] * len(complete) + ["pruned"] * (15 - len(complete))
    assert 5 < len(complete) < 15
    assert trials["loss"][: len(complete)].is_monotonic_increasing
    best, _, _ = quick["fits"][0]
    assert best.learning_rate == trials["learning_rate"][0]
    # Nothing is left to prune without a second training.
    for options in ({"refit": False}, {"n_windows": 1}):
        trials = LSTMForecaster(h=4).tune(df, RATES, n_trials=15, **options).trials
        assert set(trials["state"]) == {"complete"}


def test_the_same_seed_gives_the_same_trials(quick):
    df, space = rhythm((60,)), {**RATES, "encoder_hidden_size": "8:64:8", "cell": "lstm,gru"}
    for sampler in ("tpe", "random"):
        first, second, other = (
            LSTMForecaster(h=4).tune(df, space, n_trials=12, seed=seed, sampler=sampler).trials
            for seed in (3, 3, 4)
        )
        pd.testing.assert_frame_equal(first.drop(columns="seconds"), second.drop(columns="seconds"))
        assert set(first["learning_rate"]).isdisjoint(other["learning_rate"])
        assert set(first["encoder_hidden_size"]) <= {*range(8, 65, 8)}
        assert set(first["cell"]) == {"lstm", "gru"}


def test_all_points_are_tried_if_there_are_few(quick):
    space = {"cell": ["lstm", "gru"], "lags": [[], (3,), np.array([3, 4])], "learning_rate": np.array([0.1])}
    forecaster = LSTMForecaster(h=4, decoder="recurrent")
    trials = forecaster.tune(rhythm((60,)), space, n_trials=6).trials
    assert len(trials) == 6
    assert {(r.cell, tuple(r.lags)) for r in quick["trials"]} == {
        (cell, lags) for cell in ("lstm", "gru") for lags in ((), (3,), (3, 4))
    }
    assert all(type(r.learning_rate) is float for r in quick["trials"])
    assert [tuple(lags) for lags in trials["lags"][:3]] == [(), (3,), (3, 4)]


def failing(monkeypatch, fails):
    """Trials whose number is in `fails` raise what it says."""
    real, numbers = tuning.rolling_forecasts, iter(range(1000))

    def forecasts(*args, **kwargs):
        error = fails(next(numbers))
        if error is not None:
            raise error
        yield from real(*args, **kwargs)

    monkeypatch.setattr(tuning, "rolling_forecasts", forecasts)


def test_trials_that_fail_are_recorded(quick, monkeypatch):
    errors = {0: MemoryError("too large"), 2: ValueError("not so"), 3: RuntimeError("device")}
    failing(monkeypatch, errors.get)
    dropped = []
    monkeypatch.setattr(jax, "clear_caches", lambda: dropped.append(1))
    trials = LSTMForecaster(h=4).tune(rhythm((60,)), RATES, n_trials=6).trials
    assert trials["state"].tolist() == ["complete"] * 3 + ["failed"] * 3
    assert trials["error"].tolist() == [
        "",
        "",
        "",
        "MemoryError: too large",
        "not so",
        "RuntimeError: device",
    ]
    assert trials["loss"].isna().tolist() == [False] * 3 + [True] * 3
    assert len(dropped) == 6


def test_five_failures_in_a_row_end_the_search(quick, monkeypatch):
    failing(monkeypatch, lambda number: ValueError(f"no {number}") if number > 1 else None)
    with pytest.raises(SweepError, match="the last 5 trials failed, so the search stops; the last one: no 6"):
        LSTMForecaster(h=4).tune(rhythm((60,)), RATES)
    failing(monkeypatch, lambda number: ValueError("none"))
    with pytest.raises(SweepError, match="no trial is complete; the last one: none"):
        LSTMForecaster(h=4).tune(rhythm((60,)), RATES, n_trials=2)
    failing(monkeypatch, lambda number: KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        LSTMForecaster(h=4).tune(rhythm((60,)), RATES)


def test_forecasts_that_are_not_finite_fail(quick):
    space = {"learning_rate": [1e300, 0.1]}
    with pytest.warns(RuntimeWarning, match="overflow"):
        trials = LSTMForecaster(h=4).tune(rhythm((60,)), space, loss="mse").trials
    assert trials["learning_rate"].tolist() == [0.1, 1e300]
    assert trials["error"][1] == "the loss is not finite, but inf"


def test_no_trial_begins_after_the_time(quick):
    assert len(LSTMForecaster(h=4).tune(rhythm((60,)), RATES, timeout=1e-9).trials) == 1


def test_frames_of_polars_give_trials_of_polars(quick):
    polars = pytest.importorskip("polars")
    df = polars.DataFrame(rhythm((60,)).to_dict("series"))
    trials = LSTMForecaster(h=4).tune(df, {"learning_rate": [1, 0.5], "lags": [[]]}).trials
    assert isinstance(trials, polars.DataFrame)
    assert trials["learning_rate"].to_list() == [0.5, 1.0]
    assert trials["loss"].dtype == polars.Float64


def test_the_default_space(quick):
    # Before the first cutoff there are windows with 24 steps of history, and none with 26.
    assert LSTMForecaster(h=4, input_size=13).tune(rhythm((37,)), n_trials=1).forecaster.input_size == 13
    quick["fits"].clear()
    trials = LSTMForecaster(h=4).tune(rhythm((37,)), n_trials=30).trials
    assert set(trials["input_size"]) == {12, 24}
    assert set(trials["encoder_hidden_size"]) == {32, 64, 128}
    assert trials["learning_rate"].between(3e-4, 1e-2).all()
    assert trials["dropout_rate"].between(0, 0.4).all()
    arguments = {name: trials[name][0] for name in trials.columns[4:-1]}
    best, _, _ = quick["fits"][0]
    assert {name: getattr(best, name) for name in arguments} == arguments


def test_arguments_are_passed_on_and_results_are_printed(quick, capsys):
    df = rhythm((60,)).rename(columns={"ds": "t"})
    forecaster = LSTMForecaster(h=4, quiet=False)
    forecaster.tune(
        df, {"learning_rate": [0.25]}, time_col="t", val_size=5, freq=1, gaps="refuse", loss="mae"
    )
    assert capsys.readouterr().out == "trial 0 complete: loss 0.25  (learning_rate=0.25)\n"
    ((best, given, options),) = quick["fits"]
    assert given is df
    names = {"id_col": "unique_id", "time_col": "t", "target_col": "y", "gaps": "refuse"}
    assert options == {"val_size": 5, "freq": 1, **names}
    assert (best.learning_rate, best.quiet, quick["trials"][0].quiet) == (0.25, False, True)


WRONG = [
    ({"space": {"learnin_rate": RATES["learning_rate"]}}, r"did you mean learning_rate\?"),
    ({"space": {"hidden_size": [8]}}, "not a argument|did you mean encoder_hidden_size"),
    ({"space": {"lr": [8]}}, r"did you mean learning_rate\?"),
    (
        {"space": {"learning_rate": "0:1"}},
        r"learning_rate=0:1: learning_rate must be a finite number above 0",
    ),
    ({"space": {"learning_rate": "1:1e-3"}}, "the lower bound must be below the upper one"),
    ({"space": {"dropout_rate": [0.1, 1.5]}}, r"dropout_rate must be in \[0, 1\), got 1.5"),
    ({"space": {"encoder_hidden_size": 64}}, "it must be a text such as '0:0.5', or a list of values"),
    ({"space": {"encoder_hidden_size": []}}, "a choice needs values"),
    ({"space": {"cell": "lstm,rnn"}}, "must be one of lstm, slstm, gru, elman, got rnn"),
    ({"space": {"h": [3, 4]}}, "the space has h, which cannot be tuned"),
    ({"space": {}}, "space must map arguments of the forecaster to their values"),
    ({"sampler": "grid"}, "learning_rate is a continuous range"),
    ({"sampler": "best"}, "sampler must be one of tpe, random, grid, cmaes, got 'best'"),
    ({"pruner": "best"}, "pruner must be one of none, median, hyperband, got 'best'"),
    ({"pruner": "median", "refit": False}, "pruner='median' has no effect without refit"),
    ({"pruner": "median", "n_windows": 1}, "pruner='median' has no effect"),
    ({"loss": "rmse"}, "loss must be one of mase, mae, mse, smape, got 'rmse'"),
    ({"n_trials": 0}, "n_trials must be an integer of at least 1, got 0"),
    ({"n_windows": 0}, "n_windows must be an integer of at least 1, got 0"),
    ({"n_windows": 15}, "series 'a' has 60 steps, but 15 windows of 4 steps, 4 apart, need 61"),
    ({"n_windows": 14}, "no series has the 5 steps to train on before the first window; .* 'a', has 4"),
    ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ({"seed": 2**32}, r"seed must be below 2\*\*32"),
    ({"timeout": 0}, "timeout must be a number of seconds above 0, got 0"),
    ({"val_size": 2}, "val_size must be 0 or at least h, which is 4, got 2"),
    ({"target_col": "x"}, "df must have a column 'x'"),
    ({"df": rhythm((60,)).assign(y=1.0)}, "loss='mase' needs a series that changes"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_errors_before_any_trial(quick, change, message):
    with pytest.raises(ValueError, match=message):
        LSTMForecaster(h=4).tune(**{"df": rhythm((60,)), "space": RATES, **change})
    assert quick == {"trials": [], "fits": []}


def test_values_that_the_head_cannot_have_are_refused_before_any_trial(quick):
    with pytest.raises(ValueError, match="of series 'a'"):
        LSTMForecaster(h=4, log=True).tune(rhythm((60,)), RATES)
    assert not quick["trials"]


def test_optuna_is_asked_for(quick, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SweepError, match=r"pip install 'lstmx\[sweep\]'"):
        LSTMForecaster(h=4).tune(rhythm((60,)), RATES)
    assert not quick["trials"]
