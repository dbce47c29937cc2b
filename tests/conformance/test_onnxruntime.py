"""onnxruntime as an oracle: random LSTM, GRU and RNN nodes, imported and exported again; stacks, exported."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx_nodes
import oracles
import pytest

import lstmx
from lstmx.convert import onnx as convert

pytestmark = pytest.mark.conformance
pytest.importorskip("onnx", reason="onnxruntime reads its models")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle of this test")

T, B, D, H = 5, 4, 2, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
EXAMPLES = {"LSTM": 70, "GRU": 40, "RNN": 25}

# Functions with alpha and beta where they take them. A clip of 0.4 meets no threshold: on which side the
# clipped value lies would be a matter of the last bit.
BOUNDED = [("HardSigmoid", 0.25, 0.4), ("ScaledTanh", 1.2, 0.7), ("Sigmoid",), ("Softsign",), ("Tanh",)]
UNBOUNDED = [
    *(
        ("Affine", 0.8, -0.1),
        ("Affine", 1.0, 0.0),
        ("Elu", 0.7),
        ("LeakyRelu", 0.2),
        ("Relu",),
        ("Softplus",),
    ),
    *(("ThresholdedRelu", 0.3), ("ThresholdedRelu", 1.1)),
]
MIRRORED = [("Sigmoid",), ("HardSigmoid", 0.3, 0.5), ("Affine", 0.2, 0.5)]
# What may stand without numbers. ThresholdedRelu may not: its default is 1 in ONNX and 0 in onnxruntime.
DEFAULTS = {"Elu", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"}


@st.composite
def functions(draw, op_type, directions, coupled, clipped):
    """The attributes that name activations, or none of them."""
    kind = draw(st.sampled_from(["none", "defaults", "numbers"]))
    if kind == "none":
        return {}
    # Gates without bounds would make states without bounds.
    gates = MIRRORED if coupled else BOUNDED + UNBOUNDED if clipped else BOUNDED
    others = BOUNDED + UNBOUNDED
    slots = {"LSTM": [gates, others, others], "GRU": [gates, others], "RNN": [others]}[op_type] * directions
    if kind == "defaults":
        slots = [[(name,) for name, *_ in forms if name in DEFAULTS] for forms in slots]
    rows = [draw(st.sampled_from(forms)) for forms in slots]
    columns = {
        "activations": [row[0] for row in rows],
        "activation_alpha": [row[1] for row in rows if len(row) > 1],
        "activation_beta": [row[2] for row in rows if len(row) > 2],
    }
    return {name: values for name, values in columns.items() if values}


@st.composite
def nodes(draw, op_type):
    """A node, and inputs for it."""
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    directions = 2 if direction == "bidirectional" else 1
    attributes = {"hidden_size": H, "direction": direction}
    if draw(st.booleans()):
        attributes["clip"] = draw(st.sampled_from([0.4, 2.5]))
    extra = {"LSTM": "input_forget", "GRU": "linear_before_reset"}.get(op_type)
    if extra and draw(st.booleans()):
        attributes[extra] = 1
    attributes |= draw(functions(op_type, directions, "input_forget" in attributes, "clip" in attributes))

    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    state = (directions, B, H)
    shapes = {"B": (directions, 2 * GATES[op_type] * H), "initial_h": state}
    if op_type == "LSTM":
        shapes |= {"initial_c": state, "P": (directions, 3 * H)}
    shapes = {name: shape for name, shape in shapes.items() if draw(st.booleans())}
    shapes |= {"W": (directions, GATES[op_type] * H, D), "R": (directions, GATES[op_type] * H, H)}
    tensors = {name: (rng.normal(size=shape) / 2).astype(np.float32) for name, shape in shapes.items()}
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
        tensors["sequence_lens"] = np.array(lengths, np.int32)
    X = rng.normal(size=(T, B, D)).astype(np.float32)
    return convert.Node(op_type, attributes, tensors), X


def run_onnxruntime(chain, X):
    """The outputs of a chain of nodes, by name."""
    model = convert.to_model(chain).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"X": X}), strict=True))


def run_ours(recurrent, X):
    """The outputs of a node in our terms, by name."""
    outputs = onnx_nodes.run(recurrent, X)._asdict()
    return {name: np.array(y) for name, y in outputs.items() if y is not None}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, y in expected.items():
        # Some functions do not bound what they are given: the error is relative to the largest output.
        scale = max(1.0, float(np.max(np.abs(y), initial=0)))
        np.testing.assert_allclose(
            found[name] / scale, y / scale, rtol=0, atol=1e-5, err_msg=name, strict=True
        )


def with_zeros_for_empty_rows(outputs, node):
    """Outputs of ours as onnxruntime has them.

    A row of length 0 has read nothing: its final state is its initial state. onnxruntime says zero.
    """
    lengths = node.tensors.get("sequence_lens", np.full(B, T))
    for name, initial in (("Y_h", "initial_h"), ("Y_c", "initial_c")):
        if name in outputs and initial in node.tensors:
            empty = lengths == 0
            np.testing.assert_array_equal(outputs[name][:, empty], node.tensors[initial][:, empty])
            outputs[name][:, empty] = 0
    return outputs


@pytest.mark.parametrize("op_type", GATES)
def test_nodes(op_type):
    @hypothesis.settings(max_examples=EXAMPLES[op_type], derandomize=True)
    @hypothesis.given(nodes(op_type))
    def check(case):
        node, X = case
        expected = run_onnxruntime([node], X)
        recurrent = convert.from_node(*node)
        assert_close(with_zeros_for_empty_rows(run_ours(recurrent, X), node), expected)
        exported = convert.to_node(*recurrent)
        assert_close(run_onnxruntime([exported], X), expected)
        if node.attributes.get("input_forget"):
            # Whichever of the two gates a runtime keeps, the exported node means the same.
            both = exported._replace(attributes={**exported.attributes, "input_forget": 0})
            assert_close(run_onnxruntime([both], X), expected)

    check()


NETWORKS = {
    "cell": lstmx.LSTM(4, num_heads=2, gate_clip=1.5),
    "bidirectional": lstmx.Bidirectional(
        lstmx.LSTM(3, peephole=True, input_gate="coupled", gate_activation="hard_sigmoid"),
        lstmx.LSTM(3, use_bias=False, input_gate="coupled", output_activation="identity"),
    ),
    "gru": lstmx.GRU(4, num_heads=2, reset_after=False),
    "gru-both": lstmx.Bidirectional(
        lstmx.GRU(3, candidate_activation="softsign"), lstmx.GRU(3, use_bias=False)
    ),
    "elman": lstmx.Elman(4, ("elu", 0.5), num_heads=2),
}
NETWORKS["stack"] = lstmx.Stack(tuple(NETWORKS.values()))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    network = NETWORKS[name] if name == "stack" else lstmx.Stack((NETWORKS[name],))
    lengths = np.array([5, 2, 1], np.int32)
    params, X, state = oracles.random_case(network, np.random.default_rng(0), steps=5, dtype=np.float32)
    final, ys = lstmx.scan(network, params, X, state, lengths=lengths)
    found = run_onnxruntime(convert.to_nodes(network, params, initial_state=state, lengths=lengths), X)
    Y = found.pop("Y")
    np.testing.assert_allclose(np.concatenate(Y.swapaxes(0, 1), axis=-1), ys, atol=1e-5, strict=True)
    for k, (layer, state) in enumerate(zip(network.layers, final, strict=True)):
        suffix = f"_{k}" if len(network.layers) > 1 else ""
        states = state if isinstance(layer, lstmx.Bidirectional) else (state,)
        for direction, s in enumerate(states):
            c, h = s if isinstance(s, lstmx.LSTMState) else (None, s)
            np.testing.assert_allclose(found[f"Y_h{suffix}"][direction], h, atol=1e-5, strict=True)
            if c is not None:
                np.testing.assert_allclose(found[f"Y_c{suffix}"][direction], c, atol=1e-5, strict=True)
