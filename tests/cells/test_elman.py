"""The Elman cell, against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import lstmx
from lstmx.cells import base


@pytest.mark.parametrize("use_bias", [True, False])
def test_parameters(use_bias):
    cell = lstmx.Elman(64, use_bias=use_bias)
    params = cell.init(jax.random.key(0), 48)
    bias = {"bias": (64,)} if use_bias else {}
    assert jax.tree.map(jnp.shape, params) == lstmx.Params({"kernel": (48, 64), **bias}, {"kernel": (64, 64)})
    assert base.count(params) == 64 * (48 + 64 + use_bias)
    kernel = np.float64(params.recurrent["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(64), atol=1e-5)
    # 3,072 draws: the standard error of the variance is 2.6 %.
    assert abs(np.float64(params.input["kernel"]).var() * 48 - 1) < 0.1


@pytest.mark.conformance
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("lengths", [None, [2, 7, 5]])
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_torch(activation, lengths):
    torch_layers = pytest.importorskip("torch_layers", reason="torch is the oracle")
    cell = lstmx.Elman(4, activation, param_dtype="float64")
    assert oracles.relative_error(*torch_layers.results_of_both(cell, cell, lengths)) <= 1e-12


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match=r"activation: an activation must be one of .*'relu'.*got 'cube'"):
        lstmx.Elman(4, "cube")
