"""The LSTM, against torch, against jax.experimental.rnn, and its derivative against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.experimental import rnn

import lstmx
from lstmx.cells import base, lstm


def initialised(**options):
    cell = lstmx.LSTM(64, **options)
    return cell, cell.init(jax.random.key(0), 48)


def test_shapes_and_types_of_parameters():
    cell, params = initialised(param_dtype="bfloat16")
    assert jax.tree.map(lambda leaf: leaf.shape, params) == lstmx.Params(
        {"kernel": (48, 256), "bias": (256,)}, {"kernel": (64, 256)}
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert base.count(params) == 4 * 64 * (48 + 64 + 1)
    assert cell.input_shape(params) == (48,)


def test_without_bias():
    _, params = initialised(use_bias=False)
    assert set(params.input) == set(params.recurrent) == {"kernel"}
    assert base.count(params) == 4 * 64 * (48 + 64)


@pytest.mark.parametrize("forget_bias", [1.0, 2.5, 0.0])
def test_forget_bias_is_that_of_the_second_gate(forget_bias):
    _, params = initialised(forget_bias=forget_bias)
    i, f, g, o = np.split(params.input["bias"], 4)
    assert np.all(f == forget_bias)
    assert not np.any([i, g, o])


def test_forget_bias_keeps_the_cell():
    # With the gates at their biases alone, c decays by sigmoid(forget_bias) each step.
    cell = lstmx.LSTM(3, forget_bias=2.0)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    params = params._replace(input={**params.input, "bias": cell.init(jax.random.key(0), 1).input["bias"]})
    final, _ = lstmx.scan(cell, params, jnp.zeros((5, 1)), lstmx.LSTMState(jnp.ones(3), jnp.zeros(3)))
    np.testing.assert_allclose(final.c, jax.nn.sigmoid(2.0) ** 5, rtol=1e-6)


def test_distribution_of_the_kernels():
    _, params = initialised()
    gates = np.split(np.float64(params.recurrent["kernel"]), 4, axis=1)
    for k, gate in enumerate(gates):
        np.testing.assert_allclose(gate.T @ gate, np.eye(64), atol=1e-5)
        assert all(np.abs(gate - other).max() > 0.1 for other in gates[:k])
    kernel = np.float64(params.input["kernel"])
    # 12,288 draws: the standard error of the variance is 1.3 %.
    assert abs(kernel.var() * 48 - 1) < 0.05
    assert abs(kernel.mean()) < 0.005


@pytest.mark.parametrize("batch", [(), (2, 5)])
def test_initial_state_is_zero(batch):
    state = lstmx.LSTM(3).initial_state(batch)
    assert state.c.shape == state.h.shape == (*batch, 3)
    assert not np.any(state.c)
    assert not np.any(state.h)


@pytest.mark.conformance
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("lengths", [None, [2, 7, 5]])
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_torch(use_bias, lengths):
    torch_layers = pytest.importorskip("torch_layers", reason="torch is the oracle")
    cell = lstmx.LSTM(4, param_dtype="float64", use_bias=use_bias)
    assert oracles.relative_error(*torch_layers.results_of_both(cell, cell, lengths)) <= 1e-12


def test_values_of_the_reference_for_cudnn():
    cell = lstmx.LSTM(4)
    params, xs, state = oracles.random_case(cell, np.random.default_rng(1), dtype=np.float32)
    lengths = np.array([7, 1, 4], np.int32)
    weights = ({0: part["kernel"].T} for part in params[:2])
    biases = {0: params.input["bias"]}, {0: np.zeros(16, np.float32)}
    ys, h, c = rnn.lstm_ref(
        xs.swapaxes(0, 1), state.h[None], state.c[None], *weights, *biases, lengths, 5, 4, 1, 0.0, False
    )
    expected = lstmx.LSTMState(c[0], h[0]), ys.swapaxes(0, 1)
    assert oracles.relative_error(lstmx.scan(cell, params, xs, state, lengths=lengths), expected) <= 1e-5


def by_autodiff(c, a):
    i, f, g, o = jnp.split(a, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


@pytest.mark.parametrize("scale", [0.1, 1, 10, 1000])
@pytest.mark.usefixtures("double")
def test_derivative_of_the_gates(scale):
    rng = np.random.default_rng(2)
    point = rng.normal(size=(50, 3)), scale * rng.normal(size=(50, 12))
    direction = rng.normal(size=(50, 3)), rng.normal(size=(50, 12))
    got, expected = (jax.jvp(gates, point, direction) for gates in (lstm.plain_gates, by_autodiff))
    assert oracles.relative_error(got, expected) <= 1e-12
    cotangent = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    got, expected = (jax.vjp(gates, *point)[1](cotangent) for gates in (lstm.plain_gates, by_autodiff))
    assert oracles.relative_error(got, expected) <= 1e-12
