"""A recurrent forecaster that reads patches of the history and forecasts all steps at once.

Axes: B windows, L steps of history, H steps of the horizon, D targets, F covariates, P parameters of the
distribution of one value (see `forecast_heads`).
"""

from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lstmx.cells.base import require_sizes
from lstmx.models.arguments import noise_options, require_choice, require_nonnegative, require_switches
from lstmx.models.forecast_heads import ForecastHead
from lstmx.models.forecaster_parts import StaticFeatures, joined, recurrent_layers, require_head
from lstmx.models.instance_scaling import InstanceScaling, ScalerType
from lstmx.nnx import dropout_stream
from lstmx.regularizers import require_rate


class DirectForecaster(nnx.Module):
    """A recurrent network reads the history, and a linear map of its output forecasts all steps at once.

    The history is normalized (`InstanceScaling`) and cut into patches of `patch_size` steps; the last patch
    ends with the history. A linear map embeds each patch, which is one step of the recurrent network. Patches
    of one step give the plain recurrent forecaster. Patches without any value are skipped.

    Args:
      input_size: number of past steps L.
      horizon: number of steps to forecast H.
      head: what the outputs mean.
      targets: number of targets D that a multivariate model reads and forecasts together. A
        channel-independent model has one, and its channels are windows of a batch.
      historic: number of covariates known only for the past.
      future: number of covariates known in advance.
      static: number of static covariates.
      num_series: number of series, to learn an embedding of each; 0 for none.
      cell: `"lstm"`, `"slstm"`, `"gru"` or `"elman"`.
      hidden_size: units per layer.
      num_layers: number of layers.
      patch_size: steps per patch.
      patch_stride: steps from one patch to the next, at most `patch_size`, which is the default.
      readout: whether forecasts are computed from the `"last"` output or from `"all"` of them.
      scaler_type: how a window is normalized, see `level_and_spread`.
      affine: whether the normalization has learnt parameters (RevIN).
      season_length: steps per season of an exponential smoothing with learnt rates, whose season is removed
        before the network and added after it; the rates are per series with `num_series` (ES-RNN). 0 for
        none.
      linear: whether to add a linear map of the history to the forecast, so that the network has to model
        only the rest (the autoregressive part of LSTNet).
      shrinkage: how far forecasts are shrunk towards the level and season of the normalization, in [0, 1);
        not in training. The combined forecast has smaller errors than either where trends do not last.
      missing: whether values of the history may be missing; the network then also reads which ones exist.
      dropout_rate: on embedded patches, between layers and on the outputs that are read; in [0, 1).
      dtype: compute type; None for float32.
      rngs: streams `params` and, for calls without a stream of their own, `dropout`.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if a name is unknown, a size is out of range, or `linear` or `shrinkage` is combined with a
        head without location.

    Source: patches read by an LSTM or sLSTM, channel by channel: Kong et al., "Unlocking the power of LSTM
    for long term time series forecasting", AAAI 2025; normalization: Kim et al. 2022; the linear part: Lai et
    al. 2018, equation 8; combining forecasts: Bates & Granger 1969.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstmx.models import DirectForecaster, Gaussian
      >>> model = DirectForecaster(
      ...     input_size=48, horizon=12, head=Gaussian(), hidden_size=16, patch_size=6, rngs=nnx.Rngs(0)
      ... )
      >>> distribution = model(jnp.ones((2, 48, 1)))
      >>> model.head.mean(distribution).shape
      (2, 12, 1)
    """

    def __init__(
        self,
        *,
        input_size: int,
        horizon: int,
        head: ForecastHead,
        targets: int = 1,
        historic: int = 0,
        future: int = 0,
        static: int = 0,
        num_series: int = 0,
        cell: Literal["lstm", "slstm", "gru", "elman"] = "lstm",
        hidden_size: int = 128,
        num_layers: int = 1,
        patch_size: int = 1,
        patch_stride: int | None = None,
        readout: Literal["last", "all"] = "last",
        scaler_type: ScalerType = "standard",
        affine: bool = False,
        season_length: int = 0,
        linear: bool = False,
        shrinkage: float = 0.0,
        missing: bool = False,
        dropout_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        patch_stride = patch_size if patch_stride is None else patch_stride
        require_sizes(
            input_size=input_size,
            horizon=horizon,
            targets=targets,
            hidden_size=hidden_size,
            num_layers=num_layers,
            patch_size=patch_size,
            patch_stride=patch_stride,
        )
        require_nonnegative(historic=historic, future=future, static=static, num_series=num_series)
        require_switches(linear=linear, missing=missing)
        require_head(head)
        require_choice("readout", readout, ("last", "all"))
        require_rate("dropout_rate", dropout_rate)
        require_rate("shrinkage", shrinkage)
        if linear and not head.location_scale:
            raise ValueError(f"linear requires a head with a location, got {head}")
        if shrinkage and not head.location_scale:
            raise ValueError(f"shrinkage requires a head with a location, got {head}")
        self.input_size, self.horizon, self.targets, self.head = input_size, horizon, targets, head
        self.readout, self.missing, self.shrinkage = readout, missing, shrinkage
        self.patching = (patch_size, patch_stride)
        patches = len(self.patches)
        self.scaling = InstanceScaling(
            scaler_type, targets, affine=affine, season_length=season_length, num_series=num_series
        )
        features = targets * (2 if missing else 1) + historic + future
        self.embedding = nnx.Linear(features * patch_size, hidden_size, dtype=dtype, rngs=rngs)
        self.static = StaticFeatures(static, num_series, hidden_size, dtype=dtype, rngs=rngs)
        self.recurrent = recurrent_layers(cell, hidden_size, num_layers, dropout_rate, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate)
        read = hidden_size * (patches if readout == "all" else 1)
        per_step = targets * head.num_parameters
        if future:
            self.steps = nnx.Linear(read, horizon * hidden_size, dtype=dtype, rngs=rngs)
            self.ahead = nnx.Linear(future, hidden_size, use_bias=False, dtype=dtype, rngs=rngs)
            self.output = nnx.Linear(hidden_size, per_step, dtype=dtype, rngs=rngs)
        else:
            self.ahead = None  # type: ignore[assignment]  # no covariates known in advance
            self.output = nnx.Linear(read, horizon * per_step, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.linear = nnx.Linear(input_size, horizon, kernel_init=zeros, rngs=rngs) if linear else None
        self.deterministic = False
        self.rngs = nnx.data(dropout_stream(rngs) if dropout_rate else None)

    def __call__(self, history: jax.Array, exists: jax.Array | None = None, **options: Any) -> Any:
        """The distribution of every step of the horizon, in the units of the history.

        Args:
          history: float `[B, L, D]`.
          exists: bool `[B, L, D]`, which values exist; all by default.
          **options: see `raw`.

        Returns:
          What `head.distribution` returns, for values `[B, H, D]`.
        """
        return self.head.distribution(*self.raw(history, exists, **options))

    def raw(
        self,
        history: jax.Array,
        exists: jax.Array | None = None,
        *,
        historic: jax.Array | None = None,
        future: jax.Array | None = None,
        static: jax.Array | None = None,
        series: jax.Array | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The outputs before the head, for normalized values.

        Args:
          history, exists: as in a call.
          historic: float `[B, L, F]`; zero where missing.
          future: float `[B, L + H, F]`, for the history and the horizon.
          static: float `[B, F]`.
          series: integers `[B]`, the numbers of the series; required with `num_series`.
          deterministic: True for forecasts, without dropout and with shrinkage; False for training; None for
            the mode that `train()` or `eval()` has set (training at first).
          rngs: stream `dropout`; None for the model's own.

        Returns:
          (raw, loc, scale): float32 `[B, H, D, P]`, `[B, H, D]` and `[B, 1, D]`; `loc + scale z` is the value
          of a normalized z.
        """
        if history.shape[1:] != (self.input_size, self.targets):
            raise ValueError(
                f"history must be [batch, {self.input_size}, {self.targets}], got shape {history.shape}"
            )
        options = noise_options(self, deterministic, rngs)
        exists = jnp.ones(history.shape, bool) if exists is None else exists
        loc, scale = self.scaling(history, exists, horizon=self.horizon, series=series)
        before, ahead = jnp.split(loc, [self.input_size], axis=1)
        zs = jnp.where(exists, (history - before) / scale, 0)
        past = None if future is None else future[:, : self.input_size]
        xs = joined(zs, exists if self.missing else None, historic, past)
        patches, known = self._patched(xs), self._patched(exists).any(axis=(2, 3))
        embedded = self.embedding(patches.reshape(*patches.shape[:2], -1))
        embedded = self.dropout(embedded + self.static(static, series), **options)
        _, ys = self.recurrent(embedded, mask=known if self.missing else None, **options)
        raw = self._outputs(self.dropout(self._read(ys, known), **options), future)
        # The first output of a head is its location.
        z, others = raw[..., :1], raw[..., 1:]
        if self.linear is not None:
            z = z + self.linear(zs.swapaxes(1, 2)).swapaxes(1, 2)[..., None]
        if self.deterministic if deterministic is None else deterministic:
            z = (1 - self.shrinkage) * z
        return jnp.concatenate([z, others], axis=-1), ahead, scale

    @property
    def patches(self) -> np.ndarray:
        """The steps of each patch, int `[patches, patch_size]`; negative before the first step."""
        return _patches(self.input_size, *self.patching)

    def _patched(self, xs: jax.Array) -> jax.Array:
        """`[B, patches, patch_size, F]` of `[B, L, F]`, with zeros before the first step."""
        steps, before = self.patches, self.patching[0] - 1
        return jnp.pad(xs, ((0, 0), (before, 0), (0, 0)))[:, steps + before]

    def _read(self, ys: jax.Array, known: jax.Array) -> jax.Array:
        """The outputs that forecasts are computed from, `[B, features]`; `known` says which patches count."""
        if self.readout == "all":
            return ys.reshape(len(ys), -1)
        if not self.missing:
            return ys[:, -1]
        # The output of a skipped patch is zero.
        last = jnp.argmax(jnp.where(known, jnp.arange(1, known.shape[1] + 1), 0), axis=1)
        return jnp.take_along_axis(ys, last[:, None, None], axis=1)[:, 0]

    def _outputs(self, read: jax.Array, future: jax.Array | None) -> jax.Array:
        """The outputs for all steps, `[B, H, D, P]`, from those that are read and the covariates ahead."""
        if self.ahead is None:
            raw = self.output(read)
        else:
            steps = self.steps(read).reshape(len(read), self.horizon, -1)
            raw = self.output(nnx.gelu(steps + self.ahead(cast(jax.Array, future)[:, self.input_size :])))
        shape = len(read), self.horizon, self.targets, self.head.num_parameters
        return raw.reshape(shape).astype(jnp.float32)


def _patches(input_size: int, patch_size: int, stride: int) -> np.ndarray:
    """The steps of each patch: the last patch ends with the history, and every step is in one."""
    if not 1 <= stride <= patch_size <= input_size:
        raise ValueError(
            "patch_stride must be at most patch_size, and patch_size at most input_size, got "
            f"{stride}, {patch_size} and {input_size}"
        )
    count = -(-(input_size - patch_size) // stride) + 1
    ends = input_size - stride * np.arange(count)[::-1]
    return ends[:, None] + np.arange(-patch_size, 0)
