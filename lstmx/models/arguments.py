"""Checks of the models' arguments, and the cells by name."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

import lstmx
from lstmx.cells.base import Cell, is_integer

CELLS = {"lstm": lstmx.LSTM, "slstm": lstmx.SLSTM, "gru": lstmx.GRU, "elman": lstmx.Elman}


def make_cell(
    name: str,
    hidden_size: int,
    *,
    dtype: DTypeLike | None = None,
    choices: Sequence[str] = ("lstm", "gru", "elman"),
) -> Cell:
    """A cell by its name in `CELLS`.

    Raises:
      ValueError: if the name is not among the choices.

    Example:
      >>> make_cell("gru", 4).hidden_size
      4
    """
    require_choice("cell", name, choices)
    return CELLS[name](hidden_size, dtype=dtype)


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value`, of the argument `name`, is one of the choices.

    Example:
      >>> require_choice("pooling", "sum", ("last", "max"))
      Traceback (most recent call last):
      ValueError: pooling must be one of last, max, got 'sum'
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def require_nonnegative(**counts: int) -> None:
    """Checks numbers of things of which there may be none, by the names of their arguments.

    Raises:
      TypeError: if one is not an integer, or is a bool.
      ValueError: if one is below 0.

    Example:
      >>> require_nonnegative(num_series=-1)
      Traceback (most recent call last):
      ValueError: num_series must be at least 0, got -1
    """
    for name, count in counts.items():
        if not is_integer(count):
            raise TypeError(f"{name} must be an integer, got {count!r}")
        if count < 0:
            raise ValueError(f"{name} must be at least 0, got {count}")


def require_switches(**switches: bool) -> None:
    """Raises TypeError unless all are True or False.

    Example:
      >>> require_switches(affine="no")
      Traceback (most recent call last):
      TypeError: affine must be True or False, got 'no'
    """
    for name, value in switches.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def noise_options(
    model: nnx.Module, deterministic: bool | None, rngs: nnx.Rngs | nnx.RngStream | None
) -> dict:
    """The arguments for a model's layers: the model's own stream replaces `rngs` of None."""
    return {"deterministic": deterministic, "rngs": cast(Any, model).rngs if rngs is None else rngs}
