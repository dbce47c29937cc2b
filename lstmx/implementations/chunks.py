"""Chunks of time: only the states between them are kept, and each is run again in the reverse pass.

The memory for T steps in chunks of n is that of n steps and T / n states, least at n = sqrt(T) (Chen et al.,
"Training deep nets with sublinear memory cost", 2016).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lstmx.cells.base import Cell, Params, PyTree, State
from lstmx.implementations.reference import Sequence


def run(
    whole: Callable,
    chunk: int,
    cell: Cell,
    params: Params,
    state: State,
    fresh: State,
    sequence: Sequence,
    locked: PyTree = None,
    *,
    reverse: bool,
    recompute: bool = True,
    **options,
) -> tuple[State, PyTree]:
    """Runs an implementation chunk by chunk; see `reference.run`.

    Args:
      whole: the implementation.
      chunk: steps of a chunk; the last one (the first, in reverse) may have fewer.
      cell: as for `whole`, and so on.
      recompute: whether chunks are run again in the reverse pass; otherwise they keep what `whole` keeps.
    """

    def one(params, fresh, locked, state, part):
        return whole(cell, params, state, fresh, part, locked, reverse=reverse, **options)

    if recompute:
        one = jax.checkpoint(one, prevent_cse=False)

    def body(state, part):
        return one(params, fresh, locked, state, part)

    if sequence.xs.shape[0] <= chunk:
        return body(state, sequence)
    count, rest = divmod(sequence.xs.shape[0], chunk)
    split = rest if reverse else count * chunk
    tail, many = _at(sequence, slice(split)), _at(sequence, slice(split, None))
    if not reverse:
        tail, many = many, tail
    if not rest:
        many = sequence  # no copy
    many = jax.tree.map(lambda leaf: leaf.reshape(count, chunk, *leaf.shape[1:]), many)
    state, shown = lax.scan(body, state, many, reverse=reverse)
    shown = jax.tree.map(lambda leaf: leaf.reshape(count * chunk, *leaf.shape[2:]), shown)
    if not rest:
        return state, shown
    state, shown_tail = body(state, tail)
    parts = (shown_tail, shown) if reverse else (shown, shown_tail)
    return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _at(tree: PyTree, rows: slice) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def length_of(remat: str | int, steps: int) -> int:
    """The steps of a chunk for `remat`: itself, or about the root of `steps`.

    Where `steps` has a divisor near its root that is taken: no chunk is then shorter and nothing is copied.

    Example:
      >>> length_of("sqrt", 20_000), length_of("sqrt", 101), length_of(64, 20_000)
      (125, 11, 64)
    """
    if remat != "sqrt":
        return remat
    root = max(1, math.isqrt(max(steps - 1, 0)) + 1)
    near = [n for n in range(root // 2 + 1, 2 * root) if steps % n == 0]
    return min(near, key=lambda n: abs(n - root), default=root)
