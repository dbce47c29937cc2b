"""The GRU, against torch, and its derivative against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import lstmx
from lstmx.cells import base, gru


def initialised(**options):
    cell = lstmx.GRU(64, **options)
    return cell, cell.init(jax.random.key(0), 48)


def test_shapes_of_parameters():
    cell, params = initialised()
    assert jax.tree.map(jnp.shape, params) == lstmx.Params(
        {"kernel": (48, 192), "bias": (192,)}, {"kernel": (64, 192), "bias": (192,)}
    )
    assert base.count(params) == 3 * 64 * (48 + 64 + 2)
    assert cell.input_shape(params) == (48,)
    assert not np.any(params.input["bias"])
    assert not np.any(params.recurrent["bias"])


def test_without_bias():
    _, params = initialised(use_bias=False)
    assert set(params.input) == set(params.recurrent) == {"kernel"}


def test_distribution_of_the_kernels():
    _, params = initialised()
    gates = np.split(np.float64(params.recurrent["kernel"]), 3, axis=1)
    for k, gate in enumerate(gates):
        np.testing.assert_allclose(gate.T @ gate, np.eye(64), atol=1e-5)
        assert all(np.abs(gate - other).max() > 0.1 for other in gates[:k])
    # 9,216 draws: the standard error of the variance is 1.5 %.
    assert abs(np.float64(params.input["kernel"]).var() * 48 - 1) < 0.05


@pytest.mark.conformance
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("lengths", [None, [2, 7, 5]])
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_torch(use_bias, lengths):
    torch_layers = pytest.importorskip("torch_layers", reason="torch is the oracle")
    cell = lstmx.GRU(4, param_dtype="float64", use_bias=use_bias)
    assert oracles.relative_error(*torch_layers.results_of_both(cell, cell, lengths)) <= 1e-12


def plain_gates(h, z, r):
    (z_r, z_u, z_n), (r_r, r_u, r_n) = jnp.split(z, 3, axis=-1), jnp.split(r, 3, axis=-1)
    reset, update = jax.nn.sigmoid(z_r + r_r), jax.nn.sigmoid(z_u + r_u)
    return (1 - update) * jnp.tanh(z_n + reset * r_n) + update * h


@pytest.mark.parametrize("scale", [0.1, 1, 10, 1000])
@pytest.mark.usefixtures("double")
def test_derivative_of_the_gates(scale):
    rng = np.random.default_rng(1)
    point = rng.normal(size=(50, 3)), *(scale * rng.normal(size=(2, 50, 9)))
    direction = rng.normal(size=(50, 3)), *rng.normal(size=(2, 50, 9))
    got, expected = (jax.jvp(gates, point, direction) for gates in (gru._plain_gates, plain_gates))
    assert oracles.relative_error(got, expected) <= 1e-12
    cotangent = rng.normal(size=(50, 3))
    got, expected = (jax.vjp(gates, *point)[1](cotangent) for gates in (gru._plain_gates, plain_gates))
    assert oracles.relative_error(got, expected) <= 1e-12
