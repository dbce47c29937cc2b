"""`lax.scan` and autodiff: the definition against which every other implementation is tested."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstmx.cells.base import Cell, Noise, Params, PyTree, State


class Sequence(NamedTuple):
    """The inputs of the steps, `[T, *batch, ...]`; all but xs may be None."""

    xs: jax.Array  # of the compute type
    keep: jax.Array | None = None  # bool, False where a step is skipped
    resets: jax.Array | None = None  # bool, True where the state is reset first; False where keep is
    noise: PyTree = None  # the stepwise part of a regularized cell's noise


def run(
    cell: Cell,
    params: Params,
    state: State,
    fresh: State,
    sequence: Sequence,
    locked: PyTree = None,
    *,
    reverse: bool,
    unroll: int,
    remat: str | None,
    states: bool,
) -> tuple[State, PyTree]:
    """Runs a cell over time. Every implementation has this signature; `lstmx.scan` calls it.

    Args:
      cell: the cell, its `dtype` resolved.
      params: its parameters.
      state: initial state, leaves `[*batch, ...]`.
      fresh: the state after a reset, leaves `[*batch, ...]`.
      sequence: inputs and flags.
      locked: the part of a regularized cell's noise that is the same in all steps.
      reverse: whether time runs from T-1 to 0. The outputs stay in the order of the inputs.
      unroll: steps per iteration of the compiled loop.
      remat: `"gates"` to recompute the gates in the reverse pass instead of storing them.
      states: whether to return all states instead of the outputs.

    Returns:
      The final state, and the outputs `[T, *batch, ...]` (those of the unchanged state where `keep` is
      False), or the states after each step.
    """

    def step(state, inputs):
        x, keep_t, reset_t, noise_t = inputs
        map_noise, update_noise = noises(locked, noise_t)
        if reset_t is not None:
            state = select(reset_t, fresh, state)
        z = cell.input_map(params.input, x)
        r = cell.recurrent_map(params.recurrent, cell.output(state), *map_noise)
        new = cell.update(params.update, state, z, r, *update_noise)
        state = new if keep_t is None else select(keep_t, new, state)
        return state, state if states else cell.output(state)

    if remat == "gates":
        step = jax.checkpoint(step, prevent_cse=False)
    return lax.scan(step, state, sequence, reverse=reverse, unroll=unroll)


def noises(locked: PyTree, stepwise: PyTree) -> tuple[tuple, tuple]:
    """The additional arguments of `recurrent_map` and of `update`: none for a cell without noise."""
    if locked is None and stepwise is None:
        return (), ()
    return (locked,), (Noise(locked, stepwise),)


def select(flags: jax.Array, on_true: State, on_false: State) -> State:
    """Chooses a state for each element of the batch: `flags` `[*batch]`, leaves `[*batch, ...]`."""

    def leaf(a, b):
        return jnp.where(flags.reshape(flags.shape + (1,) * (b.ndim - flags.ndim)), a, b)

    return jax.tree.map(leaf, on_true, on_false)


def before_each_step(
    first: PyTree, after: PyTree, fresh: PyTree, resets: jax.Array | None, *, reverse: bool
) -> PyTree:
    """The states before each step, from those after each step; or the same for outputs.

    Args:
      first: before all steps, leaves `[*batch, ...]`.
      after: after each step, `[T, *batch, ...]`.
      fresh: after a reset, `[*batch, ...]`.
      resets: bool `[T, *batch]` or None.
      reverse: whether time runs backwards.
    """
    before = jax.tree.map(functools.partial(previous, reverse=reverse), first, after)
    if resets is None:
        return before

    def throughout(leaf, like):
        return jnp.broadcast_to(leaf.astype(like.dtype), like.shape)

    return select(resets, jax.tree.map(throughout, fresh, before), before)


def previous(first: jax.Array, rest: jax.Array, reverse: bool) -> jax.Array:
    """The sequence shifted by one step: `first`, then all but the last of `rest` `[T, ...]`."""
    first = first[None].astype(rest.dtype)
    parts = (rest[1:], first) if reverse else (first, rest[:-1])
    return jnp.concatenate(parts)[: rest.shape[0]]


def is_symbolic(*sizes) -> bool:
    """Whether any of these sizes is symbolic (`jax.export.symbolic_shape`).

    Arithmetic with such a size works, but most comparisons with numbers and divisions into chunks do not.
    """
    return not all(isinstance(size, int) for size in sizes)


def batch_shape(cell: Cell, xs: jax.Array) -> tuple[int, ...]:
    """The batch axes of `[T, *batch, ...features]`."""
    return xs.shape[1 : xs.ndim - cell.num_feature_axes]
