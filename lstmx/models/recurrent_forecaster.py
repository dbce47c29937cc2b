"""A recurrent forecaster that goes on step by step, from what it drew from its own forecast.

Axes: B windows, L steps of history, H steps of the horizon, D targets, F covariates, P parameters of the
distribution of one value (see `forecast_heads`).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lstmx.models.forecast_heads import ForecastHead
from lstmx.models.forecaster_parts import StaticFeatures, check_sizes, joined, recurrent_layers
from lstmx.models.instance_scaling import InstanceScaling, Scaling


class RecurrentForecaster(nnx.Module):
    """A recurrent network that reads each value, forecasts the next, and goes on with what it drew from that.

        d_t = head(LSTM(z_{t-1}, covariates_t)),    z_t ~ d_t beyond the end of the history

    Training predicts every step of history and horizon from the true values before it. Forecasts are paths:
    many, drawn independently, whose quantiles are those of the forecast, of sums over steps too.

    Args:
      input_size, horizon, head, targets, future, static, num_series, cell, hidden_size, num_layers, scaling,
        affine, season, dropout_rate, dtype, rngs: as of `DirectForecaster`. Covariates known up to now alone
        cannot be read, as the horizon lacks them.

    Raises:
      ValueError: if a name is unknown or a size does not fit.

    Source: Salinas et al., "DeepAR: probabilistic forecasting with autoregressive recurrent networks",
    International Journal of Forecasting 36, 2020, equations 1 and 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstmx.models import RecurrentForecaster, StudentT
      >>> model = RecurrentForecaster(
      ...     input_size=20, horizon=6, head=StudentT(), hidden_size=8, scaling="mean", rngs=nnx.Rngs(0)
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
        scaling: Scaling = "mean",
        affine: bool = False,
        season: int = 0,
        dropout_rate: float = 0.0,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        check_sizes(input_size=input_size, horizon=horizon, targets=targets, hidden_size=hidden_size)
        self.input_size, self.horizon, self.targets, self.head = input_size, horizon, targets, head
        self.scaling = InstanceScaling(scaling, targets, affine=affine, season=season, num_series=num_series)
        self.embedding = nnx.Linear(2 * targets + future, hidden_size, dtype=dtype, rngs=rngs)
        self.static = StaticFeatures(static, num_series, hidden_size, dtype=dtype, rngs=rngs)
        self.recurrent = recurrent_layers(cell, hidden_size, num_layers, dropout_rate, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate)
        self.output = nnx.Linear(hidden_size, targets * head.num_parameters, dtype=dtype, rngs=rngs)

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
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The outputs before the head for the steps 1 to L + H - 1, each from the true values before it.

        Args:
          history: float `[B, L, D]`.
          target: float `[B, H, D]`, what came then.
          exists: bool `[B, L, D]`; all if not given.
          target_exists: bool `[B, H, D]`; all if not given.
          future, static, series, deterministic, rngs: as of `DirectForecaster.raw`.

        Returns:
          (raw, loc, scale): float32 `[B, L + H - 1, D, P]`, `[B, L + H - 1, D]` and `[B, 1, D]`.
        """
        exists = jnp.ones(history.shape, bool) if exists is None else exists
        target_exists = jnp.ones(target.shape, bool) if target_exists is None else target_exists
        loc, scale = self.scaling(history, exists, horizon=self.horizon, series=series)
        known = jnp.concatenate([exists, target_exists], axis=1)[:, :-1]
        values = jnp.concatenate([history, target], axis=1)[:, :-1]
        xs = self._inputs((values - loc[:, :-1]) / scale, known, None if future is None else future[:, 1:])
        options = {"deterministic": deterministic, "rngs": rngs}
        xs = self.dropout(xs + self.static(static, series), **options)
        _, ys = self.recurrent(xs, mask=_begun(known), **options)
        return self._raw(self.dropout(ys, **options)), loc[:, 1:], scale

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
        """Draws how it may go on.

        Args:
          key: a PRNG key.
          history, exists, future, static, series: as of `raw`.
          count: paths S of each window.

        Returns:
          float32 `[S, B, H, D]`, in the units of the history.
        """
        exists = jnp.ones(history.shape, bool) if exists is None else exists
        loc, scale = self.scaling(history, exists, horizon=self.horizon, series=series)
        before, locs = jnp.split(loc, [self.input_size], axis=1)
        zs = (history - before) / scale
        constant = self.static(static, series)
        past = None if future is None else future[:, 1 : self.input_size]
        xs = self._inputs(zs[:, :-1], exists[:, :-1], past) + constant
        state, _ = self.recurrent(xs, mask=_begun(exists[:, :-1]), deterministic=True)

        # Before the first value there is nothing to have been read.
        last = jnp.where(exists[:, -1:], zs[:, -1:], 0), exists[:, -1:]

        def several(leaf):
            return jnp.broadcast_to(leaf, (count, *leaf.shape))

        carry = jax.tree.map(several, (state, last))
        ahead = None if future is None else future[:, self.input_size :].swapaxes(0, 1)[:, :, None]

        def advance(carry, inputs):
            state, (z, known) = carry
            key, loc, covariates = inputs
            if covariates is not None:
                covariates = several(covariates)
            x = (self._inputs(z, known, covariates) + constant)[..., 0, :]
            state, y = self.recurrent.step(state, x)
            distribution = self.head.distribution(self._raw(y), loc, scale[:, 0])
            drawn = self.head.sample(distribution, key)
            z = ((drawn - loc) / scale[:, 0])[..., None, :]
            return (state, (z, jnp.ones_like(known))), drawn

        keys = jax.random.split(key, self.horizon)
        _, drawn = jax.lax.scan(advance, carry, (keys, locs.swapaxes(0, 1), ahead))
        return jnp.moveaxis(drawn, 0, 2)

    def _inputs(self, zs: jax.Array, known: jax.Array, covariates: jax.Array | None) -> jax.Array:
        return self.embedding(joined(jnp.where(known, zs, 0), known, None, covariates))

    def _raw(self, ys: jax.Array) -> jax.Array:
        raw = self.output(ys)
        return raw.reshape(*ys.shape[:-1], self.targets, self.head.num_parameters).astype(jnp.float32)


def _begun(known: jax.Array) -> jax.Array:
    """Whether a step is not before the first known value, `[B, T]` of `[B, T, D]`."""
    return jnp.cumsum(known.any(axis=-1), axis=1) > 0
