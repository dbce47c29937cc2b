"""ONNX's recurrent nodes, LSTM, GRU and RNN, as cells and networks, and back.

A node is plain data here: its operator, its attributes and its tensors by the names of ONNX's inputs. Only
`from_model` and `to_model` need the package onnx.

    recurrent = from_node("LSTM", {"direction": "bidirectional"}, {"W": W, "R": R, "B": B})
    Y, Y_h, Y_c = run(recurrent, X)
    op_type, attributes, tensors = to_node(*recurrent)

Conventions that differ:

* An RNN is an Elman. A GRU's `linear_before_reset=1` is `reset_after=True`.
* Of the two biases of an LSTM, an RNN and a GRU with `linear_before_reset=0` only the sum matters: it is what
  is read, and (bias, 0) what is written.
* `clip` is `gate_clip`: in all three operators it clamps the arguments of the gates' and the candidate's
  functions and nothing else, as in onnxruntime.
* `input_forget=1` makes the forget gate 1 - i in onnxruntime; ours makes the input gate 1 - f
  (`input_gate="coupled"`). Since sigmoid(-x) = 1 - sigmoid(x), our f has the negated weights of ONNX's i.
* A row whose `sequence_lens` is 0 ends in its initial state here, in zeros in onnxruntime.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lstmx.cells import GRU, LSTM, Elman, LSTMState
from lstmx.cells.base import Cell, PyTree, State
from lstmx.convert.onnx import attributes as onnx_attributes
from lstmx.convert.onnx import tensors as onnx_tensors
from lstmx.convert.onnx.models import Node, from_model, to_model
from lstmx.convert.tensors import require_expressible, require_mapping
from lstmx.nested import require_params
from lstmx.networks import Bidirectional, BothDirections, Stack, entries
from lstmx.scan import scan

__all__ = [
    "Node", "Outputs", "Recurrent", "from_model", "from_node", "from_nodes", "run", "to_model", "to_node",
    "to_nodes",
]  # fmt: skip

_OP_TYPES = {LSTM: "LSTM", GRU: "GRU", Elman: "RNN"}
# Both directions of a node share these.
_SHARED = ("hidden_size", "gate_clip", "input_gate", "reset_after", "param_dtype")
_OPTIONS = {
    kind: {*_SHARED, *onnx_attributes.ACTIVATIONS[op_type], "use_bias", "peephole", "num_heads"}
    for kind, op_type in _OP_TYPES.items()
}


class Recurrent(NamedTuple):
    """A node as a network, its parameters and the options of its run."""

    network: Cell | Bidirectional | Stack
    params: PyTree
    reverse: bool = False
    layout: Literal[0, 1] = 0
    initial_state: State | None = None
    lengths: jax.Array | None = None


class Outputs(NamedTuple):
    """The outputs of a node: with layout 0 `Y [T, directions, B, H]`, `Y_h` and `Y_c` `[directions, B, H]`.

    With layout 1 `Y` is `[B, T, directions, H]`, the others `[B, directions, H]`. Only an LSTM has `Y_c`.
    """

    Y: jax.Array
    Y_h: jax.Array
    Y_c: jax.Array | None


def from_node(op_type: str, attributes: Mapping[str, Any], tensors: Mapping[str, Any]) -> Recurrent:
    """A node as a network with parameters.

    Args:
      op_type: `"LSTM"`, `"GRU"` or `"RNN"`.
      attributes: by name; strings may be bytes.
      tensors: the inputs of the ONNX node that are present, by name: `W`, `R`, `B`, `sequence_lens`,
        `initial_h`, `initial_c`, `P`. Not `X`.

    Returns:
      A cell or, of a bidirectional node, Bidirectional, with the options of the node; see `run`.

    Raises:
      ValueError: naming an attribute that is not supported and its value, or a tensor that is missing,
        has a wrong shape or is unknown.
      TypeError: naming a tensor whose type does not fit.

    Example:
      >>> W, R = np.ones((1, 9, 2), np.float32), np.zeros((1, 9, 3), np.float32)
      >>> recurrent = from_node("GRU", {"direction": "reverse", "linear_before_reset": 1}, {"W": W, "R": R})
      >>> recurrent.network.hidden_size, recurrent.network.reset_after, recurrent.reverse
      (3, True, True)
    """
    require_mapping("attributes", attributes, "pass the attributes of the node by name")
    require_mapping("tensors", tensors, "pass the inputs of the node by name")
    settings, activations = onnx_attributes.read(op_type, attributes)
    arrays, lengths = onnx_tensors.read(op_type, settings, len(activations), tensors)
    cells = [_cell(op_type, settings, options, arrays) for options in activations]
    params = [onnx_tensors.params_of(cell, arrays, k) for k, cell in enumerate(cells)]
    states = [onnx_tensors.state_of(cell, arrays, settings["layout"], k) for k, cell in enumerate(cells)]
    reverse, layout = settings["direction"] == "reverse", settings["layout"]
    if len(cells) == 1:
        return Recurrent(cells[0], params[0], reverse, layout, states[0], lengths)
    forward, backward = cells
    network = Bidirectional(forward, None if backward == forward else backward)
    initial_state = None if states[0] is None else BothDirections(*states)
    return Recurrent(network, BothDirections(*params), reverse, layout, initial_state, lengths)


def to_node(
    network: Cell | Bidirectional,
    params: PyTree,
    reverse: bool = False,
    layout: Literal[0, 1] = 0,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
) -> Node:
    """A cell, or the cells of a Bidirectional, as a node; the inverse of `from_node`.

    A node does not record compute types. Block-diagonal kernels are written as dense ones.

    Args:
      network: an LSTM, GRU or Elman, or a Bidirectional of two of them that differ in activations, biases and
        peepholes at most.
      params: its parameters.
      reverse: whether a cell is to read backwards.
      layout: 1 for batch-major inputs, outputs and states of the node.
      initial_state: written into the node, leaves `[B, H]`; required if the cell's initial state is learned.
      lengths: written into the node, `[B]`.

    Returns:
      `(op_type, attributes, tensors)`, the tensors as NumPy arrays.

    Raises:
      ValueError: naming an option that ONNX cannot express, or a parameter of the wrong shape.
      TypeError: for a cell that ONNX does not have.

    Example:
      >>> from lstmx.cells import Params
      >>> params = Params({"kernel": jnp.ones((2, 9))}, {"kernel": jnp.zeros((3, 9))})
      >>> node = to_node(LSTM(3, input_gate="coupled", use_bias=False), params)
      >>> node.attributes, node.tensors["W"].shape
      ({'hidden_size': 3, 'input_forget': 1}, (1, 12, 2))
    """
    both = isinstance(network, Bidirectional)
    cells = tuple(network.cells) if both else (network,)
    if both and network.merge != "concat":
        raise ValueError(f"an ONNX node cannot express merge={network.merge!r} of Bidirectional")
    if both and reverse:
        raise ValueError("an ONNX node cannot express reverse=True of Bidirectional")
    if layout not in (0, 1):
        raise ValueError(f"layout must be 0 or 1, got {layout!r}")
    params, states = (
        (entries(network, "params", params), initial_state) if both else ((params,), (initial_state,))
    )
    op_type = _require_expressible(cells, initial_state)
    for cell, p in zip(cells, params, strict=True):
        require_params(cell, p)
    tensors = onnx_tensors.of_params(cells, params)
    if initial_state is not None:
        tensors |= onnx_tensors.of_states(cells, states, layout, tensors["W"].dtype)
    if lengths is not None:
        tensors["sequence_lens"] = np.asarray(lengths, np.int32)
    direction = "bidirectional" if both else "reverse" if reverse else "forward"
    return Node(op_type, onnx_attributes.write(op_type, cells, direction, layout), tensors)


def from_nodes(nodes: Sequence[Node]) -> Recurrent:
    """Nodes, each reading the outputs of the one before, as a Stack; the inverse of `to_nodes`.

    Args:
      nodes: all with the same layout and lengths, and none or all of them with the direction reverse.

    Returns:
      A Stack, even of a single node; its initial state has None for a layer whose node has none.

    Raises:
      ValueError: if a node contradicts the first one, or as in `from_node`.

    Example:
      >>> W, R = np.ones((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.float32)
      >>> from_nodes([Node("RNN", {}, {"W": W, "R": R})] * 3).network.output_size
      2
    """
    layers = [from_node(*node) for node in nodes]
    if not layers:
        raise ValueError("a stack must have at least one node, got none")
    first = layers[0]
    for k, layer in enumerate(layers):
        for name in ("reverse", "layout", "lengths"):
            one, other = getattr(first, name), getattr(layer, name)
            if (one is None) != (other is None) or not np.array_equal(one, other):
                raise ValueError(
                    f"{name} of the nodes must be the same, got {one} of node 0 and {other} of node {k}"
                )
    states = tuple(layer.initial_state for layer in layers)
    return first._replace(
        network=Stack(tuple(layer.network for layer in layers)),
        params=tuple(layer.params for layer in layers),
        initial_state=None if all(state is None for state in states) else states,
    )


def to_nodes(
    network: Cell | Bidirectional | Stack,
    params: PyTree,
    reverse: bool = False,
    layout: Literal[0, 1] = 0,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
) -> list[Node]:
    """A network as one node for each layer; the arguments are those of `to_node`.

    The outputs `[T, directions, B, H]` of a node have to be reshaped to the inputs `[T, B, directions * H]`
    of the next one, as `to_model` does. Dropout is not written.

    Example:
      >>> from lstmx.cells import Params
      >>> params = Params({"kernel": jnp.ones((2, 2))}, {"kernel": jnp.zeros((2, 2))})
      >>> nodes = to_nodes(Stack((Elman(2, use_bias=False),) * 2), (params, params))
      >>> [node.tensors["W"].shape for node in nodes]
      [(1, 2, 2), (1, 2, 2)]
    """
    if not isinstance(network, Stack):
        return [to_node(network, params, reverse, layout, initial_state, lengths)]
    if network.connections != "plain":
        raise ValueError(f"ONNX nodes cannot express connections={network.connections!r} of Stack")
    states = (None,) * len(network.layers)
    if initial_state is not None:
        states = entries(network, "state", initial_state)
    return [
        to_node(layer, p, reverse, layout, state, lengths)
        for layer, p, state in zip(network.layers, entries(network, "params", params), states, strict=True)
    ]


def run(recurrent: Recurrent, X: ArrayLike, **options: Any) -> Outputs:
    """Runs a node as ONNX describes it.

    Args:
      recurrent: from `from_node`, of one layer.
      X: `[T, B, D]`, with layout 1 `[B, T, D]`.
      **options: of `lstmx.scan`, as `implementation`.

    Returns:
      ONNX's outputs. Padded steps are zero; a row of length 0 ends in its initial state.

    Raises:
      TypeError: for a Stack.

    Example:
      >>> W, R = np.ones((1, 3, 2), np.float32), np.zeros((1, 3, 3), np.float32)
      >>> Y, Y_h, _ = run(from_node("RNN", {"layout": 1}, {"W": W, "R": R}), np.ones((4, 5, 2)))
      >>> Y.shape, Y_h.shape
      ((4, 5, 1, 3), (4, 1, 3))
    """
    network, params, reverse, layout, initial_state, lengths = recurrent
    if isinstance(network, Stack):
        raise TypeError("run takes a single node, got a Stack; use lstmx.scan for it")
    X = jnp.asarray(X)
    X = X.swapaxes(0, 1) if layout else X
    final, ys = scan(network, params, X, initial_state, lengths=lengths, reverse=reverse, **options)
    states = final if isinstance(network, Bidirectional) else (final,)
    Y = ys.reshape(*ys.shape[:-1], len(states), -1)  # [T, B, directions, H]
    leaves = [state if isinstance(state, LSTMState) else (None, state) for state in states]
    Y_c, Y_h = (
        None if parts[0] is None else jnp.stack(parts, axis=layout).astype(ys.dtype)
        for parts in zip(*leaves, strict=True)
    )
    return Outputs(Y.swapaxes(0, 1) if layout else Y.swapaxes(1, 2), Y_h, Y_c)


def _cell(op_type: str, settings, activations, arrays) -> Cell:
    common = {
        "hidden_size": arrays["R"].shape[2],
        "use_bias": "B" in arrays,
        "gate_clip": settings["clip"],
        "param_dtype": arrays["W"].dtype,
        **activations,
    }
    if op_type == "RNN":
        return Elman(**common)
    if op_type == "GRU":
        return GRU(reset_after=bool(settings["linear_before_reset"]), **common)
    if settings["input_forget"]:
        _require_mirrored("input_forget=1", activations["gate_activation"])
    input_gate = "coupled" if settings["input_forget"] else "full"
    return LSTM(input_gate=input_gate, peephole="P" in arrays, **common)


def _require_expressible(cells: Sequence[Cell], initial_state: State | None) -> str:
    """The operator of cells that one node can express."""
    more = set() if initial_state is None else {"learn_initial_state"}
    options = {kind: names | more for kind, names in _OPTIONS.items()}
    for cell in cells:
        require_expressible(cell, "an ONNX node", options)
        input_gate = getattr(cell, "input_gate", "full")
        if input_gate not in ("full", "coupled"):
            raise ValueError(f"an ONNX node cannot express input_gate={input_gate!r} of LSTM")
        if input_gate == "coupled":
            _require_mirrored("input_gate='coupled'", cell.gate_activation)
    kinds = {type(cell) for cell in cells}
    if len(kinds) > 1:
        names = " and ".join(type(cell).__name__ for cell in cells)
        raise ValueError(f"the directions of an ONNX node must be of one kind, got {names}")
    for name in _SHARED:
        values = [getattr(cell, name, None) for cell in cells]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"the directions of an ONNX node must have one {name}, got {values[0]} and {values[1]}"
            )
    return _OP_TYPES[kinds.pop()]


def _require_mirrored(what: str, activation) -> None:
    if not onnx_attributes.is_mirrored(activation):
        raise ValueError(
            f"{what} with gates s={activation!r}: onnxruntime makes f = 1 - i and lstmx i = 1 - f, which is "
            "the same only where s(-x) = 1 - s(x), as for a sigmoid"
        )
