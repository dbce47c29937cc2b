"""The tensors of ONNX's recurrent nodes, and the parameters and states of our cells.

ONNX stores kernels as [out, in], two biases of every gate, and the gates in the order i, o, f, c (LSTM) or
z, r, h (GRU), where c is our g, z our update and h our n. Its peepholes have the order i, o, f.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstmx.cells import GRU, LSTM, Elman, LSTMState, Params
from lstmx.cells.base import Cell, State
from lstmx.convert.tensors import as_array, checked, shape_of

_LETTERS = {LSTM: "iofc", GRU: "zrh", Elman: "h"}
_PEEPHOLES = "iof"


class _Gate(NamedTuple):
    """One gate of one direction."""

    W: np.ndarray  # [H, D]
    R: np.ndarray  # [H, H]
    Wb: np.ndarray | None = None  # [H]
    Rb: np.ndarray | None = None  # [H]
    P: np.ndarray | None = None  # [H]


_Gates = dict[str, _Gate]  # by ONNX's letters


def read(
    op_type: str, settings: Mapping[str, Any], directions: int, tensors: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], jax.Array | None]:
    """A node's tensors, if they fit together.

    Args:
      op_type: of the node.
      settings: its attributes.
      directions: 1 or 2.
      tensors: by the names of ONNX's inputs.

    Returns:
      All but `sequence_lens` as arrays, and `sequence_lens`.

    Raises:
      ValueError: naming the tensor that is missing, has a wrong shape or is unknown.
      TypeError: naming the tensor whose type does not fit.
    """
    source, gates = f"the {op_type} node", {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    rest = {name: tensor for name, tensor in tensors.items() if name != "sequence_lens"}
    D = shape_of(rest, "W", "directions gates*H D", source)[2]
    H = shape_of(rest, "R", "directions gates*H H", source)[2]
    H = H if settings["hidden_size"] is None else settings["hidden_size"]
    batch = None
    for name in ("initial_h", "initial_c"):
        if name in rest and batch is None:
            axes = "B directions H" if settings["layout"] else "directions B H"
            batch = shape_of(rest, name, axes, source)[1 - settings["layout"]]
    state = (batch, directions, H) if settings["layout"] else (directions, batch, H)
    shapes = {
        "W": (directions, gates * H, D),
        "R": (directions, gates * H, H),
        "B": (directions, 2 * gates * H),
        "initial_h": state,
    }
    if op_type == "LSTM":
        shapes |= {"initial_c": state, "P": (directions, 3 * H)}
    shapes = {name: shape for name, shape in shapes.items() if name in rest}
    # NumPy from here on: compiling many small programs would cost jax a second for every new shape.
    arrays = {name: np.asarray(array) for name, array in checked(rest, shapes, source).items()}
    for name, array in arrays.items():
        if array.dtype != arrays["W"].dtype:
            raise TypeError(
                f"{name} must be of the type of W, {arrays['W'].dtype.name}, got {array.dtype.name}"
            )
    return arrays, _lengths(tensors["sequence_lens"], batch) if "sequence_lens" in tensors else None


def params_of(cell: Cell, arrays: Mapping[str, np.ndarray], direction: int) -> Params:
    """The parameters that a cell has in one direction of a node."""
    gates = _split(_LETTERS[type(cell)], arrays, direction)
    if isinstance(cell, LSTM):
        params = _lstm_params(cell, gates)
    elif isinstance(cell, GRU):
        params = _gru_params(cell, gates)
    else:
        params = Params(_input(gates), _recurrent(gates))
    return jax.tree.map(jnp.asarray, params)


def state_of(cell: Cell, arrays: Mapping[str, np.ndarray], layout: int, direction: int) -> State | None:
    """The initial state that a cell has in one direction of a node, None where the node has none."""
    states = {
        name: jnp.asarray(np.take(arrays[name], direction, axis=layout))
        for name in ("initial_h", "initial_c")
        if name in arrays
    }
    if not states or not isinstance(cell, LSTM):
        return states.get("initial_h")
    zeros = jnp.zeros_like(next(iter(states.values())))
    return LSTMState(c=states.get("initial_c", zeros), h=states.get("initial_h", zeros))


def of_params(cells: Sequence[Cell], params: Sequence[Params]) -> dict[str, np.ndarray]:
    """`W`, `R` and, where a direction has them, `B` and `P` of a node. What the other lacks is zero."""
    directions = [_gates_of(cell, p) for cell, p in zip(cells, params, strict=True)]
    letters = _LETTERS[type(cells[0])]
    tensors = {}
    for name, fields in (("W", ("W",)), ("R", ("R",)), ("B", ("Wb", "Rb")), ("P", ("P",))):
        order = _PEEPHOLES if name == "P" else letters
        if all(getattr(gate, fields[0]) is None for gates in directions for gate in gates.values()):
            continue
        rows = []
        for gates in directions:
            parts = [(getattr(gates[g], field), gates[g].R) for field in fields for g in order]
            rows.append(np.concatenate([np.zeros_like(R[0]) if part is None else part for part, R in parts]))
        tensors[name] = np.stack(rows)
    return tensors


def of_states(
    cells: Sequence[Cell], states: Sequence[State], layout: int, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """`initial_h` and, of an LSTM, `initial_c` of a node.

    Raises:
      ValueError: naming one that is not `[B, H]` in a direction.
    """
    leaves = {"initial_h": [], "initial_c": []}
    for cell, state in zip(cells, states, strict=True):
        h, c = (state[1], state[0]) if isinstance(cell, LSTM) else (state, None)
        for name, leaf in (("initial_h", h), ("initial_c", c)):
            if leaf is None:
                continue
            if np.ndim(leaf) != 2 or np.shape(leaf)[1] != cell.hidden_size:
                raise ValueError(
                    f"{name} must be [B, {cell.hidden_size}] in each direction, got {np.shape(leaf)}"
                )
            leaves[name].append(np.asarray(leaf, dtype))
    return {name: np.stack(parts, axis=layout) for name, parts in leaves.items() if parts}


def _lengths(lengths, batch: int | None) -> jax.Array:
    lengths = as_array(lengths)
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"sequence_lens must be integers, got {lengths.dtype.name}")
    if lengths.ndim != 1 or batch not in (None, lengths.shape[0]):
        shape = "[B]" if batch is None else f"[{batch}]"
        raise ValueError(f"sequence_lens must be {shape}, got shape {lengths.shape}")
    return lengths


def _split(letters: str, arrays: Mapping[str, np.ndarray], direction: int) -> _Gates:
    """The gates of a direction."""

    def parts(name, count):
        return np.split(arrays[name][direction], count) if name in arrays else [None] * count

    count = len(letters)
    biases = parts("B", 2 * count)
    gates = map(_Gate, parts("W", count), parts("R", count), biases[:count], biases[count:])
    gates = dict(zip(letters, gates, strict=True))
    for letter, peephole in zip(_PEEPHOLES, parts("P", 3), strict=True):
        if peephole is not None:
            gates[letter] = gates[letter]._replace(P=peephole)
    return gates


def _lstm_params(cell: LSTM, gates: _Gates) -> Params:
    order = "ifco"
    if cell.input_gate == "coupled":
        order, gates = "fco", {**gates, "f": _negated(gates["i"])}
    gates = {letter: gates[letter] for letter in order}
    peephole = {letter: gate.P for letter, gate in gates.items() if letter != "c"}
    return Params(_input(gates), _recurrent(gates), {"peephole": peephole} if cell.peephole else ())


def _gru_params(cell: GRU, gates: _Gates) -> Params:
    gates = {letter: gates[letter] for letter in "rzh"}
    if not cell.reset_after:
        candidate = {"h": gates["h"]}
        recurrent = {letter: gates[letter] for letter in "rz"}
        return Params(_input(gates), _recurrent(recurrent), _recurrent(candidate))
    if not cell.use_bias:
        return Params(_input(gates), _recurrent(gates))
    biases = [np.concatenate([gate[k] for gate in gates.values()]) for k in (2, 3)]
    return Params(
        {"kernel": _kernel(gate.W for gate in gates.values()), "bias": biases[0]},
        {**_recurrent(gates), "bias": biases[1]},
    )


def _input(gates: _Gates) -> dict[str, np.ndarray]:
    """The parameters of an input map, the gates in this order, with the sums of the biases."""
    kernel = {"kernel": _kernel(gate.W for gate in gates.values())}
    if any(gate.Wb is None for gate in gates.values()):
        return kernel
    # Adding zero would turn -0 into 0: no longer the same bits.
    sums = [np.where(gate.Rb == 0, gate.Wb, gate.Wb + gate.Rb) for gate in gates.values()]
    return {**kernel, "bias": np.concatenate(sums)}


def _recurrent(gates: _Gates) -> dict[str, np.ndarray]:
    return {"kernel": _kernel(gate.R for gate in gates.values())}


def _kernel(blocks) -> np.ndarray:
    return np.concatenate([block.T for block in blocks], axis=1)


def _gates_of(cell: Cell, params: Params) -> _Gates:
    """The gates of a cell in one direction, the inverse of what makes parameters of them."""
    params = jax.tree.map(np.asarray, params)
    recurrent = _dense(params.recurrent["kernel"])
    if isinstance(cell, GRU) and not cell.reset_after:
        recurrent = np.concatenate([recurrent, _dense(params.update["kernel"])], axis=1)
    coupled = isinstance(cell, LSTM) and cell.input_gate == "coupled"
    order = "fco" if coupled else {LSTM: "ifco", GRU: "rzh", Elman: "h"}[type(cell)]

    def parts(array):
        return [None] * len(order) if array is None else np.split(array, len(order), axis=-1)

    W, R, Wb = parts(params.input["kernel"]), parts(recurrent), parts(params.input.get("bias"))
    Rb = parts(params.recurrent.get("bias"))
    peepholes = params.update["peephole"] if isinstance(cell, LSTM) and cell.peephole else {}
    gates = {
        letter: _Gate(w.T, r.T, b, b_r, peepholes.get(letter))
        for letter, w, r, b, b_r in zip(order, W, R, Wb, Rb, strict=True)
    }
    if coupled:
        # onnxruntime reads i and makes f of it, as the literature has it the other way round: both are right.
        gates["i"] = _negated(gates["f"])
    return gates


def _negated(gate: _Gate) -> _Gate:
    return _Gate(*(None if array is None else -array for array in gate))


def _dense(kernel: np.ndarray) -> np.ndarray:
    """A kernel `[P, gates * H]`; the blocks `[N, P/N, gates, H/N]` of a block-diagonal one among zeros."""
    if kernel.ndim == 2:
        return kernel
    heads, size, gates, units = kernel.shape
    each = np.arange(heads)
    blocks = np.zeros((heads, size, gates, heads, units), kernel.dtype)
    blocks[each, :, :, each] = kernel
    return blocks.reshape(heads * size, gates * heads * units)
