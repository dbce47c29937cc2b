"""A recurrent forecaster that reads patches of the history, and forecasts all steps at once.

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
    """A recurrent network reads the history, and one linear map gives all steps of the horizon.

    The history is normalized (`InstanceScaling`) and cut into patches of `patch_size` steps, each of which is
    one step of the recurrent network, read by a linear map; the last patch ends with the history. With
    patches of one step it is the plain recurrent forecaster. Without a value in it a patch is passed over.

    Args:
      input_size: steps of history L.
      horizon: steps to forecast H.
      head: what the outputs mean.
      targets: D; of a multivariate model, which reads and forecasts all of them together. A
        channel-independent model has one, and the channels are windows of a batch.
      historic: covariates known up to now.
      future: covariates known ahead.
      static: covariates that do not change.
      num_series: how many series there are, if each has features of its own, which are learnt; else 0.
      cell: `"lstm"`, `"slstm"`, `"gru"` or `"elman"`.
      hidden_size: units of a layer.
      num_layers: layers.
      patch_size: steps of a patch.
      patch_stride: steps from a patch to the next, at most `patch_size`; None for `patch_size`.
      readout: whether the horizon is read off the `"last"` output, or off `"all"` of them.
      scaler_type: how a window is normalized, see `level_and_spread`.
      affine: whether the normalization has learnt parameters (RevIN).
      season_length: steps per season of an exponential smoothing with learnt rates, whose season is removed
        before the network and added after it; the rates are per series with `num_series` (ES-RNN). 0 for
        none.
      linear: whether a linear map of the whole history is added to the forecast, so that the network has
        only the rest to explain (the autoregression of LSTNet).
      shrinkage: how much of what the network adds to the level and the season of the normalization is taken
        back in forecasts, in [0, 1); not in training. A combination with the forecast of the normalization,
        which errs less than either where trends do not last.
      missing: whether values of the history may be missing: which exist is then an input too.
      dropout_rate: of patches, between layers, and of what the horizon is read off; in [0, 1).
      dtype: compute type; None for float32.
      rngs: `params` and, for calls that bring no stream of their own, `dropout`.

    Raises:
      TypeError: if a size is not an integer, or a bool is expected or given instead of one.
      ValueError: if a name is unknown, a size does not fit, or there is a linear map or shrinkage with a head
        whose outputs have no location.

    Source: patches under an LSTM or sLSTM, channel by channel: Kong et al., "Unlocking the power of LSTM for
    long term time series forecasting", AAAI 2025; normalization: Kim et al. 2022; the linear part: Lai et al.
    2018, equation 8; combining forecasts: Bates & Granger 1969.

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
            raise ValueError(f"a linear map of the history cannot be added to what {head} makes of outputs")
        if shrinkage and not head.location_scale:
            raise ValueError(f"shrinkage needs a level to shrink to, which {head} does not have")
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
            self.ahead = None  # type: ignore[assignment]  # nothing is known ahead
            self.output = nnx.Linear(read, horizon * per_step, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.linear = nnx.Linear(input_size, horizon, kernel_init=zeros, rngs=rngs) if linear else None
        self.deterministic = False
        self.rngs = nnx.data(dropout_stream(rngs) if dropout_rate else None)

    def __call__(self, history: jax.Array, exists: jax.Array | None = None, **options: Any) -> Any:
        """The distribution of every step of the horizon, in the units of the history.

        Args:
          history: float `[B, L, D]`.
          exists: bool `[B, L, D]`, which values exist; all if not given.
          **options: as of `raw`.

        Returns:
          What `head.distribution` returns, of values `[B, H, D]`.
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
        """The outputs before the head, of normalized values.

        Args:
          history, exists: as of a call.
          historic: float `[B, L, F]`; zero where missing.
          future: float `[B, L + H, F]`, of the history and the horizon.
          static: float `[B, F]`.
          series: integers `[B]`, which series; needed with `num_series`.
          deterministic: True for forecasts, without dropout and with shrinkage; False for training; None for
            the mode that `train()` or `eval()` has set (training at first).
          rngs: stream `dropout`; None for the model's own.

        Returns:
          (raw, loc, scale): float32 `[B, H, D, P]`, `[B, H, D]` and `[B, 1, D]`; a normalized z is
          `loc + scale z`.
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
        patches, some = self._patched(xs), self._patched(exists).any(axis=(2, 3))
        embedded = self.embedding(patches.reshape(*patches.shape[:2], -1))
        embedded = self.dropout(embedded + self.static(static, series), **options)
        mask = some if self.missing else None
        _, ys = self.recurrent(embedded, mask=mask, **options)
        read = self.dropout(self._read(ys, some), **options)
        if self.ahead is None:
            raw = self.output(read)
        else:
            steps = self.steps(read).reshape(len(read), self.horizon, -1)
            raw = self.output(nnx.gelu(steps + self.ahead(cast(jax.Array, future)[:, self.input_size :])))
        raw = raw.reshape(len(read), self.horizon, self.targets, self.head.num_parameters).astype(jnp.float32)
        # The first output of a head is where its values lie.
        z, others = raw[..., :1], raw[..., 1:]
        if self.linear is not None:
            z = z + self.linear(zs.swapaxes(1, 2)).swapaxes(1, 2)[..., None]
        if self.deterministic if deterministic is None else deterministic:
            z = (1 - self.shrinkage) * z
        return jnp.concatenate([z, others], axis=-1), ahead, scale

    @property
    def patches(self) -> np.ndarray:
        """The steps of each patch, int `[patches, patch_size]`; negative before the first."""
        return _patches(self.input_size, *self.patching)

    def _patched(self, xs: jax.Array) -> jax.Array:
        """`[B, patches, patch_size, F]` of `[B, L, F]`, with zeros before the first step."""
        steps, before = self.patches, self.patching[0] - 1
        return jnp.pad(xs, ((0, 0), (before, 0), (0, 0)))[:, steps + before]

    def _read(self, ys: jax.Array, some: jax.Array) -> jax.Array:
        if self.readout == "all":
            return ys.reshape(len(ys), -1)
        if not self.missing:
            return ys[:, -1]
        # The output of a patch that was passed over is zero.
        last = jnp.argmax(jnp.where(some, jnp.arange(1, some.shape[1] + 1), 0), axis=1)
        return jnp.take_along_axis(ys, last[:, None, None], axis=1)[:, 0]


def _patches(input_size: int, patch_size: int, stride: int) -> np.ndarray:
    """The steps of each patch: the last ends the history, and no step is left out."""
    if not 1 <= stride <= patch_size <= input_size:
        raise ValueError(
            "patch_stride must lie between 1 and patch_size, and patch_size be at most input_size, got "
            f"{stride}, {patch_size} and {input_size}"
        )
    count = -(-(input_size - patch_size) // stride) + 1
    ends = input_size - stride * np.arange(count)[::-1]
    return ends[:, None] + np.arange(-patch_size, 0)
