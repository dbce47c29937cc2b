"""Fitting a forecaster to series, and what a fitted one forecasts.

Axes: N series, M windows, H steps of the horizon.
"""

import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import jax
import numpy as np
from flax import nnx

from lstmx.data import SeriesWindows, Windows
from lstmx.forecasting.arguments import Recipe
from lstmx.forecasting.columns import kind_of
from lstmx.forecasting.conformal import Conformal, forecast_and_width
from lstmx.forecasting.frames import FramePanel, time_label
from lstmx.forecasting.levels import LEVELS
from lstmx.forecasting.scales import Scales, in_logarithms, require_counts
from lstmx.forecasting.task import Forecasts, ForecastTask, initial_params
from lstmx.models import DirectForecaster, RecurrentForecaster, head_named
from lstmx.training import LoopConfig, NonFiniteError, OptimizerConfig, StopRequest, train_in_memory

# Called with each record of the training log; True ends the training.
Callback = Callable[[dict[str, Any]], Any]
_KINDS = ("historic", "future", "static")


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fitted forecaster.

    Attributes:
      recipe: the arguments it was fitted with.
      params: the parameters.
      scales: the scales of the exogenous variables.
      freq: frequency of the times.
      names: arguments of `read_frame` for further frames.
      ids: the series it was fitted to.
      conformal: errors that calibrate intervals; None for the intervals of the head.
      series: the series it was fitted to; None if they were not saved.
      kind: "pandas" or "polars", the kind of frame it was fitted to.
      history: the records of the training log.
    """

    recipe: Recipe
    params: Any
    scales: Scales
    freq: Any
    names: dict[str, Any]
    ids: tuple
    conformal: Conformal | None
    series: FramePanel | None
    kind: str = "pandas"
    history: tuple[dict[str, Any], ...] = ()


def fit_series(
    recipe: Recipe,
    series: FramePanel,
    stops: np.ndarray,
    names: Mapping[str, Any],
    *,
    val_size: int = 0,
    calibration_windows: int = 0,
    start: Fitted | None = None,
    callbacks: Sequence[Callback] = (),
) -> Fitted:
    """Trains on the steps of each series before `stops`.

    Args:
      recipe: network and training.
      series: the series.
      stops: int [N].
      names: arguments of `read_frame` for further frames, without categories.
      val_size: steps before the stops that choose the parameters; 0 for the last parameters.
      calibration_windows: windows before the stops whose errors calibrate intervals; 0 for none.
      start: the fitted forecaster whose parameters and scales to start from; None to start from scratch.
      callbacks: called with each record of the training log; see `LSTMForecaster.fit`.

    Raises:
      ValueError: if there is no window to train on, or to calibrate by.
      NonFiniteError: if the loss or the gradient is not finite.
    """
    conformal = None
    if calibration_windows:
        conformal = _calibrated(recipe, series, stops, names, val_size, calibration_windows)
    scales = Scales.of(series.panel, stops - val_size) if start is None else start.scales
    windows = windows_of(recipe, series, scales)
    least = {"least_history": 1 if recipe.start_padding else recipe.input_size}
    splits = {"train": windows.within(0, stops - val_size, **least)}
    _warn_of_short_series(recipe, series, np.unique(splits["train"][0]), least["least_history"])
    if val_size:
        splits["validation"] = windows.within(stops - val_size, stops, **least)
    task = task_of(recipe, windows, splits, len(series.ids))
    params, history = _trained(
        task,
        recipe,
        choose=bool(val_size),
        params=None if start is None else start.params,
        callbacks=callbacks,
    )
    names = {**names, "categories": {name: list(values) for name, values in series.categories.items()}}
    kind = kind_of(series.like, "df")
    return Fitted(
        recipe, params, scales, series.freq, names, series.ids, conformal, series, kind, tuple(history)
    )


def forecasts_of(
    fitted: Fitted, series: FramePanel, windows: Windows, levels: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts [M, H] of windows, and their quantiles [M, H, levels], in the units of the frame."""
    recipe = fitted.recipe
    task = task_of(recipe, windows_of(recipe, series, fitted.scales), {}, len(fitted.ids))
    if fitted.conformal is None:
        forecasts = task.forecast(fitted.params, windows, levels)
    else:
        mean, width = forecast_and_width(task, fitted.params, windows)
        bounds = fitted.conformal.quantiles(mean, width, levels)
        if not task.head.location_scale:
            bounds = np.maximum(bounds, 0)  # Counts.
        forecasts = Forecasts(mean[..., None], bounds[:, :, None])
    if recipe.log:
        forecasts = Forecasts(*map(np.exp, forecasts))
    return forecasts.mean[..., 0], forecasts.quantiles[..., 0, :]


def windows_of(recipe: Recipe, series: FramePanel, scales: Scales) -> SeriesWindows:
    """The inputs and targets of the network."""
    panel, time_of = series.panel, functools.partial(time_label, series)
    if recipe.head == "negative_binomial":
        require_counts(panel, series.ids, time_of)
    if recipe.log:
        panel = in_logarithms(panel, series.ids, time_of)
    return SeriesWindows(scales.applied(panel), recipe.input_size, recipe.h)


def task_of(
    recipe: Recipe, windows: SeriesWindows, splits: Mapping[str, Windows], num_series: int
) -> ForecastTask:
    """The task of training, or of forecasting if there are no splits."""
    sizes = {kind: getattr(windows.panel, kind).shape[1] for kind in _KINDS}
    return ForecastTask(
        windows,
        splits,
        lambda rngs: _network(recipe, sizes, num_series, rngs),
        batch_size=recipe.batch_size,
        seed=recipe.random_seed,
        members=recipe.members,
    )


def shapes_of(recipe: Recipe, scales: Scales, num_series: int) -> Any:
    """The shapes of the parameters, as `jax.ShapeDtypeStruct`."""
    sizes = {kind: len(values) for kind, values in scales.mean.items()}
    return jax.eval_shape(
        lambda key: initial_params(
            lambda rngs: _network(recipe, sizes, num_series, rngs), key, recipe.members
        ),
        jax.random.key(0),
    )


def _network(
    recipe: Recipe, sizes: Mapping[str, int], num_series: int, rngs: nnx.Rngs
) -> DirectForecaster | RecurrentForecaster:
    """The network with fresh parameters, for as many exogenous variables of each kind."""
    head = head_named(recipe.head, LEVELS if recipe.head == "quantiles" else None)
    common: dict[str, Any] = {
        "input_size": recipe.input_size,
        "horizon": recipe.h,
        "head": head,
        "future": sizes["future"],
        "static": sizes["static"],
        "num_series": num_series if recipe.know_series else 0,
        "cell": recipe.cell,
        "hidden_size": recipe.encoder_hidden_size,
        "num_layers": recipe.encoder_n_layers,
        "scaler_type": recipe.scaler_type,
        "season_length": recipe.season_length,
        "dropout_rate": recipe.dropout_rate,
        "rngs": rngs,
    }
    if recipe.decoder == "recurrent":
        return RecurrentForecaster(lags=recipe.lags, **common)
    return DirectForecaster(
        historic=sizes["historic"],
        patch_size=recipe.patch_size,
        linear=recipe.linear and head.location_scale,
        shrinkage=recipe.shrinkage,
        missing=True,
        **common,
    )


def _trained(
    task: ForecastTask, recipe: Recipe, *, choose: bool, params: Any, callbacks: Sequence[Callback]
) -> tuple[Any, list[dict[str, Any]]]:
    """The parameters after training, with `choose` the best by validation, else the last; and the records."""
    optimizer = OptimizerConfig(
        learning_rate=recipe.learning_rate,
        schedule="cosine",
        warmup_steps=min(50, recipe.max_steps // 10),
        final_fraction=0.02,
    )
    loop = LoopConfig(
        eval_every=recipe.val_check_steps if choose else 0,
        checkpoint_every=0,
        # A history of a few updates has records too.
        log_every=max(min(recipe.max_steps // 20, 50), 1),
        tensorboard=False,
        sample=False,
    )
    history: list[dict[str, Any]] = []
    stop = StopRequest()

    def observe(record: Mapping[str, Any]) -> None:
        history.append(dict(record))
        # All of them see each record, whichever ends the training.
        answers = [callback(dict(record)) for callback in callbacks]
        if any(isinstance(answer, bool | np.bool_) and answer for answer in answers):
            stop.reason = "a callback"

    try:
        trained = train_in_memory(
            task,
            steps=recipe.max_steps,
            seed=recipe.random_seed,
            optimizer=optimizer,
            loop=loop,
            params=params,
            stop=stop,
            observers=(observe,),
            quiet=recipe.quiet,
        )
    except NonFiniteError as error:
        advice = f"use a smaller learning_rate, which is {recipe.learning_rate:g}, or check the targets"
        raise NonFiniteError(f"{error}: {advice}") from None
    # Training that was ended before the first evaluation has no validation loss.
    if choose and trained.best is None and trained.result.validation is not None:
        _warn("no validation loss was finite: keeping the last parameters")
    return jax.device_get(trained.latest if not choose or trained.best is None else trained.best), history


def _calibrated(
    recipe: Recipe, series: FramePanel, stops: np.ndarray, names, val_size: int, count: int
) -> Conformal:
    """The errors in the last `count` windows before `stops` of a network trained on the steps before them."""
    cutoffs = stops[:, None] - recipe.h * np.arange(count, 0, -1)
    numbers, at = np.nonzero(cutoffs >= 1)
    if not len(numbers):
        raise ValueError(
            f"calibration_windows={count} needs a series of at least {recipe.h + 1} steps, and there is none"
        )
    fitted = fit_series(recipe, series, cutoffs[:, 0], names, val_size=val_size)
    windows, of = windows_of(recipe, series, fitted.scales), (numbers, cutoffs[numbers, at])
    batch = dataclasses.replace(windows, input_size=1).batch(*of)
    targets = np.where(batch["target_exists"], batch["target"], np.nan)[..., 0]
    task = task_of(recipe, windows, {}, len(series.ids))
    return Conformal.of(targets, *forecast_and_width(task, fitted.params, of))


def _warn_of_short_series(recipe: Recipe, series: FramePanel, used: np.ndarray, least: int) -> None:
    short = np.setdiff1d(np.arange(len(series.ids)), used)
    if len(short) and len(used):
        named = ", ".join(repr(series.ids[number]) for number in short[:5])
        _warn(
            f"{len(short)} of {len(series.ids)} series are not trained on, as they have fewer than "
            f"{least + recipe.h} steps to train on: {named}{', ...' if len(short) > 5 else ''}"
        )


def _warn(message: str) -> None:
    """Warns at the line outside of the library that led here."""
    frame: FrameType | None = sys._getframe()
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith("lstmx."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
