"""A forecaster of data frames: fit, predict, cross-validate, tune, save and load."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lstmx.forecasting import rolling, saved, tuning
from lstmx.forecasting.arguments import (
    functions,
    integer,
    recipe_of,
    require_same_network,
    require_val_size,
    switch,
)
from lstmx.forecasting.columns import table_of
from lstmx.forecasting.fitting import Callback, Fitted, fit_series, forecasts_of
from lstmx.forecasting.frames import forecast_frame, with_future
from lstmx.forecasting.levels import level_columns, named_columns, require_levels
from lstmx.forecasting.reading import read_series, require_known


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
        for name, value in vars(recipe_of(self)).items():
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
        callbacks: Callback | Sequence[Callback] = (),
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
          callbacks: one function or several, called with each record of the training log, a dict like a row
            of `history`. One that returns True ends the training after the update in progress, with the
            parameters that it has then, or with `val_size` the best so far. What they raise ends it too,
            and is raised. With `calibration_windows` they see the network that is trained on all steps only.

        Returns:
          The forecaster itself.

        Raises:
          ValueError: if an argument or the frame is invalid, or no series is long enough.
          NonFiniteError: if the loss or the gradient is not finite.
        """
        recipe = recipe_of(self)
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
            series = read_series(recipe, df, static_df, freq, names)
        else:
            freq = start.freq if freq is None else freq
            series = read_series(recipe, df, static_df, freq, names, start.names["categories"])
            if series.freq != start.freq:
                raise ValueError(
                    f"warm_start needs the same freq: fitted with {start.freq!r}, got {series.freq!r}"
                )
            require_known(series, start)
        self._fitted = fit_series(
            recipe,
            series,
            series.panel.observed,
            names,
            val_size=val_size,
            calibration_windows=calibration_windows,
            start=start,
            callbacks=functions("callbacks", callbacks),
        )
        return self

    @property
    def history(self) -> Any:
        """The training log of the last `fit`, also after `load`: a frame of the kind that was fitted.

        Each row has `step` and `split`, which is `"train"` or with `val_size` also `"validation"`, the `loss`
        and other metrics, which are missing where the split does not have them.

        Raises:
          ValueError: if it is not fitted.
        """
        fitted = self._require_fitted()
        names = dict.fromkeys(name for record in fitted.history for name in record)
        return table_of(
            fitted.kind, {name: [record.get(name) for record in fitted.history] for name in names}
        )

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
            series = read_series(
                fitted.recipe, df, static_df, fitted.freq, fitted.names, fitted.names["categories"]
            )
            require_known(series, fitted)
        elif static_df is not None:
            raise ValueError("static_df requires df: without it, the fitted series are forecast")
        elif series is None:
            raise ValueError("df is required: the forecaster was saved without its series")
        series = with_future(series, futr_df, fitted.recipe.h)
        windows = np.arange(len(series.panel)), series.panel.observed
        mean, bounds = forecasts_of(fitted, series, windows, tuple(levels.values()))
        return forecast_frame(series, named_columns(self.alias, mean, bounds, levels))

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
        names = {"id_col": id_col, "time_col": time_col, "target_col": target_col, "gaps": gaps}
        return rolling.cross_validation(
            recipe_of(self),
            df,
            static_df,
            freq,
            names,
            n_windows=n_windows,
            step_size=step_size,
            refit=refit,
            warm_start=warm_start,
            val_size=val_size,
            calibration_windows=calibration_windows,
            level=level,
            quantiles=quantiles,
        )

    def tune(
        self,
        df: Any,
        space: Mapping[str, Any] | None = None,
        static_df: Any = None,
        *,
        n_trials: int = 20,
        n_windows: int = 2,
        refit: bool = True,
        val_size: int = 0,
        loss: Literal["mase", "mae", "mse", "smape"] = "mase",
        seed: int = 0,
        sampler: Literal["tpe", "random", "grid", "cmaes"] | None = None,
        pruner: Literal["none", "median", "hyperband"] | None = None,
        timeout: float | None = None,
        freq: Any = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        gaps: Literal["fill", "refuse"] = "fill",
    ) -> tuning.Tuned:
        """Searches for better arguments by cross-validation at the end of each series, with Optuna.

        The forecaster itself, whose arguments are those of all trials but for the space, is not changed. What
        is compiled is dropped after each trial, also what others have compiled.

        Args:
          df, static_df, freq, id_col, time_col, target_col, gaps: see `fit`.
          space: by argument of `LSTMForecaster` a list of values, or a text: `"0:0.5"`, `"log:1e-4:1e-2"`,
            `"16:64:16"`, `"lstm,gru"`. By default sizes of input and network, rate and dropout.
          n_trials: the most trials. One that raises counts too; after five in a row the search stops.
          n_windows, refit, val_size: see `cross_validation`, whose windows are `h` steps apart.
          loss: what is minimized over all windows: mean absolute, squared or symmetric percentage error, or
            `"mase"`: the absolute error of each series divided by that of repeating, before the windows, the
            value of the step before or of `season_length` steps before.
          seed: seed of the sampler, in [0, 2**32): the same seed and data give the same trials.
          sampler: how values are chosen; by default all, if they are at most `n_trials`, or else `"tpe"`.
          pruner: which trials end early, by their loss after each window; by default with `refit` and several
            windows `"median"`, which spares the first five trials.
          timeout: seconds after which no further trial begins.

        Returns:
          `(forecaster, trials)`: one with the best arguments, fitted on all steps, and a frame; see
          `lstmx.forecasting.Tuned`.

        Raises:
          ValueError: if an argument, the frame or the space is invalid, a series is too short, Optuna is not
            installed, five trials in a row failed, or no trial is complete.
        """
        names = {"id_col": id_col, "time_col": time_col, "target_col": target_col, "gaps": gaps}
        return tuning.tune(
            self,
            df,
            space,
            static_df,
            freq,
            names,
            n_trials=n_trials,
            n_windows=n_windows,
            refit=refit,
            val_size=val_size,
            loss=loss,
            seed=seed,
            sampler=sampler,
            pruner=pruner,
            timeout=timeout,
        )

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
        series = fitted.series if switch("save_dataset", save_dataset) else None
        arguments = {**vars(fitted.recipe), "alias": self.alias, "quiet": self.quiet}
        saved.write(Path(folder), saved.describe(fitted, arguments), fitted.params, series)

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
        kept = saved.read(Path(folder))
        with saved.damage_of(Path(folder)):
            self = cls(**kept.described["arguments"])
            self._fitted = saved.fitted_of(recipe_of(self), kept)
        return self

    def _require_fitted(self) -> Fitted:
        if self._fitted is None:
            raise ValueError("the forecaster is not fitted: call fit first")
        return self._fitted
