"""The cells and networks against the layers of Keras 3 on JAX, in float32: they know no other type there."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import lstmx
from lstmx.convert import keras as convert

os.environ["KERAS_BACKEND"] = "jax"
pytestmark = pytest.mark.conformance
keras = pytest.importorskip("keras", reason="Keras is the oracle of this test")
if keras.backend.backend() != "jax":
    pytest.skip("Keras was imported with another backend than JAX", allow_module_level=True)
STEPS, ROWS, FEATURES, UNITS = 6, 3, 5, 4
EVERYTHING = {"return_sequences": True, "return_state": True}

LAYERS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "gru, reset before": ("GRU", {"reset_after": False}),
    "elman": ("SimpleRNN", {}),
}
VARIANTS = {
    "lstm, no bias": ("LSTM", {"use_bias": False}),
    "lstm, hard gates": ("LSTM", {"recurrent_activation": "hard_sigmoid"}),
    "lstm, other activations": ("LSTM", {"activation": "softsign", "recurrent_activation": "relu"}),
    "lstm, linear": ("LSTM", {"activation": None}),
    "gru, no bias": ("GRU", {"use_bias": False}),
    "gru, reset before, no bias": ("GRU", {"reset_after": False, "use_bias": False}),
    "gru, hard gates": ("GRU", {"recurrent_activation": "hard_sigmoid", "activation": "elu"}),
    "elman, no bias": ("SimpleRNN", {"use_bias": False}),
    "elman, relu": ("SimpleRNN", {"activation": "relu"}),
    "elman, leaky": ("SimpleRNN", {"activation": "leaky_relu"}),
}
MASKS = {
    "padding behind": np.arange(STEPS) < np.array([[6], [1], [4]]),
    "padding in front": np.arange(STEPS) >= np.array([[0], [5], [2]]),
    "gaps": np.random.default_rng(1).random((ROWS, STEPS)) < 0.6,
    "an empty row": np.arange(STEPS) < np.array([[6], [0], [3]]),
}


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def weights_of(layer):
    return [np.asarray(weight.value) for weight in layer.weights]


def filled(layer):
    """The layer, its weights all random."""
    layer.build((ROWS, STEPS, FEATURES))
    for k, weight in enumerate(layer.weights):
        weight.assign(draw(*weight.shape, seed=k) / 2)
    return layer


def layer_of(name, **options):
    kind, more = (LAYERS | VARIANTS)[name]
    return filled(getattr(keras.layers, kind)(UNITS, **EVERYTHING, **more, **options))


def ours(layer):
    """The network of a Keras layer, and its parameters."""
    config = layer.get_config() | {"go_backwards": False}
    return convert.from_weights(type(layer), weights_of(layer), config)


def random_state(net):
    """A state of ours whose leaves are random."""
    leaves, structure = jax.tree.flatten(net.initial_state((ROWS,)))
    return jax.tree.unflatten(structure, [draw(*leaf.shape, seed=k) for k, leaf in enumerate(leaves)])


def flat(state):
    """The state of a cell, or of a network of cells, as Keras lists it: h before c, layer by layer."""
    if isinstance(state, lstmx.LSTMState):
        return [state.h, state.c]
    return [leaf for part in state for leaf in flat(part)] if isinstance(state, tuple) else [state]


def compiled(function):
    return jax.jit(function)


def scan_of(net, **options):
    """`lstmx.scan` on batch-major arrays: `(params, xs, state, mask, key)` to `[ys, *states]`, h before c."""

    def run(params, xs, state=None, mask=None, key=None):
        flags = {"mask": None if mask is None else mask.T, "key": key}
        final, ys = lstmx.scan(net, params, jnp.moveaxis(xs, 1, 0), state, **flags, **options)
        return [*jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1), jax.tree.leaves(ys)), *flat(final)]

    return run


def call_of(layer, *, backwards=False, **options):
    """The same of a Keras layer, `(xs, state, mask)`, the state in our form."""

    def run(xs, state=None, mask=None):
        state = None if state is None else flat(state)
        ys, *final = jax.tree.leaves(layer(xs, initial_state=state, mask=mask, **options))
        # Of a layer that goes backwards they are in the order in which they were made.
        return [ys[:, ::-1] if backwards else ys, *final]

    return run


def equal(results, expected):
    return oracles.relative_error(results, expected) <= 2e-6


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(name):
    layer, xs = layer_of(name), draw(ROWS, STEPS, FEATURES)
    net, params = ours(layer)
    state = random_state(net)
    assert equal(compiled(scan_of(net))(params, xs, state), compiled(call_of(layer))(xs, state))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("backwards", [False, True])
def test_masks_and_directions(name, backwards):
    layer = layer_of(name, zero_output_for_mask=True, go_backwards=backwards)
    net, params = ours(layer)
    xs, state = draw(ROWS, STEPS, FEATURES), random_state(net)
    run, expect = compiled(scan_of(net, reverse=backwards)), compiled(call_of(layer, backwards=backwards))
    for mask in (None, *MASKS.values()):
        assert equal(run(params, xs, state, mask), expect(xs, state, mask)), mask


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
def test_bidirectional(merge):
    layer = filled(keras.layers.Bidirectional(layer_of("gru, reset before"), merge_mode=merge))
    net, params = ours(layer)
    xs, state, mask = draw(ROWS, STEPS, FEATURES), random_state(net), MASKS["gaps"]
    assert equal(compiled(scan_of(net))(params, xs, state, mask), compiled(call_of(layer))(xs, state, mask))


def test_bidirectional_lstm():
    layer = filled(keras.layers.Bidirectional(layer_of("lstm")))
    net, params = ours(layer)
    xs, state = draw(ROWS, STEPS, FEATURES), random_state(net)
    run, expect = compiled(scan_of(net)), compiled(call_of(layer))
    for mask in (None, *MASKS.values()):
        assert equal(run(params, xs, state, mask), expect(xs, state, mask)), mask


def test_different_layers_in_both_directions():
    forward = keras.layers.LSTM(UNITS, **EVERYTHING)
    backward = keras.layers.GRU(3, **EVERYTHING, go_backwards=True)
    layer = filled(keras.layers.Bidirectional(forward, backward_layer=backward))
    net, params = ours(layer)
    xs, mask = draw(ROWS, STEPS, FEATURES), MASKS["padding behind"]
    assert equal(compiled(scan_of(net))(params, xs, None, mask), compiled(call_of(layer))(xs, None, mask))


@pytest.mark.parametrize("backwards", [False, True])
def test_stack(backwards):
    cells = [
        keras.layers.LSTMCell(UNITS),
        keras.layers.GRUCell(3, reset_after=False),
        keras.layers.SimpleRNNCell(2, activation="relu"),
    ]
    options = {**EVERYTHING, "zero_output_for_mask": True, "go_backwards": backwards}
    layer = filled(keras.layers.RNN(cells, **options))
    net, params = ours(layer)
    xs, mask = draw(ROWS, STEPS, FEATURES), MASKS["gaps"]
    expected = compiled(call_of(layer, backwards=backwards))(xs, None, mask)
    assert equal(compiled(scan_of(net, reverse=backwards))(params, xs, None, mask), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    layer = layer_of(name, zero_output_for_mask=True)
    net, params = ours(layer)
    xs, mask = draw(ROWS, STEPS, FEATURES), MASKS["gaps"]
    others = [variable.value for variable in layer.non_trainable_variables]

    def loss(results):
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(results))

    def theirs(weights, xs):
        return loss(layer.stateless_call(weights, others, xs, mask=mask)[0])

    def of_ours(params, xs):
        return loss(scan_of(net)(params, xs, None, mask))

    d_weights, d_xs = compiled(jax.grad(theirs, (0, 1)))(weights_of(layer), xs)
    d_params, d_ours = compiled(jax.grad(of_ours, (0, 1)))(params, xs)
    assert equal([*convert.to_weights(net, d_params), d_ours], [*d_weights, d_xs])


@pytest.mark.parametrize("name", LAYERS)
def test_fresh_biases_are_alike(name):
    kind, options = LAYERS[name]
    layer = getattr(keras.layers, kind)(UNITS, **options)
    layer.build((ROWS, STEPS, FEATURES))
    net, params = ours(layer)
    fresh = compiled(lambda: net.init(jax.random.key(0), FEATURES))()
    for part in ("input", "recurrent"):
        mine, theirs = getattr(fresh, part), getattr(params, part)
        assert mine.keys() == theirs.keys()
        if "bias" in theirs:
            np.testing.assert_array_equal(mine["bias"], theirs["bias"])


# Linear cells that show the mask of one gate: from an h of ones, with other gates that are 1 or 0.
LINEAR = {"gate_activation": "identity", "candidate_activation": "identity"}


def zeros(cell):
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def lstm_showing(gate):
    cell = lstmx.LSTM(UNITS, **LINEAR, output_activation="identity")
    params = zeros(cell)
    where = "ifgo".index(gate)
    # h = o (f c + i g)
    bias = {"i": [0, 0, 1, 1], "f": [0, 0, 0, 1], "g": [1, 0, 0, 1], "o": [1, 0, 1, 0]}[gate]
    params.input["bias"] = jnp.repeat(jnp.array(bias, jnp.float32), UNITS)
    params.recurrent["kernel"] = jnp.eye(UNITS, 4 * UNITS, where * UNITS)
    c = jnp.full((ROWS, UNITS), 1.0 if gate == "f" else 0.0)
    return cell, params, lstmx.LSTMState(c, jnp.ones((ROWS, UNITS)))


def gru_showing(gate):
    cell = lstmx.GRU(UNITS, **LINEAR)
    params = zeros(cell)
    where = ("reset", "update", "n").index(gate)
    # h' = (1 - update) (reset n) + update h
    bias = {"reset": [0, 0, 1], "update": [0, 0, 0], "n": [1, 0, 0]}[gate]
    params.recurrent["bias"] = jnp.repeat(jnp.array(bias, jnp.float32), UNITS)
    params.recurrent["kernel"] = jnp.eye(UNITS, 3 * UNITS, where * UNITS)
    return cell, params, jnp.ones((ROWS, UNITS))


def elman_showing(_):
    cell = lstmx.Elman(UNITS, "identity", use_bias=False)
    params = lstmx.Params({"kernel": jnp.zeros((FEATURES, UNITS))}, {"kernel": jnp.eye(UNITS)})
    return cell, params, jnp.ones((ROWS, UNITS))


# In the order in which Keras has the gates.
SHOWING = {
    "lstm": (lstm_showing, ("i", "f", "g", "o")),
    "gru": (gru_showing, ("update", "reset", "n")),
    "elman": (elman_showing, ("h",)),
}


@pytest.mark.parametrize("name", SHOWING)
def test_recurrent_dropout(name):
    showing, gates = SHOWING[name]
    options, key = {"recurrent_dropout": 0.5, "per_gate": len(gates) > 1}, jax.random.key(3)
    masks = []
    for gate in gates:
        cell, params, state = showing(gate)
        run = compiled(scan_of(lstmx.Regularized(cell, **options)))
        masks.append(run(params, jnp.zeros((ROWS, 1, FEATURES)), state, None, key)[0][:, 0])
    assert len({np.asarray(m).tobytes() for m in masks}) == len(gates)
    assert set(np.unique(masks)) == {0, 2}

    layer = layer_of(name, recurrent_dropout=0.5, zero_output_for_mask=True)
    net, params = ours(layer)
    xs, state, mask = draw(ROWS, STEPS, FEATURES), random_state(net), MASKS["gaps"]
    layer.cell._recurrent_dropout_mask = masks if len(masks) > 1 else masks[0]
    expected = compiled(call_of(layer, training=True))(xs, state, mask)
    run = compiled(scan_of(lstmx.Regularized(net, **options)))
    assert equal(run(params, xs, state, mask, key), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_input_dropout(name):
    key, options = jax.random.key(3), {"input_dropout": 0.5}
    shown = lstmx.Params({"kernel": jnp.eye(FEATURES)}, {"kernel": jnp.zeros((FEATURES, FEATURES))})
    cell = lstmx.Regularized(lstmx.Elman(FEATURES, "identity", use_bias=False), **options)
    locked = compiled(scan_of(cell))(shown, jnp.ones((ROWS, 1, FEATURES)), None, None, key)[0][:, 0]
    assert set(np.unique(locked)) == {0, 2}

    layer = layer_of(name, dropout=0.5)
    net, params = ours(layer)
    xs, state = draw(ROWS, STEPS, FEATURES), random_state(net)
    layer.cell._dropout_mask = locked
    expected = compiled(call_of(layer, training=True))(xs, state)
    assert equal(compiled(scan_of(lstmx.Regularized(net, **options)))(params, xs, state, None, key), expected)
