"""Recurrent nodes from and to ONNX models; the only module that needs the package onnx."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

INPUTS = {
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
OUTPUTS = {"LSTM": ("Y", "Y_h", "Y_c"), "GRU": ("Y", "Y_h"), "RNN": ("Y", "Y_h")}
_WEIGHTS = ("W", "R", "B", "P")


class Node(NamedTuple):
    """A node as plain data: attributes by name, tensors by the names of ONNX's inputs, X left out."""

    op_type: str
    attributes: Mapping[str, Any]
    tensors: Mapping[str, Any]


def from_model(model: Any, values: Mapping[str, Any] | None = None) -> list[Node]:
    """The recurrent nodes of an ONNX model, in its order. Needs the package onnx.

    Args:
      model: an `onnx.ModelProto`, or the path of a file with one.
      values: tensors that the model takes as inputs and does not store, by their names in the graph.

    Returns:
      A node for each LSTM, GRU and RNN of the main graph, for `from_node`. `sequence_lens`, `initial_h` and
      `initial_c` are left out where the model neither stores nor is given them.

    Raises:
      ValueError: if weights of such a node are neither stored in the model nor given.

    Example:
      >>> W, R = np.ones((1, 4, 3), np.float32), np.ones((1, 4, 4), np.float32)
      >>> model = to_model([Node("RNN", {"hidden_size": 4}, {"W": W, "R": R})])  # doctest: +SKIP
      >>> from_model(model)[0].attributes  # doctest: +SKIP
      {'hidden_size': 4}
    """
    import onnx

    if isinstance(model, str | os.PathLike):
        model = onnx.load(model)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    stored |= values or {}
    return [
        Node(node.op_type, _attributes(node), _tensors(node, stored))
        for node in model.graph.node
        if node.op_type in INPUTS and node.domain in ("", "ai.onnx")
    ]


def to_model(nodes: Sequence[Node], opset: int = 14) -> Any:
    """A model in which each node reads the outputs of the one before. Needs the package onnx.

    Between two nodes the directions are laid side by side, as in a Stack.

    Args:
      nodes: as from `to_nodes`, all of one `layout`.
      opset: the version of ONNX's operators; 14 is the first in which nodes have a layout.

    Returns:
      An `onnx.ModelProto` with the input `X` and the outputs `Y` of the last node and `Y_h` and, of an LSTM,
      `Y_c` of every node: `Y_h_0`, `Y_h_1`, ...; of a single node, `Y_h` and `Y_c`.

    Raises:
      ValueError: if there is no node, or the layouts differ.

    Example:
      >>> W, R = np.ones((1, 4, 3), np.float32), np.ones((1, 4, 4), np.float32)
      >>> model = to_model([Node("RNN", {"hidden_size": 4}, {"W": W, "R": R})])  # doctest: +SKIP
      >>> [output.name for output in model.graph.output]  # doctest: +SKIP
      ['Y', 'Y_h']
    """
    from onnx import helper, numpy_helper

    layouts = {node.attributes.get("layout", 0) for node in nodes}
    if len(layouts) != 1:
        raise ValueError(f"a model must have at least one node, all of one layout, got layouts {layouts}")
    (batch_major,) = layouts
    D = np.shape(nodes[0].tensors["W"])[2]
    directions, _, H = np.shape(nodes[-1].tensors["R"])
    shapes = {
        "X": ["B", "T", D] if batch_major else ["T", "B", D],
        "Y": ["B", "T", directions, H] if batch_major else ["T", directions, "B", H],
    }
    graph_nodes, tensors, x = [], {}, "X"
    for k, node in enumerate(nodes):
        last = k == len(nodes) - 1
        suffix = f"_{k}" if len(nodes) > 1 else ""
        tensors |= {name + suffix: np.asarray(tensor) for name, tensor in node.tensors.items()}
        inputs = [name + suffix if name in node.tensors else "" for name in INPUTS[node.op_type][1:]]
        Y, *states = (name + suffix for name in OUTPUTS[node.op_type])
        Y = "Y" if last else Y
        graph_nodes.append(helper.make_node(node.op_type, [x, *inputs], [Y, *states], **node.attributes))
        directions, _, H = np.shape(node.tensors["R"])
        shapes |= dict.fromkeys(states, ["B", directions, H] if batch_major else [directions, "B", H])
        if not last:
            x = f"X_{k + 1}"
            graph_nodes += _side_by_side(Y, x, batch_major)
            tensors["side_by_side"] = np.array([0, 0, -1])
    dtype = helper.np_dtype_to_tensor_dtype(np.asarray(nodes[0].tensors["W"]).dtype)
    values = {name: helper.make_tensor_value_info(name, dtype, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        graph_nodes,
        "lstmx",
        [values.pop("X")],
        list(values.values()),
        [numpy_helper.from_array(np.ascontiguousarray(tensor), name) for name, tensor in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _side_by_side(Y: str, x: str, batch_major: bool) -> list:
    """Nodes that make `[T, B, directions * H]` of `[T, directions, B, H]`, or of the batch-major form."""
    from onnx import helper

    if batch_major:
        return [helper.make_node("Reshape", [Y, "side_by_side"], [x])]
    turned = f"{Y}_reordered"
    return [
        helper.make_node("Transpose", [Y], [turned], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [turned, "side_by_side"], [x]),
    ]


def _attributes(node) -> dict[str, Any]:
    from onnx import helper

    return {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}


def _plain(value):
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float):
        # ONNX stores single precision: 0.2 is meant, not 0.20000000298.
        return float(str(np.float32(value)))
    return (
        [_plain(item) for item in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
    )


def _tensors(node, stored: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {}
    for name, there in zip(INPUTS[node.op_type][1:], node.input[1:], strict=False):
        if there in stored:
            tensors[name] = stored[there]
        elif there and name in _WEIGHTS:
            raise ValueError(
                f"{name} of the {node.op_type} node {node.name!r} is {there!r}, which the model "
                "computes or takes as an input: fold its constants, or give the value"
            )
    return tensors
