"""Flax's cells, of nnx and linen, against Flax itself in float64."""

import conversions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import lstmx
from lstmx.cells.mgu import MGU
from lstmx.convert.flax import from_linen, from_nnx, to_linen, to_nnx

HARD = {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.soft_sign}
TOLD = {"gate_activation": "hard_sigmoid", "activation": "softsign"}
# The cell of Flax, its options, and what the converter has to be told of them.
NNX = {
    "LSTMCell": ("LSTMCell", {}, {}),
    "LSTMCell-hard": ("LSTMCell", HARD, TOLD),
    "OptimizedLSTMCell": ("OptimizedLSTMCell", {}, {}),
    "GRUCell": ("GRUCell", {}, {}),
    "GRUCell-hard": ("GRUCell", HARD, TOLD),
    "SimpleCell": ("SimpleCell", {}, {}),
    "SimpleCell-relu": ("SimpleCell", {"activation_fn": jax.nn.relu}, {"activation": "relu"}),
}
LINEN = {
    **NNX,
    "MGUCell": ("MGUCell", {}, {}),
    "MGUCell-hard": ("MGUCell", HARD, TOLD),
    "MGUCell-without-reset": ("MGUCell", {"reset_gate": False}, {}),
}


def nnx_cell(name):
    kind, options, told = NNX[name]
    # SimpleCell computes in float32 unless it is told otherwise.
    double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    cell = getattr(nnx, kind)(3, 4, rngs=nnx.Rngs(0), **double, **options)
    graph, state = nnx.split(cell)
    return graph, conversions.random_like(nnx.to_pure_dict(state)), told


def linen_cell(name):
    kind, options, told = LINEN[name]
    cell = getattr(linen, kind)(4, param_dtype=jnp.float64, **options)
    x, carry = jnp.zeros((2, 3)), jnp.zeros((2, 4))
    carry = (carry, carry) if "LSTM" in kind else carry
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), carry, x)["params"])
    return cell, conversions.random_like(params), told


def looped(step):
    """Final state and outputs of `(weights, carry, x) -> (carry, y)`, over time."""

    def run(weights, xs, state):
        # A carry of Flax is a plain tuple.
        state, outputs = tuple(state) if isinstance(state, tuple) else state, []
        for x in xs:
            state, y = step(weights, state, x)
            outputs.append(y)
        return state, jnp.stack(outputs)

    return run


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("name", NNX)
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_nnx(name):
    graph, weights, told = nnx_cell(name)
    like = nnx.state(nnx.merge(graph, nnx.State(weights)))

    def step(weights, carry, x):
        state = jax.tree.map(lambda leaf: leaf, like)
        nnx.replace_by_pure_dict(state, weights)
        return nnx.merge(graph, state)(carry, x)

    conversions.assert_equal_functions(lambda weights: from_nnx(weights, **told), looped(step), weights)


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("name", LINEN)
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_linen(name):
    cell, weights, told = linen_cell(name)

    def step(weights, carry, x):
        return cell.apply({"params": weights}, carry, x)

    conversions.assert_equal_functions(lambda weights: from_linen(weights, **told), looped(step), weights)


@pytest.mark.parametrize("name", NNX)
@pytest.mark.usefixtures("double")
def test_nnx_and_back(name):
    _, weights, told = nnx_cell(name)
    cell, params = from_nnx(weights, **told)
    conversions.assert_same_bits(to_nnx(cell, params, optimized="Optimized" in name), weights)
    found = from_nnx(to_nnx(cell, params, optimized=True), **told)
    assert found[0] == cell
    conversions.assert_same_bits(found[1], params)


@pytest.mark.parametrize("name", LINEN)
@pytest.mark.usefixtures("double")
def test_linen_and_back(name):
    _, weights, told = linen_cell(name)
    cell, params = from_linen(weights, **told)
    conversions.assert_same_bits(to_linen(cell, params), weights)
    found = from_linen(to_linen(cell, params), **told)
    assert found[0] == cell
    conversions.assert_same_bits(found[1], params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nnx_takes_what_we_write(dtype):
    ours = lstmx.LSTM(4, param_dtype=dtype)
    params = conversions.random_params(ours, dtype=jnp.dtype(dtype))
    # Flax's own initializers know no bfloat16.
    options = {"recurrent_kernel_init": nnx.initializers.lecun_normal()}
    cell = nnx.OptimizedLSTMCell(3, 4, param_dtype=dtype, rngs=nnx.Rngs(0), **options)
    state = nnx.state(cell, nnx.Param)
    nnx.replace_by_pure_dict(state, to_nnx(ours, params, optimized=True))
    nnx.update(cell, state)
    written = nnx.state(cell, nnx.Param)
    for given in (written, nnx.to_pure_dict(written)):
        found = from_nnx(given)
        assert found[0] == ours
        conversions.assert_same_bits(found[1], params)


def test_biases_of_a_gru_are_added_up_where_flax_has_one():
    cell = lstmx.GRU(4)
    params = conversions.random_params(cell)
    bias, second = params.input["bias"], params.recurrent["bias"]
    _, found = from_linen(to_linen(cell, params))
    np.testing.assert_array_equal(found.input["bias"][:8], bias[:8] + second[:8])
    np.testing.assert_array_equal(found.input["bias"][8:], bias[8:])
    np.testing.assert_array_equal(found.recurrent["bias"], second.at[:8].set(0))
    xs = jnp.ones((3, 2, 3))
    expected = lstmx.scan(cell, params, xs)[1]
    np.testing.assert_allclose(lstmx.scan(cell, found, xs)[1], expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"nnx has no place for the last third of recurrent\.bias"):
        to_nnx(cell, params)


def test_weights_of_torch_reach_linen():
    # A GRU of torch has both biases; linen's cell computes the same.
    cell = lstmx.GRU(4)
    params = conversions.random_params(cell)
    weights = to_linen(cell, params)
    h = jnp.ones((2, 4)) / 3
    _, y = linen.GRUCell(4).apply({"params": weights}, h, jnp.ones((2, 3)))
    np.testing.assert_allclose(lstmx.step(cell, params, h, jnp.ones((2, 3)))[1], y, atol=1e-6)


def changed(weights, path, leaf):
    """A copy of nested dictionaries with one leaf put in, or taken out where it is None."""
    folder, name = path.split("/")
    inner = {**weights.get(folder, {}), name: leaf}
    return {**weights, folder: {k: v for k, v in inner.items() if v is not None}}


WRONG_NNX = {
    "missing": ("GRUCell", "dense_i/bias", None, r"lacks dense_i/bias, expected with shape \(12,\); it has"),
    "missing kernel": ("LSTMCell", "if_/kernel", None, r"lacks if_/kernel, expected with shape \(3, 4\)"),
    "first kernel": ("LSTMCell", "ii/kernel", None, r"lacks ii/kernel, expected with shape \[D, H\]"),
    "extra": ("GRUCell", "dense_h/bias", (12,), r"has dense_h/bias of shape \(12,\), but no such tensor is"),
    "mis-shaped": ("LSTMCell", "ho/kernel", (4, 5), r"ho/kernel must have shape \(4, 4\), got \(4, 5\)"),
    "no cell": (
        "GRUCell",
        "dense_h/kernel",
        (4, 8),
        r"dense_h/kernel must have shape \[H, 4 H\].*got \(4, 8\)",
    ),
    "no kernel": (
        "GRUCell",
        "dense_h/kernel",
        (4,),
        r"dense_h/kernel must have shape \[H, gates\*H\], got \(4,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG_NNX)
@pytest.mark.usefixtures("double")
def test_wrong_states_of_nnx(name):
    kind, path, shape, message = WRONG_NNX[name]
    weights = changed(nnx_cell(kind)[1], path, shape and jnp.ones(shape))
    with pytest.raises(ValueError, match=message):
        from_nnx(weights)


WRONG_LINEN = {
    "missing": (
        "GRUCell",
        "hn/bias",
        None,
        r"params of the linen cell lacks hn/bias, expected with shape \(4,\)",
    ),
    "missing gate": ("LSTMCell", "if/kernel", None, r"lacks if/kernel, expected with shape \(3, 4\)"),
    "extra": ("GRUCell", "hz/bias", (4,), r"has hz/bias of shape \(4,\), but no such tensor is expected"),
    "mis-shaped": ("MGUCell", "hn/bias", (5,), r"hn/bias must have shape \(4,\), got \(5,\)"),
    "simple": ("SimpleCell", "h/kernel", (4, 3), r"h/kernel must have shape \(4, 4\), got \(4, 3\)"),
}


@pytest.mark.parametrize("name", WRONG_LINEN)
@pytest.mark.usefixtures("double")
def test_wrong_params_of_linen(name):
    kind, path, shape, message = WRONG_LINEN[name]
    weights = changed(linen_cell(kind)[1], path, shape and jnp.ones(shape))
    with pytest.raises(ValueError, match=message):
        from_linen(weights)


def test_no_cell_at_all():
    message = "must be those of a recurrent cell, got dense/kernel"
    with pytest.raises(ValueError, match=message):
        from_linen({"dense": {"kernel": jnp.ones((2, 2))}})


@pytest.mark.parametrize("convert", [from_nnx, from_linen])
def test_options_without_an_equal(convert):
    simple = {"i": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "h": {"kernel": jnp.ones((4, 4))}}
    if convert is from_nnx:
        simple = {f"dense_{side}": leaves for side, leaves in simple.items()}
    assert convert(simple)[0] == lstmx.Elman(4)
    with pytest.raises(ValueError, match="residual=True: no cell here adds its state"):
        convert(simple, residual=True)
    with pytest.raises(ValueError, match="gate_activation='relu': a SimpleCell has no gates"):
        convert(simple, gate_activation="relu")


INEXPRESSIBLE = {
    "peephole": (lstmx.LSTM(4, peephole=True), "cannot express peephole=True of LSTM"),
    "bias": (lstmx.LSTM(4, use_bias=False), "cannot express use_bias=False of LSTM"),
    "projection": (lstmx.LSTM(4, projection_size=2), "cannot express projection_size=2 of LSTM"),
    "activations": (
        lstmx.LSTM(4, output_activation="relu"),
        "has one activation_fn for both candidate_activation='tanh' and output_activation='relu'",
    ),
    "reset": (lstmx.GRU(4, reset_after=False), "cannot express reset_after=False of GRU"),
    "clip": (lstmx.Elman(4, gate_clip=1.0), "cannot express gate_clip=1.0 of Elman"),
}


@pytest.mark.parametrize("write", [to_nnx, to_linen])
@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_flax_cannot_express(name, write):
    cell, message = INEXPRESSIBLE[name]
    params = conversions.random_params(cell)
    with pytest.raises(ValueError, match=message):
        write(cell, params)


def test_cells_that_flax_has_not():
    cell = MGU(4, reset="before")
    with pytest.raises(ValueError, match="linen cannot express reset='before' of MGU"):
        to_linen(cell, conversions.random_params(cell))
    with pytest.raises(ValueError, match="linen cannot express gate_keeps=False of MGU"):
        to_linen(MGU(4, gate_keeps=False), conversions.random_params(MGU(4)))
    with pytest.raises(TypeError, match="nnx can express Elman, GRU, LSTM, not MGU"):
        to_nnx(MGU(4), conversions.random_params(MGU(4)))
    with pytest.raises(TypeError, match="linen can express Elman, GRU, LSTM, MGU, not Stack"):
        to_linen(lstmx.Stack((lstmx.LSTM(4),)), ())


def test_wrong_params_are_named():
    params = conversions.random_params(lstmx.LSTM(4))
    with pytest.raises(ValueError, match=r"input.bias must have shape \(20,\), got \(16,\)"):
        to_linen(lstmx.LSTM(5), params)
