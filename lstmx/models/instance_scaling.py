"""The level and spread of each window, from its own history, so that one model serves series of any size.

Axes: B windows, L steps of history, H steps of the horizon, D targets.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lstmx.cells.base import require_sizes
from lstmx.models.arguments import require_choice, require_nonnegative, require_switches
from lstmx.models.seasonal_smoothing import SeasonalSmoothing

ScalerType = Literal["none", "last", "standard", "last_standard", "robust", "mean"]
SCALER_TYPES = ("none", "last", "standard", "last_standard", "robust", "mean")


def level_and_spread(
    scaler_type: ScalerType, history: jax.Array, exists: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The level that is subtracted from a window and the spread it is divided by, from the existing values.

        none           0,                              1
        last           the last value,                 1
        standard       the mean,                       the standard deviation
        last_standard  the last value,                 the standard deviation
        robust         the median,                     1.4826 times the median distance from it
        mean           0,                              the mean absolute value

    The spread is 1 where it would be negligible beside the values, as for a constant series. A window without
    any value has level 0 and spread 1.

    Args:
      scaler_type: one of the names above.
      history: float `[B, L, D]`.
      exists: bool `[B, L, D]`; other values are ignored.

    Returns:
      (level, spread), float32 `[B, 1, D]` each; spread above 0.

    Raises:
      ValueError: if the name is unknown.

    Source: mean and deviation of the window: Kim et al. 2022; the last value: Zeng et al. 2023 (NLinear); the
    mean absolute value: Salinas et al. 2020.

    Example:
      >>> import jax.numpy as jnp
      >>> history = jnp.array([1.0, 2.0, 6.0]).reshape(1, 3, 1)
      >>> level, spread = level_and_spread("last_standard", history, jnp.ones((1, 3, 1), bool))
      >>> level.item(), round(spread.item(), 3)
      (6.0, 2.16)
    """
    require_choice("scaler_type", scaler_type, SCALER_TYPES)
    history = jnp.where(exists, history, 0).astype(jnp.float32)
    zeros, ones = jnp.zeros_like(history[:, :1]), jnp.ones_like(history[:, :1])
    if scaler_type == "none":
        return zeros, ones
    count = jnp.sum(exists, axis=1, keepdims=True)
    some = count > 0
    if scaler_type in ("last", "last_standard"):
        steps = jnp.arange(1, history.shape[1] + 1)[:, None]
        at = jnp.argmax(jnp.where(exists, steps, 0), axis=1, keepdims=True)
        level = jnp.take_along_axis(history, at, axis=1)
    elif scaler_type == "robust":
        level = _median(history, exists)
    elif scaler_type == "mean":
        level = zeros
    else:
        level = jnp.sum(history, axis=1, keepdims=True) / jnp.maximum(count, 1)
    if scaler_type == "last":
        spread = ones
    elif scaler_type == "robust":
        spread = 1.4826 * _median(jnp.abs(history - level), exists)
    elif scaler_type == "mean":
        spread = jnp.sum(jnp.abs(history), axis=1, keepdims=True) / jnp.maximum(count, 1)
    else:
        mean = jnp.sum(history, axis=1, keepdims=True) / jnp.maximum(count, 1)
        squares = jnp.where(exists, (history - mean) ** 2, 0)
        spread = jnp.sqrt(jnp.sum(squares, axis=1, keepdims=True) / jnp.maximum(count, 1))
    # The deviation of a large constant is rounding error.
    largest = jnp.max(jnp.abs(history), axis=1, keepdims=True)
    return jnp.where(some, level, 0), jnp.where(spread > 1e-6 * largest, spread, 1)


def _median(values: jax.Array, exists: jax.Array) -> jax.Array:
    median = jnp.nanmedian(jnp.where(exists, values, jnp.nan), axis=1, keepdims=True)
    return jnp.where(exists.any(axis=1, keepdims=True), median, 0)


class InstanceScaling(nnx.Module):
    """Normalizes windows by level and spread, optionally with a season and two learnt numbers per target:

        z_t = gamma (y_t - level - season_t) / spread + beta,   gamma > 0

    With `standard` and `affine` it is reversible instance normalization. With a season, level and seasons are
    those of exponential smoothing at the end of the history (`SeasonalSmoothing`).

    Args:
      scaler_type: see `level_and_spread`.
      targets: number of targets D.
      affine: whether gamma and beta are learnt; otherwise they are 1 and 0.
      season_length: steps per season of the exponential smoothing; 0 for none.
      num_series: number of series with smoothing rates of their own; 0 for the same rates in all.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if the name is unknown or a number is out of range.

    Source: Kim et al., "Reversible instance normalization for accurate time-series forecasting against
    distribution shift", ICLR 2022, equations 1 to 3; the season: Smyl 2020.

    Example:
      >>> import jax.numpy as jnp
      >>> history = jnp.arange(6.0).reshape(1, 6, 1)
      >>> loc, scale = InstanceScaling("standard", 1)(history, jnp.ones((1, 6, 1), bool), horizon=2)
      >>> loc.shape, round(loc[0, 0].item(), 3), round(scale.item(), 3)
      ((1, 8, 1), 2.5, 1.708)
    """

    def __init__(
        self,
        scaler_type: ScalerType,
        targets: int,
        *,
        affine: bool = False,
        season_length: int = 0,
        num_series: int = 0,
    ):
        require_choice("scaler_type", scaler_type, SCALER_TYPES)
        require_sizes(targets=targets)
        require_nonnegative(season_length=season_length, num_series=num_series)
        require_switches(affine=affine)
        if season_length == 1:
            raise ValueError("season_length must be 0 or at least 2, got 1")
        self.scaler_type = scaler_type
        self.log_gamma = nnx.Param(jnp.zeros(targets)) if affine else None
        self.beta = nnx.Param(jnp.zeros(targets)) if affine else None
        self.smoothing = (
            SeasonalSmoothing(season_length, targets, num_series=num_series) if season_length else None
        )

    def __call__(
        self, history: jax.Array, exists: jax.Array, *, horizon: int, series: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The level of each step of history and horizon, and the scale.

        Args:
          history: float `[B, L, D]`.
          exists: bool `[B, L, D]`.
          horizon: H.
          series: integers `[B]`, the numbers of the series; required with `num_series` and a season.

        Returns:
          (loc, scale), float32 `[B, L + H, D]` and `[B, 1, D]`, for which z = (y - loc) / scale.
        """
        level, spread = level_and_spread(self.scaler_type, history, exists)
        if self.smoothing is not None:
            level, seasons = self.smoothing(history, exists, horizon=horizon, series=series)
            level = level + seasons
        scale = spread
        if self.log_gamma is not None and self.beta is not None:
            scale = spread * jnp.exp(-self.log_gamma[...])
            level = level - scale * self.beta[...]
        batch, length, targets = history.shape
        return jnp.broadcast_to(level, (batch, length + horizon, targets)), scale
