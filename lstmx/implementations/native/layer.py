"""A layer as the kernels take it, as arrays with one batch axis; and its computation in JAX operations."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstmx.cells.base import Cell, Params, with_dtype
from lstmx.cells.elman import Elman
from lstmx.cells.gru import GRU
from lstmx.cells.lstm import LSTM, LSTMState
from lstmx.implementations.reference import Sequence


class Kernel(NamedTuple):
    """Which kernel, for which layer."""

    name: str  # one of library.KERNELS
    units: int
    reverse: bool


class Arrays(NamedTuple):
    """The inputs of a layer, float32; None for what a cell or a call does not have."""

    x: jax.Array  # [T, B, D]
    input: jax.Array  # [D, gates * H]
    recurrent: jax.Array  # [H, gates * H]
    bias: jax.Array  # [slots, H]: of a GRU reset, update, and both parts of n
    h: jax.Array  # [B, H]
    c: jax.Array | None  # [B, H]
    fresh_h: jax.Array | None  # [B, H]
    fresh_c: jax.Array | None  # [B, H]


class Flags(NamedTuple):
    """Which steps are not skipped, and before which the state is reset; bool `[T, B]` or None."""

    keep: jax.Array | None
    resets: jax.Array | None


class Outputs(NamedTuple):
    """The outputs of a layer; `c` and `cells` are None if the cell has none or they are not requested."""

    ys: jax.Array  # [T, B, H]
    h: jax.Array  # [B, H]
    c: jax.Array | None  # [B, H]
    cells: jax.Array | None  # c of all steps, [T, B, H]


def in_jax(run: Callable, kernel: Kernel, arrays: Arrays, flags: Flags, wants_cells: bool) -> Outputs:
    """The layer in JAX operations.

    Args:
      run: the function `run` of another implementation.
      kernel: the kernel to replace.
      arrays: its inputs.
      flags: its flags.
      wants_cells: whether to return c of all steps.
    """
    cell, params = _cell_and_params(kernel, arrays)

    def state(h, c):
        return LSTMState(c=c, h=h) if kernel.name == "lstm" else h

    fresh = state(arrays.h if arrays.fresh_h is None else arrays.fresh_h,
                  arrays.c if arrays.fresh_c is None else arrays.fresh_c)  # fmt: skip
    final, states = run(
        with_dtype(cell, jnp.float32), params, state(arrays.h, arrays.c), fresh,
        Sequence(arrays.x, flags.keep, flags.resets),
        reverse=kernel.reverse, unroll=1, remat=None, states=True,
    )  # fmt: skip
    if kernel.name != "lstm":
        return Outputs(states, final, None, None)
    return Outputs(states.h, final.h, final.c, states.c if wants_cells else None)


def _cell_and_params(kernel: Kernel, arrays: Arrays) -> tuple[Cell, Params]:
    recurrent, bias = {"kernel": arrays.recurrent}, arrays.bias
    if kernel.name == "gru":
        cell, zeros = GRU(kernel.units), jnp.zeros_like(bias[:2])
        recurrent["bias"] = jnp.concatenate([zeros, bias[3:]]).reshape(-1)
        bias = bias[:3]
    elif kernel.name == "lstm":
        cell = LSTM(kernel.units)
    else:
        cell = Elman(kernel.units, kernel.name.removeprefix("elman_"))
    return cell, Params({"kernel": arrays.input, "bias": bias.reshape(-1)}, recurrent)


def kernel_name(cell: LSTM | GRU | Elman) -> str:
    """The name in library.KERNELS of the kernel of a cell."""
    return f"elman_{cell.activation}" if isinstance(cell, Elman) else type(cell).__name__.lower()


def slot_biases(cell: LSTM | GRU | Elman, params: Params) -> jax.Array:
    """The constants of the pre-activations, `[slots, H]`."""
    units = cell.hidden_size
    if not cell.use_bias:
        return jnp.zeros((1 if isinstance(cell, Elman) else 4, units), jnp.float32)
    bias = params.input["bias"].astype(jnp.float32)
    if not isinstance(cell, GRU):
        return bias.reshape(-1, units)
    bias, recurrent = bias.reshape(3, units), params.recurrent["bias"].astype(jnp.float32).reshape(3, units)
    return jnp.concatenate([bias[:2] + recurrent[:2], bias[2:], recurrent[2:]])
