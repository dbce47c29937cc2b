"""Types, gates and candidate masks of the cells of `numpy_cells`; for the rest see test_variants.py."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_cells
import pytest
import variants

import lstmx

names = pytest.mark.parametrize("name", numpy_cells.CELLS)


CARRIED = {
    "mgu": ["float32"],
    "indrnn": ["bfloat16"],
    "mingru": ["float32"],
    "minlstm": ["float32"],
    "slstm": ["float32", "float32", "float32", "bfloat16"],
    "conv": ["float32", "bfloat16"],
}


@names
def test_types_under_half_precision(name):
    cell = numpy_cells.CELLS[name][0](4, dtype="bfloat16")
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))

    def run(params, xs):
        return lstmx.scan(cell, params, xs)

    xs = jax.ShapeDtypeStruct((5, 2, *cell.input_shape(params)), jnp.float32)
    state, ys = jax.eval_shape(run, params, xs)
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == CARRIED[name.split("-")[0]]
    assert ys.dtype == jnp.bfloat16


@names
def test_parameters_are_of_param_dtype(name):
    cell = numpy_cells.CELLS[name][0](4, param_dtype="bfloat16")
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


# For the forms of `gates` and of `candidate_mask`: what makes the output of a step from the gates.
GATES = {
    "mgu": lambda g, h: g["f"] * h + (1 - g["f"]) * g["n"],
    "mgu-paper": lambda g, h: g["f"] * g["n"] + (1 - g["f"]) * h,
    "mingru": lambda g, h: (1 - g["update"]) * h + g["update"] * g["n"],
    "minlstm": lambda g, h: g["f"] * h + g["i"] * g["g"],
    "slstm": lambda g, s: g["o"] * (g["f"] * s.c + g["i"] * g["g"]) / (g["f"] * s.n + g["i"]),
    "conv-lstm-1d": lambda g, s: g["o"] * np.tanh(g["f"] * s.c + g["i"] * g["g"]),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.usefixtures("double")
def test_gates_make_the_next_output(name):
    cell, (params, xs, state) = variants.double_case(name)
    z, r = cell.input_map(params.input, xs[0]), cell.recurrent_map(params.recurrent, cell.output(state))
    gates = cell.gates(params.update, state, z, r)
    _, y = lstmx.step(cell, params, state, xs[0])
    np.testing.assert_allclose(GATES[name](gates, state), y, rtol=1e-12)


@pytest.mark.parametrize("name", [n for n in GATES if not n.startswith("min")])
@pytest.mark.usefixtures("double")
def test_candidate_mask_scales_the_candidate_alone(name):
    cell, (params, xs, state) = variants.double_case(name)
    z, r = cell.input_map(params.input, xs[0]), cell.recurrent_map(params.recurrent, cell.output(state))
    mask = np.random.default_rng(0).normal(size=state[0].shape if isinstance(state, tuple) else state.shape)
    gates = cell.gates(params.update, state, z, r)
    candidate = "n" if "n" in gates else "g"
    masked = {**gates, candidate: gates[candidate] * mask}
    got = cell.output(cell.update(params.update, state, z, r, mask))
    if name == "conv-lstm-1d":  # its output gate sees the cell
        c = gates["f"] * state.c + gates["i"] * masked["g"]
        a = (z + r)[..., -4:] + params.update["peephole"]["o"] * c
        masked["o"] = numpy_cells.sigmoid(a)
    np.testing.assert_allclose(got, GATES[name](masked, state), rtol=1e-12)
