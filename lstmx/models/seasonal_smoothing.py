"""Level and season of each window by exponential smoothing, with rates learnt along with the network.

Axes: B windows, L steps of history, H steps of the horizon, D targets, K steps of a season.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstmx.cells.base import require_sizes
from lstmx.models.arguments import require_nonnegative


def smoothed(
    history: jax.Array,
    exists: jax.Array,
    level_rate: jax.Array,
    season_rate: jax.Array,
    *,
    season_length: int,
    horizon: int,
) -> tuple[jax.Array, jax.Array]:
    """The level at the end of each window, and the seasonal component of each step of history and horizon.

        l_t     = l_{t-1} + a_t (y_t - s_t - l_{t-1}),   a_t = max(alpha, 1 / values so far)
        s_{t+K} = s_t + gamma (y_t - l_t - s_t)

    over the existing values. The first s are estimated from the whole window (`first_season`), and the last s
    are repeated over the horizon. This is exponential smoothing with an additive season and without a trend,
    which is left to the network; applied to logarithms, the season is multiplicative.

    Args:
      history: float `[B, L, D]`.
      exists: bool `[B, L, D]`.
      level_rate: alpha in (0, 1), `[B, D]` or broadcastable to it.
      season_rate: gamma in (0, 1), likewise.
      season_length: K, at least 2.
      horizon: H.

    Returns:
      (level, seasons), float32 `[B, 1, D]` and `[B, L + H, D]`; the level of a window without any value is 0.

    Source: Holt 1957 and Winters 1960; with rates learnt by gradients, around a recurrent network:
    Smyl, "A hybrid method of exponential smoothing and recurrent neural networks for time series
    forecasting", International Journal of Forecasting 36, 2020, equations 4 and 5 (there multiplicative).

    Example:
      >>> import jax.numpy as jnp
      >>> history = jnp.array([5.0, 1.0, 5.0, 1.0, 5.0]).reshape(1, 5, 1)
      >>> level, seasons = smoothed(
      ...     history, jnp.ones((1, 5, 1), bool), jnp.array(0.5), jnp.array(0.5), season_length=2, horizon=3
      ... )
      >>> level.item(), seasons[0, -3:, 0].tolist()
      (3.0, [-2.0, 2.0, -2.0])
    """
    length = history.shape[1]
    before = -length % season_length
    # Whole seasons, with steps before windows: [seasons, K, B, D].
    ys, known = (
        _by_season(jnp.pad(part, ((0, 0), (before, 0), (0, 0))), season_length) for part in (history, exists)
    )
    ys = jnp.where(known, ys, 0).astype(jnp.float32)
    count = jnp.cumsum(known.reshape(-1, *known.shape[2:]), axis=0).reshape(known.shape)
    rate = jnp.maximum(level_rate, 1 / jnp.maximum(count, 1))

    def one_step(level, inputs):
        y, exists, rate, s = inputs
        moved = jnp.where(exists, level + rate * (y - s - level), level)
        return moved, (s, jnp.where(exists, s + season_rate * (y - moved - s), s))

    def one_season(carry, inputs):
        level, s = carry
        level, (used, s) = jax.lax.scan(one_step, level, (*inputs, s))
        return (level, s), used

    begin = jnp.zeros(ys.shape[2:], jnp.float32), first_season(ys, known)
    (level, last), used = jax.lax.scan(one_season, begin, (ys, known, rate))
    ahead = last[np.arange(horizon) % season_length]
    seasons = jnp.concatenate([used.reshape(-1, *used.shape[2:])[before:], ahead])
    return level[:, None], jnp.moveaxis(seasons, 0, 1)


def first_season(ys: jax.Array, known: jax.Array) -> jax.Array:
    """The season `[K, B, D]` of values `[seasons, K, B, D]`: how far each of its steps lies from the mean.

    Only seasons without missing values are used, or all if there are none. A trend, from the means of the
    first and the last season used, is removed; steps without any value get 0.
    """
    whole = known.all(axis=1, keepdims=True)
    known = known & (whole | ~whole.any(axis=0))
    count = known.sum(axis=1, keepdims=True)
    means = jnp.sum(ys, axis=1, keepdims=True) / jnp.maximum(count, 1)
    off = jnp.where(known, ys - means, 0)
    pattern = jnp.sum(off, axis=0) / jnp.maximum(known.sum(axis=0), 1)
    some = count[:, 0] > 0
    order = jnp.arange(len(ys))[:, None, None]
    first, last = jnp.argmax(some, axis=0), jnp.max(jnp.where(some, order, 0), axis=0)
    steps = ys.shape[1]
    ends = jnp.take_along_axis(means[:, 0], jnp.stack([first, last]), axis=0)
    slope = (ends[1] - ends[0]) / jnp.maximum((last - first) * steps, 1)
    within = jnp.arange(steps)[:, None, None] - (steps - 1) / 2
    return jnp.where(known.any(axis=0), pattern - slope * within, 0)


class SeasonalSmoothing(nnx.Module):
    """Exponential smoothing of windows with learnt rates, shared by all series or one pair per series.

    Args:
      season_length: steps per season K, at least 2.
      targets: number of targets D.
      num_series: number of series with rates of their own; 0 for the same rates in all.

    Raises:
      TypeError: if a number is not an integer.
      ValueError: if a number is out of range.

    Source: Smyl 2020, see `smoothed`.

    Example:
      >>> import jax.numpy as jnp
      >>> history = jnp.array([5.0, 1.0, 5.0, 1.0]).reshape(1, 4, 1)
      >>> level, seasons = SeasonalSmoothing(2, 1)(history, jnp.ones((1, 4, 1), bool), horizon=2)
      >>> (level + seasons[:, -2:]).ravel().round(3).tolist()
      [5.0, 1.0]
    """

    def __init__(self, season_length: int, targets: int, *, num_series: int = 0):
        require_sizes(season_length=season_length, targets=targets)
        require_nonnegative(num_series=num_series)
        if season_length < 2:
            raise ValueError(f"season_length must be at least 2, got {season_length}")
        self.season_length, self.num_series = season_length, num_series
        # Logits of the rates; both rates start at 0.3.
        begin = np.full((max(num_series, 1), targets), math.log(0.3 / 0.7), np.float32)
        self.level_rate, self.season_rate = nnx.Param(jnp.asarray(begin)), nnx.Param(jnp.asarray(begin))

    def __call__(
        self, history: jax.Array, exists: jax.Array, *, horizon: int, series: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(level, seasons) of `smoothed`; `series`, int `[B]`, is required with rates per series."""
        of = series if self.num_series else 0
        rates = (nnx.sigmoid(rate[...][of]) for rate in (self.level_rate, self.season_rate))
        return smoothed(history, exists, *rates, season_length=self.season_length, horizon=horizon)


def _by_season(values_BTD: jax.Array, season_length: int) -> jax.Array:
    return jnp.moveaxis(values_BTD, 1, 0).reshape(-1, season_length, values_BTD.shape[0], values_BTD.shape[2])
