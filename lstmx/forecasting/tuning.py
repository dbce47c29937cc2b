"""The search for a forecaster's arguments by cross-validation.

Axes: N series, W windows, H steps of the horizon.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lstmx.forecasting.arguments import (
    Recipe,
    integer,
    is_number,
    items_of,
    recipe_of,
    require_val_size,
    switch,
)
from lstmx.forecasting.columns import kind_of, table_of
from lstmx.forecasting.fitting import windows_of
from lstmx.forecasting.frames import FramePanel
from lstmx.forecasting.reading import read_series
from lstmx.forecasting.rolling import cutoffs_of, rolling_forecasts, targets_after
from lstmx.forecasting.scales import Scales
from lstmx.models.arguments import require_choice
from lstmx.sweeps import PRUNERS, SAMPLERS, Asked, Search, SweepError, parse_space
from lstmx.sweeps.leaderboard import shown
from lstmx.sweeps.sampling import points_of
from lstmx.sweeps.space import Space

if TYPE_CHECKING:
    from lstmx.forecasting.forecaster import LSTMForecaster

LOSSES = ("mase", "mae", "mse", "smape")

# Errors of different horizons cannot be compared, and the others change no forecast.
_FIXED = ("h", "alias", "quiet")
_STATES = ("complete", "pruned", "failed")


class Tuned(NamedTuple):
    """What `LSTMForecaster.tune` returns.

    Attributes:
      forecaster: one with the best arguments, fitted on all steps.
      trials: a frame of the kind that was given, with a row for each trial: its `number`, from 0; its
        `state`, `"complete"`, `"pruned"` or `"failed"`; its `loss`, of a pruned trial that in the windows up
        to its end; the `seconds` that it took; its arguments; and the `error` of a failed one. Complete
        trials come first, then pruned ones, by their losses.

    Example:
      >>> import numpy as np, pandas as pd
      >>> from lstmx.forecasting import LSTMForecaster
      >>> df = pd.DataFrame({"unique_id": "a", "ds": range(60), "y": np.sin(np.arange(60.0))})
      >>> base = LSTMForecaster(h=3, encoder_hidden_size=4, max_steps=2)
      >>> forecaster, trials = base.tune(df, {"input_size": "3:9"}, n_trials=1, n_windows=1)
      >>> trials.columns.tolist()
      ['number', 'state', 'loss', 'seconds', 'input_size', 'error']
      >>> bool(forecaster.input_size == trials["input_size"][0])
      True
    """

    forecaster: "LSTMForecaster"
    trials: Any


@dataclasses.dataclass(frozen=True)
class _Windows:
    """What trials are compared by: the ends of all series.

    Attributes:
      cutoffs: int [N, W].
      targets: float [N, W, H], NaN where missing.
      naive: float [N], the error of the naive forecast of each series before its first window.
      loss: one of `LOSSES`.
    """

    cutoffs: np.ndarray
    targets: np.ndarray
    naive: np.ndarray
    loss: str

    def loss_of(self, forecasts: np.ndarray) -> float:
        """The loss of the forecasts [N, K, H] of the first K windows."""
        targets = self.targets[:, : forecasts.shape[1]].astype(np.float64)
        exists, errors = ~np.isnan(targets), np.abs(targets - forecasts)
        if not exists.any():
            return math.nan
        if self.loss == "mae":
            return float(np.mean(errors, where=exists))
        if self.loss == "mse":
            return float(np.mean(errors**2, where=exists))
        if self.loss == "smape":
            size = np.abs(targets) + np.abs(forecasts)
            return float(200 * np.mean(errors / np.where(size > 0, size, 1), where=exists))
        counts = exists.sum(axis=(1, 2))
        known = (counts > 0) & np.isfinite(self.naive)
        means = np.sum(errors, axis=(1, 2), where=exists)[known] / counts[known]
        return float(np.mean(means / self.naive[known])) if known.any() else math.nan


@dataclasses.dataclass
class _Trial:
    """A row of the frame of trials."""

    number: int
    values: dict[str, Any]
    state: str = "failed"
    loss: float | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def rank(self) -> tuple:
        """What trials are sorted by."""
        return _STATES.index(self.state), math.inf if self.loss is None else self.loss, self.number

    def __str__(self) -> str:
        values = ", ".join(f"{name}={shown(value)}" for name, value in self.values.items())
        return f"trial {self.number} {self.state}: {self.error or f'loss {shown(self.loss)}'}  ({values})"


def tune(
    forecaster: "LSTMForecaster",
    df: Any,
    space: Mapping[str, Any] | None,
    static_df: Any,
    freq: Any,
    names: Mapping[str, Any],
    *,
    n_trials: int,
    n_windows: int,
    refit: bool,
    val_size: int,
    loss: str,
    seed: int,
    sampler: str | None,
    pruner: str | None,
    timeout: float | None,
) -> Tuned:
    """`LSTMForecaster.tune`, with its arguments unchecked; `names` are further arguments of `fit`."""
    recipe = recipe_of(forecaster)
    n_trials, n_windows = integer("n_trials", n_trials, 1), integer("n_windows", n_windows, 1)
    refit = switch("refit", refit) and n_windows > 1
    options = {"refit": refit, "val_size": require_val_size(val_size, recipe.h)}
    require_choice("loss", loss, LOSSES)
    if integer("seed", seed, 0) >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {seed}")
    if timeout is not None and not (is_number(timeout) and timeout > 0):
        raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}")
    for name, value, choices in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if value is not None:
            require_choice(name, value, choices)
    if pruner not in (None, "none") and not refit:
        raise ValueError(
            f"pruner={pruner!r} has no effect without refit, or with one window: trials have one part"
        )

    read = _Reader(df, static_df, freq, names)
    series = read(recipe)
    cutoffs = cutoffs_of(series, recipe.h, n_windows, recipe.h)
    _require_windows(recipe, series, cutoffs[:, 0] - options["val_size"])
    parsed = _parse(forecaster, _default_space(recipe, cutoffs) if space is None else space)
    search = Search(
        parsed,
        sampler=sampler or ("grid" if points_of(parsed) <= n_trials else "tpe"),
        pruner=pruner or ("median" if refit else "none"),
        seed=int(seed),
    )
    naive = _naive_errors(series, cutoffs[:, 0], recipe.season_length or 1)
    if loss == "mase" and not np.isfinite(naive).any():
        raise ValueError("loss='mase' needs a series that changes before the first window: use another loss")
    windows = _Windows(cutoffs, targets_after(series, cutoffs, recipe.h), naive, loss)

    trials: list[_Trial] = []
    end = math.inf if timeout is None else time.perf_counter() + timeout
    while len(trials) < n_trials and not (trials and time.perf_counter() >= end):
        if (asked := search.ask()) is None:
            break
        trials.append(_tried(search, asked, forecaster, read, windows, options))
        if not recipe.quiet:
            print(trials[-1], flush=True)
    if search.best is None:
        raise SweepError(f"no trial is complete; the last one: {trials[-1].error}")
    best = dataclasses.replace(forecaster, **search.best.values)
    best.fit(df, static_df, val_size=options["val_size"], freq=freq, **names)
    return Tuned(best, _frame(kind_of(df, "df"), trials, parsed))


class _Reader:
    """Reads the frame once for each choice of exogenous variables."""

    def __init__(self, df: Any, static_df: Any, freq: Any, names: Mapping[str, Any]):
        self._frames, self._freq, self.names = (df, static_df), freq, names
        self._read: dict[tuple, FramePanel] = {}

    def __call__(self, recipe: Recipe) -> FramePanel:
        exogenous = recipe.hist_exog_list, recipe.futr_exog_list, recipe.stat_exog_list
        if exogenous not in self._read:
            self._read[exogenous] = read_series(recipe, *self._frames, self._freq, self.names)
        return self._read[exogenous]


def _tried(
    search: Search,
    asked: Asked,
    forecaster: "LSTMForecaster",
    read: _Reader,
    windows: _Windows,
    options: Mapping[str, Any],
) -> _Trial:
    """Tries arguments, and tells the search what came of it."""
    trial, began = _Trial(asked.number, asked.values), time.perf_counter()
    parts: list[np.ndarray] = []
    loss = math.nan
    try:
        recipe = recipe_of(dataclasses.replace(forecaster, **{**asked.values, "quiet": True}))
        for mean, _ in rolling_forecasts(recipe, read(recipe), windows.cutoffs, read.names, **options):
            parts.append(mean)
            seen = np.concatenate(parts, axis=1)
            trial.loss = loss = windows.loss_of(seen)
            # The first windows of all series may have no targets, and after the last there is nothing to end.
            goes_on = seen.shape[1] < windows.cutoffs.shape[1]
            if goes_on and math.isfinite(loss) and search.report(asked, seen.shape[1], loss):
                trial.state = "pruned"
                search.prune(asked)
                break
        else:
            if not math.isfinite(loss):
                raise ArithmeticError(f"the loss is not finite, but {loss}")
            search.finish(asked, loss)
            trial.state = "complete"
    # Of any kind: from arguments that do not fit together to a device without memory for the network.
    except Exception as error:
        known = isinstance(error, ValueError | ArithmeticError) and str(error)
        trial.error = str(error) if known else f"{type(error).__name__}: {error}"
        trial.loss = None
        search.fail(asked, trial.error)
    finally:
        # Programs of this trial's shapes would stay for as long as the process.
        jax.clear_caches()
    trial.seconds = round(time.perf_counter() - began, 3)
    return trial


def _parse(forecaster: "LSTMForecaster", space: Mapping[str, Any]) -> Space:
    """The checked space; each of its bounds and choices makes a valid forecaster with the other arguments."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"space must map arguments of the forecaster to their values, got {space!r}")
    texts = {}
    for name, values in space.items():
        if name in _FIXED:
            raise ValueError(f"the space has {name}, which cannot be tuned")
        several = values if isinstance(values, str) else items_of(values)
        if several is None:
            raise ValueError(
                f"the space has {name}={values!r}: it must be a text such as '0:0.5', or a list of values"
            )
        texts[name] = several if isinstance(several, str) else [_plain(value) for value in several]
    return parse_space(forecaster, texts, called="argument of LSTMForecaster")


def _plain(value: Any) -> Any:
    """A value of NumPy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def _default_space(recipe: Recipe, cutoffs: np.ndarray) -> dict[str, Any]:
    """The space that is searched if none is given."""
    # Not a shorter one, which lags and patches may not fit into.
    size, longest = recipe.input_size, int(cutoffs[:, 0].max()) - recipe.h
    return {
        "input_size": [size, 2 * size] if 2 * size <= longest else [size],
        "encoder_hidden_size": [32, 64, 128],
        "learning_rate": "log:3e-4:1e-2",
        "dropout_rate": "0:0.4",
    }


def _require_windows(recipe: Recipe, series: FramePanel, stops: np.ndarray) -> None:
    """Raises ValueError if values do not suit the head, or no series is long enough to train on."""
    windows = windows_of(recipe, series, Scales.of(series.panel, np.maximum(stops, 0)))
    if not len(windows.within(0, stops)[0]):
        longest = int(np.argmax(stops))
        raise ValueError(
            f"no series has the {recipe.h + 1} steps to train on before the first window; the longest, "
            f"{series.ids[longest]!r}, has {max(int(stops[longest]), 0)}"
        )


def _naive_errors(series: FramePanel, stops: np.ndarray, lag: int) -> np.ndarray:
    """The mean absolute change over `lag` steps, float64 [N]; NaN where it is 0 or there is none."""
    errors = np.full(len(stops), np.nan)
    for number, stop in enumerate(stops):
        values = series.panel.series(number)[:stop, 0]
        changes = np.abs(values[lag:] - values[:-lag])
        changes = changes[~np.isnan(changes)]
        if changes.any():
            errors[number] = changes.mean()
    return errors


def _frame(kind: str, trials: list[_Trial], space: Space) -> Any:
    trials = sorted(trials, key=lambda trial: trial.rank)
    facts = {
        name: [getattr(trial, name) for trial in trials] for name in ("number", "state", "loss", "seconds")
    }
    values = {name: [_listed(trial.values[name]) for trial in trials] for name in space}
    return table_of(kind, {**facts, **values, "error": [trial.error for trial in trials]})


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
