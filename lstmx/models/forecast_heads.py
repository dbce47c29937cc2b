"""What the outputs of a forecaster mean: a point, quantiles, or the parameters of a distribution."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # and not scipy.stats, which is slow: `scipy` imports it when it is needed

from lstmx.cells import base

# Added to positive parameters: likelihoods stay finite, and a Student distribution has a variance.
_LEAST = 1e-4
_LOG_ROOT = math.log(2 * math.pi) / 2
_normal_quantile = statistics.NormalDist().inv_cdf
# loc + scale x with x standard normal or Student's; counts of variance mu + alpha mu^2. Each `[...]`.
LocationScale = collections.namedtuple("LocationScale", "loc scale df", defaults=(None,))
Counts = collections.namedtuple("Counts", "mu alpha")


@runtime_checkable
class ForecastHead(Protocol):
    """The meaning of a network's outputs: the forecast of a target y, and its loss once y is known.

    Heads are hashable frozen dataclasses of their options, so they can be static arguments of `jax.jit`.
    `[...]` is the shape of the targets. Computations are in float32, or in float64 if the outputs are.

    Attributes:
      num_parameters: number of network outputs P per target.
      location_scale: whether (y - loc) / scale may be forecast in place of y; False for counts.
    """

    @property
    def num_parameters(self) -> int:
        """P."""

    @property
    def location_scale(self) -> bool:
        """Whether (y - loc) / scale may be forecast in place of y."""

    def distribution(self, raw: jax.Array, loc: Any = 0.0, scale: Any = 1.0) -> Any:
        """The forecast of the outputs `raw`, float `[..., P]`, in the units of y, a pytree.

        `loc` is the level of the targets, `scale` their size, above 0; both broadcast to `[...]`.
        ValueError if the last axis of `raw` does not have length P.
        """

    def loss(self, distribution: Any, target: jax.Array) -> jax.Array:
        """The loss of each target `[...]`, `[...]`: in nats where there is a likelihood."""

    def mean(self, distribution: Any) -> jax.Array:
        """The forecast as one number `[...]`: the mean, or the median if only that is known."""

    def quantiles(self, distribution: Any, levels: Sequence[float]) -> jax.Array | np.ndarray:
        """The quantiles of y for Q probabilities, `[..., Q]`; ValueError if they are not known.

        `StudentT` and `NegativeBinomial` use SciPy: their quantiles are float64 and unavailable in `jax.jit`.
        """

    def sample(self, distribution: Any, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Independent draws of each target, `[*shape, ...]`."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One number, `loc + scale raw`, without uncertainty: P = 1.

    Attributes:
      error: `"mse"` for the loss (y - x)^2, minimized by the mean of y; `"mae"` for |y - x|, minimized by the
        median, so that the point is the quantile of level 0.5. Otherwise a ValueError.

    Example:
      >>> points = Point("mae").distribution(jnp.array([[0.5], [1.0]]), loc=10.0, scale=2.0)
      >>> points.tolist(), Point("mae").loss(points, jnp.array([11, 15])).tolist()
      ([11.0, 12.0], [0.0, 3.0])
    """

    error: Literal["mse", "mae"] = "mse"
    num_parameters, location_scale = 1, True

    def __post_init__(self):
        if self.error not in ("mse", "mae"):
            raise ValueError(f'error must be "mse" or "mae", got {self.error!r}')

    def distribution(self, raw: jax.Array, loc: Any = 0.0, scale: Any = 1.0) -> Any:
        (raw,), loc, scale = _split(self, raw, loc, scale)
        return loc + scale * raw

    def loss(self, distribution: Any, target: jax.Array) -> jax.Array:
        error = jnp.asarray(target, distribution.dtype) - distribution
        return jnp.square(error) if self.error == "mse" else jnp.abs(error)

    def mean(self, distribution: Any) -> jax.Array:
        return distribution

    def quantiles(self, distribution: Any, levels: Sequence[float]) -> jax.Array | np.ndarray:
        levels, known = _probabilities(levels), [0.5] if self.error == "mae" else []
        if not {*levels} <= {*known}:
            raise ValueError(f'Point("{self.error}") has the quantiles {known}, not {levels}')
        return jnp.repeat(distribution[..., None], len(levels), axis=-1)

    def sample(self, distribution: Any, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        return jnp.broadcast_to(distribution, (*shape, *distribution.shape))


@dataclasses.dataclass(frozen=True)
class Quantiles:
    """Quantiles of given levels l_1 < .. < l_P, which never cross.

        q_k = loc + scale raw_1                                       the median, l_k = 0.5
        q_k = q_{k-1} + scale (n_k - n_{k-1}) softplus(raw) / log 2   above it, and likewise downwards below

    with n the quantiles of the standard normal distribution, which raw zeros stand for. The outputs are the
    median, then the distances above it, then those below, each from the median outwards.

    The loss is the mean over k of 2 max(l_k (y - q_k), (l_k - 1) (y - q_k)): with many levels, evenly spread
    over (0, 1), the continuous ranked probability score. Other quantiles and samples are interpolated
    linearly; beyond the outermost levels, a quantile is refused and a sample is clamped.

    Attributes:
      levels: strictly increasing, in (0, 1), including 0.5; otherwise a ValueError.

    Source: Koenker & Bassett, "Regression quantiles", 1978 (the loss of one level).

    Example:
      >>> print(Quantiles((0.1, 0.5, 0.9)).distribution(jnp.zeros(3), loc=10.0).round(2))
      [ 8.72 10.   11.28]
    """

    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    location_scale = True

    def __post_init__(self):
        try:
            levels = tuple(round(float(level), 12) for level in self.levels)  # numpy.linspace may miss 0.5
        except (TypeError, ValueError):
            raise ValueError(f"levels must be a list of numbers, got {self.levels!r}") from None
        object.__setattr__(self, "levels", levels)
        if [*levels] != sorted({level for level in levels if 0 < level < 1}) or 0.5 not in levels:
            raise ValueError(f"levels must increase strictly in (0, 1) and contain 0.5, got {levels}")

    @property
    def num_parameters(self) -> int:
        return len(self.levels)

    def distribution(self, raw: jax.Array, loc: Any = 0.0, scale: Any = 1.0) -> Any:
        values, loc, scale = _split(self, raw, loc, scale)
        raw, middle = jnp.stack(values, axis=-1), self.levels.index(0.5)
        distances = np.diff([_normal_quantile(level) for level in self.levels]) / math.log(2)
        above = jnp.cumsum(distances[middle:] * jax.nn.softplus(raw[..., 1 : len(self.levels) - middle]), -1)
        below = jnp.cumsum(
            distances[:middle][::-1] * jax.nn.softplus(raw[..., len(self.levels) - middle :]), -1
        )
        quantiles = jnp.concatenate([-below[..., ::-1], jnp.zeros_like(raw[..., :1]), above], axis=-1)
        quantiles = loc[..., None] + scale[..., None] * (raw[..., :1] + quantiles)
        # They increase except for rounding: compilers may compute a sum several times, in different orders.
        return jax.lax.cummax(jax.lax.optimization_barrier(quantiles), axis=quantiles.ndim - 1)

    def loss(self, distribution: Any, target: jax.Array) -> jax.Array:
        error = jnp.asarray(target, distribution.dtype)[..., None] - distribution
        levels = np.asarray(self.levels, distribution.dtype)
        return 2 * jnp.maximum(levels * error, (levels - 1) * error).mean(axis=-1)

    def mean(self, distribution: Any) -> jax.Array:
        return distribution[..., self.levels.index(0.5)]

    def quantiles(self, distribution: Any, levels: Sequence[float]) -> jax.Array | np.ndarray:
        levels, lowest, highest = _probabilities(levels), self.levels[0], self.levels[-1]
        for level in levels:
            if not lowest <= level <= highest:
                raise ValueError(f"levels must lie between {lowest} and {highest}, got {level}")
        return _interpolated(self.levels, distribution[..., None, :], jnp.asarray(levels, distribution.dtype))

    def sample(self, distribution: Any, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        levels = jax.random.uniform(key, (*shape, *distribution.shape[:-1]), distribution.dtype)
        return _interpolated(self.levels, distribution, levels)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A normal distribution: P = 2.

        mean = loc + scale raw_1,  standard deviation = scale (softplus(raw_2) + 1e-4)

    Source: Salinas, Flunkert, Gasthaus & Januschowski, "DeepAR: probabilistic forecasting with
    autoregressive recurrent networks", 2020, section 3.1.

    Example:
      >>> print(Gaussian().loss(Gaussian().distribution(jnp.array([1.0, 3.0]), loc=10.0), 12.0).round(2))
      2.09
    """

    num_parameters, location_scale = 2, True

    def distribution(self, raw: jax.Array, loc: Any = 0.0, scale: Any = 1.0) -> Any:
        (mean, spread), loc, scale = _split(self, raw, loc, scale)
        return LocationScale(loc + scale * mean, scale * _positive(spread))

    def loss(self, distribution: Any, target: jax.Array) -> jax.Array:
        loc, scale, _ = distribution
        z = (jnp.asarray(target, loc.dtype) - loc) / scale
        return jnp.square(z) / 2 + jnp.log(scale) + _LOG_ROOT

    def mean(self, distribution: Any) -> jax.Array:
        return distribution.loc

    def quantiles(self, distribution: Any, levels: Sequence[float]) -> jax.Array | np.ndarray:
        loc, scale, _ = distribution
        normal = [_normal_quantile(level) for level in _probabilities(levels)]
        return loc[..., None] + scale[..., None] * np.asarray(normal, loc.dtype)

    def sample(self, distribution: Any, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        loc, scale, _ = distribution
        return loc + scale * jax.random.normal(key, (*shape, *loc.shape), loc.dtype)


@dataclasses.dataclass(frozen=True)
class StudentT:
    """A Student distribution, which is less sensitive to outliers than a normal one: P = 3.

        y = loc + scale raw_1 + scale (softplus(raw_2) + 1e-4) t,
        t with 2 + softplus(raw_3) + 1e-4 degrees of freedom, so that y has a variance

    Source: Alexandrov et al., "GluonTS: probabilistic and neural time series modeling in Python", 2020.

    Example:
      >>> print(StudentT().quantiles(StudentT().distribution(jnp.zeros(3), loc=10.0), [0.5, 0.9]).round(2))
      [10.   11.17]
    """

    num_parameters, location_scale = 3, True

    def distribution(self, raw: jax.Array, loc: Any = 0.0, scale: Any = 1.0) -> Any:
        (mean, spread, freedom), loc, scale = _split(self, raw, loc, scale)
        return LocationScale(loc + scale * mean, scale * _positive(spread), 2 + _positive(freedom))

    def loss(self, distribution: Any, target: jax.Array) -> jax.Array:
        loc, scale, df = distribution
        half, z = df / 2, (jnp.asarray(target, loc.dtype) - loc) / scale
        # log Gamma(half) - log Gamma(half + 1/2) + log(half) / 2, without the large terms that cancel.
        gammas = 0.5 - half * jnp.log1p(0.5 / half) + _binet(half) - _binet(half + 0.5)
        return (half + 0.5) * jnp.log1p(jnp.square(z) / df) + gammas + jnp.log(scale) + _LOG_ROOT

    def mean(self, distribution: Any) -> jax.Array:
        return distribution.loc

    def quantiles(self, distribution: Any, levels: Sequence[float]) -> jax.Array | np.ndarray:
        loc, scale, df = (np.asarray(x, np.float64)[..., None] for x in distribution)
        return loc + scale * scipy.stats.t.ppf(_probabilities(levels), df)

    def sample(self, distribution: Any, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        loc, scale, df = distribution
        return loc + scale * jax.random.t(key, df, (*shape, *loc.shape), loc.dtype)


@dataclasses.dataclass(frozen=True)
class NegativeBinomial:
    """A distribution over the counts 0, 1, 2, ...: P = 2.

        mu = scale (softplus(raw_1) + 1e-4),  alpha = (softplus(raw_2) + 1e-4) / sqrt(scale)

    with mean mu and variance mu + alpha mu^2. Counts have no level: `loc` is ignored. Samples and quantiles
    are whole numbers of floating type. The loss is undefined for negative targets.

    Source: Salinas et al. (see `Gaussian`), sections 3.1 and 3.3.

    Example:
      >>> distribution = NegativeBinomial().distribution(jnp.zeros(2), scale=10.0)
      >>> print(distribution.mu.round(2), NegativeBinomial().quantiles(distribution, [0.1, 0.5, 0.9]))
      6.93 [ 2.  6. 13.]
    """

    num_parameters, location_scale = 2, False

    def distribution(self, raw: jax.Array, loc: Any = 0.0, scale: Any = 1.0) -> Any:
        (mean, shape), _, scale = _split(self, raw, loc, scale)
        return Counts(scale * _positive(mean), _positive(shape) / jnp.sqrt(scale))

    def loss(self, distribution: Any, target: jax.Array) -> jax.Array:
        mu, r = distribution.mu, 1 / distribution.alpha
        y = jnp.asarray(target, mu.dtype)
        # log Gamma(y + 1) + log Gamma(r) - log Gamma(r + y) + r log(1 + mu / r) - y log(mu / (r + mu)), but
        # without the large terms that cancel. `ratio` is log((r + y) / (r + mu)), one of whose terms is 0.
        ratio = jnp.log1p(jnp.maximum(y - mu, 0) / (r + mu)) - jnp.log1p(jnp.maximum(mu - y, 0) / (r + y))
        gammas = _binet(y + 1) + _binet(r) - _binet(r + y) + _LOG_ROOT - 1
        roots = (jnp.log1p(y) + jnp.log1p(y / r)) / 2
        return y * jnp.log((y + 1) / mu) - (r + y) * ratio + roots + gammas

    def mean(self, distribution: Any) -> jax.Array:
        return distribution.mu

    def quantiles(self, distribution: Any, levels: Sequence[float]) -> jax.Array | np.ndarray:
        mu, alpha = (np.asarray(x, np.float64)[..., None] for x in distribution)
        return scipy.stats.nbinom.ppf(_probabilities(levels), 1 / alpha, 1 / (1 + alpha * mu))

    def sample(self, distribution: Any, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        mu, alpha = distribution
        rate_key, count_key = jax.random.split(key)
        rates = jax.random.gamma(rate_key, 1 / alpha, (*shape, *mu.shape), mu.dtype) * alpha * mu
        return jax.random.poisson(count_key, rates).astype(mu.dtype)


def head_named(name: str, levels: Sequence[float] | None = None) -> ForecastHead:
    """Returns the head of a name, as used in configurations.

    Args:
      name: `"mse"`, `"mae"`, `"quantiles"`, `"gaussian"`, `"student_t"` or `"negative_binomial"`.
      levels: only for `"quantiles"`; None for the deciles.

    Raises:
      ValueError: if the name is unknown, or levels are given for another head.

    Example:
      >>> head_named("mae"), head_named("quantiles", [0.1, 0.5, 0.9])
      (Point(error='mae'), Quantiles(levels=(0.1, 0.5, 0.9)))
    """
    heads: dict[str, ForecastHead] = {
        "mse": Point("mse"),
        "mae": Point("mae"),
        "quantiles": Quantiles(),
        "gaussian": Gaussian(),
    }
    heads |= {"student_t": StudentT(), "negative_binomial": NegativeBinomial()}
    if name not in heads:
        raise ValueError(f"head must be one of {', '.join(heads)}, got {name!r}")
    if levels is not None and name != "quantiles":
        raise ValueError(f'levels require the head "quantiles", got {tuple(levels)} for "{name}"')
    return heads[name] if levels is None else Quantiles(tuple(levels))


def _split(head, raw, loc, scale):
    """The P outputs one by one, the level and the scale, in the compute type."""
    raw = jnp.asarray(raw)
    if raw.shape[-1:] != (head.num_parameters,):
        raise ValueError(f"raw must be [..., {head.num_parameters}] for {head}, got shape {raw.shape}")
    dtype = base.carried_dtype(raw.dtype)
    return jnp.unstack(raw.astype(dtype), axis=-1), jnp.asarray(loc, dtype), jnp.asarray(scale, dtype)


def _positive(raw):
    return jax.nn.softplus(raw) + _LEAST


def _probabilities(levels):
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must lie in (0, 1), got {[*levels]}")
    return [float(level) for level in levels]


def _interpolated(known, values, levels):
    """The quantiles of `levels` `[...]`, of `values` `[..., P]` at the levels `known`, clamped to these."""
    places = jnp.arange(len(known), dtype=values.dtype)
    place = jnp.interp(levels, jnp.asarray(known, values.dtype), places)
    # The weight of each value is a hat around its place, exactly 1 there, so that known quantiles are exact.
    return (jax.nn.relu(1 - jnp.abs(place[..., None] - places)) * values).sum(axis=-1)


def _binet(x):
    """log Gamma(x) less Stirling's formula, (x - 1/2) log x - x + log(2 pi) / 2; x positive."""
    small, large = jnp.minimum(x, 8), jnp.maximum(x, 8)
    direct = jax.lax.lgamma(small) - (small - 0.5) * jnp.log(small) + small - _LOG_ROOT
    # The series of the remainder, accurate to 2e-13 from 8 on, where the difference above loses digits.
    series = np.array([1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12], x.dtype)
    return jnp.where(x < 8, direct, jnp.polyval(series, 1 / jnp.square(large)) / large)
