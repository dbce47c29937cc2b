"""Weights of torch's LSTM, GRU and RNN."""

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax

from lstmx.cells import GRU, LSTM, Elman
from lstmx.cells.base import Cell, PyTree
from lstmx.convert import safetensors
from lstmx.convert.layers import GATES, shapes_of, to_network, to_tensors
from lstmx.convert.tensors import checked, require_mapping, shape_of
from lstmx.networks import Bidirectional, Stack

_OPTIONS = {
    LSTM: {"use_bias", "projection_size"},
    GRU: {"use_bias"},
    Elman: {"use_bias": None, "activation": ("relu",)},
}
_NAME = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(_reverse)?")
_NONLINEARITIES = ("tanh", "relu")


def from_state_dict(
    state_dict: Mapping[str, Any],
    prefix: str = "",
    *,
    nonlinearity: Literal["tanh", "relu"] | None = None,
    dropout_rate: float = 0.0,
) -> tuple[Stack, tuple]:
    """The network of a torch LSTM, GRU or RNN, and its parameters.

    The kind of layer, its layers, directions, biases and `proj_size` follow from names and shapes. Of the
    two biases of an LSTM or RNN, of which only the sum matters, the sum is taken. Given arrays of jax it can
    be traced: gradients with respect to torch's tensors pass through it.

    Args:
      state_dict: of the layer, or of a module that has it: torch tensors or arrays, by name.
      prefix: what the names of the layer's tensors begin with, the dot included, as in `"encoder.rnn."`; all
        other tensors are ignored.
      nonlinearity: of an RNN, which its tensors do not reveal; None for tanh.
      dropout_rate: of the network; `dropout` of torch's layer.

    Returns:
      `(net, params)`: a Stack, of one layer where torch's has one; where torch's is bidirectional, a Stack of
      Bidirectional. Parameters have the types of the tensors (float64 only with x64, as always in JAX).
      `batch_first` is not carried over: `lstmx.scan` is time-major.

    Raises:
      ValueError: if a tensor is missing, has a wrong shape or is unexpected; if `nonlinearity` is given for
        another layer than an RNN.

    Example:
      >>> import numpy as np
      >>> state_dict = {"rnn.weight_ih_l0": np.ones((8, 3)), "rnn.weight_hh_l0": np.ones((8, 2))}
      >>> net, params = from_state_dict(state_dict, prefix="rnn.")
      >>> type(net.layers[0]).__name__, net.layers[0].hidden_size, params[0].input["kernel"].shape
      ('LSTM', 2, (3, 8))
    """
    require_mapping("state_dict", state_dict, "pass layer.state_dict()")
    tensors = {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix)}
    source = f"the state dict under {prefix!r}" if prefix else "the state dict"
    matches = [match for match in map(_NAME.fullmatch, tensors) if match]
    num_layers = 1 + max((int(match[1]) for match in matches), default=0)
    bidirectional = any(match[2] for match in matches)
    cell = _cell(tensors, nonlinearity, source)
    features = shape_of(tensors, "weight_ih_l0", "gates*H D", source)[1]
    tensors = checked(tensors, shapes_of(cell, num_layers, bidirectional, features), source)
    return to_network(cell, tensors, num_layers, bidirectional, dropout_rate)


def to_state_dict(
    net: Stack | Bidirectional | Cell, params: PyTree, prefix: str = ""
) -> dict[str, jax.Array]:
    """The state dict of the torch layer that is equivalent to a network; can be traced.

    Of the two biases of an LSTM or RNN the first is ours and the second zero.

    Args:
      net: a cell, Bidirectional or Stack: LSTM (with or without projection), GRU or Elman, the same one in
        all layers. Its `dropout_rate` is no part of a state dict.
      params: its parameters.
      prefix: put before every name, as in `"encoder.rnn."`.

    Returns:
      Arrays of jax, in torch's order; torch takes them as
      `layer.load_state_dict({name: torch.from_dlpack(array) for name, array in state_dict.items()})`.

    Raises:
      ValueError: if torch's layer cannot express an option, which is named; if the layers are not all equal;
        if a parameter is missing, has a wrong shape or is unexpected.
      TypeError: if torch has no such cell.

    Example:
      >>> import jax, lstmx
      >>> net = lstmx.networks.stacked(lstmx.GRU(2), bidirectional=True)
      >>> state_dict = to_state_dict(net, net.init(jax.random.key(0), input_size=3))
      >>> list(state_dict)[:4], state_dict["weight_ih_l0_reverse"].shape
      (['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0'], (6, 3))
    """
    tensors = to_tensors(net, params, "torch", _OPTIONS)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def from_safetensors(path: str | os.PathLike, prefix: str = "", **options: Any) -> tuple[Stack, tuple]:
    """`from_state_dict` of a .safetensors file; needs neither torch nor the safetensors package.

    Args:
      path: the file.
      prefix: as for `from_state_dict`; only the tensors under it are read.
      **options: of `from_state_dict`.

    Returns:
      `(net, params)`.

    Raises:
      ValueError: as `from_state_dict`, and if the file is not of this format.

    Example:
      >>> import jax, lstmx, pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> net = lstmx.networks.stacked(lstmx.LSTM(2), num_layers=2)
      >>> to_safetensors(path, net, net.init(jax.random.key(0), input_size=3))
      >>> len(from_safetensors(path)[0].layers)
      2
    """
    return from_state_dict(safetensors.load(path, prefix), prefix, **options)


def to_safetensors(
    path: str | os.PathLike, net: Stack | Bidirectional | Cell, params: PyTree, prefix: str = ""
) -> None:
    """Writes `to_state_dict(net, params, prefix)` to a .safetensors file, which torch's users can load.

    Args:
      path: the file.
      net: as for `to_state_dict`.
      params: its parameters.
      prefix: put before every name.

    Raises:
      ValueError: as `to_state_dict`.
      TypeError: as `to_state_dict`.

    Example:
      >>> import jax, lstmx, pathlib, tempfile
      >>> cell = lstmx.LSTM(2)
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> to_safetensors(path, cell, cell.init(jax.random.key(0), input_size=3))
    """
    safetensors.save(path, to_state_dict(net, params, prefix), metadata={"format": "pt"})


def _cell(tensors: Mapping[str, Any], nonlinearity: str | None, source: str) -> Cell:
    """The cell whose layer 0 has these tensors."""
    use_bias = any(name.startswith("bias_") for name in tensors)
    rows, size = shape_of(tensors, "weight_hh_l0", "gates*H H", source)
    projected = any(name.startswith("weight_hr_") for name in tensors)
    units = shape_of(tensors, "weight_hr_l0", "P H", source)[1] if projected else size
    kinds = {gates * units: kind for kind, gates in GATES.items() if kind is LSTM or not projected}
    if rows not in kinds:
        multiples = "4 H (LSTM with proj_size)" if projected else "4 H (LSTM), 3 H (GRU) or H (RNN)"
        raise ValueError(f"weight_hh_l0 must have {multiples} rows for H={units}, got shape {(rows, size)}")
    kind = kinds[rows]
    if nonlinearity is not None and kind is not Elman:
        raise ValueError(f"nonlinearity={nonlinearity!r} is for an RNN, {source} is of {kind.__name__}")
    if nonlinearity not in (None, *_NONLINEARITIES):
        raise ValueError(f"nonlinearity must be one of {_NONLINEARITIES}, got {nonlinearity!r}")
    options = {"projection_size": size} if projected else {}
    if kind is Elman:
        options["activation"] = nonlinearity or "tanh"
    return kind(units, use_bias=use_bias, **options)
