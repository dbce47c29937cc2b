"""Exponential smoothing of windows compared with loops in float64, and on series with known results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstmx.models import DirectForecaster, InstanceScaling, Point, SeasonalSmoothing, smoothed

CHANCE = np.random.default_rng(4)
B, L, D, H, K = 3, 17, 2, 7, 5


def first_season(values, phases):
    """The offsets of the phases of one series, NaN where missing; its first step has phase `phases[0]`."""
    seasons = (np.arange(len(values)) + phases[0]) // K
    whole = [at for at in set(seasons) if np.sum(~np.isnan(values[seasons == at])) == K]
    values = np.where(np.isin(seasons, whole or seasons), values, np.nan)
    means = {at: np.nanmean(values[seasons == at]) for at in set(seasons[~np.isnan(values)])}
    off = [[] for _ in range(K)]
    for value, phase, at in zip(values, phases, seasons, strict=True):
        if not np.isnan(value):
            off[phase].append(value - means[at])
    first, last = min(means), max(means)
    slope = (means[last] - means[first]) / (K * (last - first)) if last > first else 0
    return [np.mean(each) - slope * (phase - (K - 1) / 2) if each else 0 for phase, each in enumerate(off)]


def loop(values, alpha, gamma):
    """Level and seasons of one series, NaN where missing."""
    phases = (np.arange(L + H) - L) % K
    s, level, count, used = first_season(values, phases[:L]), 0.0, 0, []
    for value, phase in zip(values, phases, strict=False):
        used.append(s[phase])
        if np.isnan(value):
            continue
        count += 1
        level += max(alpha, 1 / count) * (value - s[phase] - level)
        s[phase] += gamma * (value - level - s[phase])
    return level, np.array(used + [s[phase] for phase in phases[L:]])


@pytest.mark.parametrize("missing", [False, True])
def test_it_is_the_loop(missing):
    history = CHANCE.normal(3, 2, (B, L, D)).astype(np.float32)
    exists = np.ones((B, L, D), bool)
    if missing:
        exists = CHANCE.random((B, L, D)) < 0.6
        exists[1, :8] = False
        exists[2, 12:, 0] = False
    alpha, gamma = CHANCE.uniform(0.05, 0.9, (2, B, D)).astype(np.float32)
    level, seasons = jax.jit(smoothed, static_argnames=("season_length", "horizon"))(
        history, exists, alpha, gamma, season_length=K, horizon=H
    )
    assert level.shape == (B, 1, D)
    assert seasons.shape == (B, L + H, D)
    values = np.where(exists, history.astype(np.float64), np.nan)
    for b, d in np.ndindex(B, D):
        expected, of_steps = loop(values[b, :, d], alpha[b, d], gamma[b, d])
        np.testing.assert_allclose(level[b, 0, d], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(seasons[b, :, d], of_steps, rtol=1e-5, atol=1e-5)


def test_a_season_upon_a_level_is_found_exactly():
    pattern = np.array([3.0, -1.0, 0.5, -2.0, -0.5])
    history = (10 + np.resize(pattern, L))[None, :, None]
    level, seasons = smoothed(
        jnp.asarray(history), jnp.ones((1, L, 1), bool), 0.2, 0.7, season_length=K, horizon=H
    )
    np.testing.assert_allclose(level, 10, rtol=1e-5)
    np.testing.assert_allclose(seasons[0, :, 0], np.resize(pattern, L + H), atol=1e-5)


def test_a_trend_is_no_season():
    history = jnp.arange(20.0)[None, :, None]
    _, seasons = smoothed(history, jnp.ones((1, 20, 1), bool), 0.2, 1e-9, season_length=K, horizon=H)
    np.testing.assert_allclose(seasons, 0, atol=1e-4)


def test_a_window_without_a_value_has_nothing():
    nothing = jnp.zeros((1, L, 1), bool)
    level, seasons = smoothed(jnp.full((1, L, 1), 7.0), nothing, 0.5, 0.5, season_length=K, horizon=H)
    assert level.item() == 0
    assert not seasons.any()
    loc, scale = InstanceScaling("mean", 1, season_length=K)(jnp.full((1, L, 1), 7.0), nothing, horizon=H)
    assert not loc.any()
    assert scale.item() == 1


def test_each_series_has_rates_of_its_own():
    smoothing = SeasonalSmoothing(K, 1, num_series=2)
    smoothing.level_rate[...] = jnp.array([[-9.0], [9.0]])
    history = jnp.asarray(CHANCE.normal(size=(1, L, 1)), jnp.float32).repeat(2, axis=0)
    level, _ = smoothing(history, jnp.ones((2, L, 1), bool), horizon=H, series=jnp.array([1, 0]))
    values = np.asarray(history[0, :, 0], np.float64)
    expected = [loop(values, rate, 0.3)[0] for rate in (1 / (1 + np.exp(-9)), 1 / (1 + np.exp(9)))]
    np.testing.assert_allclose(level[:, 0, 0], expected, rtol=1e-4)


@pytest.mark.full
def test_a_season_goes_through_the_forecaster_untouched():
    """A forecaster whose network outputs zero forecasts the level and the season."""
    pattern = np.array([3.0, -1.0, 0.5, -2.0, -0.5])
    model = DirectForecaster(
        input_size=15, horizon=H, head=Point(), hidden_size=4, scaler_type="standard", affine=True,
        season_length=K, rngs=nnx.Rngs(0),
    )  # fmt: skip
    model.output.kernel[...] = jnp.zeros_like(model.output.kernel[...])
    history = (40 + 8 * np.resize(pattern, 15))[None, :, None].astype(np.float32)
    found = model.head.mean(model(jnp.asarray(history)))
    np.testing.assert_allclose(found[0, :, 0], 40 + 8 * np.resize(pattern, H), rtol=1e-5)


def test_the_rates_are_learnt():
    """Their gradients are those of finite differences."""
    history = jnp.asarray(CHANCE.normal(3, 2, (2, L, 1)), jnp.float32)

    def total(rates):
        level, seasons = smoothed(
            history, jnp.ones((2, L, 1), bool), rates[0], rates[1], season_length=K, horizon=H
        )
        return jnp.sum(level**2) + jnp.sum(seasons[:, L:] ** 2)

    rates, step = jnp.array([0.4, 0.3]), 1e-2
    found = jax.grad(total)(rates)
    for at in range(2):
        there, back = (total(rates.at[at].add(sign * step)) for sign in (1, -1))
        np.testing.assert_allclose(found[at], (there - back) / (2 * step), rtol=2e-2)


def test_a_season_of_one_step_is_none():
    with pytest.raises(ValueError, match="season_length must be at least 2, got 1"):
        SeasonalSmoothing(1, 1)
    assert InstanceScaling("none", 1, season_length=0).smoothing is None
    with pytest.raises(ValueError, match="season_length must be 0 or at least 2, got 1"):
        InstanceScaling("none", 1, season_length=1)
    with pytest.raises(ValueError, match="season_length must be at least 0, got -1"):
        InstanceScaling("none", 1, season_length=-1)
