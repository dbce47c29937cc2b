"""Weights of the recurrent layers of Keras 3.

The gates of Keras's LSTM have the same order as here, those of its GRU the order update, reset, candidate;
the two biases of a GRU with `reset_after` are the rows of one array.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lstmx.cells import GRU, LSTM, Elman, Params
from lstmx.cells.activations import Activation
from lstmx.cells.base import Cell, PyTree
from lstmx.cells.conv_lstm import ConvLSTM
from lstmx.convert.tensors import (
    checked,
    reordered,
    require_expressible,
    require_mapping,
    shape_of,
)
from lstmx.nested import require_params
from lstmx.networks import Bidirectional, BothDirections, Stack, entries

_CONVOLUTIONS = {f"ConvLSTM{axes}D": axes for axes in (1, 2, 3)}
_KINDS = {"LSTM": LSTM, "GRU": GRU, "SimpleRNN": Elman}
_GATES = {LSTM: 4, GRU: 3, Elman: 1}
_GRU_ORDER = (1, 0, 2)  # its own inverse
_ACTIVATIONS: dict[str, Activation] = {
    **{name: name for name in ("sigmoid", "tanh", "relu", "softsign", "softplus", "hard_sigmoid", "silu")},
    "linear": "identity",
    "elu": ("elu", 1.0),
    "leaky_relu": ("leaky_relu", 0.2),
}
_NAMES = {ours: name for name, ours in _ACTIVATIONS.items()}
_OPTIONS = {
    LSTM: {
        "use_bias": None,
        **dict.fromkeys(("gate_activation", "candidate_activation", "output_activation"), _NAMES),
    },
    GRU: {"use_bias": None, "reset_after": None, "gate_activation": _NAMES, "candidate_activation": _NAMES},
    Elman: {"use_bias": None, "activation": _NAMES},
    ConvLSTM: {
        **dict.fromkeys(("spatial_shape", "kernel_size", "strides", "dilation", "padding", "use_bias")),
        **dict.fromkeys(("gate_activation", "candidate_activation", "output_activation"), _NAMES),
    },
}
_MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "average", None: None}
_MERGE_MODES = {ours: name for name, ours in _MERGES.items()}


def from_weights(
    kind: str | type,
    weights: Sequence[Any],
    config: Mapping[str, Any] | None = None,
    *,
    spatial_shape: Sequence[int] | None = None,
) -> tuple[Cell | Bidirectional | Stack, PyTree]:
    """The cell or network of a recurrent layer of Keras 3, and its parameters; can be traced.

    What a layer returns, and in which order it reads, is an option of `lstmx.scan` and not part of a cell
    (`return_sequences`, `return_state`, `stateful`, `unroll`); dropout, which acts only in training,
    initializers, regularizers and constraints are ignored.

    Args:
      kind: the class of the layer or its name: LSTM, GRU, SimpleRNN or their cells, RNN or StackedRNNCells of
        such cells, ConvLSTM1D, 2D or 3D, Bidirectional of such layers.
      weights: `layer.get_weights()`.
      config: `layer.get_config()`; missing entries have Keras's defaults, `units` follows from the weights.
      spatial_shape: of the inputs of a ConvLSTM, which its config does not contain.

    Returns:
      `(net, params)`: a cell for a layer or cell of Keras, Bidirectional for Bidirectional, a Stack for
      StackedRNNCells. Parameters have the types of the weights.

    Raises:
      ValueError: if the number of the weights or a shape does not match the config; if an activation or
        an option has no equivalent here.

    Example:
      >>> import numpy as np
      >>> weights = [np.ones((3, 8)), np.ones((2, 8)), np.ones(8)]
      >>> cell, params = from_weights("LSTM", weights, {"units": 2, "activation": "relu"})
      >>> cell.output_activation, params.recurrent["kernel"].shape
      ('relu', (2, 8))
    """
    if not isinstance(kind, str | type):
        raise TypeError(f"kind must be the class of a layer or its name, got {kind!r}")
    kind = kind if isinstance(kind, str) else kind.__name__
    config = {} if config is None else config
    require_mapping("config", config, "pass layer.get_config()")
    if (needed := _WRAPPED.get(kind)) is not None and needed not in config:
        raise ValueError(f"{kind} needs its config, for {needed!r}: pass layer.get_config()")
    layer = {"class_name": kind, "config": config}
    count = _count(layer)
    if len(weights) != count:
        shapes = ", ".join(str(tuple(jnp.shape(w))) for w in weights)
        raise ValueError(f"{kind} must have {count} weights, got {len(weights)} of shapes {shapes}")
    return _read(layer, list(weights), kind, spatial_shape)


def to_weights(net: Cell | Bidirectional | Stack, params: PyTree) -> list[jax.Array]:
    """The weights of the Keras layer that `to_config` describes; can be traced.

    Args:
      net: an LSTM, GRU, Elman or ConvLSTM, Bidirectional of one, or a Stack of cells without convolutions.
      params: its parameters.

    Returns:
      Arrays of jax in the order of `layer.get_weights()`, for `layer.set_weights`.

    Raises:
      ValueError: if the layer cannot express an option, which is named; if a parameter is missing, has a
        wrong shape or is unexpected.
      TypeError: if Keras has no such cell.

    Example:
      >>> import jax, lstmx
      >>> cell = lstmx.GRU(2)
      >>> [w.shape for w in to_weights(cell, cell.init(jax.random.key(0), input_size=3))]
      [(3, 6), (2, 6), (2, 6)]
    """
    to_config(net)
    pairs = [(net, params)]
    if isinstance(net, Bidirectional | Stack):
        pairs = zip(net.parts, entries(net, "params", params), strict=True)
    return [array for cell, p in pairs for array in _write(cell, p)]


def to_config(net: Cell | Bidirectional | Stack) -> dict[str, Any]:
    """The Keras layer that is equivalent to a network, in Keras's serialized form.

    `keras.layers.deserialize` makes the layer of it. The layer returns sequences.

    Args:
      net: as for `to_weights`; a Stack becomes an RNN of StackedRNNCells.

    Returns:
      A dictionary of `class_name`, `config` and so on: `from_weights` reads back the two and `to_weights`.

    Raises:
      ValueError: if the layer cannot express an option, which is named.
      TypeError: if Keras has no such cell.

    Example:
      >>> import lstmx
      >>> layer = to_config(lstmx.LSTM(2, gate_activation="hard_sigmoid"))
      >>> layer["class_name"], layer["config"]["recurrent_activation"]
      ('LSTM', 'hard_sigmoid')
    """
    if isinstance(net, Bidirectional):
        forward, backward = (_described(cell, "") for cell in net.cells)
        backward["config"]["go_backwards"] = True
        config = {"layer": forward, "backward_layer": backward, "merge_mode": _MERGE_MODES[net.merge]}
        return _serialized("Bidirectional", {**config, "dtype": forward["config"]["dtype"]})
    if not isinstance(net, Stack):
        return _described(net, "")
    if net.connections != "plain":
        raise ValueError(f"Keras cannot express connections={net.connections!r} of Stack")
    if net.dropout_rate:
        raise ValueError(f"Keras's StackedRNNCells cannot express dropout_rate={net.dropout_rate} of Stack")
    if any(isinstance(layer, Bidirectional | Stack | ConvLSTM) for layer in net.layers):
        raise ValueError("Keras has no one layer for this Stack: convert its layers one by one")
    cells = [_described(cell, "Cell") for cell in net.layers]
    dtype = {"dtype": cells[0]["config"]["dtype"]}
    stack = _serialized("StackedRNNCells", {"cells": cells, **dtype})
    return _serialized("RNN", {"cell": stack, "return_sequences": True, **dtype})


# Layers around others, and where their configs have these.
_WRAPPED = {"Bidirectional": "layer", "RNN": "cell", "StackedRNNCells": "cells"}


def _count(layer: Mapping[str, Any]) -> int:
    """The number of weights of a serialized layer."""
    return sum(2 + bool(cell["config"].get("use_bias", True)) for cell in _cells(layer))


def _cells(layer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The serialized cells of a serialized layer, in the order of its weights."""
    kind, config = layer["class_name"], layer["config"]
    if kind == "Bidirectional":
        return _cells(config["layer"]) + _cells(config.get("backward_layer") or config["layer"])
    if kind == "RNN":
        return _cells(config["cell"])
    if kind == "StackedRNNCells":
        return [cell for inner in config["cells"] for cell in _cells(inner)]
    if kind not in _CONVOLUTIONS and kind.removesuffix("Cell") not in _KINDS:
        cells = (f"{name}Cell" for name in _KINDS)
        known = ("Bidirectional", "RNN", "StackedRNNCells", *_KINDS, *cells, *_CONVOLUTIONS)
        raise ValueError(f"a recurrent layer of Keras must be one of {', '.join(known)}, got {kind!r}")
    return [layer]


def _read(
    layer: Mapping[str, Any], weights: list, where: str, spatial_shape=None, backwards: bool = False
) -> tuple[Any, PyTree]:
    kind, config = layer["class_name"], layer["config"]
    if kind == "Bidirectional":
        return _read_bidirectional(config, weights, where, spatial_shape)
    if bool(config.get("go_backwards", False)) != backwards:
        remedy = (
            "must have it"
            if backwards
            else "no cell has it: take it out of the config, scan with reverse=True"
        )
        raise ValueError(f"{where} has go_backwards={not backwards}; {remedy}")
    if kind == "RNN":
        return _read(config["cell"], weights, where)
    if kind == "StackedRNNCells":
        inner, rest = config["cells"], list(weights)
        found = []
        for k, cell in enumerate(inner):
            count = _count(cell)
            found.append(_read(cell, rest[:count], f"cell {k} of {where}"))
            rest = rest[count:]
        cells, params = zip(*found, strict=True)
        return Stack(cells), params
    if kind in _CONVOLUTIONS:
        return _read_convolution(_CONVOLUTIONS[kind], config, weights, where, spatial_shape)
    return _read_cell(_KINDS[kind.removesuffix("Cell")], config, weights, where)


def _read_bidirectional(
    config: Mapping[str, Any], weights: list, where: str, spatial_shape
) -> tuple[Bidirectional, PyTree]:
    forward = config["layer"]
    backward = config.get("backward_layer") or {
        **forward,
        "config": {**forward["config"], "go_backwards": True},
    }
    merge = config.get("merge_mode", "concat")
    if merge not in _MERGES:
        raise ValueError(f"merge_mode must be one of {list(_MERGES)}, got {merge!r}")
    count = _count(forward)
    cells, params = zip(
        _read(forward, weights[:count], f"the forward layer of {where}", spatial_shape),
        _read(backward, weights[count:], f"the backward layer of {where}", spatial_shape, backwards=True),
        strict=True,
    )
    if any(isinstance(cell, Stack | Bidirectional) for cell in cells):
        raise ValueError(f"{where} must be of layers of one cell each, got {' and '.join(map(str, cells))}")
    forward, backward = cells
    backward = None if backward == forward else backward
    return Bidirectional(forward, backward, merge=_MERGES[merge]), BothDirections(*params)


def _read_cell(kind: type, config: Mapping[str, Any], weights: list, where: str) -> tuple[Cell, Params]:
    tensors = _named(weights, where)
    names = list(tensors)
    units = config.get("units") or shape_of(tensors, names[1], "H gates*H", where)[0]
    activation = _activation(config.get("activation", "tanh"), "activation", where)
    options: dict[str, Any] = {"use_bias": len(weights) == 3}
    if kind is Elman:
        options["activation"] = activation
    else:
        gate = _activation(config.get("recurrent_activation", "sigmoid"), "recurrent_activation", where)
        options |= {"gate_activation": gate, "candidate_activation": activation}
    if kind is LSTM:
        options["output_activation"] = activation
    if kind is GRU:
        options["reset_after"] = bool(config.get("reset_after", True))
    width = _GATES[kind] * units
    features = shape_of(tensors, names[0], "D gates*H", where)[0]
    two_biases = options.get("reset_after", False)
    shapes = [(features, width), (units, width), (2, width) if two_biases else (width,)]
    arrays = list(checked(tensors, dict(zip(names, shapes, strict=False)), where).values())
    if kind is GRU:
        arrays = [reordered(array, _GRU_ORDER) for array in arrays]
    cell = kind(units, **options, param_dtype=arrays[0].dtype)
    return cell, _params(cell, *arrays)


def _read_convolution(
    axes: int, config: Mapping[str, Any], weights: list, where: str, spatial_shape: Sequence[int] | None
) -> tuple[ConvLSTM, Params]:
    if spatial_shape is None or len(spatial_shape) != axes:
        raise ValueError(f"{where} needs spatial_shape, the {axes} sizes of its inputs, got {spatial_shape}")
    if config.get("data_format", "channels_last") not in (None, "channels_last"):
        raise ValueError(f"data_format of {where} must be channels_last, got {config['data_format']!r}")
    tensors = _named(weights, where)
    names = list(tensors)
    *kernel_size, features, width = shape_of(tensors, names[0], "k " * axes + "D 4H", where)
    units = config.get("filters") or width // 4
    kernel_size = tuple(config.get("kernel_size", kernel_size))
    width = 4 * units
    shapes = [(*kernel_size, features, width), (*kernel_size, units, width), (width,)]
    arrays = list(checked(tensors, dict(zip(names, shapes, strict=False)), where).values())
    activation = _activation(config.get("activation", "tanh"), "activation", where)
    cell = ConvLSTM(
        units,
        spatial_shape,
        kernel_size,
        strides=config.get("strides", 1),
        dilation=config.get("dilation_rate", 1),
        padding=config.get("padding", "valid"),
        use_bias=len(weights) == 3,
        gate_activation=_activation(
            config.get("recurrent_activation", "sigmoid"), "recurrent_activation", where
        ),
        candidate_activation=activation,
        output_activation=activation,
        param_dtype=arrays[0].dtype,
    )
    return cell, _params(cell, *arrays)


def _named(weights: list, where: str) -> dict[str, Any]:
    """The weights of a cell by name; the bias is there or not."""
    names = ("kernel", "recurrent_kernel", "bias")
    return {f"{name} of {where}": weight for name, weight in zip(names, weights, strict=False)}


def _params(cell: Cell, kernel: jax.Array, recurrent: jax.Array, bias: jax.Array | None = None) -> Params:
    first = second = {}
    if bias is not None:
        first = {"bias": bias}
        if bias.ndim == 2:
            first, second = {"bias": bias[0]}, {"bias": bias[1]}
    update = ()
    if isinstance(cell, GRU) and not cell.reset_after:
        recurrent, candidate = jnp.split(recurrent, [2 * cell.hidden_size], axis=1)
        update = {"kernel": candidate}
    return Params({"kernel": kernel, **first}, {"kernel": recurrent, **second}, update)


def _write(cell: Cell, params: Params) -> list[jax.Array]:
    require_params(cell, params)
    params = jax.tree.map(jnp.asarray, params)
    arrays = [params.input["kernel"], params.recurrent["kernel"]]
    if params.update:
        arrays[1] = jnp.concatenate([arrays[1], params.update["kernel"]], axis=1)
    if cell.use_bias:
        bias, second = params.input["bias"], params.recurrent.get("bias")
        arrays.append(bias if second is None else jnp.stack([bias, second]))
    return [reordered(array, _GRU_ORDER) for array in arrays] if isinstance(cell, GRU) else arrays


def _described(cell: Cell, suffix: str) -> dict[str, Any]:
    """The serialized layer of a cell; with the suffix `"Cell"`, the cell by itself."""
    require_expressible(cell, "Keras", _OPTIONS)
    config: dict[str, Any] = {
        "units": cell.hidden_size,
        "use_bias": cell.use_bias,
        "dtype": cell.param_dtype.name,
    }
    if not suffix:
        config["return_sequences"] = True
    if isinstance(cell, Elman):
        return _serialized(f"SimpleRNN{suffix}", {**config, "activation": _NAMES[cell.activation]})
    if isinstance(cell, LSTM | ConvLSTM) and cell.candidate_activation != cell.output_activation:
        raise ValueError(
            f"Keras has one activation for both candidate_activation={cell.candidate_activation!r} and "
            f"output_activation={cell.output_activation!r}"
        )
    config["activation"] = _NAMES[cell.candidate_activation]
    config["recurrent_activation"] = _NAMES[cell.gate_activation]
    if isinstance(cell, ConvLSTM):
        config["filters"] = config.pop("units")
        config |= {"kernel_size": cell.kernel_size, "strides": cell.strides, "dilation_rate": cell.dilation}
        config |= {"padding": cell.padding, "data_format": "channels_last"}
        return _serialized(f"ConvLSTM{len(cell.spatial_shape)}D", config)
    if isinstance(cell, GRU):
        config["reset_after"] = cell.reset_after
    return _serialized(f"{type(cell).__name__}{suffix}", config)


def _serialized(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": class_name, "config": config, "registered_name": None}


def _activation(name: Any, option: str, where: str) -> Activation:
    name = "linear" if name is None else name
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ValueError(f"{option} of {where} must be one of {sorted(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name]
