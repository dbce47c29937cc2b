"""A recurrent forecaster that goes on step by step from samples of its own forecasts.

Axes: B windows, L steps of history, H steps of the horizon, D targets, F covariates, P parameters of the
distribution of one value (see `forecast_heads`).
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lstmx.cells.base import is_integer, require_sizes
from lstmx.models.arguments import noise_options, require_nonnegative
from lstmx.models.forecast_heads import ForecastHead
from lstmx.models.forecaster_parts import StaticFeatures, joined, recurrent_layers, require_head
from lstmx.models.instance_scaling import InstanceScaling, ScalerType
from lstmx.nnx import dropout_stream
from lstmx.regularizers import require_rate


class RecurrentForecaster(nnx.Module):
    """A recurrent network that reads each value, forecasts the next, and goes on from a sample of it.

        d_t = head(LSTM(z_{t-1}, z_{t-lag}, covariates_t)),    z_t ~ d_t beyond the end of the history

    Training predicts every step of history and horizon from the true values before it. Forecasts are many
    independent sample paths, whose quantiles are those of the forecast, also for sums over steps.

    Args:
      input_size, horizon, head, targets, future, static, num_series, cell, hidden_size, num_layers,
        scaler_type, affine, season_length, dropout_rate, dtype, rngs: see `DirectForecaster`. Covariates
        known only for the past cannot be used, because they are missing over the horizon.
      lags: further past values to read at each step, such as those of a day and a week before: their
        distances in steps, from 2 to `input_size`. The recurrent network begins `max(lags)` steps into the
        history.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if a name is unknown, or a size or lag is out of range.

    Source: Salinas et al., "DeepAR: probabilistic forecasting with autoregressive recurrent networks",
    International Journal of Forecasting 36, 2020, equations 1 and 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstmx.models import RecurrentForecaster, StudentT
      >>> model = RecurrentForecaster(
      ...     input_size=20, horizon=6, head=StudentT(), hidden_size=8, scaler_type="mean", rngs=nnx.Rngs(0)
      ... )
      >>> model.paths(jax.random.key(0), jnp.ones((2, 20, 1)), count=50).shape
      (50, 2, 6, 1)
    """

    def __init__(
        self,
        *,
        input_size: int,
        horizon: int,
        head: ForecastHead,
        targets: int = 1,
        future: int = 0,
        static: int = 0,
        num_series: int = 0,
        cell: Literal["lstm", "slstm", "gru", "elman"] = "lstm",
        hidden_size: int = 40,
        num_layers: int = 2,
        scaler_type: ScalerType = "mean",
        affine: bool = False,
        season_length: int = 0,
        lags: Sequence[int] = (),
        dropout_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        require_sizes(
            input_size=input_size,
            horizon=horizon,
            targets=targets,
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        require_nonnegative(future=future, static=static, num_series=num_series)
        require_head(head)
        require_rate("dropout_rate", dropout_rate)
        self.input_size, self.horizon, self.targets, self.head = input_size, horizon, targets, head
        given = tuple(lags)
        within = all(is_integer(lag) and 2 <= lag <= input_size for lag in given)
        if not within or len(set(given)) < len(given):
            raise ValueError(
                f"lags must be different integers from 2 to input_size, which is {input_size}, got {given}"
            )
        self.lags = (1, *sorted(given))
        self.scaling = InstanceScaling(
            scaler_type, targets, affine=affine, season_length=season_length, num_series=num_series
        )
        self.embedding = nnx.Linear(
            2 * len(self.lags) * targets + future, hidden_size, dtype=dtype, rngs=rngs
        )
        self.static = StaticFeatures(static, num_series, hidden_size, dtype=dtype, rngs=rngs)
        self.recurrent = recurrent_layers(cell, hidden_size, num_layers, dropout_rate, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate)
        self.output = nnx.Linear(hidden_size, targets * head.num_parameters, dtype=dtype, rngs=rngs)
        self.rngs = nnx.data(dropout_stream(rngs) if dropout_rate else None)

    def raw(
        self,
        history: jax.Array,
        target: jax.Array,
        exists: jax.Array | None = None,
        target_exists: jax.Array | None = None,
        *,
        future: jax.Array | None = None,
        static: jax.Array | None = None,
        series: jax.Array | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The outputs before the head for the steps F to L + H - 1, each from the true values before it.

        F is the first step that can be forecast: 1, or with lags the longest lag.

        Args:
          history: float `[B, L, D]`.
          target: float `[B, H, D]`, the values of the horizon.
          exists: bool `[B, L, D]`; all by default.
          target_exists: bool `[B, H, D]`; all by default.
          future, static, series, deterministic, rngs: see `DirectForecaster.raw`.

        Returns:
          (raw, loc, scale): float32 `[B, L + H - F, D, P]`, `[B, L + H - F, D]` and `[B, 1, D]`.
        """
        exists = jnp.ones(history.shape, bool) if exists is None else exists
        target_exists = jnp.ones(target.shape, bool) if target_exists is None else target_exists
        loc, scale = self.scaling(history, exists, horizon=self.horizon, series=series)
        known = jnp.concatenate([exists, target_exists], axis=1)
        zs = (jnp.concatenate([history, target], axis=1) - loc) / scale
        first = self.lags[-1]
        xs = self._inputs(
            self._lagged(zs), self._lagged(known), None if future is None else future[:, first:]
        )
        options = noise_options(self, deterministic, rngs)
        xs = self.dropout(xs + self.static(static, series), **options)
        _, ys = self.recurrent(xs, mask=_begun(known)[:, first - 1 : -1], **options)
        return self._raw(self.dropout(ys, **options)), loc[:, first:], scale

    def paths(
        self,
        key: jax.Array,
        history: jax.Array,
        exists: jax.Array | None = None,
        *,
        future: jax.Array | None = None,
        static: jax.Array | None = None,
        series: jax.Array | None = None,
        count: int = 100,
    ) -> jax.Array:
        """Samples paths over the horizon.

        Args:
          key: a PRNG key.
          history, exists, future, static, series: see `raw`.
          count: number of paths S per window.

        Returns:
          float32 `[S, B, H, D]`, in the units of the history.
        """
        exists = jnp.ones(history.shape, bool) if exists is None else exists
        loc, scale = self.scaling(history, exists, horizon=self.horizon, series=series)
        before, locs = jnp.split(loc, [self.input_size], axis=1)
        zs = (history - before) / scale
        constant, first = self.static(static, series), self.lags[-1]
        past = None if future is None else future[:, first : self.input_size]
        xs = self._inputs(self._lagged(zs), self._lagged(exists), past) + constant
        state, _ = self.recurrent(xs, mask=_begun(exists)[:, first - 1 : -1], deterministic=True)

        # The values that lags reach back to, and room for the samples.
        room = ((0, 0), (0, self.horizon), (0, 0))
        zs = jnp.pad(zs[:, -first:], room)
        known = jnp.pad(exists[:, -first:], room, constant_values=True)

        def several(leaf):
            return jnp.broadcast_to(leaf, (count, *leaf.shape))

        carry = jax.tree.map(several, (state, zs))
        ahead = None if future is None else future[:, self.input_size :].swapaxes(0, 1)[:, :, None]

        def advance(carry, inputs):
            (state, zs), (step, key, loc, covariates) = carry, inputs
            if covariates is not None:
                covariates = several(covariates)
            before = first + step - np.array(self.lags)
            read = (
                values[..., before, :].reshape(*values.shape[:-2], 1, -1) for values in (zs, several(known))
            )
            x = (self._inputs(*read, covariates) + constant)[..., 0, :]
            state, y = self.recurrent.step(state, x)
            distribution = self.head.distribution(self._raw(y), loc, scale[:, 0])
            drawn = self.head.sample(distribution, key)
            return (state, zs.at[..., first + step, :].set((drawn - loc) / scale[:, 0])), drawn

        steps, keys = jnp.arange(self.horizon), jax.random.split(key, self.horizon)
        _, drawn = jax.lax.scan(advance, carry, (steps, keys, locs.swapaxes(0, 1), ahead))
        return jnp.moveaxis(drawn, 0, 2)

    def _lagged(self, xs: jax.Array) -> jax.Array:
        """`[B, T - F, lags * D]` of `[B, T, D]`: the lagged values of each of the steps F to T - 1."""
        first, steps = self.lags[-1], xs.shape[1]
        return jnp.concatenate([xs[:, first - lag : steps - lag] for lag in self.lags], axis=-1)

    def _inputs(self, zs: jax.Array, known: jax.Array, covariates: jax.Array | None) -> jax.Array:
        return self.embedding(joined(jnp.where(known, zs, 0), known, None, covariates))

    def _raw(self, ys: jax.Array) -> jax.Array:
        raw = self.output(ys)
        return raw.reshape(*ys.shape[:-1], self.targets, self.head.num_parameters).astype(jnp.float32)


def _begun(known: jax.Array) -> jax.Array:
    """Whether a step is at or after the first known value, `[B, T]` of `[B, T, D]`."""
    return jnp.cumsum(known.any(axis=-1), axis=1) > 0
