"""A forecaster of data frames: fit, predict, cross-validate, save and load.

Axes: N series, M windows, H steps of the horizon, Q quantiles.
"""

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lstmx.data import SeriesWindows
from lstmx.forecasting import saved
from lstmx.forecasting.conformal import Conformal, forecast_and_width
from lstmx.forecasting.fitting import LEVELS, network, trained
from lstmx.forecasting.frames import FramePanel, forecast_frame, interval_columns, read_frame, with_future
from lstmx.forecasting.scales import Scales, in_logarithms
from lstmx.forecasting.task import Forecasts, ForecastTask, initial_params
from lstmx.models import head_named


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """What training has found, and how frames are to be read."""

    params: Any
    scales: Scales
    freq: str | int
    names: dict[str, Any]
    ids: tuple
    conformal: Conformal | None


@dataclasses.dataclass
class LSTMForecaster:
    """One recurrent model for many series, from and to long data frames in the words of Nixtla's libraries.

    Args:
      h: steps to forecast.
      input_size: steps of history that are read; `3 h` if not given.
      head: what is forecast: `"quantiles"`, the parameters of a distribution (`"gaussian"`, `"student_t"`,
        `"negative_binomial"` for counts), or a point (`"mae"`, `"mse"`).
      decoder: `"direct"` for all steps at once, `"recurrent"` for one after the other (DeepAR).
      cell: `"lstm"`, `"slstm"`, `"gru"` or `"elman"`.
      encoder_hidden_size: units of a layer.
      encoder_n_layers: layers.
      patch_size: steps that are one step of the recurrent network; of the direct decoder.
      linear: whether a linear map of the history is added; of the direct decoder.
      lags: how many steps before each step lie the values that are read beside the last one, such as those of
        the day and the week before; of the recurrent decoder.
      scaler_type: how a window is normalized, see `lstmx.models.level_and_spread`; `"mean"` for counts.
      log: whether logarithms of targets are read and forecast, which must be above 0: for series that grow by
        percents. Forecasts are turned back, so that a mean becomes a median.
      season_length: steps of a season that exponential smoothing takes out and puts back, with rates that are
        learnt, of each series if `know_series` (ES-RNN); 0 for none.
      shrinkage: how far forecasts are drawn back to the level and season of the normalization, in [0, 1),
        where trends do not last; of the direct decoder.
      dropout_rate: in [0, 1).
      know_series: whether each series has features of its own, which are learnt; new ones cannot be
        forecast then.
      hist_exog_list: columns known up to now; of the direct decoder.
      futr_exog_list: columns known ahead.
      stat_exog_list: columns of the frame of static features.
      members: networks that are trained side by side, which begin differently; their forecasts are averaged.
      max_steps: updates.
      learning_rate: the highest.
      batch_size: windows of an update.
      start_padding: whether windows may begin before their series does; without, the history of a window is
        whole.
      val_check_steps: updates from one look at the validation windows to the next.
      random_seed: of everything random: the same data and seed give the same forecasts.
      alias: name of the column of forecasts.
      quiet: print nothing while training.

    Raises:
      ValueError: if a size is out of range, or options do not go together.

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
    hist_exog_list: Sequence[str] = ()
    futr_exog_list: Sequence[str] = ()
    stat_exog_list: Sequence[str] = ()
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
        if self.h < 1:
            raise ValueError(f"h must be at least 1, got {self.h}")
        if self.input_size is None:
            self.input_size = 3 * self.h
        if self.decoder not in ("direct", "recurrent"):
            raise ValueError(f"decoder must be direct or recurrent, got {self.decoder!r}")
        if self.decoder == "recurrent" and (self.hist_exog_list or self.patch_size > 1 or self.shrinkage):
            raise ValueError(
                "a recurrent decoder reads neither patches nor columns known up to now alone, and "
                "has no shrinkage"
            )
        if self.decoder == "direct" and self.lags:
            raise ValueError("lags are read by a recurrent decoder, not by a direct one")
        head = head_named(self.head, LEVELS if self.head == "quantiles" else None)
        if self.log and not head.location_scale:
            raise ValueError(f"log does not go with head={self.head!r}: logarithms of counts are no counts")
        if self.season_length == 1 or self.season_length < 0:
            raise ValueError(f"season_length must be 0 or at least 2, got {self.season_length}")
        self._fitted, self._series = None, None

    def fit(
        self,
        df: Any,
        static_df: Any = None,
        *,
        val_size: int = 0,
        calibration_windows: int = 0,
        freq: str | int | None = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        gaps: Literal["fill", "refuse"] = "fill",
    ) -> "LSTMForecaster":
        """Trains on all series of a frame.

        Args:
          df: pandas or polars, with the columns of ids, times and targets, and those of the covariates; see
            `lstmx.forecasting.read_frame`.
          static_df: a row for each series with the static features.
          val_size: steps at the end of each series that are not trained on, but choose which parameters are
            kept: those with the lowest loss on them. At least `h`, or 0 for the last parameters.
          calibration_windows: windows of `h` steps at the end of each series by whose errors intervals are
            calibrated (conformal prediction), of points too: it is first trained without them, and then on
            all. 0 for the intervals of the head.
          freq: of the times; found out if not given.
          id_col, time_col, target_col: names of the columns.
          gaps: "fill" for missing values where steps are missing, "refuse" for an error.

        Returns:
          itself.

        Raises:
          ValueError: if the frame is not as it should be, or no series is long enough.
        """
        if val_size and val_size < self.h:
            raise ValueError(f"val_size must be 0 or at least h, which is {self.h}, got {val_size}")
        names = {"id_col": id_col, "time_col": time_col, "target_col": target_col, "gaps": gaps}
        series = self._read(df, static_df, freq, names)
        self._train(series, series.panel.observed, val_size, names, calibration_windows)
        return self

    def predict(
        self,
        df: Any = None,
        static_df: Any = None,
        futr_df: Any = None,
        *,
        level: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
    ) -> Any:
        """Forecasts the `h` steps after the last target of each series.

        Args:
          df: series to forecast, read as those of `fit`, which they are if it is not given.
          static_df: their static features.
          futr_df: the columns that are known ahead, for the steps to forecast.
          level: widths of the intervals that are wanted, in percent, such as [80, 95].
          quantiles: probabilities of the quantiles that are wanted.

        Returns:
          A frame of the kind of `df`: ids, times, the forecast in a column named by `alias`, the bounds of
          intervals in `alias-lo-80` and `alias-hi-80`, quantiles in `alias_ql0.1`.

        Raises:
          ValueError: if it is not fitted, a frame is not as it should be, or the head has no such quantiles.
        """
        fitted = self._require_fitted()
        series = self._series
        if df is not None:
            series = self._read(df, static_df, fitted.freq, fitted.names, fitted.names["categories"])
            self._require_known(series, fitted)
        elif series is None:
            raise ValueError("df must be given: the forecaster was saved without its series")
        series = with_future(series, futr_df, self.h)
        windows = np.arange(len(series.panel)), series.panel.observed
        return forecast_frame(series, self._columns(series, windows, level, quantiles))

    def cross_validation(
        self,
        df: Any,
        static_df: Any = None,
        *,
        n_windows: int = 1,
        step_size: int | None = None,
        refit: bool = False,
        val_size: int = 0,
        calibration_windows: int = 0,
        level: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
        freq: str | int | None = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        gaps: Literal["fill", "refuse"] = "fill",
    ) -> Any:
        """Forecasts the end of each series from what was known before, at several cutoffs.

        Args:
          df, static_df, val_size, calibration_windows, freq, id_col, time_col, target_col, gaps: as of `fit`.
          n_windows: cutoffs; the last is `h` steps before the end of a series.
          step_size: steps from a cutoff to the next; `h` if not given.
          refit: whether it is trained anew for every cutoff, rather than once for the first.
          level, quantiles: as of `predict`.

        Returns:
          A frame as of `predict`, with the columns `cutoff`, the last time that was known, and of targets.
          What `fit` has found stays as it is.

        Raises:
          ValueError: as of `fit`, or if a series is too short for its cutoffs.
        """
        step = self.h if step_size is None else step_size
        if n_windows < 1 or step < 1:
            raise ValueError(f"n_windows and step_size must be at least 1, got {n_windows} and {step}")
        names = {"id_col": id_col, "time_col": time_col, "target_col": target_col, "gaps": gaps}
        series = self._read(df, static_df, freq, names)
        count, ends = len(series.panel), series.panel.observed
        back = self.h + step * np.arange(n_windows)[::-1]
        for number in np.flatnonzero(ends - back[0] < 1)[:1]:
            raise ValueError(
                f"series {series.ids[number]!r} has {ends[number]} steps, but {n_windows} windows of "
                f"{self.h} steps, {step} apart, need {back[0] + 1}"
            )
        columns, cutoffs, other = {}, ends[:, None] - back, copy.copy(self)
        for at in range(n_windows if refit else 1):
            other._train(series, cutoffs[:, at], val_size, names, calibration_windows)
            these = cutoffs[:, at : at + 1] if refit else cutoffs
            windows = np.repeat(np.arange(count), these.shape[1]), these.ravel()
            for name, values in other._columns(series, windows, level, quantiles).items():
                columns.setdefault(name, []).append(values.reshape(count, -1, self.h))
        columns = {name: np.concatenate(parts, axis=1) for name, parts in columns.items()}
        windows = np.repeat(np.arange(count), n_windows), cutoffs.ravel()
        batch = SeriesWindows(series.panel, 1, self.h).batch(*windows)
        columns[target_col] = np.where(batch["target_exists"], batch["target"], np.nan)[..., 0]
        flat = {name: values.reshape(-1, self.h) for name, values in columns.items()}
        return forecast_frame(series, flat, windows=windows)

    def save(self, folder: str | Path, *, save_dataset: bool = True) -> None:
        """Writes the fitted forecaster: `forecaster.json`, `weights.npz` and `series.npz`.

        Args:
          folder: made if it does not exist.
          save_dataset: whether the series are kept too, for forecasts without a frame.

        Raises:
          ValueError: if it is not fitted.
        """
        fitted = self._require_fitted()
        described = {
            "arguments": {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init},
            "freq": fitted.freq,
            "names": fitted.names,
            "ids": fitted.ids if self.know_series else (),
            "scales": [{k: v.tolist() for k, v in part.items()} for part in fitted.scales],
            "errors": fitted.conformal and fitted.conformal.errors.tolist(),
        }
        saved.write(Path(folder), described, fitted.params, self._series if save_dataset else None)

    @classmethod
    def load(cls, folder: str | Path) -> "LSTMForecaster":
        """Reads what `save` wrote.

        Args:
          folder: where it is.

        Returns:
          A forecaster of the series that were saved with it, and of the frames it is given.

        Raises:
          ValueError: if there is none, or it is damaged or of a later version.
        """
        described, weights, series = saved.read(Path(folder))
        self = cls(**described["arguments"])
        mean, deviation = ({k: np.array(v) for k, v in part.items()} for part in described["scales"])
        sizes = {kind: len(values) for kind, values in mean.items()}
        ids = tuple(described["ids"])
        shapes = jax.eval_shape(
            lambda key: initial_params(lambda rngs: network(self, sizes, len(ids), rngs), key, self.members),
            jax.random.key(0),
        )
        params = saved.as_tree(shapes, weights)
        scales = Scales(mean, deviation)
        errors = described.get("errors")
        conformal = None if errors is None else Conformal(np.array(errors))
        self._fitted = _Fitted(params, scales, described["freq"], described["names"], ids, conformal)
        self._series = series
        return self

    def _read(self, df, static_df, freq, names, categories=None) -> FramePanel:
        return read_frame(
            df,
            freq=freq,
            static_df=static_df,
            hist_exog=tuple(self.hist_exog_list),
            futr_exog=tuple(self.futr_exog_list),
            stat_exog=tuple(self.stat_exog_list),
            categories=categories,
            **{name: value for name, value in names.items() if name != "categories"},
        )

    def _train(
        self,
        series: FramePanel,
        stops: np.ndarray,
        val_size: int,
        names: dict[str, Any],
        calibration: int = 0,
    ) -> None:
        """Trains on the steps of each series before `stops`, after calibration by windows at their end."""
        conformal = self._calibrated(series, stops, val_size, names, calibration) if calibration else None
        scales = Scales.of(series.panel, stops - val_size)
        windows = self._windows(series, scales)
        least = {"least_history": 1 if self.start_padding else self.input_size}
        splits = {"train": windows.within(0, stops - val_size, **least)}
        self._warn_of_short_series(series, np.unique(splits["train"][0]), least["least_history"])
        if val_size:
            splits["validation"] = windows.within(stops - val_size, stops, **least)
        task = self._task(windows, splits, len(series.ids))
        params = trained(task, self, choose=bool(val_size))
        kept = {**names, "categories": {k: list(v) for k, v in series.categories.items()}}
        self._fitted = _Fitted(params, scales, series.freq, kept, series.ids, conformal)
        self._series = series

    def _calibrated(self, series: FramePanel, stops, val_size: int, names, count: int) -> Conformal:
        """The errors in the last windows before `stops` of a forecaster that has not seen them."""
        if count < 0:
            raise ValueError(f"calibration_windows must be at least 0, got {count}")
        cutoffs = stops[:, None] - self.h * np.arange(count, 0, -1)
        numbers, at = np.nonzero(cutoffs >= 1)
        if not len(numbers):
            raise ValueError(
                f"no series has the {self.h + 1} steps that calibration needs, of {count} windows the last"
            )
        other, of = copy.copy(self), (numbers, cutoffs[numbers, at])
        other._train(series, cutoffs[:, 0], val_size, names)
        windows = self._windows(series, other._fitted.scales)
        batch = dataclasses.replace(windows, input_size=1).batch(*of)
        came = np.where(batch["target_exists"], batch["target"], np.nan)[..., 0]
        task = self._task(windows, {}, len(series.ids))
        return Conformal.of(came, *forecast_and_width(task, other._fitted.params, of))

    def _warn_of_short_series(self, series: FramePanel, used: np.ndarray, least: int) -> None:
        short = np.setdiff1d(np.arange(len(series.ids)), used)
        if len(short) and len(used):
            named = ", ".join(repr(series.ids[number]) for number in short[:5])
            warnings.warn(
                f"{len(short)} of {len(series.ids)} series are not trained on, as they have fewer than "
                f"{least + self.h} steps to train on: {named}{', ...' if len(short) > 5 else ''}",
                stacklevel=3,
            )

    def _windows(self, series: FramePanel, scales: Scales) -> SeriesWindows:
        """What the network sees of series."""
        panel = in_logarithms(series.panel, series.ids) if self.log else series.panel
        return SeriesWindows(scales.applied(panel), self.input_size, self.h)

    def _task(self, windows: SeriesWindows, splits, count: int) -> ForecastTask:
        sizes = {kind: getattr(windows.panel, kind).shape[1] for kind in ("historic", "future", "static")}
        return ForecastTask(
            windows,
            splits,
            lambda rngs: network(self, sizes, count, rngs),
            batch_size=self.batch_size,
            seed=self.random_seed,
            members=self.members,
        )

    def _columns(self, series: FramePanel, windows, level, quantiles) -> dict[str, np.ndarray]:
        """The columns of forecasts of windows, [M, H] each."""
        fitted = self._require_fitted()
        levels = interval_columns(self.alias, level or ())
        levels |= {f"{self.alias}_ql{probability:g}": probability for probability in quantiles or ()}
        task = self._task(self._windows(series, fitted.scales), {}, len(fitted.ids))
        if fitted.conformal is None:
            if self.head in ("mae", "mse") and set(levels.values()) - {0.5}:
                raise ValueError(
                    f"head={self.head!r} forecasts points: intervals want calibration_windows in fit, or "
                    "another head"
                )
            found = task.forecast(fitted.params, windows, tuple(levels.values()))
        else:
            mean, width = forecast_and_width(task, fitted.params, windows)
            bounds = fitted.conformal.quantiles(mean, width, tuple(levels.values()))
            if not task.head.location_scale:
                bounds = np.maximum(bounds, 0)  # Counts.
            found = Forecasts(mean[..., None], bounds[:, :, None])
        if self.log:
            found = Forecasts(*map(np.exp, found))
        several = {name: found.quantiles[..., 0, at] for at, name in enumerate(levels)}
        return {self.alias: found.mean[..., 0], **several}

    def _require_fitted(self) -> _Fitted:
        if self._fitted is None:
            raise ValueError("the forecaster is not fitted: call fit first")
        return self._fitted

    def _require_known(self, series: FramePanel, fitted: _Fitted) -> None:
        new = [label for label in series.ids if label not in set(fitted.ids)] if self.know_series else []
        if new:
            raise ValueError(
                f"know_series forecasts only the series it was fitted on, got {new[0]!r} as well"
            )
        if self.know_series and series.ids != fitted.ids:
            raise ValueError("with know_series, df must hold all series that it was fitted on")
