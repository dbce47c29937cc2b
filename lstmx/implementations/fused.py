"""The hand-written reverse pass, one for every cell.

The backward loop carries the state's cotangent and emits those of the two maps, dz_t and dr_t. The gradients
of both maps then are single matmuls over all T * B rows, where autodiff of `lax.scan` reads, adds to and
writes the weight gradients at each step.

What a step's derivative needs is what `jax.vjp(cell.update, ...)` returns: its pullback is a pytree and can
be an output of the forward loop. With `remat="gates"` only the states are kept; since every y_{t-1} is then
known, all gates are redone by one matmul, without a second loop.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstmx.cells.base import Cell, Params, PyTree, State
from lstmx.implementations.reference import batch_shape, select
from lstmx.implementations.reverse_only import linear_map


class Options(NamedTuple):
    """The static options of a run."""

    reverse: bool
    unroll: int
    remat: str | None


class Saved(NamedTuple):
    """What the forward pass leaves to the reverse pass."""

    params: Params
    xs: jax.Array
    initial: State
    keep: jax.Array | None
    resets: jax.Array | None
    ys: jax.Array
    kept: PyTree  # pullbacks of the updates, or with remat="gates" the states; leaves [T, ...]


def run(cell, params, xs, state, keep, resets, *, reverse, unroll, remat) -> tuple[State, jax.Array]:
    """Runs a cell over time; see `reference.run`."""
    return _run(cell, Options(reverse, unroll, remat), params, xs, state, keep, resets)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(cell, options, params, xs, state, keep, resets):
    state, ys, _ = _forward(cell, options, params, xs, state, keep, resets, keeping=None)
    return state, ys


@_run.defjvp
def _run_jvp(cell, options, primals, tangents):
    final, ys, kept = _forward(cell, options, *primals, keeping=options.remat or "pullbacks")
    residuals, tree = jax.tree.flatten(Saved(*primals, ys, kept))
    # keep and resets are boolean: they have no tangents.
    flat_tangents, tangent_tree = jax.tree.flatten(tangents[:3])
    outputs, output_tree = jax.tree.flatten((final, ys))

    def reverse(residuals, cotangents):
        saved = jax.tree.unflatten(tree, residuals)
        gradients = _reverse(cell, options, saved, *jax.tree.unflatten(output_tree, cotangents))
        return tangent_tree.flatten_up_to(gradients)

    return (final, ys), jax.tree.unflatten(
        output_tree, linear_map(reverse, residuals, flat_tangents, outputs)
    )


def _forward(cell, options, params, xs, state, keep, resets, *, keeping):
    """The loop. Returns the final state, the outputs, and what `keeping` asks for.

    `keeping` is None, "pullbacks" (of each update) or "gates" (the states, from which the gates are redone).
    """
    fresh = cell.initial_state(batch_shape(cell, xs))
    cast = functools.partial(_cast, dtype=xs.dtype)
    input_params, recurrent_params = cast(params.input), cast(params.recurrent)
    hoist = _hoists_input_map()
    inputs = cell.input_map(input_params, xs) if hoist else xs

    def step(state, inputs):
        z, keep_t, reset_t = inputs
        if not hoist:
            z = cell.input_map(input_params, z)
        if reset_t is not None:
            state = select(reset_t, fresh, state)
        r = cell.recurrent_map(recurrent_params, cell.output(state))
        if keeping == "pullbacks":
            new, kept = jax.vjp(cell.update, params.update, state, z, r)
        else:
            new, kept = cell.update(params.update, state, z, r), None
        state = new if keep_t is None else select(keep_t, new, state)
        if keeping == "gates":
            kept = state
        emitted, rebuild.tree = _distinct((cell.output(state), kept))
        return state, emitted

    rebuild = _Rebuild()
    state, emitted = lax.scan(
        step, state, (inputs, keep, resets), reverse=options.reverse, unroll=options.unroll
    )
    ys, kept = rebuild(emitted)
    return state, ys, kept


def _reverse(cell: Cell, options: Options, saved: Saved, d_final: State, dys: jax.Array):
    """The reverse pass: gradients of the parameters, of xs and of the initial state."""
    params, xs = saved.params, saved.xs
    fresh = cell.initial_state(batch_shape(cell, xs))
    cast = functools.partial(_cast, dtype=xs.dtype)
    recurrent_params = cast(params.recurrent)
    shift = functools.partial(_previous, reverse=options.reverse)

    # y_{t-1}, as the recurrent map of step t saw it.
    ys_before = shift(cell.output(saved.initial), saved.ys)
    if saved.resets is not None:
        ys_before = jax.vmap(select)(
            saved.resets, jnp.broadcast_to(cell.output(fresh), ys_before.shape), ys_before
        )
    if options.remat == "gates":
        pullbacks = _redo_gates(cell, saved, fresh, ys_before, cast, shift)
    else:
        pullbacks = saved.kept

    to_state = jax.linear_transpose(cell.output, saved.initial)
    # The map is affine: its transpose is the same everywhere, and at zero there is nothing to compute first.
    recurrent_map = functools.partial(cell.recurrent_map, recurrent_params)
    _, to_previous_output = jax.vjp(recurrent_map, jnp.zeros(ys_before.shape[1:], ys_before.dtype))

    n_batch = len(batch_shape(cell, xs))
    accumulate = _accumulates_in_loop(cell, params, xs)

    def step(carry, inputs):
        d_state, d_update, d_maps = carry
        dy, pullback, keep_t, reset_t, x, y_before = inputs
        d_state = _add(d_state, to_state(dy)[0])
        if keep_t is not None:
            nothing = jax.tree.map(jnp.zeros_like, d_state)
            d_held = select(keep_t, nothing, d_state)
            d_state = select(keep_t, d_state, nothing)
        d_update_t, d_state, dz, dr = pullback(d_state)
        d_state = _add(d_state, to_state(*to_previous_output(dr))[0])
        if reset_t is not None:
            d_state = select(reset_t, jax.tree.map(jnp.zeros_like, d_state), d_state)
        if keep_t is not None:
            d_state = _add(d_state, d_held)
        if accumulate:
            d_maps_t, emitted = _map_gradients(cell, params, x, y_before, dz, dr, row_axes=n_batch)
            d_maps = _add(d_maps, d_maps_t)
        else:
            emitted, rebuild.tree = _distinct((dz, dr))
        return (d_state, _add(d_update, d_update_t), d_maps), emitted

    rebuild = _Rebuild()
    zero_maps = jax.tree.map(jnp.zeros_like, (params.input, params.recurrent)) if accumulate else None
    rows = (xs, ys_before) if accumulate else (None, None)
    (d_initial, d_update, d_maps), emitted = lax.scan(
        step,
        (d_final, jax.tree.map(jnp.zeros_like, params.update), zero_maps),
        (dys, pullbacks, saved.keep, saved.resets, *rows),
        reverse=not options.reverse,
        unroll=options.unroll,
    )
    if accumulate:
        dxs = emitted
    else:
        d_maps, dxs = _map_gradients(cell, params, xs, ys_before, *rebuild(emitted), row_axes=1 + n_batch)
    return Params(d_maps[0], d_maps[1], d_update), dxs, d_initial


def _map_gradients(cell, params, x, y_before, dz, dr, *, row_axes):
    """Gradients of both maps' parameters, and of x, from the rows of one step or of all."""
    # One axis of rows: XLA:CPU contracts over two axes several times slower than over one.
    rows = functools.partial(_merge_axes, count=row_axes)
    # With respect to the parameters as they are stored, so that sums over several calls are not made in half
    # precision.
    _, input_pullback = jax.vjp(cell.input_map, params.input, rows(x))
    d_input, dx = input_pullback(rows(dz))
    _, recurrent_pullback = jax.vjp(lambda p: cell.recurrent_map(p, rows(y_before)), params.recurrent)
    return (d_input, *recurrent_pullback(rows(dr))), dx.reshape(x.shape)


def _redo_gates(cell, saved, fresh, ys_before, cast, shift):
    """The pullbacks of all updates, from the states alone: the gates of all steps by one matmul a map."""
    before = jax.tree.map(shift, saved.initial, saved.kept)
    if saved.resets is not None:
        steps = saved.xs.shape[0]
        always = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps, *leaf.shape)), fresh)
        before = jax.vmap(select)(saved.resets, always, before)
    zs = cell.input_map(cast(saved.params.input), saved.xs)
    rs = cell.recurrent_map(cast(saved.params.recurrent), ys_before)
    return jax.vmap(lambda s, z, r: jax.vjp(cell.update, saved.params.update, s, z, r)[1])(before, zs, rs)


def _hoists_input_map() -> bool:
    # One large matmul before the loop saves launches on an accelerator. XLA:CPU emits the gates unvectorised
    # once a slice of its result is fused into them, and is faster with a matmul in every step: by a tenth in
    # a trial with B=32, T=128, D=H=256.
    return jax.default_backend() != "cpu"


def _accumulates_in_loop(cell: Cell, params: Params, xs: jax.Array) -> bool:
    """Whether the backward loop adds up the weight gradients itself, on a CPU.

    It does where the stacked dz would be written to memory and read back (more than 32 MiB, about the last
    level of a cache) and a step has rows enough (64) for a decent matmul. In a trial that was faster at B=64,
    T=784, H=128, and much slower at B=20, T=32, H=650, which the rule leaves to the single matmul.
    """
    if jax.default_backend() != "cpu":
        return False
    rows = math.prod(batch_shape(cell, xs))
    z = jax.eval_shape(cell.input_map, params.input, xs)
    stacked = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(z))
    return rows >= 64 and stacked > 32 * 2**20


def _previous(first: jax.Array, rest: jax.Array, reverse: bool) -> jax.Array:
    """The sequence one step earlier: `first`, then all but the last of `rest` `[T, ...]`."""
    first = first[None].astype(rest.dtype)
    parts = (rest[1:], first) if reverse else (first, rest[:-1])
    return jnp.concatenate(parts)[: rest.shape[0]]


def _merge_axes(tree: PyTree, count: int) -> PyTree:
    """Merges the first `count` axes of every leaf into one."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[count:]), tree)


def _cast(tree: PyTree, dtype) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)


class _Rebuild:
    """Undoes `_distinct`, with the tree that the traced step left behind."""

    tree: tuple

    def __call__(self, leaves: Sequence[jax.Array]) -> PyTree:
        structure, positions = self.tree
        return jax.tree.unflatten(structure, [leaves[k] for k in positions])


def _distinct(tree: PyTree) -> tuple[list[jax.Array], tuple]:
    """The leaves of a tree without repetitions.

    In most cells z and r are simply added: their cotangents are one array, and so are y and the state's h. A
    loop that emits an array twice writes it twice, each step.
    """
    leaves, structure = jax.tree.flatten(tree)
    seen: dict[int, int] = {}
    positions = [seen.setdefault(id(leaf), len(seen)) for leaf in leaves]
    unique = {k: leaf for leaf, k in zip(leaves, positions, strict=True)}
    return [unique[k] for k in range(len(unique))], (structure, positions)
