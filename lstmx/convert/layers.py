"""Layers and directions as torch and cuDNN have them: `weight_ih_l0`, `weight_hh_l1_reverse` and so on.

Kernels are [out, in], with the gates in the same order as here. There are two biases; where only their sum
matters (LSTM, RNN) it is their sum that is read, and (bias, 0) that is written.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from lstmx.cells import GRU, LSTM, Elman, Params
from lstmx.cells.base import Cell, PyTree
from lstmx.convert.tensors import checked, require_expressible
from lstmx.nested import require_params
from lstmx.networks import Bidirectional, BothDirections, Stack, entries, stacked

GATES = {LSTM: 4, GRU: 3, Elman: 1}
# What all layers of a network must have in common.
_COMMON = ("hidden_size", "use_bias", "projection_size", "activation")


def shapes_of(cell: Cell, num_layers: int, bidirectional: bool, features: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, in torch's order, for inputs of so many features.

    Example:
      >>> shapes_of(Elman(2, use_bias=False), 1, False, 3)
      {'weight_ih_l0': (2, 3), 'weight_hh_l0': (2, 2)}
    """
    units, projection = cell.hidden_size, getattr(cell, "projection_size", None)
    rows, size = GATES[type(cell)] * units, projection or units
    shapes = {}
    for k in range(num_layers):
        for suffix in _suffixes(k, bidirectional):
            shapes[f"weight_ih_{suffix}"] = (rows, features)
            shapes[f"weight_hh_{suffix}"] = (rows, size)
            if cell.use_bias:
                shapes |= {f"bias_ih_{suffix}": (rows,), f"bias_hh_{suffix}": (rows,)}
            if projection:
                shapes[f"weight_hr_{suffix}"] = (projection, units)
        features = size * (2 if bidirectional else 1)
    return shapes


def to_network(
    cell: Cell,
    tensors: Mapping[str, jax.Array],
    num_layers: int,
    bidirectional: bool,
    dropout_rate: float = 0.0,
) -> tuple[Stack, tuple]:
    """The network of `num_layers` times `cell`, and its parameters, from tensors that have `shapes_of` it."""
    cell = dataclasses.replace(cell, param_dtype=tensors["weight_ih_l0"].dtype)
    params = []
    for k in range(num_layers):
        both = [_to_params(cell, tensors, suffix) for suffix in _suffixes(k, bidirectional)]
        params.append(BothDirections(*both) if bidirectional else both[0])
    return stacked(cell, num_layers, bidirectional, dropout_rate), tuple(params)


def to_tensors(
    net: Stack | Bidirectional | Cell, params: PyTree, target: str, options: Mapping
) -> dict[str, jax.Array]:
    """The tensors of a network, in torch's order.

    Args:
      net: a cell, Bidirectional or Stack.
      params: its parameters.
      target: the name of the system that they are for, for messages.
      options: what it can express, as for `tensors.require_expressible`.

    Raises:
      ValueError: if the target cannot express an option; if the layers are not all equal; if a parameter is
        missing, has a wrong shape or is unexpected.
      TypeError: if the target has no such cell.
    """
    found = list(_cells(net, params, target))
    first = found[0][1]
    tensors = {}
    for suffix, cell, p in found:
        require_expressible(cell, target, options)
        if type(cell) is not type(first) or any(
            getattr(cell, name, None) != getattr(first, name, None) for name in _COMMON
        ):
            raise ValueError(f"{target} has equal layers only; {suffix} is {cell}, l0 is {first}")
        require_params(cell, p)
        tensors |= {f"{name}_{suffix}": tensor for name, tensor in _to_tensors(cell, p).items()}
    bidirectional = "weight_ih_l0_reverse" in tensors
    num_layers = len(found) // (2 if bidirectional else 1)
    shapes = shapes_of(first, num_layers, bidirectional, tensors["weight_ih_l0"].shape[1])
    return checked(tensors, shapes, "the network")


def _suffixes(layer: int, bidirectional: bool) -> tuple[str, ...]:
    return (f"l{layer}", f"l{layer}_reverse") if bidirectional else (f"l{layer}",)


def _to_params(cell: Cell, tensors: Mapping[str, jax.Array], suffix: str) -> Params:
    input_params = {"kernel": tensors[f"weight_ih_{suffix}"].T}
    recurrent = {"kernel": tensors[f"weight_hh_{suffix}"].T}
    if cell.use_bias:
        bias, second = tensors[f"bias_ih_{suffix}"], tensors[f"bias_hh_{suffix}"]
        if isinstance(cell, GRU):
            input_params["bias"], recurrent["bias"] = bias, second
        else:
            input_params["bias"] = bias + second
    projection = tensors.get(f"weight_hr_{suffix}")
    return Params(input_params, recurrent, () if projection is None else {"projection": projection.T})


def _to_tensors(cell: Cell, params: Params) -> dict[str, jax.Array]:
    tensors = {"weight_ih": params.input["kernel"].T, "weight_hh": params.recurrent["kernel"].T}
    if cell.use_bias:
        bias = params.input["bias"]
        tensors |= {"bias_ih": bias, "bias_hh": params.recurrent.get("bias", jnp.zeros_like(bias))}
    if params.update:
        tensors["weight_hr"] = params.update["projection"].T
    return tensors


def _cells(
    net: Stack | Bidirectional | Cell, params: PyTree, target: str
) -> Iterator[tuple[str, Cell, Params]]:
    """`(suffix, cell, params)` of each direction of each layer."""
    layers, params = (net,), (params,)
    if isinstance(net, Stack):
        layers, params = net.layers, entries(net, "params", *params)
    if isinstance(net, Stack) and net.connections != "plain":
        raise ValueError(f"{target} cannot express connections={net.connections!r} of Stack")
    bidirectional = {isinstance(layer, Bidirectional) for layer in layers}
    if len(bidirectional) == 2:
        raise ValueError(f"{target} has equal layers only; some of these are bidirectional")
    for k, (layer, p) in enumerate(zip(layers, params, strict=True)):
        if not isinstance(layer, Bidirectional):
            yield f"l{k}", layer, p
            continue
        if layer.merge != "concat":
            raise ValueError(f"{target} cannot express merge={layer.merge!r} of Bidirectional")
        yield from zip(_suffixes(k, True), layer.cells, entries(layer, "params", p), strict=True)
