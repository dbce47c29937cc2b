"""The cells against the numbers in the tests of TFLite, TensorFlow 1 (core and contrib) and TF Addons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import tflite_goldens, tflite_projection

import lstmx
from lstmx import LSTMState

both_implementations = pytest.mark.parametrize("implementation", ["reference", "fused"])
TFLITE = {
    "plain": tflite_goldens.PLAIN,
    "coupled, peephole": tflite_goldens.COUPLED_PEEPHOLE,
    "coupled, peephole, projection, layer norm": tflite_goldens.COUPLED_LAYER_NORM,
    "peephole, projection, layer norm": tflite_goldens.LAYER_NORM,
    "peephole, projection": {k.lower(): v for k, v in vars(tflite_projection).items() if k.isupper()},
}


def tflite_cell(tensors, **options):
    """Cell and parameters of the tensors of a TFLite LSTM, which has those alone that it needs."""
    gates = [gate for gate in ("input", "forget", "cell", "output") if f"input_to_{gate}" in tensors]
    units = len(tensors["cell_bias"])

    def joined(name):
        """The tensors of all gates side by side, transposed if they are kernels."""
        parts = [tensors[name(gate)].reshape(units, -1).T for gate in gates]
        return jnp.concatenate(parts, axis=-1)

    bias = {"bias": joined(lambda gate: "cell_bias" if gate == "cell" else f"{gate}_gate_bias")[0]}
    input_params = {"kernel": joined(lambda gate: f"input_to_{gate}")}
    update = {}
    options["input_gate"] = "full" if "input" in gates else "coupled"
    if "cell_to_output" in tensors:
        options["peephole"] = True
        update["peephole"] = {g[0]: tensors[f"cell_to_{g}"] for g in gates if g != "cell"}
    if "projection" in tensors:
        update["projection"] = tensors["projection"].reshape(-1, units).T
        options["projection_size"] = update["projection"].shape[1]
    if "output_layer_norm" in tensors:
        options |= {"layer_norm": "per_gate", "layer_norm_epsilon": 1e-8}
        update |= {"scale": joined(lambda gate: f"{gate}_layer_norm")[0], **bias}
    else:
        input_params |= bias
    recurrent = {"kernel": joined(lambda gate: f"recurrent_to_{gate}")}
    return lstmx.LSTM(units, **options), lstmx.Params(input_params, recurrent, update or ())


def tflite_arrays(case):
    tensors = {name: np.array(text.split(), np.float32) for name, text in case.items()}
    rows = 2 if "projection" in tensors else 1
    features = tensors["input_to_cell"].size // tensors["cell_bias"].size
    xs = tensors.pop("xs").reshape(rows, -1, features)
    return tensors, np.moveaxis(xs, 1, 0), np.moveaxis(tensors.pop("ys").reshape(rows, xs.shape[1], -1), 1, 0)


@pytest.mark.parametrize("name", TFLITE)
@both_implementations
def test_tflite(name, implementation):
    tensors, xs, expected = tflite_arrays(TFLITE[name])
    cell, params = tflite_cell(tensors)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh(cell, xs.shape[-1]))
    _, ys = lstmx.scan(cell, params, xs, implementation=implementation)
    np.testing.assert_allclose(ys, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("coupled", "peephole", "layer_norm"), tflite_goldens.CLIPPED)
@both_implementations
def test_tflite_clipping(coupled, peephole, layer_norm, implementation):
    tensors, xs, _ = tflite_arrays(tflite_goldens.LAYER_NORM)
    kinds = {"input_to_input": not coupled, "cell_to_": peephole, "_layer_norm": layer_norm}
    absent = [name for name in tensors for kind, present in kinds.items() if kind in name and not present]
    tensors = {name: value for name, value in tensors.items() if name not in absent}
    cell, params = tflite_cell(tensors, cell_clip=0.25, projection_clip=0.05)
    _, ys = lstmx.scan(cell, params, xs, implementation=implementation)
    expected = np.array(tflite_goldens.CLIPPED[coupled, peephole, layer_norm].split(), np.float32)
    np.testing.assert_allclose(ys, np.moveaxis(expected.reshape(2, 3, 3), 1, 0), rtol=0, atol=1e-6)


def fresh(cell, features):
    """The shapes of the parameters that `init` makes."""
    return jax.eval_shape(lambda: cell.init(jax.random.key(0), features))


def constant(cell, features, value, **biases):
    """Parameters of a cell, all `value` but the biases that are named by their gates."""
    shapes = fresh(cell, features)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), shapes)
    if biases:
        each = [np.full(cell.hidden_size, bias, cell.param_dtype) for bias in biases.values()]
        params.input["bias"] = np.concatenate(each)
    return params


# The states in which the contrib cells' tests start, one of two layers each.
STATES = (
    LSTMState(c=np.array([[0.0, 0.1]]), h=np.array([[0.2, 0.3]])),
    LSTMState(c=np.array([[0.4, 0.5]]), h=np.array([[0.6, 0.7]])),
)


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


# TensorFlow adds its forget_bias of 1 at run time: here it is part of the bias.
PLAIN_BIASES = {"i": 0, "f": 1, "g": 0, "o": 0}
COUPLED_BIASES = {"f": 1, "g": 0, "o": 0}


def test_tensorflow_lstm():
    cell = lstmx.LSTM(2)
    params = (constant(cell, 2, 0.5, **PLAIN_BIASES),) * 2
    tenths = LSTMState(np.full((1, 2), 0.1), np.full((1, 2), 0.1))
    state, y = lstmx.step(lstmx.Stack((cell, cell)), params, (tenths, tenths), np.ones((1, 2)))
    expected = [0.68967271, 0.44848421, 0.39897051, 0.24024698]
    np.testing.assert_allclose(leaves(state), [[[value] * 2] for value in expected], rtol=1e-6)
    np.testing.assert_allclose(y, [[0.24024698] * 2], rtol=1e-6)


@both_implementations
def test_tensorflow_lstm_over_time(implementation):
    cell = lstmx.LSTM(3)
    xs = np.ones((2, 1, 3), np.float32) * np.array([2, 1], np.float32)[:, None, None]
    state = LSTMState(np.full((1, 3), 0.1), np.full((1, 3), 0.1))
    params = constant(cell, 3, 0.5, **PLAIN_BIASES)
    final, ys = lstmx.scan(cell, params, xs, state, implementation=implementation)
    np.testing.assert_allclose(ys[:, 0], [[0.751109] * 3, [0.895509] * 3], rtol=1e-6)
    np.testing.assert_allclose(final.c, [[1.949385] * 3], rtol=1e-6)


def test_tensorflow_lstm_with_constant_biases():
    cell, biases = lstmx.LSTM(2), {"i": 0.5, "f": 1.5, "g": 0.5, "o": 0.5}
    state, _ = lstmx.step(cell, constant(cell, 3, 0.5, **biases), STATES[0], np.ones((1, 3)))
    np.testing.assert_allclose(
        leaves(state), [[[0.88477188, 0.98103917]], [[0.64121795, 0.68166804]]], rtol=2e-6
    )
    params = (constant(cell, 2, 0.5, **biases),) * 2
    states, y = lstmx.step(lstmx.Stack((cell, cell)), params, STATES, np.ones((1, 2)))
    np.testing.assert_allclose(states[0], [[[0.8020075, 0.89599884]], [[0.56668288, 0.60858738]]], rtol=2e-6)
    np.testing.assert_allclose(states[1], [[[1.17500675, 1.26892781]], [[0.70230919, 0.72581059]]], rtol=2e-6)
    np.testing.assert_allclose(y, states[1].h)


def test_tensorflow_coupled_gates():
    cell = lstmx.LSTM(2, input_gate="coupled")
    params = constant(cell, 4, 0.5, **COUPLED_BIASES)
    tenths = LSTMState(np.full((3, 2), 0.1), np.full((3, 2), 0.1))
    state, y = lstmx.step(cell, params, tenths, np.ones((3, 4)) * [[1], [2], [3]])
    np.testing.assert_allclose(y, [[0.121753] * 2, [0.103349] * 2, [0.100178] * 2], atol=1e-6)
    np.testing.assert_allclose(state.c, [[0.137523] * 2, [0.105450] * 2, [0.100742] * 2], atol=1e-6)


@pytest.mark.parametrize(
    ("peephole", "c", "h"),
    [
        (False, [0.65937078, 0.74983585], [0.44923624, 0.49362513]),
        (True, [0.65937084, 0.7574988], [0.4792085, 0.53470564]),
    ],
)
def test_tensorflow_peepholes(peephole, c, h):
    cell = lstmx.LSTM(2, peephole=peephole)
    state, _ = lstmx.step(cell, constant(cell, 2, 0.5, **PLAIN_BIASES), STATES[0], np.ones((1, 2)))
    np.testing.assert_allclose(state, [[c], [h]], rtol=2e-6)


def test_addons_peepholes():
    cell = lstmx.LSTM(5, peephole=True)
    params = constant(cell, 4, 1.0, **PLAIN_BIASES)
    _, y = lstmx.step(cell, params, cell.initial_state((4,)), np.eye(5, 4)[1:])
    # The last row's input is zero.
    np.testing.assert_allclose(y, [[0.417551] * 5] * 3 + [[0.0] * 5], atol=1e-6)


def layer_norm_of_addons(features):
    """The cell of TF Addons, whose norms have shifts beside its bias: here `input.bias` is their sum."""
    # So small an epsilon turns the rounding of constant vectors in single precision into noise.
    cell = lstmx.LSTM(2, layer_norm="fastrnns", layer_norm_epsilon=1e-12, param_dtype="float64")
    params = constant(cell, features, 0.5, i=0.5, f=1.0, g=0.5, o=0.5)
    scales = {"recurrent_scale": np.ones(8), "cell_scale": np.ones(2)}
    shifts = {"recurrent_bias": np.zeros(8), "cell_bias": np.zeros(2)}
    assert params.update.keys() == (scales | shifts).keys()
    return cell, params._replace(input=params.input | {"scale": np.ones(8)}, update=scales | shifts)


@pytest.mark.usefixtures("double")
def test_addons_layer_norm():
    cell, params = layer_norm_of_addons(3)
    state, _ = lstmx.step(cell, params, STATES[0], np.ones((1, 3)))
    expected = [[[-1.0, 1.0]], [[-0.47406167, 0.47406143]]]
    np.testing.assert_allclose(state, expected, rtol=1e-5)
    cell, params = layer_norm_of_addons(2)
    states, _ = lstmx.step(lstmx.Stack((cell, cell)), (params, params), STATES, np.ones((1, 2)))
    np.testing.assert_allclose(states, [expected, expected], rtol=1e-5)


def gru_of_tensorflow(features):
    """TensorFlow's GRU with all kernels 0.5: its reset gate comes first, the biases of its gates are 1."""
    cell = lstmx.GRU(2, reset_after=False)
    return cell, constant(cell, features, 0.5, reset=1, update=1, n=0)


@pytest.mark.parametrize(("features", "expected"), [(2, 0.175991), (3, 0.156736)])
def test_tensorflow_gru(features, expected):
    cell, params = gru_of_tensorflow(features)
    _, y = lstmx.step(cell, params, np.full((1, 2), 0.1), np.ones((1, features)))
    np.testing.assert_allclose(y, [[expected] * 2], atol=1e-6)


def test_tensorflow_stacked_gru():
    cell, params = gru_of_tensorflow(2)
    states = (np.full((1, 2), 0.1), np.full((1, 2), 0.1))
    states, _ = lstmx.step(lstmx.Stack((cell, cell)), (params, params), states, np.ones((1, 2)))
    np.testing.assert_allclose(states, [[[0.175991] * 2], [[0.13248] * 2]], atol=1e-6)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_tensorflow_conv_lstm(dimensions):
    # Every point of this grid sees the whole grid.
    shape = (2,) * dimensions
    cell = lstmx.ConvLSTM(1, spatial_shape=shape)
    params = constant(cell, 1, 0.5**dimensions, **PLAIN_BIASES)
    xs = np.stack([np.full((*shape, 1), value) for value in (1.0, 2.0)])
    state, y = lstmx.step(cell, params, LSTMState(xs, np.zeros_like(xs)), xs)
    np.testing.assert_allclose(state.c, np.where(xs == 1, 1.4375670191, 2.7542609292), rtol=1e-6)
    np.testing.assert_allclose(y, np.where(xs == 1, 0.6529865603, 0.8736877431), rtol=1e-6)
