"""What the conversion from and to ONNX's nodes refuses, and how it says so."""

import conversions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_nodes import random_node

import lstmx
from lstmx.convert import onnx as convert

BAD_NODES = {
    "op_type": (("Scan",), {}, "op_type must be one of LSTM, GRU, RNN, got 'Scan'"),
    "attribute": (("LSTM", {"output_sequence": 1}), {}, "output_sequence=1 of LSTM is not supported"),
    "attribute-of-another": (("GRU", {"input_forget": 1}), {}, "input_forget=1 of GRU is not supported"),
    "direction": (("RNN", {"direction": "both"}), {}, "direction must be one of .*, got 'both'"),
    "layout": (("RNN", {"layout": 2}), {}, r"layout must be one of \(0, 1\), got 2"),
    "clip": (("RNN", {"clip": -1.0}), {}, "clip must be positive, got -1.0"),
    "activation": (
        ("RNN", {"activations": ["Swish"]}),
        {},
        "activations='Swish' is not supported, only Affine",
    ),
    "activations": (
        ("LSTM", {"activations": ["Tanh"]}),
        {},
        r"3 functions of LSTM for each of 1 directions, got \['Tanh'\]",
    ),
    "alpha": (("RNN", {"activations": ["Affine"]}), {}, "activation_alpha has no value for Affine"),
    "beta": (
        ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [1.0]}),
        {},
        "activation_beta has no value for ScaledTanh",
    ),
    "alphas": (
        ("GRU", {"activations": ["Sigmoid", "Elu"], "activation_alpha": [1.0, 0.5]}),
        {},
        r"activation_alpha has 2 values, but \['Sigmoid', 'Elu'\] take 1",
    ),
    "coupled": (
        ("LSTM", {"input_forget": 1, "activations": ["Relu", "Tanh", "Tanh"]}),
        {},
        "input_forget=1 with gates s='relu'",
    ),
    "coupled-offset": (
        (
            "LSTM",
            {
                "input_forget": 1,
                "activations": ["HardSigmoid", "Tanh", "Tanh"],
                "activation_alpha": [0.2],
                "activation_beta": [0.4],
            },
        ),
        {},
        r"input_forget=1 with gates s=\('hard_sigmoid', 0.2, 0.4\)",
    ),
    "W-missing": (("LSTM",), {"W": None}, "LSTM node lacks W"),
    "R-missing": (("LSTM",), {"R": None}, "LSTM node lacks R"),
    "W": (("LSTM",), {"W": (1, 12, 2)}, r"W must have shape \(1, 16, 2\), got \(1, 12, 2\)"),
    "W-axes": (("LSTM",), {"W": (16, 2)}, r"W must have shape \[directions, gates\*H, D\], got \(16, 2\)"),
    "R": (("GRU",), {"R": (1, 16, 4)}, r"R must have shape \(1, 12, 4\), got \(1, 16, 4\)"),
    "hidden_size": (("RNN", {"hidden_size": 3}), {}, r"W must have shape \(1, 3, 2\), got \(1, 4, 2\)"),
    "directions": (("RNN",), {"R": (2, 4, 4)}, r"R must have shape \(1, 4, 4\), got \(2, 4, 4\)"),
    "B": (("RNN",), {"B": (1, 4)}, r"B must have shape \(1, 8\), got \(1, 4\)"),
    "P": (("LSTM",), {"P": (1, 16)}, r"P must have shape \(1, 12\), got \(1, 16\)"),
    "P-of-a-GRU": (("GRU",), {"P": (1, 12)}, r"GRU node has P of shape \(1, 12\)"),
    "initial_h": (
        ("RNN",),
        {"initial_h": (1, 3, 5)},
        r"initial_h must have shape \(1, 3, 4\), got \(1, 3, 5\)",
    ),
    "initial_c": (
        ("LSTM",),
        {"initial_c": (1, 2, 4)},
        r"initial_c must have shape \(1, 3, 4\), got \(1, 2, 4\)",
    ),
    "initial_h-batch-major": (
        ("RNN", {"layout": 1}),
        {"initial_h": (3, 4)},
        r"initial_h must have shape \[B, directions, H\], got \(3, 4\)",
    ),
    "lengths": (
        ("RNN",),
        {"sequence_lens": np.array([1, 2])},
        r"sequence_lens must be \[3\], got shape \(2,\)",
    ),
}


@pytest.mark.parametrize("name", BAD_NODES)
def test_bad_nodes(name):
    node, changes, message = BAD_NODES[name]
    node = convert.Node(node[0], {}, {}) if name == "op_type" else random_node(*node, dtype=np.float32)
    for tensor, value in changes.items():
        node.tensors.pop(tensor, None)
        if value is not None:
            node.tensors[tensor] = np.zeros(value, np.float32) if isinstance(value, tuple) else value
    with pytest.raises(ValueError, match=message):
        convert.from_node(*node)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("B", np.zeros((1, 8), np.float16), "B must be of the type of W, float32, got float16"),
        ("W", np.zeros((1, 4, 2), np.int32), "W must be of a floating type, got int32"),
        ("sequence_lens", np.zeros(3, np.float32), "sequence_lens must be integers, got float32"),
    ],
)
def test_tensors_of_bad_types(name, value, message):
    node = random_node("RNN", dtype=np.float32)
    node.tensors[name] = value
    with pytest.raises(TypeError, match=message):
        convert.from_node(*node)


BAD_NETWORKS = {
    "projection_size": (lstmx.LSTM(3, projection_size=2), "projection_size=2"),
    "layer_norm": (lstmx.LSTM(3, layer_norm="ba"), "layer_norm='ba'"),
    "cell_clip": (lstmx.LSTM(3, cell_clip=1.0), "cell_clip=1.0"),
    "forget_gate": (lstmx.LSTM(3, forget_gate=False), "forget_gate=False"),
    "output_gate": (lstmx.LSTM(3, output_gate=False), "output_gate=False"),
    "gate_recurrence": (lstmx.LSTM(3, gate_recurrence=True), "gate_recurrence=True"),
    "capped": (lstmx.LSTM(3, input_gate="capped"), "input_gate='capped'"),
    "none": (lstmx.LSTM(3, input_gate="none"), "input_gate='none'"),
    "coupled": (
        lstmx.LSTM(3, input_gate="coupled", gate_activation="relu"),
        "input_gate='coupled' with gates s='relu'",
    ),
    "initial": (lstmx.GRU(3, learn_initial_state=True), "learn_initial_state=True"),
    "silu": (
        lstmx.GRU(3, candidate_activation="silu"),
        "candidate_activation='silu': ONNX has no such function",
    ),
    "kinds": (lstmx.Bidirectional(lstmx.GRU(3), lstmx.Elman(3)), "one kind, got GRU and Elman"),
    "sizes": (lstmx.Bidirectional(lstmx.GRU(3), lstmx.GRU(2)), "one hidden_size, got 3 and 2"),
    "clips": (
        lstmx.Bidirectional(lstmx.GRU(3), lstmx.GRU(3, gate_clip=1.0)),
        "one gate_clip, got None and 1.0",
    ),
    "input_gates": (
        lstmx.Bidirectional(lstmx.LSTM(3), lstmx.LSTM(3, input_gate="coupled")),
        "one input_gate, got full and coupled",
    ),
    "resets": (
        lstmx.Bidirectional(lstmx.GRU(3), lstmx.GRU(3, reset_after=False)),
        "one reset_after, got True and",
    ),
    "merge": (lstmx.Bidirectional(lstmx.GRU(3), merge="sum"), "merge='sum' of Bidirectional"),
}


@pytest.mark.parametrize("name", BAD_NETWORKS)
def test_bad_networks(name):
    network, message = BAD_NETWORKS[name]
    params = conversions.random_params(network)
    with pytest.raises(ValueError, match=message):
        convert.to_node(network, params)


def test_other_refusals():
    both, gru = lstmx.Bidirectional(lstmx.GRU(3)), lstmx.GRU(3)
    params = conversions.random_params(both)
    with pytest.raises(ValueError, match="reverse=True of Bidirectional"):
        convert.to_node(both, params, reverse=True)
    with pytest.raises(ValueError, match="layout must be 0 or 1, got 2"):
        convert.to_node(gru, params[0], layout=2)
    with pytest.raises(ValueError, match=r"initial_h must be \[B, 3\] in each direction, got \(2, 4\)"):
        convert.to_node(gru, params[0], initial_state=jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"input.bias must have shape \(12,\), got \(9,\)"):
        convert.to_node(lstmx.GRU(4), params[0])
    with pytest.raises(TypeError, match=r"an ONNX node can express .* not MGU"):
        convert.to_node(lstmx.MGU(3), params[0])
    stack = lstmx.Stack((gru, gru), connections="residual")
    with pytest.raises(ValueError, match="connections='residual' of Stack"):
        convert.to_nodes(stack, (params[0], params[0]))
    with pytest.raises(ValueError, match="at least one node"):
        convert.from_nodes([])
    with pytest.raises(TypeError, match="takes a single node, got a Stack"):
        convert.run(convert.Recurrent(stack, (params[0], params[0])), jnp.zeros((1, 1, 3)))
    nodes = [random_node("RNN", {"direction": direction}, ("B",)) for direction in ("forward", "reverse")]
    with pytest.raises(
        ValueError, match="reverse of the nodes must be the same, got False of node 0 and True of"
    ):
        convert.from_nodes(nodes)
    nodes = [random_node("RNN"), random_node("RNN", without=("sequence_lens",))]
    with pytest.raises(ValueError, match="lengths of the nodes must be the same"):
        convert.from_nodes(nodes)


@pytest.mark.parametrize("network", [lstmx.LSTM(4), lstmx.GRU(4), lstmx.Bidirectional(lstmx.Elman(4))])
def test_a_network_of_one_layer_is_one_node(network):
    params = network.init(jax.random.key(0), 3)
    state = network.initial_state((2,))
    (node,) = convert.to_nodes(network, params, layout=1, initial_state=state)
    expected = convert.to_node(network, params, layout=1, initial_state=state)
    assert (node.op_type, node.attributes) == (expected.op_type, expected.attributes)
    assert jax.tree.all(jax.tree.map(np.array_equal, node.tensors, expected.tensors))


@pytest.mark.parametrize("network", [None, {}, lstmx.MinGRU(4), lstmx.Stack((lstmx.Stack((lstmx.GRU(4),)),))])
def test_what_is_no_network_of_layers_has_no_nodes(network):
    with pytest.raises(TypeError, match="an ONNX node can express Elman, GRU, LSTM, not"):
        convert.to_nodes(network, ((),))
