"""The MGU, against NumPy and Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import variants
from flax import linen

import lstmx
from lstmx.cells import base
from lstmx.cells.mgu import MGU


@pytest.mark.parametrize("reset_gate", [True, False])
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_flax(reset_gate):
    rng = np.random.default_rng(0)
    flax_cell = linen.MGUCell(4, reset_gate=reset_gate, param_dtype="float64")
    h, xs = rng.normal(size=(2, 4)), rng.normal(size=(5, 2, 3))
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape), flax_cell.init(jax.random.key(0), h, xs[0])
    )

    def of_flax(variables, h, xs):
        def step(h, x):
            return flax_cell.apply(variables, h, x)

        return jax.lax.scan(step, h, xs)

    def of_lstmx(variables, h, xs):
        p = variables["params"]
        side = lambda a, b, leaf: jnp.concatenate([p[a][leaf], p[b][leaf]], axis=-1)  # noqa: E731
        bias = {"bias": p["hn"]["bias"]} if reset_gate else {}
        params = lstmx.Params(
            {"kernel": side("if", "in", "kernel"), "bias": side("if", "in", "bias")},
            {"kernel": side("hf", "hn", "kernel"), **bias},
        )
        cell = MGU(4, reset="after" if reset_gate else "none", param_dtype="float64")
        return lstmx.scan(cell, params, xs, h)

    case = variables, h, xs
    got, expected = (jax.jit(variants.with_gradients(f))(*case) for f in (of_lstmx, of_flax))
    assert oracles.relative_error(got, expected) <= 1e-12


SHAPES = {
    "after": ({"kernel": (8, 16), "bias": (8,)}, ()),
    "before": ({"kernel": (8, 8)}, {"kernel": (8, 8)}),
    "none": ({"kernel": (8, 16)}, ()),
}


@pytest.mark.parametrize("reset", SHAPES)
def test_parameters(reset):
    params = MGU(8, reset=reset, forget_bias=2).init(jax.random.key(0), 3)
    recurrent, update = SHAPES[reset]
    expected = lstmx.Params({"kernel": (3, 16), "bias": (16,)}, recurrent, update)
    assert jax.tree.map(jnp.shape, params) == expected
    np.testing.assert_array_equal(params.input["bias"], [2] * 8 + [0] * 8)
    kernels = np.concatenate([params.recurrent["kernel"], params.update["kernel"]], 1) if update else None
    gates = np.split(np.float64(params.recurrent["kernel"] if kernels is None else kernels), 2, axis=1)
    for gate in gates:
        np.testing.assert_allclose(gate.T @ gate, np.eye(8), atol=1e-5)
    assert np.abs(gates[0] - gates[1]).max() > 0.1


@pytest.mark.parametrize("reset", SHAPES)
def test_without_bias(reset):
    params = MGU(8, reset=reset, use_bias=False).init(jax.random.key(0), 3)
    assert base.count(params) == 2 * 8 * (3 + 8)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"reset must be one of \('after', 'before', 'none'\), got 'middle'"):
        MGU(4, reset="middle")
