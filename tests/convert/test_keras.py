"""Weights of Keras 3, against its layers on JAX. (Masks and more: tests/conformance/test_keras.py.)"""

import os

import conversions
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmx
from lstmx.cells.conv_lstm import ConvLSTM
from lstmx.convert.keras import from_weights, to_config, to_weights

os.environ["KERAS_BACKEND"] = "jax"
pytestmark = pytest.mark.conformance
keras = pytest.importorskip("keras", reason="Keras is the oracle")
if keras.backend.backend() != "jax":
    pytest.skip("Keras was imported with another backend than JAX", allow_module_level=True)

DOUBLE = {"dtype": "float64"}
ALL = {"return_sequences": True, "return_state": True, **DOUBLE}
# Not with tanh: that of Keras on JAX is one of float32.
LAYERS = {
    "LSTM": lambda: keras.layers.LSTM(4, "softsign", **ALL),
    "LSTM-variant": lambda: keras.layers.LSTM(4, "silu", "hard_sigmoid", use_bias=False, **ALL),
    "GRU": lambda: keras.layers.GRU(4, "softsign", **ALL),
    "GRU-variant": lambda: keras.layers.GRU(4, "elu", "softplus", use_bias=False, **ALL),
    "GRU-before": lambda: keras.layers.GRU(4, "softsign", reset_after=False, **ALL),
    "GRU-before-without-bias": lambda: keras.layers.GRU(4, "relu", reset_after=False, use_bias=False, **ALL),
    "SimpleRNN": lambda: keras.layers.SimpleRNN(4, "leaky_relu", **ALL),
    "Bidirectional": lambda: keras.layers.Bidirectional(
        keras.layers.LSTM(4, "softsign", **ALL), merge_mode="mul", **DOUBLE
    ),
    "RNN": lambda: keras.layers.RNN(
        keras.layers.StackedRNNCells(
            [
                keras.layers.GRUCell(3, "softsign", **DOUBLE),
                keras.layers.LSTMCell(2, "silu", use_bias=False, **DOUBLE),
                keras.layers.SimpleRNNCell(4, "linear", **DOUBLE),
            ],
            **DOUBLE,
        ),
        **ALL,
    ),
    "ConvLSTM1D": lambda: keras.layers.ConvLSTM1D(4, 2, strides=2, activation="silu", **ALL),
    "ConvLSTM2D": lambda: keras.layers.ConvLSTM2D(
        2, (2, 3), padding="same", dilation_rate=2, activation="softsign", use_bias=False, **ALL
    ),
    "ConvLSTM2D-both": lambda: keras.layers.Bidirectional(
        keras.layers.ConvLSTM2D(2, 3, padding="same", activation="softsign", **ALL), **DOUBLE
    ),
    "ConvLSTM3D": lambda: keras.layers.ConvLSTM3D(
        2, (2, 1, 3), activation="relu", recurrent_activation="hard_sigmoid", **ALL
    ),
}


SPATIAL = {"ConvLSTM1D": (5,), "ConvLSTM2D": (4, 5), "ConvLSTM2D-both": (3, 4), "ConvLSTM3D": (3, 2, 4)}


def built(name):
    """A layer and random weights for it."""
    layer = LAYERS[name]()
    layer.build((2, 4, *SPATIAL.get(name, ()), 3))
    return layer, conversions.random_like([np.zeros(w.shape) for w in layer.weights])


def convert(name, layer, weights):
    return from_weights(type(layer), weights, layer.get_config(), spatial_shape=SPATIAL.get(name))


def listed(state):
    """Our state as Keras lists it, h before c."""
    if isinstance(state, lstmx.LSTMState):
        return [state.h, state.c]
    return [leaf for part in state for leaf in listed(part)] if isinstance(state, tuple) else [state]


def as_ours(states, like):
    """States as Keras lists them in the form of ours."""
    rest = iter(jax.tree.leaves(states))

    def build(state):
        if isinstance(state, lstmx.LSTMState):
            h, c = next(rest), next(rest)
            return lstmx.LSTMState(c, h)
        if isinstance(state, tuple):
            return [build(part) for part in state]
        return next(rest)

    return build(like)


# The rest is in tests/cells/test_conv_lstm.py.
@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"ConvLSTM2D-both", "ConvLSTM3D"}))
@pytest.mark.usefixtures("double")
def test_values_and_gradients(name):
    layer, weights = built(name)
    others = [variable.value for variable in layer.non_trainable_variables]

    def run(weights, xs, state):
        xs, given = xs.swapaxes(0, 1), listed(state)
        if name == "RNN":  # a list for each cell
            given = [listed(part) for part in state]
        (ys, *states), _ = layer.stateless_call(weights, others, xs, initial_state=given)
        return as_ours(states, state), ys.swapaxes(0, 1)

    features = (*SPATIAL.get(name, ()), 3)
    conversions.assert_equal_functions(lambda weights: convert(name, layer, weights), run, weights, features)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("double")
def test_import_and_export(name):
    layer, weights = built(name)
    net, params = convert(name, layer, weights)
    conversions.assert_same_bits(to_weights(net, params), weights)
    again, described = keras.layers.deserialize(to_config(net)), to_config(net)
    assert type(again) is type(layer)
    again.build((2, 4, *SPATIAL.get(name, ()), 3))
    again.set_weights(to_weights(net, params))
    # What get_weights does, which NumPy deprecates.
    conversions.assert_same_bits([weight.value for weight in again.weights], weights)
    for config in (again.get_config(), described["config"]):
        found = from_weights(described["class_name"], weights, config, spatial_shape=SPATIAL.get(name))
        assert found[0] == net
        conversions.assert_same_bits(found[1], params)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "softplus", "linear", "elu", "leaky_relu"])
def test_activations_are_those_of_keras(activation):
    cell, _ = from_weights(
        "SimpleRNN", [np.eye(1), np.zeros((1, 1)), np.zeros(1)], {"activation": activation}
    )
    xs = jnp.linspace(-3, 3, 7)[:, None]
    _, ys = lstmx.scan(
        cell, lstmx.Params({"kernel": jnp.eye(1), "bias": jnp.zeros(1)}, {"kernel": jnp.zeros((1, 1))}), xs
    )
    np.testing.assert_allclose(ys, getattr(keras.activations, activation)(xs), rtol=1e-6)


def weights_of(*shapes):
    return [np.ones(shape, np.float32) for shape in shapes]


LSTM = weights_of((3, 16), (4, 16), (16,))
LSTM_LAYER = {"class_name": "LSTM", "config": {"units": 4}}


def test_defaults_are_those_of_keras():
    assert from_weights("LSTM", LSTM)[0] == from_weights("LSTMCell", LSTM)[0] == lstmx.LSTM(4)
    gru = weights_of((3, 12), (4, 12), (2, 12))
    assert from_weights(keras.layers.GRU, gru)[0] == lstmx.GRU(4)
    simple = weights_of((3, 4), (4, 4), (4,))
    assert from_weights("SimpleRNN", simple, {"activation": None})[0] == lstmx.Elman(4, "identity")
    both, params = from_weights("Bidirectional", LSTM * 2, {"layer": LSTM_LAYER})
    assert both == lstmx.Bidirectional(lstmx.LSTM(4))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, conversions.random_params(both))


@pytest.mark.parametrize(
    ("mode", "merge"),
    [("concat", "concat"), ("sum", "sum"), ("mul", "mul"), ("ave", "average"), (None, None)],
)
def test_merge_modes(mode, merge):
    net, _ = from_weights("Bidirectional", LSTM * 2, {"layer": LSTM_LAYER, "merge_mode": mode})
    assert net.merge == merge
    assert to_config(net)["config"]["merge_mode"] == mode


WRONG = {
    "missing": ("LSTM", LSTM[:2], {}, r"LSTM must have 3 weights, got 2 of shapes \(3, 16\), \(4, 16\)"),
    "extra": ("LSTM", LSTM, {"use_bias": False}, r"LSTM must have 2 weights, got 3 of shapes .*\(16,\)"),
    "kernel": (
        "LSTM",
        weights_of((3, 12), (4, 16), (16,)),
        {},
        r"kernel of LSTM must have shape \(3, 16\), got",
    ),
    "recurrent": (
        "LSTM",
        LSTM,
        {"units": 5},
        r"kernel of LSTM must have shape \(3, 20\), got \(3, 16\)",
    ),
    "bias": (
        "GRU",
        weights_of((3, 12), (4, 12), (12,)),
        {},
        r"bias of GRU must have shape \(2, 12\), got \(12,\)",
    ),
    "axes": (
        "LSTM",
        weights_of((16,), (4, 16), (16,)),
        {},
        r"kernel of LSTM must have shape \[D, gates\*H\]",
    ),
    "backward": (
        "Bidirectional",
        [*LSTM, *weights_of((3, 16), (4, 12), (16,))],
        {"layer": LSTM_LAYER},
        r"recurrent_kernel of the backward layer of Bidirectional must have shape \(4, 16\), got \(4, 12\)",
    ),
    "cell": (
        "RNN",
        [*LSTM, *weights_of((4, 16), (4, 16), (15,))],
        {"cell": {"class_name": "StackedRNNCells", "config": {"cells": [LSTM_LAYER] * 2}}},
        r"bias of cell 1 of RNN must have shape \(16,\), got \(15,\)",
    ),
    "activation": ("LSTM", LSTM, {"activation": "selu"}, r"activation of LSTM must be one of .*, got 'selu'"),
    "gates": ("LSTM", LSTM, {"recurrent_activation": "gelu"}, r"recurrent_activation of LSTM must be one of"),
    "backwards": (
        "LSTM",
        LSTM,
        {"go_backwards": True},
        r"LSTM has go_backwards=True; .*scan with reverse=True",
    ),
    "both backwards": (
        "Bidirectional",
        LSTM * 2,
        {"layer": LSTM_LAYER, "backward_layer": LSTM_LAYER},
        r"the backward layer of Bidirectional has go_backwards=False",
    ),
    "grid": ("ConvLSTM2D", weights_of((2, 2, 3, 16), (2, 2, 4, 16), (16,)), {}, r"2 sizes .* got None"),
    "channels": (
        "ConvLSTM1D",
        weights_of((2, 3, 16), (2, 4, 16), (16,)),
        {"data_format": "channels_first"},
        r"data_format of ConvLSTM1D must be channels_last, got 'channels_first'",
    ),
    "convolution": (
        "ConvLSTM1D",
        weights_of((2, 3, 16), (3, 4, 16), (16,)),
        {"filters": 4, "kernel_size": [2]},
        r"recurrent_kernel of ConvLSTM1D must have shape \(2, 4, 16\), got \(3, 4, 16\)",
    ),
    "merge": (
        "Bidirectional",
        LSTM * 2,
        {"layer": LSTM_LAYER, "merge_mode": "max"},
        r"merge_mode must .*'max'",
    ),
    "kind": ("Dense", LSTM, {}, r"a recurrent layer of Keras must be one of Bidirectional,.*, got 'Dense'"),
    "stack": (
        "Bidirectional",
        LSTM * 2,
        {
            "layer": {
                "class_name": "RNN",
                "config": {"cell": {"class_name": "StackedRNNCells", "config": {"cells": [LSTM_LAYER]}}},
            }
        },
        r"Bidirectional must be of layers of one cell each, got Stack",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_weights_and_configs(name):
    kind, weights, config, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        from_weights(kind, weights, config, spatial_shape=(5,) if kind == "ConvLSTM1D" else None)


def test_a_layer_as_an_activation_is_refused():
    layer = keras.layers.LSTM(4, activation=keras.layers.LeakyReLU())
    with pytest.raises(ValueError, match=r"activation of LSTM must be one of .* got \{.*'LeakyReLU'"):
        from_weights("LSTM", LSTM, layer.get_config())


CELL = lstmx.LSTM(4)
INEXPRESSIBLE = {
    "peephole": (lstmx.LSTM(4, peephole=True), "Keras cannot express peephole=True of LSTM"),
    "projection": (lstmx.LSTM(4, projection_size=2), "Keras cannot express projection_size=2 of LSTM"),
    "gates": (
        lstmx.GRU(4, gate_activation=("hard_sigmoid", 0.2, 0.5)),
        r"Keras cannot express gate_activation=\('hard_sigmoid', 0.2, 0.5\) of GRU",
    ),
    "slope": (
        lstmx.Elman(4, ("leaky_relu", 0.1)),
        r"cannot express activation=\('leaky_relu', 0.1\) of Elman",
    ),
    "activations": (
        lstmx.LSTM(4, output_activation="identity"),
        "Keras has one activation for both candidate_activation='tanh' and output_activation='identity'",
    ),
    "convolution": (ConvLSTM(4, (5,), peephole=True), "Keras cannot express peephole=True of ConvLSTM"),
    "connections": (lstmx.Stack((CELL, CELL), connections="dense"), "cannot express connections='dense'"),
    "dropout": (lstmx.Stack((CELL, CELL), dropout_rate=0.5), "cannot express dropout_rate=0.5 of Stack"),
    "layers": (lstmx.Stack((lstmx.Bidirectional(CELL),)), "convert its layers one by one"),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_keras_cannot_express(name):
    net, message = INEXPRESSIBLE[name]
    with pytest.raises(ValueError, match=message):
        to_weights(net, ())
    with pytest.raises(ValueError, match=message):
        to_config(net)


def test_cells_and_params_that_do_not_fit():
    params = conversions.random_params(CELL)
    with pytest.raises(ValueError, match=r"input.bias must have shape \(20,\), got \(16,\)"):
        to_weights(lstmx.LSTM(5), params)
    both = lstmx.Bidirectional(lstmx.Stack((CELL,)))
    with pytest.raises(TypeError, match="Keras can express ConvLSTM, Elman, GRU, LSTM, not Stack"):
        to_config(both)
