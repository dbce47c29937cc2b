"""haiku's cores, against haiku itself in float64."""

import conversions
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmx
from lstmx.convert.haiku import from_params, to_params

hk = pytest.importorskip("haiku", reason="haiku is the oracle")
pytestmark = pytest.mark.conformance

CORES = {
    "lstm": lambda: hk.LSTM(4),
    "gru": lambda: hk.GRU(4),
    "vanilla_rnn": lambda: hk.VanillaRNN(4),
    "vanilla_rnn-one-bias": lambda: hk.VanillaRNN(4, double_bias=False),
}
CELLS = {
    "lstm": lstmx.LSTM(4),
    "gru": lstmx.GRU(4, reset_after=False),
    "vanilla_rnn": lstmx.Elman(4, "relu"),
}


def core(name):
    """The unrolled core as a pair of functions, and random weights."""

    def unrolled(xs, state):
        core, outputs = CORES[name](), []
        for x in xs:
            y, state = core(x, state)
            outputs.append(y)
        return state, jnp.stack(outputs)

    transformed = hk.without_apply_rng(hk.transform(unrolled))
    h = jnp.zeros((2, 4))
    state = hk.LSTMState(h, h) if name == "lstm" else h
    weights = jax.eval_shape(lambda: transformed.init(jax.random.key(0), jnp.zeros((1, 2, 3)), state))
    return transformed.apply, conversions.random_like(weights)


@pytest.mark.parametrize("name", CORES)
@pytest.mark.usefixtures("double")
def test_values_and_gradients(name):
    apply, weights = core(name)

    def run(weights, xs, state):
        if name == "lstm":
            final, ys = apply(weights, xs, hk.LSTMState(hidden=state.h, cell=state.c))
            return (final.cell, final.hidden), ys
        return apply(weights, xs, state)

    conversions.assert_equal_functions(lambda weights: from_params(weights, name.split("-")[0]), run, weights)


@pytest.mark.parametrize("double_bias", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_export_and_import(name, double_bias):
    cell, params = CELLS[name], conversions.random_params(CELLS[name])
    if name == "lstm":
        # Adding 1 rounds: biases that survive it are multiples of its last place.
        params = params._replace(
            input={**params.input, "bias": jnp.round(params.input["bias"] * 2**20) / 2**20}
        )
    weights = to_params(cell, params, "core", double_bias=double_bias)
    other = {"core_1/linear": {"w": jnp.ones(3)}, "corelinear": {"b": jnp.ones(3)}}
    found = from_params({**other, **weights}, "core")
    assert found[0] == cell
    conversions.assert_same_bits(found[1], params)
    assert ("b" in weights.get("core/linear_1", {})) == (double_bias and name == "vanilla_rnn")


@pytest.mark.parametrize("name", CORES)
def test_import_and_export(name):
    _, weights = core(name)
    weights = jax.tree.map(lambda leaf: jnp.round(leaf * 2**20) / 2**20, weights)
    module = name.split("-")[0]
    found = to_params(*from_params(weights, module), module, double_bias=not name.endswith("one-bias"))
    if name == "vanilla_rnn":
        summed = weights["vanilla_rnn/linear"]["b"] + weights["vanilla_rnn/linear_1"]["b"]
        weights["vanilla_rnn/linear"]["b"] = summed
        weights["vanilla_rnn/linear_1"]["b"] = jnp.zeros_like(summed)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, weights)
    for path, leaf in jax.tree.leaves_with_path(weights):
        np.testing.assert_array_equal(dict(jax.tree.leaves_with_path(found))[path], leaf)


def test_the_one_of_the_forget_gate_is_rounded_once():
    cell = lstmx.LSTM(4)
    params = conversions.random_params(cell)
    _, found = from_params(to_params(cell, params, "lstm"), "lstm")
    difference = np.abs(found.input["bias"] - params.input["bias"])
    assert difference.max() <= np.finfo(np.float32).eps
    assert not np.any(np.delete(difference, np.s_[4:8]))


def test_types_are_kept():
    cell = lstmx.GRU(4, reset_after=False, param_dtype="bfloat16")
    params = conversions.random_params(cell, dtype=jnp.bfloat16)
    found = from_params(to_params(cell, params, "gru"), "gru")
    assert found[0] == cell
    conversions.assert_same_bits(found[1], params)


WRONG = {
    "module": ("lstm", lambda w: w.clear(), r"there is no module 'lstm'; there are none"),
    "missing": ("lstm", lambda w: w["lstm/linear"].pop("b"), r"the module lstm lacks linear/b, .*\(16,\)"),
    "bias": (
        "lstm",
        lambda w: w["lstm/linear"].update(b=jnp.ones(8)),
        r"b must have shape \(16,\), got \(8,\)",
    ),
    "kernel": (
        "lstm",
        lambda w: w["lstm/linear"].update(w=jnp.ones((4, 16))),
        r"linear/w must have shape \[D \+ H, 4 H\], got \(4, 16\)",
    ),
    "extra": (
        "gru",
        lambda w: w["gru"].update(c=jnp.ones(2)),
        r"has c of shape \(2,\), but no such tensor is",
    ),
    "gru": (
        "gru",
        lambda w: w["gru"].update(w_h=jnp.ones((4, 8))),
        r"w_h must have shape \(4, 12\), got \(4, 8\)",
    ),
    "rnn": (
        "vanilla_rnn",
        lambda w: w["vanilla_rnn/linear_1"].update(w=jnp.ones((3, 4))),
        r"linear_1/w must have shape \(4, 4\), got \(3, 4\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_named(name):
    module, change, message = WRONG[name]
    _, weights = core(module)
    change(weights)
    with pytest.raises(ValueError, match=message):
        from_params(weights, module)


INEXPRESSIBLE = {
    "peephole": (lstmx.LSTM(4, peephole=True), "haiku cannot express peephole=True of LSTM"),
    "bias": (lstmx.LSTM(4, use_bias=False), "haiku cannot express use_bias=False of LSTM"),
    "reset": (lstmx.GRU(4), "haiku cannot express reset_after=True of GRU"),
    "activation": (lstmx.Elman(4), "haiku cannot express activation='tanh' of Elman, only relu"),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_haiku_cannot_express(name):
    cell, message = INEXPRESSIBLE[name]
    params = conversions.random_params(cell)
    with pytest.raises(ValueError, match=message):
        to_params(cell, params, "core")


def test_wrong_params_are_named():
    params = conversions.random_params(lstmx.LSTM(4))
    with pytest.raises(ValueError, match=r"input.bias must have shape \(20,\), got \(16,\)"):
        to_params(lstmx.LSTM(5), params, "lstm")
    with pytest.raises(TypeError, match="haiku can express Elman, GRU, LSTM, not Bidirectional"):
        to_params(lstmx.Bidirectional(lstmx.LSTM(4)), params, "lstm")
