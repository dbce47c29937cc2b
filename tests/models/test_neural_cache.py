"""The cache against a loop over the paper's sums, in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmx.models import cached_nats, empty_cache

ONE = jnp.ones((1, 1), jnp.int32)


def loop(hidden, targets, nats, size, theta, weight):
    """One stream, one token after the other."""
    result = []
    for t in range(len(targets)):
        start = max(0, t - size)
        if t == start:
            result.append(nats[t])
            continue
        scores = np.exp([theta * hidden[t] @ hidden[i] for i in range(start, t)])
        cache = sum(s for s, i in zip(scores, range(start, t), strict=True) if targets[i] == targets[t])
        result.append(-np.log((1 - weight) * np.exp(-nats[t]) + weight * cache / sum(scores)))
    return np.array(result)


@pytest.mark.parametrize(("size", "window", "weight"), [(1, 4, 0.3), (3, 12, 0.3), (5, 2, 0.0), (40, 6, 0.7)])
def test_it_is_the_sums_of_the_paper(size, window, weight):
    random = np.random.default_rng(0)
    hidden, nats = random.normal(size=(2, 12, 3)), random.uniform(0.1, 4, (2, 12))
    targets = random.integers(0, 3, (2, 12))
    memory, pieces = empty_cache(2, size, 3), []
    run = jax.jit(functools.partial(cached_nats, theta=0.7, weight=weight))
    for start in range(0, 12, window):
        part = slice(start, start + window)
        memory, piece = run(
            memory, np.float32(hidden[:, part]), np.int32(targets[:, part]), np.float32(nats[:, part])
        )
        pieces.append(piece)
    expected = [loop(hidden[row], targets[row], nats[row], size, 0.7, weight) for row in range(2)]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, rtol=2e-5)


def test_padding_is_never_remembered():
    hidden, targets = jnp.ones((1, 3, 2)), jnp.array([[4, -1, 4]])
    nats = jnp.full((1, 3), 3.0)
    memory, got = cached_nats(empty_cache(1, 5, 2), hidden, targets, nats, theta=1.0, weight=0.5)
    # The one token in the cache is the one that comes: with certainty.
    assert float(got[0, 2]) == pytest.approx(-np.log(0.5 * np.exp(-3) + 0.5), rel=1e-5)
    assert memory.targets.tolist() == [[-1, -1, 4, -1, 4]]


def test_large_likenesses_stay_finite():
    hidden = jnp.full((1, 4, 2), 100.0)
    run = jax.jit(functools.partial(cached_nats, theta=5.0, weight=0.2))
    _, got = run(empty_cache(1, 2, 2), hidden, np.int32([[1, 1, 2, 2]]), jnp.full((1, 4), 2.0))
    assert bool(jnp.isfinite(got).all())


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        empty_cache(1, 0, 4)
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\), got 1"):
        cached_nats(
            empty_cache(1, 1, 1),
            jnp.ones((1, 1, 1)),
            jnp.ones((1, 1), int),
            jnp.ones((1, 1)),
            theta=1,
            weight=1,
        )


def test_it_compiles_once_for_all_windows():
    traces = []

    @jax.jit
    def run(memory, hidden, targets, nats):
        traces.append(1)
        return cached_nats(memory, hidden, targets, nats, theta=1.0, weight=0.1)

    memory = empty_cache(1, 4, 2)
    for _ in range(3):
        memory, _ = run(memory, jnp.ones((1, 2, 2)), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2)))
    assert len(traces) == 1
