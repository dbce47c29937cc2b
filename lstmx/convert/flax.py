"""Weights of Flax's cells, those of nnx and of linen.

linen stores the kernels of each gate separately, and so does nnx in its LSTMCell; in all other cells nnx
has two kernels for all gates, `dense_i` and `dense_h`. The bias belongs to the recurrent kernel in an LSTM
and with the input kernel elsewhere; a second bias, inside of a GRU's or MGU's reset, exists only in linen
(`hn`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmx.cells import GRU, LSTM, Elman, Params
from lstmx.cells.activations import Activation
from lstmx.cells.base import Cell
from lstmx.cells.mgu import MGU
from lstmx.convert.tensors import checked, flat, require_expressible, shape_of
from lstmx.nested import from_paths, require_params

_OPTIONS = {
    LSTM: {"gate_activation", "candidate_activation", "output_activation"},
    GRU: {"gate_activation", "candidate_activation"},
    MGU: {"gate_activation": None, "candidate_activation": None, "reset": ("none",)},
    Elman: {"activation"},
}
_GATES = {LSTM: 4, GRU: 3, MGU: 2, Elman: 1}
# Names of the input and the recurrent kernels, in the order of our gates.
Names = tuple[tuple[str, str], ...]
_LINEN: dict[type, Names] = {
    LSTM: (("ii", "hi"), ("if", "hf"), ("ig", "hg"), ("io", "ho")),
    GRU: (("ir", "hr"), ("iz", "hz"), ("in", "hn")),
    MGU: (("if", "hf"), ("in", "hn")),
    Elman: (("i", "h"),),
}
# Names that tell linen's cells apart, if looked for in this order.
_TELLING = {
    LSTM: {"ii", "hi", "ig", "hg", "io", "ho"},
    GRU: {"ir", "hr", "iz", "hz"},
    MGU: {"if", "hf", "in", "hn"},
    Elman: {"i", "h"},
}
_NNX_LSTM: Names = (("ii", "hi"), ("if_", "hf"), ("ig", "hg"), ("io", "ho"))
_NNX_FUSED: Names = (("dense_i", "dense_h"),)


def from_nnx(
    state: Mapping[str, Any],
    *,
    gate_activation: Activation = "sigmoid",
    activation: Activation = "tanh",
    residual: bool = False,
) -> tuple[Cell, Params]:
    """The cell of an nnx LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, and its parameters.

    Can be traced.

    Args:
      state: `nnx.state(cell, nnx.Param)`, as it is or as a pure dictionary.
      gate_activation: `gate_fn` of the cell, which its state does not contain; see `lstmx.cells.activations`.
      activation: its `activation_fn`.
      residual: that of a SimpleCell.

    Returns:
      `(cell, params)`: an LSTM, GRU or Elman. The GRU's second bias, which nnx does not have, is zero.

    Raises:
      ValueError: if a tensor is missing, has a wrong shape or is unexpected; if `residual` is true, which no
        cell here supports.

    Example:
      >>> import jax.numpy as jnp
      >>> state = {"dense_i": {"kernel": jnp.ones((3, 6)), "bias": jnp.ones(6)}}
      >>> cell, params = from_nnx({**state, "dense_h": {"kernel": jnp.ones((2, 6))}})
      >>> type(cell).__name__, cell.hidden_size, params.recurrent["bias"].shape
      ('GRU', 2, (6,))
    """
    tensors, source = flat(state), "the state of the nnx cell"
    names, kind = _NNX_LSTM, LSTM
    if any(name.startswith("dense_") for name in tensors):
        names = _NNX_FUSED
        units, width = shape_of(tensors, "dense_h/kernel", "H gates*H", source)
        kinds = {gates * units: kind for kind, gates in _GATES.items() if kind is not MGU}
        if width not in kinds:
            raise ValueError(
                "dense_h/kernel must have shape [H, 4 H] (OptimizedLSTMCell), [H, 3 H] (GRUCell) or [H, H] "
                f"(SimpleCell), got {(units, width)}"
            )
        kind = kinds[width]
    cell = _cell(kind, tensors, names, source, gate_activation, activation, residual)
    return _read(cell, tensors, names, source, inner_bias=False)


def to_nnx(cell: Cell, params: Params, *, optimized: bool = False) -> dict[str, dict[str, jax.Array]]:
    """The state of the nnx cell that is equivalent to a cell.

    Args:
      cell: an LSTM, GRU or Elman.
      params: its parameters.
      optimized: for an LSTM, whether for OptimizedLSTMCell or for LSTMCell.

    Returns:
      Nested dictionaries of arrays of jax, for `nnx.replace_by_pure_dict(state, ...)` of the nnx cell's
      state, then `nnx.update(cell, state)`. The two biases of a GRU's gates are added up.

    Raises:
      ValueError: if the nnx cell cannot express an option, which is named, or for the second bias of a GRU's
        candidate where that is not zero; if a parameter is missing, has a wrong shape or is unexpected.
      TypeError: if nnx has no such cell.

    Example:
      >>> import jax, lstmx
      >>> cell = lstmx.LSTM(2)
      >>> state = to_nnx(cell, cell.init(jax.random.key(0), input_size=3))
      >>> list(state), state["if_"]["kernel"].shape
      (['ii', 'hi', 'if_', 'hf', 'ig', 'hg', 'io', 'ho'], (3, 2))
    """
    options = {kind: known for kind, known in _OPTIONS.items() if kind is not MGU}
    fused = optimized or not isinstance(cell, LSTM)
    return _write(cell, params, _NNX_FUSED if fused else _NNX_LSTM, "nnx", options, inner_bias=False)


def from_linen(
    params: Mapping[str, Any],
    *,
    gate_activation: Activation = "sigmoid",
    activation: Activation = "tanh",
    residual: bool = False,
) -> tuple[Cell, Params]:
    """The cell of a linen LSTMCell, OptimizedLSTMCell, GRUCell, MGUCell or SimpleCell, and its parameters.

    Can be traced.

    Args:
      params: `variables["params"]` of the cell.
      gate_activation: `gate_fn` of the cell, which its parameters do not contain; see
        `lstmx.cells.activations`.
      activation: its `activation_fn`.
      residual: that of a SimpleCell.

    Returns:
      `(cell, params)`: an LSTM, GRU, MGU or Elman. The GRU's second bias is zero but for its last third.

    Raises:
      ValueError: if a tensor is missing, has a wrong shape or is unexpected; if `residual` is true, which no
        cell here supports.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"i": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "h": {"kernel": jnp.ones((2, 2))}}
      >>> cell, params = from_linen(params, activation="relu")
      >>> cell.activation, params.input["kernel"].shape
      ('relu', (3, 2))
    """
    tensors, source = flat(params), "params of the linen cell"
    there = {name.split("/")[0] for name in tensors}
    kind = next((kind for kind, telling in _TELLING.items() if there & telling), None)
    if kind is None:
        raise ValueError(f"{source} must be those of a recurrent cell, got {', '.join(tensors) or 'none'}")
    cell = _cell(kind, tensors, _LINEN[kind], source, gate_activation, activation, residual)
    inner_bias = kind is GRU or (kind is MGU and cell.reset == "after")
    return _read(cell, tensors, _LINEN[kind], source, inner_bias)


def to_linen(cell: Cell, params: Params) -> dict[str, dict[str, jax.Array]]:
    """The parameters of the linen cell that is equivalent to a cell; can be traced.

    Args:
      cell: an LSTM (LSTMCell and OptimizedLSTMCell have the same parameters), GRU, MGU or Elman.
      params: its parameters.

    Returns:
      `variables["params"]` of the linen cell. The two biases of a GRU's gates are added up.

    Raises:
      ValueError: if the linen cell cannot express an option, which is named; if a parameter is missing,
        has a wrong shape or is unexpected.
      TypeError: if linen has no such cell.

    Example:
      >>> import jax, lstmx
      >>> cell = lstmx.GRU(2)
      >>> sorted(to_linen(cell, cell.init(jax.random.key(0), input_size=3))["hn"])
      ['bias', 'kernel']
    """
    inner_bias = isinstance(cell, GRU) or (isinstance(cell, MGU) and cell.reset == "after")
    return _write(cell, params, _LINEN.get(type(cell), ()), "linen", _OPTIONS, inner_bias)


def _cell(kind, tensors, names: Names, source: str, gate_activation, activation, residual: bool) -> Cell:
    if residual:
        raise ValueError("residual=True: no cell here adds its state before the activation")
    width = shape_of(tensors, f"{names[0][0]}/kernel", "D gates*H" if len(names) == 1 else "D H", source)[1]
    units = width * len(names) // _GATES[kind]
    if kind is Elman:
        if gate_activation != "sigmoid":
            raise ValueError(f"gate_activation={gate_activation!r}: a SimpleCell has no gates")
        return Elman(units, activation=activation)
    options = {"gate_activation": gate_activation, "candidate_activation": activation}
    if kind is LSTM:
        options["output_activation"] = activation
    if kind is MGU:
        options["reset"] = "after" if "hn/bias" in tensors else "none"
    return kind(units, **options)


def _shapes(cell: Cell, names: Names, features: int, inner_bias: bool) -> dict[str, tuple[int, ...]]:
    units = cell.hidden_size
    width = _GATES[type(cell)] * units // len(names)
    shapes = {}
    for from_input, from_state in names:
        shapes[f"{from_input}/kernel"] = (features, width)
        shapes[f"{from_state}/kernel"] = (units, width)
        shapes[f"{from_state if isinstance(cell, LSTM) else from_input}/bias"] = (width,)
    if inner_bias:
        shapes[f"{names[-1][1]}/bias"] = (units,)
    return shapes


def _read(cell: Cell, tensors, names: Names, source: str, inner_bias: bool) -> tuple[Cell, Params]:
    features = shape_of(tensors, f"{names[0][0]}/kernel", "D H", source)[0]
    tensors = checked(tensors, _shapes(cell, names, features, inner_bias), source)
    from_input, from_state = zip(*names, strict=True)

    def joined(names, leaf):
        return jnp.concatenate([tensors[f"{name}/{leaf}"] for name in names], axis=-1)

    biased = from_state if isinstance(cell, LSTM) else from_input
    input_params = {"kernel": joined(from_input, "kernel"), "bias": joined(biased, "bias")}
    recurrent = {"kernel": joined(from_state, "kernel")}
    bias = input_params["bias"]
    inner = tensors[f"{from_state[-1]}/bias"] if inner_bias else jnp.zeros(cell.hidden_size, bias.dtype)
    if isinstance(cell, GRU):
        recurrent["bias"] = jnp.concatenate([jnp.zeros(2 * cell.hidden_size, bias.dtype), inner])
    elif inner_bias:
        recurrent["bias"] = inner
    cell = dataclasses.replace(cell, param_dtype=input_params["kernel"].dtype)
    return cell, Params(input_params, recurrent)


def _write(cell: Cell, params: Params, names: Names, target: str, options, inner_bias: bool) -> dict:
    require_expressible(cell, target, options)
    if isinstance(cell, LSTM) and cell.candidate_activation != cell.output_activation:
        raise ValueError(
            f"{target} has one activation_fn for both candidate_activation={cell.candidate_activation!r} and "
            f"output_activation={cell.output_activation!r}"
        )
    require_params(cell, params)
    bias, inner = params.input["bias"], params.recurrent.get("bias")
    if isinstance(cell, GRU):
        outer, inner = jnp.split(inner, [2 * cell.hidden_size])
        bias = jnp.asarray(bias).at[: 2 * cell.hidden_size].add(outer)
        if not inner_bias and np.any(inner):
            raise ValueError(f"{target} has no place for the last third of recurrent.bias, which is not zero")
    features = params.input["kernel"].shape[0]
    tensors = {}
    biased = 1 if isinstance(cell, LSTM) else 0
    for k, array in enumerate((params.input["kernel"], params.recurrent["kernel"])):
        for pair, part in zip(names, jnp.split(array, len(names), axis=-1), strict=True):
            tensors[f"{pair[k]}/kernel"] = part
    for pair, part in zip(names, jnp.split(bias, len(names)), strict=True):
        tensors[f"{pair[biased]}/bias"] = part
    if inner_bias:
        tensors[f"{names[-1][1]}/bias"] = inner
    tensors = checked(tensors, _shapes(cell, names, features, inner_bias), target)
    return from_paths({tuple(name.split("/")): tensor for name, tensor in tensors.items()})
