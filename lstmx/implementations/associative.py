"""Cells that are linear in their state, by an associative scan: O(log T) parallel steps instead of T.

Such a cell has a method `coefficients(update_params, z) -> (a, b)`, and its update is `a * state + b`,
elementwise, with 0 <= a <= 1; it has no recurrent map. Two steps compose to one of the same form: `(a1, b1)`
followed by `(a2, b2)` is `(a2 * a1, a2 * b1 + b2)`, which is an associative operation (Blelloch 1990).
Products of numbers in [0, 1] may underflow but not overflow, so no logarithms are needed.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lstmx.cells.base import Cell, Params, PyTree, State
from lstmx.cells.capabilities import IsLinear, has
from lstmx.implementations import chunks
from lstmx.implementations.reference import Sequence, is_symbolic, previous, select


def refusal(job) -> str | None:
    """Why it cannot run a job (`lstmx.implementations.choice.Job`); None if it can.

    Example:
      >>> from lstmx.cells.minimal import MinGRU
      >>> from lstmx.implementations.choice import Job
      >>> refusal(Job(MinGRU(4)))
    """
    if has(job.cell, IsLinear):
        if job.xs is not None and is_symbolic(job.xs.shape[0]):
            return f"needs a known number of steps, got xs of shape {job.xs.shape}"
        return None
    return (
        "runs cells that are linear in their state, such as MinGRU and MinLSTM, by their method "
        f"`coefficients`; {type(job.cell).__name__} has none"
    )


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
    """Runs a cell over time; see `reference.run`. `unroll` has no effect.

    Raises:
      NotImplementedError: if there is noise, which `coefficients` does not take.
    """
    if locked is not None or sequence.noise is not None:
        raise NotImplementedError('implementation "associative" does not support noise inside the recurrence')
    del unroll
    options = {"reverse": reverse, "states": states}
    steps = sequence.xs.shape[0]
    chunk = chunks.length_of("sqrt", steps) if _in_chunks() else max(steps, 1)
    recompute = remat is not None
    return chunks.run(
        _whole, chunk, cell, params, state, fresh, sequence, locked, recompute=recompute, **options
    )


def _whole(cell, params, state, fresh, sequence, locked, *, reverse, states):
    """All steps at once."""
    del locked
    xs, keep, resets, _ = sequence
    a, b = cell.coefficients(params.update, cell.input_map(params.input, xs))
    if resets is not None:
        a, b = select(resets, (jnp.zeros_like(a), a * fresh + b), (a, b))
    if keep is not None:
        a, b = select(keep, (a, b), (jnp.ones_like(a), jnp.zeros_like(b)))
    if not xs.shape[0]:
        return state, b if states else cell.output(b)
    b = b.at[-1 if reverse else 0].add(a[-1 if reverse else 0] * state)
    hs = _recurrence(reverse, a, b)
    return hs[0 if reverse else -1], hs if states else cell.output(hs)


def _in_chunks() -> bool:
    # A CPU is not parallel enough for all steps at once, and the levels of a long scan do not fit its caches.
    # At T=4096, B=8, H=256 a loop over about sqrt(T) chunks took 0.6 times as long, forward and backward.
    return jax.default_backend() == "cpu"


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recurrence(reverse, a, b):
    """`h_t = a_t * h_{t-1} + b_t` for all t, from zero; `[T, ...]`."""
    return lax.associative_scan(_compose, (a, b), reverse=reverse)[1]


@_recurrence.defjvp
def _recurrence_jvp(reverse, primals, tangents):
    # The tangents obey the same recurrence with another b. Autodiff of the scan would store and differentiate
    # the products of all levels.
    a, b = primals
    da, db = tangents
    h = _recurrence(reverse, a, b)
    before = previous(jnp.zeros(h.shape[1:], h.dtype), h, reverse)
    return h, lax.associative_scan(_compose, (a, da * before + db), reverse=reverse)[1]


def _compose(first, second):
    """Two steps, one after the other, as one step."""
    (a1, b1), (a2, b2) = first, second
    return a2 * a1, a2 * b1 + b2
