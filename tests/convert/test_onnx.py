"""ONNX's nodes against ONNX's equations in float64, and round trips."""

import importlib.util
import sys

import conversions
import jax
import jax.numpy as jnp
import numpy as np
import onnx_nodes
import oracles
import pytest
from numpy_lstm import sigmoid
from onnx_nodes import LENGTHS, B, D, H, T, random_node

import lstmx
from lstmx.convert import onnx as convert


def random_input(seed=1):
    return np.random.default_rng(seed).normal(size=(T, B, D))


def by_the_book(node, X):
    """`Y [T, directions, B, H]`, `Y_h` and `Y_c` `[directions, B, H]` of ONNX's equations, step by step."""
    op_type, attributes, tensors = node
    directions = len(tensors["W"])
    Y, Y_h, Y_c = np.zeros((T, directions, B, H)), np.zeros((directions, B, H)), np.zeros((directions, B, H))
    lengths = tensors.get("sequence_lens", np.full(B, T))
    for k in range(directions):
        parts = {name: tensor[k] for name, tensor in tensors.items() if name in "WRBP"}
        for b in range(B):
            h, c = (
                tensors[name][k, b] if name in tensors else np.zeros(H) for name in ("initial_h", "initial_c")
            )
            times = range(lengths[b])
            for t in reversed(times) if k or attributes.get("direction") == "reverse" else times:
                h, c = STEPS[op_type](attributes, parts, X[t, b], h, c)
                Y[t, k, b] = h
            Y_h[k, b], Y_c[k, b] = h, c
    return Y, Y_h, Y_c


def maps(tensors, x, h, count):
    """x W + Wb and h R + Rb, of each gate."""
    Wb, Rb = np.split(tensors.get("B", np.zeros(2 * count * H)), 2)
    return np.split(tensors["W"] @ x + Wb, count), np.split(tensors["R"] @ h + Rb, count)


def lstm_step(attributes, tensors, x, h, c):
    clip = attributes.get("clip", np.inf)
    i, o, f, g = (z + r for z, r in zip(*maps(tensors, x, h, 4), strict=True))
    p_i, p_o, p_f = np.split(tensors.get("P", np.zeros(3 * H)), 3)
    i = sigmoid(np.clip(i + p_i * c, -clip, clip))
    f = 1 - i if attributes.get("input_forget") else sigmoid(np.clip(f + p_f * c, -clip, clip))
    c = f * c + i * np.tanh(np.clip(g, -clip, clip))
    return sigmoid(np.clip(o + p_o * c, -clip, clip)) * np.tanh(c), c


def gru_step(attributes, tensors, x, h, c):
    clip = attributes.get("clip", np.inf)
    (z_z, z_r, z_h), (r_z, r_r, r_h) = maps(tensors, x, h, 3)
    z, r = (sigmoid(np.clip(a, -clip, clip)) for a in (z_z + r_z, z_r + r_r))
    if attributes.get("linear_before_reset"):
        candidate = z_h + r * r_h
    else:
        candidate = z_h + maps(tensors, x, r * h, 3)[1][2]
    return (1 - z) * np.tanh(np.clip(candidate, -clip, clip)) + z * h, c


def rnn_step(attributes, tensors, x, h, c):
    clip = attributes.get("clip", np.inf)
    (z,), (r,) = maps(tensors, x, h, 1)
    return np.tanh(np.clip(z + r, -clip, clip)), c


STEPS = {"LSTM": lstm_step, "GRU": gru_step, "RNN": rnn_step}


NODES = {
    "lstm": random_node("LSTM", without=("B", "P", "initial_h", "initial_c", "sequence_lens")),
    "lstm-all": random_node("LSTM", {"direction": "bidirectional", "clip": 0.7}),
    "lstm-coupled": random_node("LSTM", {"direction": "reverse", "input_forget": 1}),
    "lstm-coupled-both": random_node(
        "LSTM",
        {"direction": "bidirectional", "input_forget": 1, "clip": 0.7, "hidden_size": H},
        ("initial_h",),
    ),
    "gru": random_node("GRU", {"direction": "bidirectional", "clip": 0.7}),
    "gru-linear": random_node("GRU", {"direction": "reverse", "linear_before_reset": 1, "clip": 0.7}),
    "gru-without-bias": random_node("GRU", {"linear_before_reset": 1}, ("B",)),
    "rnn": random_node("RNN", {"direction": "bidirectional"}),
    "rnn-reverse": random_node("RNN", {"direction": "reverse", "clip": 0.7}, ("initial_h", "B")),
}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.usefixtures("double")
def test_equations(name):
    node, X = NODES[name], random_input()
    recurrent = convert.from_node(*node)
    outputs = onnx_nodes.run(recurrent, X)
    expected = by_the_book(node, X)
    assert (outputs.Y_c is None) == (node.op_type != "LSTM")
    found = outputs if outputs.Y_c is not None else outputs[:2]
    assert oracles.relative_error(found, expected[: len(found)]) <= 1e-12
    again = convert.from_node(*convert.to_node(*recurrent))
    assert again.network == recurrent.network
    conversions.assert_same_bits(again[1:], recurrent[1:])


@pytest.mark.parametrize("name", ["lstm-all", "gru-linear"])
@pytest.mark.usefixtures("double")
def test_layout(name):
    node, X = NODES[name], random_input()
    turned = {k: v.swapaxes(0, 1) if k.startswith("initial") else v for k, v in node.tensors.items()}
    node = node._replace(attributes={**node.attributes, "layout": 1}, tensors=turned)
    recurrent = convert.from_node(*node)
    outputs = onnx_nodes.run(recurrent, X.swapaxes(0, 1))
    expected = onnx_nodes.run(convert.from_node(*NODES[name]), X)
    np.testing.assert_array_equal(outputs.Y, np.transpose(expected.Y, (2, 0, 1, 3)))
    np.testing.assert_array_equal(outputs.Y_h, expected.Y_h.swapaxes(0, 1))
    exported = convert.to_node(*recurrent)
    assert exported.attributes["layout"] == 1
    for name in ("initial_h", "initial_c"):
        np.testing.assert_array_equal(exported.tensors.get(name), node.tensors.get(name))


HARD = ("hard_sigmoid", 0.3, 0.5)
NETWORKS = {
    "lstm": lstmx.LSTM(3),
    "lstm-without-bias": lstmx.LSTM(3, use_bias=False),
    "lstm-options": lstmx.LSTM(3, peephole=True, gate_clip=0.7, gate_activation="hard_sigmoid"),
    "lstm-coupled": lstmx.LSTM(3, input_gate="coupled", peephole=True, gate_activation=HARD),
    "lstm-activations": lstmx.LSTM(
        3,
        gate_activation=("affine", 0.2, 0.5),
        candidate_activation=("leaky_relu", 0.3),
        output_activation="identity",
    ),
    "lstm-both": lstmx.Bidirectional(lstmx.LSTM(3, peephole=True)),
    "lstm-two": lstmx.Bidirectional(
        lstmx.LSTM(3, candidate_activation=("elu", 0.5)), lstmx.LSTM(3, gate_activation=HARD)
    ),
    "gru": lstmx.GRU(3),
    "gru-without-bias": lstmx.GRU(3, use_bias=False, gate_clip=2.0),
    "gru-reset-before": lstmx.GRU(
        3, reset_after=False, gate_activation=HARD, candidate_activation="softsign"
    ),
    "gru-both": lstmx.Bidirectional(lstmx.GRU(3)),
    "elman": lstmx.Elman(3, "relu", gate_clip=1.0),
    "elman-scaled": lstmx.Elman(3, ("scaled_tanh", 1.7, 0.6), use_bias=False),
    "elman-both": lstmx.Bidirectional(lstmx.Elman(3), lstmx.Elman(3, ("thresholded_relu", 0.1))),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_there_and_back(name, dtype):
    def stored(cell):
        return type(cell)(**{**vars(cell), "param_dtype": dtype})

    network = NETWORKS[name]
    if isinstance(network, lstmx.Bidirectional):
        forward, backward = map(stored, network.cells)
        network = lstmx.Bidirectional(forward, None if forward == backward else backward)
    else:
        network = stored(network)
    params = conversions.random_params(network, dtype=dtype)
    # Minus zero is another zero.
    params = jax.tree.map(lambda leaf: leaf.at[..., :2].set(jnp.array([-0.0, 0.0], dtype)), params)
    recurrent = convert.from_node(*convert.to_node(network, params))
    assert recurrent.network == network
    conversions.assert_same_bits(recurrent.params, params)
    assert recurrent[2:] == (False, 0, None, None)


def test_there_and_back_in_full():
    network = lstmx.Bidirectional(lstmx.LSTM(H))
    params = conversions.random_params(network)
    state = conversions.random_like(network.initial_state((B,)))
    given = convert.Recurrent(network, params, False, 1, state, jnp.asarray(LENGTHS))
    found = convert.from_node(*convert.to_node(*given))
    assert found.network == network
    conversions.assert_same_bits(found[1:], given[1:])


def test_biases_are_summed():
    node = random_node("LSTM", dtype=np.float32)
    bias = node.tensors["B"]
    exported = convert.to_node(*convert.from_node(*node))
    half = 4 * H
    np.testing.assert_array_equal(exported.tensors["B"][:, :half], bias[:, :half] + bias[:, half:])
    np.testing.assert_array_equal(exported.tensors["B"][:, half:], 0)
    for name in ("W", "R", "P", "initial_h", "initial_c"):
        np.testing.assert_array_equal(exported.tensors[name], node.tensors[name])


def test_both_biases_of_a_linear_gru_are_kept():
    node = random_node("GRU", {"linear_before_reset": 1, "hidden_size": H}, dtype=np.float32)
    exported = convert.to_node(*convert.from_node(*node))
    assert exported.attributes == node.attributes
    conversions.assert_same_bits(exported.tensors, node.tensors)


def test_coupled_gates_are_both_written():
    node = random_node("LSTM", {"input_forget": 1}, dtype=np.float32)
    exported = convert.to_node(*convert.from_node(*node))
    assert exported.attributes == {"hidden_size": H, "input_forget": 1}
    i, _, f, _ = np.split(exported.tensors["R"][0], 4)
    np.testing.assert_array_equal(i, np.split(node.tensors["R"][0], 4)[0])
    np.testing.assert_array_equal(f, -i)
    i, _, f = np.split(exported.tensors["P"][0], 3)
    np.testing.assert_array_equal(f, -i)


@pytest.mark.parametrize(
    "cell",
    [
        lstmx.LSTM(4, num_heads=2, peephole=True),
        lstmx.GRU(4, reset_after=False, num_heads=2),
        lstmx.Elman(4, num_heads=2),
    ],
    ids=lambda cell: type(cell).__name__,
)
@pytest.mark.usefixtures("double")
def test_heads_become_dense(cell):
    params = conversions.random_params(cell, features=D, dtype=np.float64)
    recurrent = convert.from_node(*convert.to_node(cell, params))
    assert recurrent.network.num_heads == 1
    X = random_input()
    _, ys = lstmx.scan(cell, params, X)
    assert oracles.relative_error(onnx_nodes.run(recurrent, X).Y[:, 0], ys) <= 1e-12


def test_stack_there_and_back():
    layers = lstmx.Bidirectional(lstmx.LSTM(2)), lstmx.GRU(4, reset_after=False), lstmx.Elman(3)
    network = lstmx.Stack(layers)
    params = conversions.random_params(network)
    state = (None, *conversions.random_like(network.initial_state((B,)))[1:])
    nodes = convert.to_nodes(network, params, initial_state=state, lengths=LENGTHS)
    assert [node.op_type for node in nodes] == ["LSTM", "GRU", "RNN"]
    found = convert.from_nodes(nodes)
    assert found.network == network
    conversions.assert_same_bits(found[1:], (params, False, 0, state, jnp.asarray(LENGTHS)))


def test_empty_rows_end_in_their_initial_state():
    node = random_node("LSTM", dtype=np.float32)
    outputs = onnx_nodes.run(convert.from_node(*node), random_input().astype(np.float32))
    np.testing.assert_array_equal(outputs.Y_h[:, 1], node.tensors["initial_h"][:, 1])
    np.testing.assert_array_equal(outputs.Y_c[:, 1], node.tensors["initial_c"][:, 1])
    assert not np.any(outputs.Y[:, :, 1])


FUNCTIONS = [
    ("Relu", "relu"),
    ("Tanh", "tanh"),
    ("Sigmoid", "sigmoid"),
    ("Softsign", "softsign"),
    ("Softplus", "softplus"),
    ("Affine", ("affine", 2.0, 0.25)),
    ("LeakyRelu", ("leaky_relu", 0.1)),
    ("ThresholdedRelu", ("thresholded_relu", 0.5)),
    ("ScaledTanh", ("scaled_tanh", 2.0, 0.25)),
    ("HardSigmoid", ("hard_sigmoid", 0.1, 0.25)),
    ("Elu", ("elu", 0.5)),
]


@pytest.mark.parametrize(("theirs", "ours"), FUNCTIONS)
def test_functions(theirs, ours):
    _, *numbers = ours if isinstance(ours, tuple) else (ours,)
    attributes = {"activations": [theirs.encode()], "hidden_size": H, "direction": b"reverse"}
    for name, number in zip(("activation_alpha", "activation_beta"), numbers, strict=False):
        attributes[name] = [number]
    recurrent = convert.from_node(*random_node("RNN", attributes))
    assert (recurrent.network.activation, recurrent.reverse) == (ours, True)
    expected = {**attributes, "activations": [theirs], "direction": "reverse"}
    if theirs == "Tanh":
        del expected["activations"]
    assert convert.to_node(*recurrent).attributes == expected


def test_numbers_of_functions():
    # Each function takes the next number of those that are given; what is left has ONNX's defaults.
    attributes = {
        "direction": "bidirectional",
        "activations": ["hardsigmoid", "Tanh", "LeakyRelu", "Sigmoid", "ThresholdedRelu", "Elu"],
        "activation_alpha": [0.3, 0.2],
    }
    forward, backward = convert.from_node(*random_node("LSTM", attributes)).network.cells
    assert (forward.gate_activation, forward.output_activation) == (
        ("hard_sigmoid", 0.3, 0.5),
        ("leaky_relu", 0.2),
    )
    assert (backward.candidate_activation, backward.output_activation) == (
        ("thresholded_relu", 1.0),
        ("elu", 1.0),
    )
    attributes = {"activations": ["HardSigmoid", "LeakyRelu"]}
    cell = convert.from_node(*random_node("GRU", attributes)).network
    assert (cell.gate_activation, cell.candidate_activation) == (
        ("hard_sigmoid", 0.2, 0.5),
        ("leaky_relu", 0.01),
    )


def test_functions_without_numbers_of_ours():
    for ours, theirs, alpha in (("identity", "Affine", 1.0), ("hard_sigmoid", "HardSigmoid", 1 / 6)):
        cell = lstmx.Elman(3, ours)
        node = convert.to_node(cell, conversions.random_params(cell))
        assert (node.attributes["activations"], node.attributes["activation_alpha"]) == ([theirs], [alpha])
        assert convert.from_node(*node).network == cell
        # As a file has it.
        node.attributes["activation_alpha"] = [float(np.float32(alpha))]
        assert convert.from_node(*node).network == cell


def test_a_learnt_initial_state_is_written_when_it_is_given():
    cell = lstmx.GRU(3, learn_initial_state=True)
    params = conversions.random_params(cell)
    state = jnp.broadcast_to(params.initial, (2, 3))
    node = convert.to_node(cell, params, initial_state=state)
    np.testing.assert_array_equal(node.tensors["initial_h"], state[None])


def test_plain_nodes_do_without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in ("onnx.attributes", "onnx.tensors", "onnx.models", "onnx"):
        spec = importlib.util.find_spec(f"lstmx.convert.{name}")
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
    node = fresh.to_node(*fresh.from_node(*NODES["gru-linear"]))
    assert node.attributes["direction"] == "reverse"
    with pytest.raises(ModuleNotFoundError, match="onnx"):
        fresh.to_model([node])
