"""The attributes of ONNX's recurrent nodes, and the options of cells that they correspond to."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lstmx.cells.base import Cell

Activation = str | tuple


class _Function(NamedTuple):
    ours: str
    # Of alpha, and of beta where there is one. None: ONNX has no such operator any more, hence no default.
    defaults: tuple[float | None, ...] = ()


_FUNCTIONS = {
    "Affine": _Function("affine", (None, None)),
    "Elu": _Function("elu", (1.0,)),
    "HardSigmoid": _Function("hard_sigmoid", (0.2, 0.5)),
    "LeakyRelu": _Function("leaky_relu", (0.01,)),
    "Relu": _Function("relu"),
    "ScaledTanh": _Function("scaled_tanh", (None, None)),
    "Sigmoid": _Function("sigmoid"),
    "Softplus": _Function("softplus"),
    "Softsign": _Function("softsign"),
    "Tanh": _Function("tanh"),
    "ThresholdedRelu": _Function("thresholded_relu", (1.0,)),
}
_NAMES = {function.ours: name for name, function in _FUNCTIONS.items()}
_BY_LOWER_CASE = {name.lower(): name for name in _FUNCTIONS}
_CONSTANTS = ("activation_alpha", "activation_beta")

# What has a name without numbers here, and needs numbers there.
_WRITTEN = {"hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5), "identity": ("affine", 1.0, 0.0)}

_COMMON = {
    "direction": "forward",
    "hidden_size": None,
    "activations": None,
    "activation_alpha": (),
    "activation_beta": (),
    "clip": None,
    "layout": 0,
}
# Of each operator, and what an attribute that is absent means.
_ATTRIBUTES = {
    "LSTM": {**_COMMON, "input_forget": 0},
    "GRU": {**_COMMON, "linear_before_reset": 0},
    "RNN": _COMMON,
}
_VALUES = {"direction": ("forward", "reverse", "bidirectional"), "layout": (0, 1), "input_forget": (0, 1)}

# The options that are an operator's activations, in its order, and ONNX's defaults.
ACTIVATIONS = {
    "LSTM": {"gate_activation": "Sigmoid", "candidate_activation": "Tanh", "output_activation": "Tanh"},
    "GRU": {"gate_activation": "Sigmoid", "candidate_activation": "Tanh"},
    "RNN": {"activation": "Tanh"},
}


def read(op_type: str, attributes: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Activation]]]:
    """The attributes of a node.

    Args:
      op_type: of the node.
      attributes: by name; strings may be bytes, and None counts as absent.

    Returns:
      All of the operator's attributes, the absent ones with their defaults; and for each direction the
      activations, by the names of our options.

    Raises:
      ValueError: naming what is not supported, and its value.

    Example:
      >>> settings, activations = read("RNN", {"direction": b"reverse"})
      >>> settings["direction"], settings["layout"], activations
      ('reverse', 0, [{'activation': 'tanh'}])
    """
    if op_type not in _ATTRIBUTES:
        raise ValueError(f"op_type must be one of {', '.join(_ATTRIBUTES)}, got {op_type!r}")
    settings = dict(_ATTRIBUTES[op_type])
    for name, value in attributes.items():
        if name not in settings:
            raise ValueError(f"the attribute {name}={value!r} of {op_type} is not supported")
        if value is None:
            continue
        settings[name] = value = _text(value)
        if name in _VALUES and value not in _VALUES[name]:
            raise ValueError(f"{name} must be one of {_VALUES[name]}, got {value!r}")
    clip = settings["clip"]
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, got {clip!r}")
    return settings, _directions(op_type, settings)


def write(op_type: str, cells: Sequence[Cell], direction: str, layout: int) -> dict[str, Any]:
    """The attributes of a node; those with ONNX's defaults are omitted, except `hidden_size`.

    Args:
      op_type: of the node.
      cells: one for each direction, equal except for their activations.
      direction: the attribute.
      layout: the attribute.

    Raises:
      ValueError: for an activation that ONNX does not have.

    Example:
      >>> from lstmx.cells import LSTM
      >>> write("LSTM", [LSTM(4)], "reverse", 0)
      {'hidden_size': 4, 'direction': 'reverse'}
    """
    cell = cells[0]
    lists = {"activations": [], "activation_alpha": [], "activation_beta": []}
    for options in cells:
        for option in ACTIVATIONS[op_type]:
            for values, new in zip(lists.values(), _written(option, getattr(options, option)), strict=True):
                values += new
    if lists["activations"] == [*ACTIVATIONS[op_type].values()] * len(cells):
        lists = {}
    attributes = {
        "hidden_size": int(cell.hidden_size),
        "direction": direction,
        **lists,
        "clip": None if cell.gate_clip is None else float(cell.gate_clip),
        "layout": layout,
        "input_forget": int(getattr(cell, "input_gate", "full") == "coupled"),
        "linear_before_reset": int(getattr(cell, "reset_after", False)),
    }
    absent = _ATTRIBUTES[op_type]
    return {name: value for name, value in attributes.items() if value and value != absent.get(name)}


def activations(names: Sequence[str], alpha: Sequence[float], beta: Sequence[float]) -> list[Activation]:
    """The activations of a node.

    Each function that takes an alpha (a beta) consumes the next one of the list, as in onnxruntime; functions
    left over when a list ends have ONNX's default.

    Args:
      names: the attribute `activations`, in any case.
      alpha: the attribute `activation_alpha`.
      beta: the attribute `activation_beta`.

    Returns:
      An activation of ours for each name.

    Raises:
      ValueError: for a function that ONNX does not have, one without the numbers that it needs, or lists
        longer than what the functions take.

    Example:
      >>> activations(["HardSigmoid", "Tanh", "LeakyRelu"], [0.3, 0.1], [])
      [('hard_sigmoid', 0.3, 0.5), 'tanh', ('leaky_relu', 0.1)]
    """
    functions = [_function(name) for name in names]
    left = dict(zip(_CONSTANTS, (list(alpha), list(beta)), strict=True))
    found = []
    for name, function in zip(names, functions, strict=True):
        numbers = []
        for attribute, default in zip(_CONSTANTS, function.defaults, strict=False):
            value = left[attribute].pop(0) if left[attribute] else default
            if value is None:
                raise ValueError(f"{attribute} has no value for {name}, and ONNX defines no default")
            numbers.append(float(value))
        found.append(_shortest((function.ours, *numbers)))
    for k, (attribute, rest) in enumerate(left.items()):
        taken = sum(len(function.defaults) > k for function in functions)
        # If no function takes one, the list must be empty.
        if rest and taken:
            raise ValueError(f"{attribute} has {taken + len(rest)} values, but {names} take {taken}")
    return found


def is_mirrored(activation: Activation) -> bool:
    """Whether `f(-x) = 1 - f(x)`, so that a gate with negated weights is one minus the gate.

    Example:
      >>> is_mirrored("sigmoid"), is_mirrored(("hard_sigmoid", 0.2, 0.5)), is_mirrored("tanh")
      (True, True, False)
    """
    name, *numbers = _parts(activation)
    return name == "sigmoid" or (name in ("hard_sigmoid", "affine") and numbers[1:] in ([], [0.5]))


def _directions(op_type: str, settings: Mapping[str, Any]) -> list[dict[str, Activation]]:
    options = ACTIVATIONS[op_type]
    directions = 2 if settings["direction"] == "bidirectional" else 1
    names = settings["activations"]
    names = [*options.values()] * directions if names is None else [_text(name) for name in names]
    if len(names) != len(options) * directions:
        raise ValueError(
            f"activations must name {len(options)} functions of {op_type} for each of {directions} "
            f"directions, got {names}"
        )
    functions = activations(names, settings["activation_alpha"], settings["activation_beta"])
    rows = [functions[k : k + len(options)] for k in range(0, len(functions), len(options))]
    return [dict(zip(options, row, strict=True)) for row in rows]


def _function(name: str) -> _Function:
    if name.lower() not in _BY_LOWER_CASE:
        raise ValueError(f"activations={name!r} is not supported, only {', '.join(_FUNCTIONS)}")
    return _FUNCTIONS[_BY_LOWER_CASE[name.lower()]]


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _written(option: str, activation: Activation) -> tuple[list[str], list[float], list[float]]:
    """The entries of a function in `activations`, `activation_alpha` and `activation_beta`."""
    ours, *numbers = _WRITTEN.get(activation) or _parts(activation)
    if ours not in _NAMES:
        raise ValueError(f"{option}={activation!r}: ONNX has no such function, only {', '.join(_FUNCTIONS)}")
    return [_NAMES[ours]], numbers[:1], numbers[1:]


def _parts(activation: Activation) -> tuple:
    return activation if isinstance(activation, tuple) else (activation,)


def _shortest(activation: tuple) -> Activation:
    """The activation by its plain name where it has one."""
    for name, written in _WRITTEN.items():
        # A file has them in single precision.
        if activation[0] == written[0] and np.allclose(activation[1:], written[1:], rtol=1e-7, atol=0):
            return name
    return activation if len(activation) > 1 else activation[0]
