"""Weights of haiku's LSTM, GRU and VanillaRNN.

haiku's LSTM has one kernel for [x, h], gates in the order i, g, f, o, and adds 1 to the argument of the
forget gate whenever it runs: that 1 is part of our bias. Its GRU resets before the matmul, and its gate z
lets the candidate in where ours keeps the state; since 1 - sigmoid(a) = sigmoid(-a), the weights of z change
sign.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lstmx.cells import GRU, LSTM, Elman, Params
from lstmx.cells.base import Cell
from lstmx.convert.tensors import (
    checked,
    flat,
    reordered,
    require_expressible,
    shape_of,
)
from lstmx.nested import require_params

_OPTIONS = {LSTM: (), GRU: ("reset_after",), Elman: ("activation",)}
_LSTM_ORDER = (0, 2, 1, 3)  # its own inverse


def from_params(params: Mapping[str, Mapping[str, Any]], name: str) -> tuple[Cell, Params]:
    """The cell of a haiku LSTM, GRU or VanillaRNN, and its parameters; can be traced.

    Args:
      params: what `init` of the transformed function returns.
      name: of the core's module, as in `"lstm"` or `"agent/~/lstm"`; all other modules are ignored.

    Returns:
      `(cell, params)`: LSTM, GRU with `reset_after=False`, or Elman with the activation relu. The forget
      gate's bias is haiku's plus 1, rounded once. Of the two biases of a VanillaRNN, of which only the sum
      matters, the sum is taken.

    Raises:
      ValueError: if there is no such module; if a tensor is missing, has a wrong shape or is unexpected.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"lstm/linear": {"w": jnp.ones((5, 8)), "b": jnp.zeros(8)}}
      >>> cell, params = from_params(params, "lstm")
      >>> cell.hidden_size, params.input["kernel"].shape, params.input["bias"][2:4]
      (2, (3, 8), Array([1., 1.], dtype=float32))
    """
    tensors = {
        leaf.removeprefix(f"{name}/"): tensor
        for leaf, tensor in flat(params).items()
        if leaf.startswith(f"{name}/")
    }
    if not tensors:
        raise ValueError(f"there is no module {name!r}; there are {', '.join(params) or 'none'}")
    modules = {leaf.rpartition("/")[0] for leaf in tensors}
    read = _read_rnn if "linear_1" in modules else _read_lstm if "linear" in modules else _read_gru
    cell, found = read(tensors, f"the module {name}")
    return dataclasses.replace(cell, param_dtype=found.input["kernel"].dtype), found


def to_params(
    cell: Cell, params: Params, name: str, *, double_bias: bool = True
) -> dict[str, dict[str, jax.Array]]:
    """The parameters of the haiku core that is equivalent to a cell; can be traced.

    Args:
      cell: an LSTM, a GRU with `reset_after=False`, or an Elman with the activation relu, all with biases.
      params: its parameters.
      name: of the core's module, as in `"lstm"`.
      double_bias: that of the VanillaRNN: whether it has a second bias, which is then zero.

    Returns:
      A dictionary of modules, as `apply` takes it. The forget gate's bias is ours minus 1, rounded once.

    Raises:
      ValueError: if the core cannot express an option, which is named; if a parameter is missing, has a
        wrong shape or is unexpected.
      TypeError: if haiku has no such core.

    Example:
      >>> import jax, lstmx
      >>> cell = lstmx.LSTM(2)
      >>> modules = to_params(cell, cell.init(jax.random.key(0), input_size=3), "lstm")
      >>> modules["lstm/linear"]["w"].shape, modules["lstm/linear"]["b"].max()
      ((5, 8), Array(0., dtype=float32))
    """
    require_expressible(cell, "haiku", _OPTIONS)
    if isinstance(cell, GRU) and cell.reset_after:
        raise ValueError("haiku cannot express reset_after=True of GRU")
    if isinstance(cell, Elman) and cell.activation != "relu":
        raise ValueError(f"haiku cannot express activation={cell.activation!r} of Elman, only relu")
    require_params(cell, params)
    params = jax.tree.map(jnp.asarray, params)
    if isinstance(cell, GRU):
        return {name: _write_gru(params)}
    kernel, bias = params.input["kernel"], params.input["bias"]
    if isinstance(cell, LSTM):
        kernel = jnp.concatenate([kernel, params.recurrent["kernel"]])
        bias = bias - _forget_gate(bias)
        return {f"{name}/linear": {"w": reordered(kernel, _LSTM_ORDER), "b": reordered(bias, _LSTM_ORDER)}}
    second = {"b": jnp.zeros_like(bias)} if double_bias else {}
    return {
        f"{name}/linear": {"w": kernel, "b": bias},
        f"{name}/linear_1": {"w": params.recurrent["kernel"], **second},
    }


def _read_lstm(tensors: Mapping[str, Any], source: str) -> tuple[LSTM, Params]:
    rows, width = shape_of(tensors, "linear/w", "D+H 4H", source)
    units = width // 4
    if width % 4 or not 0 < units < rows:
        raise ValueError(f"linear/w must have shape [D + H, 4 H], got {(rows, width)}")
    tensors = checked(tensors, {"linear/w": (rows, width), "linear/b": (width,)}, source)
    kernel, bias = (reordered(tensors[f"linear/{leaf}"], _LSTM_ORDER) for leaf in "wb")
    from_input, from_state = jnp.split(kernel, [rows - units])
    bias = bias + _forget_gate(bias)
    return LSTM(units), Params({"kernel": from_input, "bias": bias}, {"kernel": from_state})


def _read_gru(tensors: Mapping[str, Any], source: str) -> tuple[GRU, Params]:
    units = shape_of(tensors, "w_h", "H 3H", source)[0]
    features, width = shape_of(tensors, "w_i", "D 3H", source)[0], 3 * units
    shapes = {"w_i": (features, width), "w_h": (units, width), "b": (width,)}
    tensors = checked(tensors, shapes, source)
    kernel, recurrent, bias = (_reordered(tensors[leaf], (1, 0, 2), negated=1) for leaf in shapes)
    gates, candidate = jnp.split(recurrent, [2 * units], axis=1)
    params = Params({"kernel": kernel, "bias": bias}, {"kernel": gates}, {"kernel": candidate})
    return GRU(units, reset_after=False), params


def _write_gru(params: Params) -> dict[str, jax.Array]:
    recurrent = jnp.concatenate([params.recurrent["kernel"], params.update["kernel"]], axis=1)
    arrays = {"w_i": params.input["kernel"], "w_h": recurrent, "b": params.input["bias"]}
    return {leaf: _reordered(array, (1, 0, 2), negated=0) for leaf, array in arrays.items()}


def _read_rnn(tensors: Mapping[str, Any], source: str) -> tuple[Elman, Params]:
    features, units = shape_of(tensors, "linear/w", "D H", source)
    shapes = {"linear/w": (features, units), "linear/b": (units,), "linear_1/w": (units, units)}
    if "linear_1/b" in tensors:
        shapes["linear_1/b"] = (units,)
    tensors = checked(tensors, shapes, source)
    bias = tensors["linear/b"]
    if "linear_1/b" in tensors:
        bias = bias + tensors["linear_1/b"]
    cell = Elman(units, activation="relu")
    return cell, Params({"kernel": tensors["linear/w"], "bias": bias}, {"kernel": tensors["linear_1/w"]})


def _forget_gate(bias: jax.Array) -> jax.Array:
    """1 for the second of four gates, 0 for the others."""
    return jnp.repeat(jnp.array([0, 1, 0, 0], bias.dtype), bias.shape[0] // 4)


def _reordered(array: jax.Array, order: tuple[int, ...], negated: int) -> jax.Array:
    """The gates in another order, the one that then stands at `negated` with the other sign."""
    gates = jnp.split(reordered(array, order), len(order), axis=-1)
    gates[negated] = -gates[negated]
    return jnp.concatenate(gates, axis=-1)
