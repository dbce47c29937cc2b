"""What the tests of converters share: random weights, bits compared, values and gradients of two systems."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles

import lstmx


def random_params(network, features=3, seed=0, dtype=np.float32):
    """Random parameters of a cell or network; biases are not zero."""
    params, *_ = oracles.random_case(network, np.random.default_rng(seed), features=features, dtype=dtype)
    return jax.tree.map(jnp.asarray, params)


def random_like(tree, seed=0):
    """Random leaves of the shapes and types of a tree's."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype), tree)


def assert_same_bits(tree, expected):
    """Structure, types, shapes and every bit are the same."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        leaf, other = np.asarray(leaf), np.asarray(other)
        assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape)
        assert leaf.tobytes() == other.tobytes()


def assert_equal_functions(convert, run, weights, features=(3,), batch=(2,), steps=4):
    """What a layer computes with its weights is what ours computes with them converted, gradients included.

    Args:
      convert: makes `(net, params)` of the weights.
      run: the other system, `(weights, xs, state) -> (final state, outputs)`; xs are time-major, states ours.
      weights: a tree of arrays, in double precision.
      features: the axes of an input.
      batch: the axes of a batch.
      steps: of the sequences.
    """
    net, _ = convert(weights)
    rng = np.random.default_rng(1)
    xs = rng.normal(size=(steps, *batch, *features))
    state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, net.initial_state(batch))

    def ours(weights, xs, state):
        net, params = convert(weights)
        return lstmx.scan(net, params, xs, state)

    def gradients(run):
        def loss(*args):
            values = run(*args)
            return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(values)), values

        graded = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, values), found = jax.jit(graded)(weights, xs, state)
        return values, found

    error = oracles.relative_error(gradients(ours), gradients(run))
    assert error <= 1e-12
