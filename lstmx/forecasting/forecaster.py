"""A forecaster of data frames: fit, predict, cross-validate, save and load.

Axes: N series, M windows, H steps of the horizon.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lstmx.data import SeriesWindows
from lstmx.forecasting import saved
from lstmx.forecasting.arguments import (
    Recipe,
    checked,
    integer,
    require_same_network,
    require_val_size,
    switch,
)
from lstmx.forecasting.conformal import Conformal
from lstmx.forecasting.fitting import Fitted, fit_series, forecasts_of, shapes_of
from lstmx.forecasting.frames import FramePanel, forecast_frame, read_frame, with_future
from lstmx.forecasting.levels import level_columns, require_levels
from lstmx.forecasting.scales import Scales


@dataclasses.dataclass
class LSTMForecaster:
    """One recurrent model for many series, with the argument and column names of Nixtla's libraries.

    Args:
      h: number of steps to forecast.
      input_size: number of past steps that the network reads; `3 h` by default.
      head: the kind of forecast: `"quantiles"`, a distribution (`"gaussian"`, `"student_t"`, or
        `"negative_binomial"` for counts), or a point forecast (`"mae"`, `"mse"`).
      decoder: `"direct"` forecasts all steps at once, `"recurrent"` one after the other (DeepAR).
      cell: `"lstm"`, `"slstm"`, `"gru"` or `"elman"`.
      encoder_hidden_size: units per layer.
      encoder_n_layers: number of layers.
      patch_size: number of time steps per step of the recurrent network, at most `input_size`; requires the
        direct decoder.
      linear: whether to add a linear map of the history; with the direct decoder and real-valued targets.
      lags: further past values to read at each step, such as those of a day and a week before: their
        distances in steps, from 2 to `input_size`; requires the recurrent decoder.
      scaler_type: how each window is normalized, see `lstmx.models.level_and_spread`; `"mean"` suits
        counts.
      log: whether to forecast logarithms of the targets, which must be positive: for series with relative
        growth. Forecasts are transformed back, so a mean becomes a median.
      season_length: steps per season of an exponential smoothing with learnt rates, whose season is removed
        before the network and added after it; the rates are per series with `know_series` (ES-RNN). 0 for
        none.
      shrinkage: how far forecasts are shrunk towards the level and season of the normalization, in [0, 1),
        for series whose trends do not last; requires the direct decoder and real-valued targets.
      dropout_rate: in [0, 1).
      know_series: whether to learn an embedding of each series; only the fitted series can be forecast then.
      hist_exog_list: exogenous variables known only for the past; requires the direct decoder. Here and below
        a list of column names, or one name.
      futr_exog_list: exogenous variables known in advance.
      stat_exog_list: columns of the frame of static features.
      members: number of networks trained side by side from different initial parameters; their forecasts are
        averaged.
      max_steps: number of updates.
      learning_rate: the highest rate of the schedule.
      batch_size: windows per update.
      start_padding: whether windows may begin before the first step of their series; if not, every window has
        a full history.
      val_check_steps: number of updates between evaluations on the validation windows.
      random_seed: seed of all randomness, in [0, 2**63): the same data and seed give the same forecasts.
      alias: name of the column of forecasts.
      quiet: whether to print nothing during training.

    Raises:
      ValueError: if an argument is of the wrong type, out of range, or has no effect with the others.

    Example:
      >>> import numpy as np, pandas as pd
      >>> df = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=60, freq="D")})
      >>> df["y"] = 5 + np.sin(2 * np.pi * np.arange(60) / 7)
      >>> forecaster = LSTMForecaster(h=3, input_size=14, encoder_hidden_size=4, max_steps=5).fit(df)
      >>> forecaster.predict(level=[80]).columns.tolist()
      ['unique_id', 'ds', 'lstmx', 'lstmx-lo-80', 'lstmx-hi-80']
    """

    h: int
    input_size: int | None = None
    _: dataclasses.KW_ONLY
    head: Literal["quantiles", "gaussian", "student_t", "negative_binomial", "mae", "mse"] = "quantiles"
    decoder: Literal["direct", "recurrent"] = "direct"
    cell: Literal["lstm", "slstm", "gru", "elman"] = "lstm"
    encoder_hidden_size: int = 64
    encoder_n_layers: int = 1
    patch_size: int = 1
    linear: bool = True
    lags: Sequence[int] = ()
    scaler_type: str = "last_standard"
    log: bool = False
    season_length: int = 0
    shrinkage: float = 0.0
    dropout_rate: float = 0.1
    know_series: bool = False
    hist_exog_list: str | Sequence[str] = ()
    futr_exog_list: str | Sequence[str] = ()
    stat_exog_list: str | Sequence[str] = ()
    members: int = 1
    max_steps: int = 1000
    learning_rate: float = 2e-3
    batch_size: int = 128
    start_padding: bool = True
    val_check_steps: int = 100
    random_seed: int = 0
    alias: str = "lstmx"
    quiet: bool = True

    def __post_init__(self):
        for name, value in vars(self._recipe()).items():
            setattr(self, name, value)
        # One attribute: an interrupted fit leaves all of it as it was.
        self._fitted: Fitted | None = None

    def fit(
        self,
        df: Any,
        static_df: Any = None,
        *,
        val_size: int = 0,
        calibration_windows: int = 0,
        warm_start: bool = False,
        freq: Any = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        gaps: Literal["fill", "refuse"] = "fill",
    ) -> "LSTMForecaster":
        """Trains on all series of a frame: from scratch, or with `warm_start` from the fitted parameters.

        If it raises, or is interrupted by Ctrl-C, the forecaster remains as it was before.

        Args:
          df: a pandas or polars DataFrame with columns for ids, times, targets and the exogenous variables;
            see `lstmx.forecasting.read_frame`.
          static_df: a DataFrame with the static features, one row per series.
          val_size: number of steps at the end of each series to hold out for validation: the parameters with
            the lowest loss on them are kept. At least `h`, or 0 to train on all steps and keep the last
            parameters.
          calibration_windows: number of windows of `h` steps at the end of each series whose errors calibrate
            the intervals (conformal prediction), also those around point forecasts: one network is trained
            without these windows, and then another on all steps. 0 for the intervals of the head.
          warm_start: start from the parameters of the last `fit` or `load` instead of new ones. Arguments
            that define the network must not have changed, nor the frequency and, with `know_series`, the
            series. Exogenous variables keep the scales and categories of the first fit, which the parameters
            were learnt for. Cannot be combined with `calibration_windows`, whose steps the fitted parameters
            may already have been trained on; calibration by an earlier fit is dropped.
          freq: frequency of the times, see `lstmx.forecasting.read_frame`; inferred by default.
          id_col, time_col, target_col: names of the columns.
          gaps: "fill" to take missing steps as missing values, "refuse" to raise an error.

        Returns:
          The forecaster itself.

        Raises:
          ValueError: if an argument or the frame is invalid, or no series is long enough.
          NonFiniteError: if the loss or the gradient is not finite.
        """
        recipe = self._recipe()
        val_size = require_val_size(val_size, recipe.h)
        calibration_windows = integer("calibration_windows", calibration_windows, 0)
        start = None
        if switch("warm_start", warm_start):
            start = self._require_fitted()
            require_same_network(start.recipe, recipe)
            if calibration_windows:
                raise ValueError(
                    "calibration_windows cannot be combined with warm_start: the fitted parameters may have "
                    "been trained on these windows"
                )
        names = {"id_col": id_col, "time_col": time_col, "target_col": target_col, "gaps": gaps}
        if start is None:
            series = _read(recipe, df, static_df, freq, names)
        else:
            freq = start.freq if freq is None else freq
            series = _read(recipe, df, static_df, freq, names, start.names["categories"])
            if series.freq != start.freq:
                raise ValueError(
                    f"warm_start needs the same freq: fitted with {start.freq!r}, got {series.freq!r}"
                )
            _require_known(series, start)
        self._fitted = fit_series(
            recipe,
            series,
            series.panel.observed,
            names,
            val_size=val_size,
            calibration_windows=calibration_windows,
            start=start,
        )
        return self

    def predict(
        self,
        df: Any = None,
        static_df: Any = None,
        futr_df: Any = None,
        *,
        level: float | Sequence[float] | None = None,
        quantiles: float | Sequence[float] | None = None,
    ) -> Any:
        """Forecasts the `h` steps after the last target of each series.

        Args:
          df: the series to forecast, with the columns of the frame given to `fit`; the fitted series by
            default.
          static_df: the static features of `df`.
          futr_df: the exogenous variables known in advance, for the steps to forecast.
          level: widths of intervals in percent, such as 80 or [80, 95].
          quantiles: probabilities of quantiles, such as [0.1, 0.9].

        Returns:
          A frame of the kind of `df`: ids, times, the forecast in a column named `alias`, the bounds of
          intervals in `alias-lo-80` and `alias-hi-80`, quantiles in `alias_ql0.1`.

        Raises:
          ValueError: if it is not fitted, an argument or a frame is invalid, or the head does not have such
            quantiles.
        """
        fitted = self._require_fitted()
        levels = level_columns(self.alias, level, quantiles)
        require_levels([*levels.values()], fitted.recipe.head, fitted.conformal is not None)
        series = fitted.series
        if df is not None:
            series = _read(
                fitted.recipe, df, static_df, fitted.freq, fitted.names, fitted.names["categories"]
            )
            _require_known(series, fitted)
        elif static_df is not None:
            raise ValueError("static_df requires df: without it, the fitted series are forecast")
        elif series is None:
            raise ValueError("df is required: the forecaster was saved without its series")
        series = with_future(series, futr_df, fitted.recipe.h)
        windows = np.arange(len(series.panel)), series.panel.observed
        return forecast_frame(series, self._columns(fitted, series, windows, levels))

    def cross_validation(
        self,
        df: Any,
        static_df: Any = None,
        *,
        n_windows: int = 1,
        step_size: int | None = None,
        refit: bool = False,
        warm_start: bool = False,
        val_size: int = 0,
        calibration_windows: int = 0,
        level: float | Sequence[float] | None = None,
        quantiles: float | Sequence[float] | None = None,
        freq: Any = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        gaps: Literal["fill", "refuse"] = "fill",
    ) -> Any:
        """Forecasts the end of each series at several cutoffs, from the steps before each cutoff.

        The state of the forecaster is neither used nor changed.

        Args:
          df, static_df, val_size, calibration_windows, freq, id_col, time_col, target_col, gaps: see `fit`.
          n_windows: number of cutoffs; the last one is `h` steps before the end of a series.
          step_size: steps between cutoffs; `h` by default.
          refit: whether to train for every cutoff, rather than once for the first one.
          warm_start: with `refit`, whether to start from the parameters for the cutoff before.
          level, quantiles: see `predict`.

        Returns:
          A frame as from `predict`, with the column `cutoff`, the last known time, and that of targets.

        Raises:
          ValueError: as in `fit`, or if a series is too short for the cutoffs, or an argument has no effect.
          NonFiniteError: as in `fit`.
        """
        recipe = self._recipe()
        n_windows = integer("n_windows", n_windows, 1)
        step = recipe.h if step_size is None else integer("step_size", step_size, 1)
        refit, warm_start = switch("refit", refit), switch("warm_start", warm_start)
        if n_windows == 1 and (refit or step != recipe.h):
            name, value = ("refit", refit) if refit else ("step_size", step)
            raise ValueError(f"{name}={value} has no effect with n_windows=1")
        if warm_start and not refit:
            raise ValueError("warm_start has no effect without refit")
        calibration_windows = integer("calibration_windows", calibration_windows, 0)
        if warm_start and calibration_windows:
            raise ValueError("calibration_windows cannot be combined with warm_start")
        options = {
            "val_size": require_val_size(val_size, recipe.h),
            "calibration_windows": calibration_windows,
        }
        levels = level_columns(recipe.alias, level, quantiles)
        require_levels([*levels.values()], recipe.head, bool(calibration_windows))
        names = {"id_col": id_col, "time_col": time_col, "target_col": target_col, "gaps": gaps}
        series = _read(recipe, df, static_df, freq, names)
        count, ends = len(series.panel), series.panel.observed
        back = recipe.h + step * np.arange(n_windows)[::-1]
        for number in np.flatnonzero(ends - back[0] < 1)[:1]:
            raise ValueError(
                f"series {series.ids[number]!r} has {ends[number]} steps, but {n_windows} windows of "
                f"{recipe.h} steps, {step} apart, need {back[0] + 1}"
            )
        columns: dict[str, Any] = {}
        cutoffs, fitted = ends[:, None] - back, None
        for at in range(n_windows if refit else 1):
            start = fitted if warm_start else None
            fitted = fit_series(recipe, series, cutoffs[:, at], names, start=start, **options)
            ahead = cutoffs[:, at : at + 1] if refit else cutoffs
            windows = np.repeat(np.arange(count), ahead.shape[1]), ahead.ravel()
            for name, values in self._columns(fitted, series, windows, levels).items():
                columns.setdefault(name, []).append(values.reshape(count, -1, recipe.h))
        columns = {name: np.concatenate(parts, axis=1) for name, parts in columns.items()}
        windows = np.repeat(np.arange(count), n_windows), cutoffs.ravel()
        batch = SeriesWindows(series.panel, 1, recipe.h).batch(*windows)
        columns[target_col] = np.where(batch["target_exists"], batch["target"], np.nan)[..., 0]
        flat = {name: values.reshape(-1, recipe.h) for name, values in columns.items()}
        return forecast_frame(series, flat, windows=windows)

    def save(self, folder: str | Path, *, save_dataset: bool = True) -> None:
        """Writes the fitted forecaster into a folder.

        It is atomic: if it fails or is killed, the folder holds the forecaster it held before, or this one.

        Args:
          folder: created if it does not exist.
          save_dataset: whether to save the series too, for forecasts without a frame.

        Raises:
          ValueError: if it is not fitted.
          OSError: if the folder cannot be written.
        """
        fitted = self._require_fitted()
        arguments = {**vars(fitted.recipe), "alias": self.alias, "quiet": self.quiet}
        described = {
            "arguments": arguments,
            "freq": fitted.freq,
            "names": fitted.names,
            "ids": fitted.ids if fitted.recipe.know_series else (),
            "scales": [{k: v.tolist() for k, v in part.items()} for part in fitted.scales],
            "errors": fitted.conformal and fitted.conformal.errors.tolist(),
        }
        series = fitted.series if switch("save_dataset", save_dataset) else None
        saved.write(Path(folder), described, fitted.params, series)

    @classmethod
    def load(cls, folder: str | Path) -> "LSTMForecaster":
        """Reads what `save` wrote.

        Args:
          folder: the folder.

        Returns:
          A forecaster in the state of the saved one.

        Raises:
          ValueError: if there is no forecaster in the folder, or a file is missing, damaged or of a later
            version; the message names the file.
        """
        described, weights, series = saved.read(Path(folder))
        with saved.damage_of(Path(folder)):
            self = cls(**described["arguments"])
            recipe, ids = self._recipe(), tuple(described["ids"])
            scales = Scales(*({k: np.array(v) for k, v in part.items()} for part in described["scales"]))
            params = saved.as_tree(shapes_of(recipe, scales, len(ids)), weights)
            errors = described.get("errors")
            conformal = None if errors is None else Conformal(np.array(errors))
            names = {**described["names"], "categories": {**described["names"]["categories"]}}
            self._fitted = Fitted(recipe, params, scales, described["freq"], names, ids, conformal, series)
        return self

    def _recipe(self) -> Recipe:
        """The arguments, which may have been changed since the construction, checked."""
        return checked({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def _columns(
        self, fitted: Fitted, series: FramePanel, windows, levels: dict[str, float]
    ) -> dict[str, np.ndarray]:
        """The columns of forecasts of windows, [M, H] each."""
        mean, bounds = forecasts_of(fitted, series, windows, tuple(levels.values()))
        return {self.alias: mean, **{name: bounds[..., at] for at, name in enumerate(levels)}}

    def _require_fitted(self) -> Fitted:
        if self._fitted is None:
            raise ValueError("the forecaster is not fitted: call fit first")
        return self._fitted


def _read(recipe: Recipe, df, static_df, freq, names, categories=None) -> FramePanel:
    return read_frame(
        df,
        freq=freq,
        static_df=static_df,
        hist_exog=recipe.hist_exog_list,
        futr_exog=recipe.futr_exog_list,
        stat_exog=recipe.stat_exog_list,
        categories=categories,
        **{name: value for name, value in names.items() if name != "categories"},
    )


def _require_known(series: FramePanel, fitted: Fitted) -> None:
    """Raises ValueError if series have embeddings and are not those of the fit."""
    if not fitted.recipe.know_series or series.ids == fitted.ids:
        return
    new = [label for label in series.ids if label not in {*fitted.ids}]
    if new:
        raise ValueError(f"know_series allows only the series it was fitted to, got {new[0]!r} as well")
    raise ValueError("with know_series, df must hold all series it was fitted to")
