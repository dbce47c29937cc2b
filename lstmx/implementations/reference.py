"""`lax.scan` and autodiff: the definition that every other implementation is tested against."""

import jax
import jax.numpy as jnp
from jax import lax

from lstmx.cells.base import Cell, Params, State


def run(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    state: State,
    keep: jax.Array | None,
    resets: jax.Array | None,
    *,
    reverse: bool,
    unroll: int,
    remat: str | None,
) -> tuple[State, jax.Array]:
    """Runs a cell over time. This is the signature of every implementation; `lstmx.scan` is its user.

    Args:
      cell: the cell, its `dtype` settled.
      params: its parameters.
      xs: `[T, *batch, ...]` of the compute type.
      state: initial state, leaves `[*batch, ...]`.
      keep: bool `[T, *batch]`, False where the state is held; None keeps every step.
      resets: bool `[T, *batch]`, True where the state is made fresh before the step; False where `keep` is.
      reverse: whether time runs from T-1 to 0. The outputs stay in the order of the inputs.
      unroll: steps per iteration of the compiled loop.
      remat: `"gates"` to recompute the gates in the reverse pass instead of keeping them.

    Returns:
      The final state, and the outputs `[T, *batch, ...]` (of the held state where `keep` is False).
    """
    fresh = cell.initial_state(batch_shape(cell, xs))

    def step(state, inputs):
        x, keep_t, reset_t = inputs
        if reset_t is not None:
            state = select(reset_t, fresh, state)
        z = cell.input_map(params.input, x)
        r = cell.recurrent_map(params.recurrent, cell.output(state))
        new = cell.update(params.update, state, z, r)
        state = new if keep_t is None else select(keep_t, new, state)
        return state, cell.output(state)

    if remat == "gates":
        step = jax.checkpoint(step, prevent_cse=False)
    return lax.scan(step, state, (xs, keep, resets), reverse=reverse, unroll=unroll)


def select(flags: jax.Array, on_true: State, on_false: State) -> State:
    """Chooses a state for each element of the batch: `flags` `[*batch]`, leaves `[*batch, ...]`."""

    def leaf(a, b):
        return jnp.where(flags.reshape(flags.shape + (1,) * (b.ndim - flags.ndim)), a, b)

    return jax.tree.map(leaf, on_true, on_false)


def batch_shape(cell: Cell, xs: jax.Array) -> tuple[int, ...]:
    """The batch axes of `[T, *batch, ...features]`."""
    return xs.shape[1 : xs.ndim - cell.num_feature_axes]
