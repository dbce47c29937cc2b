"""The sampled softmax against the whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmx.models import sampled_softmax_nats

V, E, N = 50, 6, 7


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return {
        # Not longer: the variance of the estimate grows with the exponential of the scores.
        "vectors": rng.normal(0, 0.4, (N, E)).astype(np.float32),
        "targets": rng.integers(0, V, N),
        "embeddings": rng.normal(size=(V, E)).astype(np.float32),
        "bias": rng.normal(size=V).astype(np.float32),
    }


def whole(vectors, targets, embeddings, bias):
    scores = vectors.astype(np.float64) @ embeddings.T.astype(np.float64) + bias
    return np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(N), targets]


def test_every_word_once_is_the_whole_softmax(problem):
    found = sampled_softmax_nats(
        **problem, candidates=jnp.arange(V), log_probabilities=jnp.full(V, -np.log(V))
    )
    np.testing.assert_allclose(found, whole(**problem), rtol=2e-6)


def test_drawn_candidates_tend_to_the_whole_softmax(problem):
    counts = 1 / np.arange(1, V + 1)
    q = counts / counts.sum()
    log_q = jnp.asarray(np.log(q), jnp.float32)

    def error(size):
        run = jax.jit(
            lambda candidates: sampled_softmax_nats(**problem, candidates=candidates, log_probabilities=log_q)
        )
        found = [run(np.random.default_rng(seed).choice(V, size, p=q)) for seed in range(100)]
        return np.abs(np.mean(found, axis=0) - whole(**problem)).max()

    few, many = error(20), error(2000)
    assert many < 0.01 < few


def test_the_gradient_tends_to_that_of_the_whole_softmax(problem):
    q = np.full(V, 1 / V)
    log_q = jnp.full(V, -np.log(V))

    def gradient(candidates):
        return jax.grad(
            lambda embeddings: sampled_softmax_nats(
                **{**problem, "embeddings": embeddings}, candidates=candidates, log_probabilities=log_q
            ).sum()
        )(problem["embeddings"])

    draws = (np.random.default_rng(seed).choice(V, 1000, p=q) for seed in range(100))
    run = jax.jit(gradient)
    mean = np.mean([run(candidates) for candidates in draws], axis=0)
    np.testing.assert_allclose(mean, gradient(jnp.arange(V)), atol=0.01)


def test_targets_that_only_compete_with_themselves_cost_nothing(problem):
    targets = np.full(N, 3)
    found = sampled_softmax_nats(
        **{**problem, "targets": targets}, candidates=jnp.array([3, 3]), log_probabilities=jnp.zeros(V)
    )
    np.testing.assert_array_equal(found, np.zeros(N))
