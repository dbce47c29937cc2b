"""Shared by the converters: tensors by name with their shapes, reordered gates, refusals."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmx.cells.base import Cell

# Fields that say how parameters are drawn, stored and computed with: no format of weights holds them.
_NOT_IN_WEIGHTS = {"hidden_size", "forget_bias", "chrono", "dtype", "param_dtype", "layer_norm_epsilon"}
_NOT_IN_WEIGHTS |= {"kernel_init", "recurrent_init", "bias_init"}


def as_array(tensor: Any) -> jax.Array:
    """A tensor of any framework as a jax array of its own type (float64 needs x64, as always in JAX).

    Example:
      >>> as_array([1.0, 2.0])
      Array([1., 2.], dtype=float32)
    """
    if hasattr(tensor, "detach"):  # torch
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # unknown to NumPy; the widening is exact
            return jnp.asarray(tensor.float().numpy()).astype(jnp.bfloat16)
        tensor = tensor.numpy()
    return tensor if isinstance(tensor, jax.Array) else jnp.asarray(np.asarray(tensor))


def require_mapping(name: str, value: Any, advice: str) -> None:
    """Raises TypeError, with advice, unless an argument is a mapping.

    Example:
      >>> require_mapping("state_dict", [1], "pass layer.state_dict()")
      Traceback (most recent call last):
      TypeError: state_dict must be a mapping, got list; pass layer.state_dict()
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {type(value).__name__}; {advice}")


def checked(
    tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, jax.Array]:
    """The tensors as arrays, if they have exactly the names and shapes that are expected.

    Args:
      tensors: by name.
      shapes: of all that must be there, by name.
      source: what holds them, for messages.

    Raises:
      ValueError: if one is missing, has a wrong shape or is unexpected.
      TypeError: if one is not of a floating type.

    Example:
      >>> checked({"w": [1.0]}, {"w": (2,)}, "the file")
      Traceback (most recent call last):
      ValueError: w must have shape (2,), got (1,)
    """
    found = {}
    for name, shape in shapes.items():
        if name not in tensors:
            there = ", ".join(map(str, tensors)) or "nothing"
            raise ValueError(f"{source} lacks {name}, expected with shape {shape}; it has {there}")
        found[name] = array = as_array(tensors[name])
        if array.shape != tuple(shape):
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be of a floating type, got {array.dtype.name}")
    for name, tensor in tensors.items():
        if name not in shapes:
            shape = tuple(np.shape(tensor))
            raise ValueError(f"{source} has {name} of shape {shape}, but no such tensor is expected")
    return found


def shape_of(tensors: Mapping[str, Any], name: str, axes: str, source: str) -> tuple[int, ...]:
    """The shape of a tensor that others' shapes follow from.

    Args:
      tensors: by name.
      name: of the tensor.
      axes: what its axes are, separated by spaces, as in `"4H D"`.
      source: what holds it, for messages.

    Raises:
      ValueError: if it is missing or has another number of axes.
    """
    described = f"[{', '.join(axes.split())}]"
    if name not in tensors:
        there = ", ".join(map(str, tensors)) or "nothing"
        raise ValueError(f"{source} lacks {name}, expected with shape {described}; it has {there}")
    shape = tuple(np.shape(tensors[name]))
    if len(shape) != len(axes.split()):
        raise ValueError(f"{name} must have shape {described}, got {shape}")
    return shape


def flat(tree: Mapping, above: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries under names of the form `a/b`.

    Example:
      >>> flat({"a": {"b": 1}, "c": 2})
      {'a/b': 1, 'c': 2}
    """
    require_mapping("parameters", tree, "pass nested dictionaries of arrays")
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{above}{name}/") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return leaves


def reordered(array: jax.Array, order: Sequence[int]) -> jax.Array:
    """The gates along the last axis in another order: gate k is gate `order[k]` of the array.

    Example:
      >>> reordered(jnp.array([1, 2, 3, 4]), (1, 0))
      Array([3, 4, 1, 2], dtype=int32)
    """
    gates = jnp.split(array, len(order), axis=-1)
    return jnp.concatenate([gates[k] for k in order], axis=-1)


def require_expressible(
    cell: Cell, target: str, options: Mapping[type, Collection[str] | Mapping[str, Collection | None]]
) -> None:
    """Checks that a target can express every option of a cell.

    Args:
      cell: the cell.
      target: the name of the target, for messages.
      options: the types of cells that it has, and of each the names of the fields that it can express; or a
        mapping of these to the values beside the default that it can express, None for all.

    Raises:
      TypeError: if it has no such cell.
      ValueError: if an option that it cannot express has another value than its default.

    Example:
      >>> from lstmx.cells import LSTM
      >>> require_expressible(LSTM(4, use_bias=False), "a target", {LSTM: set()})
      Traceback (most recent call last):
      ValueError: a target cannot express use_bias=False of LSTM
    """
    kind = type(cell)
    if kind not in options:
        names = ", ".join(sorted(other.__name__ for other in options))
        raise TypeError(f"{target} can express {names}, not {kind.__name__}")
    known = options[kind]
    for field in dataclasses.fields(cell):
        name, value = field.name, getattr(cell, field.name)
        if name in _NOT_IN_WEIGHTS or value == field.default:
            continue
        values = known[name] if name in known and isinstance(known, Mapping) else None
        if name not in known or (values is not None and value not in values):
            raise ValueError(f"{target} cannot express {name}={value!r} of {kind.__name__}")
