"""The sLSTM, against its equations without stabiliser, at any size of the pre-activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_cells
import oracles
import pytest
import variants

import lstmx
from lstmx.cells import slstm
from lstmx.cells.slstm import SLSTM

forget_gates = pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])


def unstabilised(cell, params, xs, resets):
    """`c * exp(m)`, `n * exp(m)` and h of all steps, with plain exponentials, from a fresh state."""
    c = n = h = jnp.zeros((*xs.shape[1:-1], cell.hidden_size), xs.dtype)
    states = []
    for x, reset in zip(xs, resets[..., None], strict=True):
        c, n, h = (jnp.where(reset, 0, leaf) for leaf in (c, n, h))
        a = cell.input_map(params.input, x) + cell.recurrent_map(params.recurrent, h)
        i, f, g, o = jnp.split(a, 4, axis=-1)
        f = jnp.exp(f) if cell.forget_gate == "exp" else 1 / (1 + jnp.exp(-f))
        c, n = f * c + jnp.exp(i) * jnp.tanh(g), f * n + jnp.exp(i)
        h = c / n / (1 + jnp.exp(-o))
        states.append((c, n, h))
    return [jnp.stack(leaf) for leaf in zip(*states, strict=True)]


def fresh_case(cell, steps):
    params, xs, _ = variants.random_case(cell, np.random.default_rng(0), steps, (3,), 2)
    return (params, 3 * xs), np.random.default_rng(1).random((steps, 3)) < 0.2


@pytest.mark.cross_section(3)
@forget_gates
@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("remat", [None, "gates"])
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_the_equations_without_stabiliser(forget_gate, num_heads, remat):
    cell = SLSTM(4, num_heads, forget_gate, param_dtype="float64")
    case, resets = fresh_case(cell, 12)

    def outputs(params, xs):
        return lstmx.scan(cell, params, xs, resets=resets, remat=remat)[1]

    def expected(params, xs):
        return unstabilised(cell, params, xs, resets)[2]

    got, expected = (jax.jit(variants.with_gradients(f))(*case) for f in (outputs, expected))
    assert oracles.relative_error(got, expected) <= 1e-12


@forget_gates
@pytest.mark.usefixtures("double")
def test_states_times_the_stabiliser_are_those_without(forget_gate):
    cell = SLSTM(4, forget_gate=forget_gate, param_dtype="float64")
    case, resets = fresh_case(cell, 12)
    final, _ = lstmx.scan(cell, *case, resets=resets)
    scaled = [final.c * jnp.exp(final.m), final.n * jnp.exp(final.m), final.h]
    assert oracles.relative_error(scaled, [leaf[-1] for leaf in unstabilised(cell, *case, resets)]) <= 1e-12


@forget_gates
@pytest.mark.usefixtures("double")
def test_second_derivatives_from_a_fresh_state(forget_gate):
    cell = SLSTM(2, forget_gate=forget_gate, param_dtype="float64")
    (params, xs), resets = fresh_case(cell, 3)

    def loss(xs):
        return jnp.sum(lstmx.scan(cell, params, xs, resets=resets, implementation="reference")[1] ** 2)

    def expected(xs):
        return jnp.sum(unstabilised(cell, params, xs, resets)[2] ** 2)

    got, expected = (jax.jit(jax.hessian(function))(xs) for function in (loss, expected))
    assert oracles.relative_error(got, expected) <= 1e-12


@forget_gates
def test_rows_that_start_late_start_fresh(forget_gate):
    cell = SLSTM(4, forget_gate=forget_gate)
    params, xs, _ = variants.random_case(cell, np.random.default_rng(0), 6, (2,), 3, np.float32)
    mask = np.arange(6)[:, None] >= [0, 4]
    xs = np.where(mask[..., None], xs, np.nan)
    state, ys = lstmx.scan(cell, params, xs, mask=mask)
    late, late_ys = lstmx.scan(cell, params, xs[4:, 1])
    got = jax.tree.map(lambda leaf: leaf[1], state), ys[4:, 1]
    assert oracles.relative_error(got, (late, late_ys)) <= 1e-6


@forget_gates
@pytest.mark.parametrize("remat", [None, "gates"])
def test_huge_pre_activations(forget_gate, remat):
    cell = SLSTM(2, forget_gate=forget_gate)
    # Odd multiples of 500 are exact in float32, and so are all exponents that they make.
    xs = np.float32(1000 * np.random.default_rng(0).integers(-3, 3, (40, 64, 8)) + 500)
    params = lstmx.Params({"kernel": np.eye(8, dtype=np.float32)}, {"kernel": np.zeros((2, 8), np.float32)})

    def outputs(params, xs):
        return lstmx.scan(cell, params, xs, remat=remat)

    gradients, (state, ys) = jax.jit(variants.with_gradients(outputs))(params, xs)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradients))
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradients))
    assert jnp.all(state.n >= 1)
    assert jnp.all(jnp.abs(ys) <= 1)
    fresh = jax.tree.map(np.float64, cell.initial_state((64,)))
    step = numpy_cells.slstm_step(forget_gate=forget_gate)
    with np.errstate(over="ignore"):
        finals, expected = oracles.run_rows(step, params, xs, fresh)
    assert oracles.relative_error([*state, ys], [*finals, expected]) <= 1e-6


@forget_gates
@pytest.mark.parametrize("scale", [0.1, 1, 10, 1000])
@pytest.mark.usefixtures("double")
def test_derivative_of_the_gates(forget_gate, scale):
    rng = np.random.default_rng(1)
    c, m, dc, dn, dm = rng.normal(size=(5, 60, 3))
    n = np.where(np.arange(60)[:, None] < 20, 0, 0.5 + rng.random((60, 3)))
    point = c, n, scale * m, scale * rng.normal(size=(60, 12))
    direction = dc, dn, dm, rng.normal(size=(60, 12))
    functions = [functools.partial(gates, forget_gate) for gates in (slstm._plain_gates, slstm._gates)]
    cotangent = tuple(rng.normal(size=(4, 60, 3)))

    def both_modes(gates):
        return jax.jvp(gates, point, direction), jax.vjp(gates, *point)[1](cotangent)

    got, expected = (jax.jit(functools.partial(both_modes, gates))() for gates in functions)
    assert oracles.relative_error(got, expected) <= 1e-12


@pytest.mark.parametrize("num_heads", [1, 4])
def test_parameters(num_heads):
    params = SLSTM(8, num_heads, forget_bias=3).init(jax.random.key(0), 3)
    recurrent = (8, 32) if num_heads == 1 else (4, 2, 4, 2)
    shapes = lstmx.Params({"kernel": (3, 32), "bias": (32,)}, {"kernel": recurrent})
    assert jax.tree.map(jnp.shape, params) == shapes
    np.testing.assert_array_equal(params.input["bias"].reshape(4, 8), np.diag([0, 3, 0, 0]) @ np.ones((4, 8)))
    assert not np.any(params.recurrent["kernel"])
    assert set(SLSTM(8, num_heads, use_bias=False).init(jax.random.key(0), 3).input) == {"kernel"}


ERRORS = {
    "forget_gate": ({"forget_gate": "tanh"}, r'forget_gate must be "sigmoid" or "exp", got \'tanh\''),
    "num_heads": ({"num_heads": 3}, "num_heads must divide hidden_size, got 3 heads and hidden_size=4"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_options_are_named(case):
    options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        SLSTM(4, **options)
