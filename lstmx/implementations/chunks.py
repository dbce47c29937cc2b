"""Chunks of time: only the states between them are stored, and each is run again in the reverse pass.

T steps in chunks of n need the memory of n steps and T / n states, which is least at n = sqrt(T) (Chen et
al., "Training deep nets with sublinear memory cost", 2016).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lstmx.cells.base import Cell, Params, PyTree, State
from lstmx.implementations.reference import Sequence, is_symbolic


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
      cell: this and the remaining arguments: as for `whole`.
      recompute: whether chunks are run again in the reverse pass; otherwise they store what `whole` stores.
    """

    def one(params, fresh, locked, state, part):
        return whole(cell, params, state, fresh, part, locked, reverse=reverse, **options)

    if recompute:
        one = jax.checkpoint(one, prevent_cse=False)

    def body(state, part):
        return one(params, fresh, locked, state, part)

    return loop(body, state, sequence, chunk, reverse=reverse)


def loop(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    steps: PyTree,
    chunk: int,
    *,
    reverse: bool,
) -> tuple[PyTree, PyTree]:
    """`lax.scan` over chunks of time.

    Args:
      body: `body(carry, part) -> (carry, result)`, with leaves `[n, ...]`, for n steps.
      carry: the initial carry.
      steps: leaves `[T, ...]`.
      chunk: n; the last chunk (the first, in reverse) may have fewer.
      reverse: whether the last steps come first.

    Returns:
      The final carry, and the results, leaves `[T, ...]`.
    """
    total = jax.tree.leaves(steps)[0].shape[0]
    if total <= chunk:
        return body(carry, steps)
    count, rest = divmod(total, chunk)
    split = rest if reverse else count * chunk
    tail, many = _at(steps, slice(split)), _at(steps, slice(split, None))
    if not reverse:
        tail, many = many, tail
    if not rest:
        many = steps  # no copy
    many = jax.tree.map(lambda leaf: leaf.reshape(count, chunk, *leaf.shape[1:]), many)
    carry, results = lax.scan(body, carry, many, reverse=reverse)
    results = jax.tree.map(lambda leaf: leaf.reshape(count * chunk, *leaf.shape[2:]), results)
    if not rest:
        return carry, results
    carry, of_tail = body(carry, tail)
    parts = (of_tail, results) if reverse else (results, of_tail)
    return carry, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _at(tree: PyTree, rows: slice) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def length_of(remat: str | int, steps: int, least: int = 1) -> int:
    """The steps of a chunk for `remat`: `remat` itself, or for "sqrt" about the square root of `steps`.

    With "sqrt", `least` is a lower bound, also approximate, and a divisor of `steps` nearby is preferred: no
    chunk is then shorter and nothing is copied. A symbolic number of steps, which cannot be divided, is one
    chunk.

    Example:
      >>> length_of("sqrt", 20_000), length_of("sqrt", 101), length_of(64, 20_000)
      (125, 11, 64)
    """
    if is_symbolic(steps):
        return steps
    if remat != "sqrt":
        return remat
    target = max(least, math.isqrt(max(steps - 1, 0)) + 1)
    near = [n for n in range(target // 2 + 1, 2 * target) if steps % n == 0]
    return min(near, key=lambda n: abs(n - target), default=target)
