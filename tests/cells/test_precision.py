"""Half-precision compute with float32 parameters: types, and what they cost in accuracy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import lstmx
from lstmx.cells import base

cells = pytest.mark.parametrize("name", oracles.CELLS)
halves = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
implementations = pytest.mark.parametrize("implementation", ["reference", "fused"])
remats = pytest.mark.parametrize("remat", [None, "gates"])


def loss_of(cell, **options):
    def loss(params, xs, state):
        results = lstmx.scan(cell, params, xs, state, **options)
        return sum(jnp.mean(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(results))

    return loss


def matmul_types(jaxpr):
    """The types of operands and result of every matmul, those inside of loops and calls included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(v.aval.dtype.name for v in (*equation.invars, *equation.outvars))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from matmul_types(inner)


@pytest.mark.cross_section(5)
@cells
@halves
@implementations
@remats
def test_all_matmuls_are_in_the_compute_type(name, dtype, implementation, remat):
    cell = oracles.make(name, dtype=dtype)
    params, xs = cell.init(jax.random.key(0), 5), jnp.ones((6, 3, 5))
    loss = loss_of(cell, implementation=implementation, remat=remat)
    gradient = jax.grad(loss, argnums=(0, 1, 2))
    # Two maps forwards; backwards, the gradients of their two kernels, of xs and of h.
    for function, least in ((loss, 2), (gradient, 6)):
        found = list(matmul_types(jax.make_jaxpr(function)(params, xs, cell.initial_state((3,))).jaxpr))
        assert len(found) >= least
        assert set(found) == {(dtype, dtype, dtype)}


CARRIED = {
    "lstm": lambda state: {"c": state.c, "h": state.h},
    "gru": lambda state: {"c": state},
    "elman": lambda state: {"h": state},
    "elman-relu": lambda state: {"h": state},
}


@pytest.mark.cross_section(3)
@cells
@halves
@implementations
def test_types_of_outputs_states_and_gradients(name, dtype, implementation):
    cell = oracles.make(name, dtype=dtype)
    loss = loss_of(cell, implementation=implementation)

    def everything():
        params, xs = cell.init(jax.random.key(0), 5), jnp.ones((6, 3, 5))
        initial = cell.initial_state((3,))
        final, ys = lstmx.scan(cell, params, xs, implementation=implementation)
        next_state, y = lstmx.step(cell, params, final, xs[0])
        gradients = jax.grad(loss, argnums=(0, 1, 2))(params, xs, final)
        return (initial, final, next_state, gradients[2]), (ys, y), gradients[:2]

    states, outputs, gradients = jax.eval_shape(everything)
    assert {leaf.dtype for leaf in outputs} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    for state in states:
        types = {kind: leaf.dtype for kind, leaf in CARRIED[name](state).items()}
        assert types == {kind: "float32" if kind == "c" else dtype for kind in types}


# Largest errors over 200 steps, of outputs and of the gradients of parameters, relative to the largest value:
# about twice what was measured.
BOUNDS = {"bfloat16": (0.03, 0.03), "float16": (0.004, 0.007)}


@functools.cache
def many_steps(name, dtype, implementation):
    cell = oracles.make(name, 32, dtype=dtype)
    params = jax.tree.map(lambda leaf: leaf * 0.8, cell.init(jax.random.key(0), 8))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(200, 4, 8)), jnp.float32)

    def loss(params):
        _, ys = lstmx.scan(cell, params, xs, implementation=implementation)
        return jnp.mean(ys.astype(jnp.float32) ** 2), ys

    (_, ys), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return ys, gradients


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("name", ["lstm", "gru", "elman"])
@halves
@implementations
def test_values_and_gradients_over_many_steps(name, dtype, implementation):
    ys, gradients = many_steps(name, dtype, implementation)
    expected_ys, expected_gradients = many_steps(name, "float32", "reference")
    of_values, of_gradients = BOUNDS[dtype]
    errors = oracles.relative_error(ys, expected_ys), oracles.relative_error(gradients, expected_gradients)
    assert 0 < errors[0] <= of_values
    assert 0 < errors[1] <= of_gradients


def remembering(cell, biases):
    """Parameters of zero kernels, each gate's input bias as given: the gates are then constants."""
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    bias = jnp.repeat(jnp.asarray(biases, jnp.float32), cell.hidden_size)
    return params._replace(input={**params.input, "bias": bias})


STEPS = 2000
GAIN = 1 / (1 + np.exp(7.0))  # 0.0009, less than half of bfloat16's spacing at 1


@implementations
def test_a_sum_of_small_terms_does_not_stall_in_the_lstm(implementation):
    cell = lstmx.LSTM(2, dtype="bfloat16")
    params = remembering(cell, [-7, 100, 2, 100])
    final, _ = lstmx.scan(cell, params, jnp.zeros((STEPS, 1)), implementation=implementation)
    term = GAIN * np.tanh(2.0)
    np.testing.assert_allclose(final.c, STEPS * term, rtol=1e-3)
    narrow = jnp.bfloat16(0)
    for _ in range(STEPS):
        narrow = narrow + np.asarray(term, jnp.bfloat16)
    assert float(narrow) < 0.3 * STEPS * term


@implementations
def test_slow_decay_does_not_stall_in_the_gru(implementation):
    cell = lstmx.GRU(2, dtype="bfloat16")
    params = remembering(cell, [0, 7, 0])  # n = 0: h only decays
    final, _ = lstmx.scan(cell, params, jnp.zeros((STEPS, 1)), jnp.ones(2), implementation=implementation)
    decayed = (1 - GAIN) ** STEPS
    np.testing.assert_allclose(final, decayed, rtol=1e-3)
    assert decayed < 0.2
    assert np.asarray(1 - GAIN, jnp.bfloat16) == 1  # where a bfloat16 h stays


def test_long_memory_has_a_gradient():
    cell = lstmx.LSTM(2, dtype="bfloat16")
    params = remembering(cell, [-7, 7, 2, 100])
    state = lstmx.LSTMState(jnp.ones(2), jnp.zeros(2, jnp.bfloat16))

    def kept(state):
        return lstmx.scan(cell, params, jnp.zeros((STEPS, 1)), state)[0].c.sum()

    np.testing.assert_allclose(jax.grad(kept)(state).c, (1 - GAIN) ** STEPS, rtol=1e-3)


LONG = 1000
# The layer norm's recurrent scale is small: at 1 this random network is chaotic, and any rounding grows.
DRIFTING = {
    "lstm": (lstmx.LSTM, {}),
    "gru": (lstmx.GRU, {}),
    "gru-reset-before": (lstmx.GRU, {"reset_after": False}),
    "elman": (lstmx.Elman, {}),
    "mgu": (lstmx.MGU, {}),
    "slstm": (lstmx.SLSTM, {}),
    "minlstm": (lstmx.MinLSTM, {}),
    "indrnn": (lstmx.IndRNN, {"activation": "tanh"}),
    "lstm-peephole-projection": (lstmx.LSTM, {"peephole": True, "projection_size": 16}),
    "lstm-ba": (lstmx.LSTM, {"layer_norm": "ba"}),
    "lstm-per-gate": (lstmx.LSTM, {"layer_norm": "per_gate"}),
}
# About twice the largest that was measured, relative to the largest output.
DRIFT = {"bfloat16": 0.03, "float16": 0.005}


@functools.cache
def long_run(name, dtype):
    make, options = DRIFTING[name]
    wide = jnp.float64 if dtype == "float64" else jnp.float32
    cell = make(32, dtype=dtype, param_dtype=wide, **options)
    params = make(32, **options).init(jax.random.key(0), 8)
    params = jax.tree.map(lambda leaf: np.asarray(leaf * 0.8, wide), params)
    if name == "lstm-ba":
        small = {"recurrent_scale": params.update["recurrent_scale"] * 0.3}
        params = params._replace(update={**params.update, **small})
    xs = np.random.default_rng(0).normal(size=(LONG, 4, 8)).astype(np.float32)
    final, ys = jax.jit(functools.partial(lstmx.scan, cell))(params, xs)
    return np.asarray(ys, np.float64), final


@pytest.mark.cross_section(4)
@pytest.mark.parametrize("name", DRIFTING)
@halves
@pytest.mark.usefixtures("double")
def test_no_drift_over_a_thousand_steps(name, dtype):
    ys, _ = long_run(name, dtype)
    exact, _ = long_run(name, "float64")
    errors = np.abs(ys - exact).reshape(4, -1).max(axis=1) / np.abs(exact).max()
    assert errors[0] > 0
    assert errors.max() <= DRIFT[dtype]
    # It does not grow: the last quarter is as good as the first, up to the luck of a maximum.
    assert errors[-1] <= 2 * errors[0]


@halves
def test_gradients_are_summed_in_single_precision(dtype):
    # 5,000 rows of ones: a sum in bfloat16 stands still at 256, one in float16 at 2,048.
    rows = 5000
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    for shape in ((rows, 2), (50, 100, 2)):
        xs = jnp.ones(shape, dtype)
        gradient = jax.grad(lambda p, xs=xs: base.affine(p, xs).astype(jnp.float32).sum())(params)
        np.testing.assert_array_equal(gradient["bias"], rows)
        np.testing.assert_allclose(gradient["kernel"], rows, rtol=2e-3)  # rounded once, at the end


@halves
def test_peephole_gradients_are_summed_in_single_precision(dtype):
    # c stays 1 and the output gate's peephole meets the same derivative in every one of 3,000 steps.
    cell = lstmx.LSTM(1, peephole=True, dtype=dtype)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    params.input["bias"] = jnp.array([-100.0, 100.0, 0.0, 0.0])
    state = lstmx.LSTMState(jnp.ones(1), jnp.zeros(1, dtype))

    def loss(update, implementation):
        own = params._replace(update=update)
        _, ys = lstmx.scan(cell, own, jnp.zeros((3000, 1)), state, implementation=implementation)
        return ys.astype(jnp.float32).sum()

    for implementation in ("reference", "fused"):
        slope = jax.grad(loss)(params.update, implementation)["peephole"]["o"]
        np.testing.assert_allclose(slope, 3000 * 0.25 * np.tanh(1.0), rtol=2e-3)
