"""The C++ kernels' results, in float32, beside those of the reference in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from losses import EVERY, loss_and_results_of

import lstmx
from lstmx.implementations.native import library

compiled = pytest.mark.skipif(library.load() is not None, reason=f'implementation "native" {library.load()}')
CELLS = {
    "lstm": lstmx.LSTM,
    "lstm-no-bias": functools.partial(lstmx.LSTM, use_bias=False),
    "gru": lstmx.GRU,
    "gru-no-bias": functools.partial(lstmx.GRU, use_bias=False),
    "elman": lstmx.Elman,
    "elman-relu": functools.partial(lstmx.Elman, activation="relu"),
    "elman-no-bias": functools.partial(lstmx.Elman, use_bias=False),
}
both = pytest.mark.parametrize("name", ["lstm", "gru"])
each = pytest.mark.parametrize("name", ["lstm", "gru", "elman", "elman-relu"])


def gradients(cell, case, **options):
    """Of the loss by parameters, xs and initial state, and the results."""
    compute = jax.grad(loss_and_results_of(cell, **options), argnums=EVERY, has_aux=True)
    return jax.jit(compute)(*case)


def exact(cell, case, transformed=gradients, **options):
    """What a function of a cell and a case must give: the reference, in float64."""
    with jax.enable_x64(True):
        case = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), case)
        return transformed(cell, case, implementation="reference", **options)


def case_of(cell, steps=7, batch=(4,), features=5, seed=0):
    return oracles.random_case(cell, np.random.default_rng(seed), steps, batch, features, np.float32)


def error(tree, expected):
    """The largest error by the largest value of the leaf; a small one's, by a tenth of the largest."""
    leaves, others = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(t)] for t in (tree, expected))
    largest = max(np.max(np.abs(leaf), initial=0) for leaf in others)
    errors = []
    for a, b in zip(leaves, others, strict=True):
        assert a.shape == b.shape
        assert np.all(np.isfinite(a))
        errors.append(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 0.1 * largest))
    return max(errors)


def assert_exact(cell, case, **options):
    got, expected = gradients(cell, case, implementation="native", **options), exact(cell, case, **options)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
    # Gradients and values apart, as they are of different magnitudes.
    assert error(got[0], expected[0]) <= 2e-6
    assert error(got[1], expected[1]) <= 2e-6
