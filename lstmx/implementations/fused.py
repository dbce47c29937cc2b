"""The hand-written reverse pass, one for every cell.

The backward loop carries the cotangent of the state and emits those of the two maps, dz_t and dr_t. The
gradients of both maps are then single matmuls over all T * B rows, whereas autodiff of `lax.scan` reads, adds
to and writes the weight gradients at each step. (Matmuls inside an update: `lstmx.implementations.deferred`.)

The derivative of a step needs what `jax.vjp(cell.update, ...)` returns: the pullback is a pytree and can be
an output of the forward loop. With `remat="gates"` only the states are stored; since every y_{t-1} is then
known, the gates of many steps are recomputed by one matmul, without a second loop over them.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstmx.cells.base import Cell, Params, PyTree, State
from lstmx.implementations import chunks, deferred
from lstmx.implementations.emission import Form, pack, unpack
from lstmx.implementations.reference import (
    Sequence,
    batch_shape,
    before_each_step,
    is_symbolic,
    noises,
    select,
)
from lstmx.implementations.reverse_only import linear_map, message


class Options(NamedTuple):
    """The static options of a run."""

    reverse: bool
    unroll: int
    remat: str | None
    states: bool


class Saved(NamedTuple):
    """What the forward pass stores for the reverse pass."""

    params: Params
    initial: State
    fresh: State
    sequence: Sequence
    locked: PyTree
    shown: PyTree  # the outputs or states, [T, ...]
    kept: list[jax.Array]  # emitted pullbacks of the updates, or with remat="gates" states; [T, ...]


def run(
    cell, params, state, fresh, sequence, locked=None, *, reverse, unroll, remat, states
) -> tuple[State, PyTree]:
    """Runs a cell over time; see `reference.run`."""
    options = Options(reverse, unroll, remat, states)
    return _run(cell, options, params, state, fresh, sequence, locked)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(cell, options, params, state, fresh, sequence, locked):
    state, shown, _, _ = _forward(cell, options, params, state, fresh, sequence, locked, keeping=None)
    return state, shown


@_run.defjvp
def _run_jvp(cell, options, primals, tangents):
    final, shown, kept, form = _forward(cell, options, *primals, keeping=options.remat or "pullbacks")
    residuals, tree = jax.tree.flatten(Saved(*primals, shown, kept))
    # Flags have no tangents, and noise is not differentiated.
    d_params, d_state, d_fresh, d_sequence, _ = tangents
    flat_tangents, tangent_tree = jax.tree.flatten((d_params, d_state, d_fresh, d_sequence.xs))
    outputs, output_tree = jax.tree.flatten((final, shown))
    steps = primals[3].xs.shape[0]

    def reverse(residuals, cotangents):
        saved = jax.tree.unflatten(tree, residuals)
        in_one = options.remat is None or is_symbolic(steps) or steps == 0
        run = _reverse if in_one else _reverse_in_chunks
        gradients = run(cell, options, saved, form, *jax.tree.unflatten(output_tree, cotangents))
        return tangent_tree.flatten_up_to(gradients)

    return (final, shown), jax.tree.unflatten(
        output_tree, linear_map(reverse, residuals, flat_tangents, outputs, message("fused"))
    )


def _forward(cell, options, params, state, fresh, sequence, locked, *, keeping):
    """The loop. Returns the final state, the outputs or states, and what `keeping` names, with its form.

    `keeping` is None, "pullbacks" (of each update) or "gates" (states, from which gates are recomputed).
    """
    show = _shown(cell, options)
    maps, update_params, found = _prepared(cell, params, state, sequence, locked)

    def step(state, inputs):
        z, keep_t, reset_t, noise_t = inputs
        map_noise, update_noise = noises(locked, noise_t)
        if reset_t is not None:
            state = select(reset_t, fresh, state)
        r = cell.recurrent_map(maps.recurrent, cell.output(state), *map_noise)
        kept, known = None, ()
        if keeping == "pullbacks":
            new, *kept = deferred.vjp(cell, found, update_params, state, z, r, *update_noise)
            known = jax.tree.leaves((update_params, locked, noise_t))
        else:
            new = cell.update(update_params, state, z, r, *update_noise)
        state = new if keep_t is None else select(keep_t, new, state)
        if keeping == "gates":
            kept = state
        shown = show(state)
        emitted, forms["shown"] = pack(shown)
        more, forms["kept"] = pack(kept, (*jax.tree.leaves(shown), *known))
        return state, (emitted, more)

    forms: dict[str, Form] = {}
    input_map = functools.partial(cell.input_map, maps.input)
    chunk = _steps_mapped_at_once(cell, params, sequence.xs)
    state, (emitted, more) = _loop(step, input_map, chunk, options, state, sequence)
    return state, unpack(forms["shown"], emitted), more, forms["kept"]


def _loop(step, input_map, chunk, options, state, sequence):
    """`lax.scan` of `step`, with the input map applied to `chunk` steps at once."""
    scan = functools.partial(lax.scan, reverse=options.reverse, unroll=options.unroll)

    def mapped(part):
        return part._replace(xs=input_map(part.xs))

    if chunk >= sequence.xs.shape[0]:
        return scan(step, state, mapped(sequence))
    if chunk == 1:
        return scan(lambda state, inputs: step(state, mapped(inputs)), state, sequence)

    def body(state, part):
        part = mapped(part)
        times = range(jax.tree.leaves(part)[0].shape[0])
        emitted = {}
        for t in reversed(times) if options.reverse else times:
            state, emitted[t] = step(state, jax.tree.map(lambda leaf, t=t: leaf[t], part))
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(emitted[t] for t in times))

    return chunks.loop(body, state, sequence, max(chunk, options.unroll), reverse=options.reverse)


def _reverse_in_chunks(cell, options, saved, form, d_final, d_shown):
    """`_reverse`, a few steps at a time, so that the recomputed gates are never all in memory at once."""
    steps = saved.sequence.xs.shape[0]
    states = unpack(form, saved.kept, jax.tree.leaves(saved.shown))

    def body(carry, part):
        d_state, d_params, d_fresh = carry
        sequence, shown, kept, d_shown, times = part
        # The state before this chunk is the last state of the previous chunk.
        before = times[-1] + 1 if options.reverse else times[0] - 1
        none = (before < 0) | (before >= steps)

        def initial(leaf, whole):
            last = lax.dynamic_index_in_dim(whole, jnp.clip(before, 0, steps - 1), keepdims=False)
            return jnp.where(none, leaf, last)

        initial = jax.tree.map(initial, saved.initial, states)
        own = saved._replace(initial=initial, sequence=sequence, shown=shown, kept=kept)
        d_params_part, d_state, d_fresh_part, dxs = _reverse(cell, options, own, form, d_state, d_shown)
        return (d_state, _add(d_params, d_params_part), _add(d_fresh, d_fresh_part)), dxs

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    carry = d_final, zeros(saved.params), zeros(saved.fresh)
    parts = saved.sequence, saved.shown, saved.kept, d_shown, jnp.arange(steps)
    # Enough rows for an efficient matmul, even where the square root of T is small.
    chunk = chunks.length_of("sqrt", steps, least=64)
    (d_initial, d_params, d_fresh), dxs = chunks.loop(body, carry, parts, chunk, reverse=not options.reverse)
    return d_params, d_initial, d_fresh, dxs


def _reverse(cell: Cell, options: Options, saved: Saved, form: Form, d_final: State, d_shown: PyTree):
    """The reverse pass: gradients of the parameters, of the initial and the fresh state, and of xs."""
    params, sequence = saved.params, saved.sequence
    prepared = _prepared(cell, params, saved.initial, sequence, saved.locked)
    ys_before, kept, shown, form = _recalled(cell, options, saved, form, prepared)
    backward = _backward(cell, options, saved, form, prepared, ys_before)
    rows = (sequence.xs, ys_before) if backward.accumulate else None

    def step(carry, inputs):
        carry, emitted = _reverse_step(backward, carry, inputs)
        emitted, forms["step"] = pack(emitted)
        return carry, emitted

    forms: dict[str, Form] = {}
    d_initial, emitted = lax.scan(
        step,
        _first_carry(backward, saved, d_final),
        StepInputs(d_shown, kept, shown, *sequence[1:], rows),
        reverse=not options.reverse,
        unroll=options.unroll,
    )
    return _gradients(backward, saved, ys_before, d_initial, unpack(forms["step"], emitted))


class Backward(NamedTuple):
    """What all steps of the reverse pass have in common."""

    cell: Cell
    params: Params  # as they are stored
    update_params: PyTree  # as the update read them
    matmuls: list  # those of the update
    locked: PyTree
    map_noise: tuple
    form: Form  # of what is kept of each step
    to_state: Callable  # the transposes, of what is shown,
    output_to_state: Callable  # of the output,
    to_previous_output: Callable  # and of the recurrent map
    accumulate: bool  # whether the loop adds up the gradients of the maps


class StepInputs(NamedTuple):
    """The inputs of one step of the reverse pass."""

    d_shown: PyTree
    kept: list[jax.Array]
    shown: list[jax.Array]
    keep: jax.Array | None
    reset: jax.Array | None
    noise: PyTree
    rows: tuple | None  # x and the output before the step, if the loop adds up the gradients of the maps


class Carry(NamedTuple):
    """The cotangents that the reverse pass carries from step to step."""

    state: State
    update: PyTree  # of the update's parameters outside of its matmuls
    fresh: State | None
    maps: tuple | None


def _backward(cell, options, saved, form, prepared, ys_before) -> Backward:
    """The transposes of the linear maps, which are the same at every step, and what else all steps share."""
    maps, update_params, matmuls = prepared
    # At zero there is nothing to compute.
    to_state = jax.linear_transpose(_shown(cell, options), saved.initial)
    output_to_state = jax.linear_transpose(cell.output, saved.initial)
    map_noise, _ = noises(saved.locked, saved.sequence.noise)
    to_previous_output = _transposed_recurrent_map(cell, maps.recurrent, ys_before, map_noise)
    accumulate = _accumulates_in_loop(cell, saved.params, saved.sequence.xs)
    return Backward(
        cell, saved.params, update_params, matmuls, saved.locked, map_noise, form, to_state, output_to_state,
        to_previous_output, accumulate,
    )  # fmt: skip


def _first_carry(backward: Backward, saved: Saved, d_final: State) -> Carry:
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    params = saved.params
    return Carry(
        d_final,
        zeros(deferred.unspared(backward.matmuls, params.update)),
        zeros(saved.fresh) if saved.sequence.resets is not None else None,
        zeros((params.input, params.recurrent)) if backward.accumulate else None,
    )


def _reverse_step(backward: Backward, carry: Carry, inputs: StepInputs) -> tuple[Carry, tuple]:
    """One step back in time. Returns the carry before it, and the inputs of the matmuls after the loop."""
    known = (*inputs.shown, *jax.tree.leaves((backward.update_params, backward.locked, inputs.noise)))
    pullback, read = unpack(backward.form, inputs.kept, known)
    d_state = _add(carry.state, backward.to_state(inputs.d_shown)[0])
    d_held, d_state = _parted(inputs.keep, d_state)
    d_update, d_products, d_state, dz, dr, *_ = pullback(d_state)
    d_state = _add(d_state, backward.output_to_state(*backward.to_previous_output(dr))[0])
    d_state, d_fresh = _through_reset(inputs.reset, d_state, carry.fresh)
    if d_held is not None:
        d_state = _add(d_state, d_held)
    d_maps = carry.maps
    if backward.accumulate:
        d_maps_step, dz = _map_gradients(
            backward.cell, backward.params, *inputs.rows, dz, dr, backward.map_noise
        )
        d_maps, dr = _add(d_maps, d_maps_step), ()
    return Carry(d_state, _add(carry.update, d_update), d_fresh, d_maps), (dz, dr, d_products, read)


def _parted(keep: jax.Array | None, d_state: State) -> tuple[State | None, State]:
    """The cotangents of a state that a skipped step kept, and of a state that a step computed."""
    if keep is None:
        return None, d_state
    nothing = jax.tree.map(jnp.zeros_like, d_state)
    return select(keep, nothing, d_state), select(keep, d_state, nothing)


def _through_reset(reset: jax.Array | None, d_state: State, d_fresh: State | None):
    """The cotangents of the state before a reset, and of the fresh state that the reset put in its place."""
    if reset is None:
        return d_state, d_fresh
    nothing = jax.tree.map(jnp.zeros_like, d_state)
    d_fresh = _add(d_fresh, select(reset, d_state, nothing))
    return select(reset, nothing, d_state), d_fresh


def _gradients(backward: Backward, saved: Saved, ys_before: jax.Array, carry: Carry, emitted: tuple):
    """The gradients, from the carry after the loop and from what its steps emitted."""
    dz, dr, d_products, read = emitted
    params, d_maps, dxs = saved.params, carry.maps, dz
    if not backward.accumulate:
        d_maps, dxs = _map_gradients(
            backward.cell, params, saved.sequence.xs, ys_before, dz, dr, backward.map_noise
        )
    d_update = deferred.gradients(backward.matmuls, params.update, carry.update, read, d_products)
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    d_initial_params = zeros(params.initial)  # read only before the loop, for the initial states
    d_fresh = zeros(saved.fresh) if carry.fresh is None else carry.fresh
    return Params(*d_maps, d_update, d_initial_params), carry.state, d_fresh, dxs


def _recalled(cell: Cell, options: Options, saved: Saved, form: Form, prepared: tuple):
    """What the reverse pass reads: outputs before each step, and what the forward pass stored and emitted."""
    before = functools.partial(before_each_step, resets=saved.sequence.resets, reverse=options.reverse)
    ys = cell.output(saved.shown) if options.states else saved.shown
    ys_before = before(cell.output(saved.initial), ys, cell.output(saved.fresh))
    shown = jax.tree.leaves(saved.shown)
    if options.remat != "gates":
        return ys_before, saved.kept, shown, form
    states = before(saved.initial, unpack(form, saved.kept, shown), saved.fresh)
    kept, form = _recompute_gates(cell, saved, states, ys_before, prepared)
    return ys_before, kept, [], form


def _transposed_recurrent_map(cell, params, ys_before, map_noise):
    """The transpose of the recurrent map at one step, its kernels laid out as its matmuls read them.

    XLA:CPU multiplies by a transposed kernel at two thirds of its speed (B=20 to 32, H=200 to 650), so that a
    copy before the loop pays; a single row it multiplies by the kernel as it is, and six times slower by a
    copy (B=1, H=128).
    """
    like = jax.ShapeDtypeStruct(ys_before.shape[1:], ys_before.dtype)
    rows = math.prod(like.shape[:-1])
    turn = jax.default_backend() == "cpu" and (is_symbolic(rows) or rows > 1)

    def turned(leaf):
        return leaf.T if turn and leaf.ndim == 2 else leaf

    copies = jax.tree.map(turned, params)

    def transposed(dr):
        own = jax.tree.map(turned, copies)  # in the loop, where the matmul takes it in
        _, pullback = jax.vjp(
            lambda y: cell.recurrent_map(own, y, *map_noise), jnp.zeros(like.shape, like.dtype)
        )
        return pullback(dr)

    return transposed


def _prepared(cell, params, state, sequence, locked):
    """Parameters cast to the types that the loop needs, and the matmuls inside its updates."""
    x, _, _, noise = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), sequence)
    map_noise, update_noise = noises(locked, noise)
    maps = jax.tree.map(lambda leaf: leaf.astype(x.dtype) if leaf.ndim > 1 else leaf, params)
    z = jax.eval_shape(cell.input_map, params.input, x)
    r = jax.eval_shape(lambda s: cell.recurrent_map(params.recurrent, cell.output(s), *map_noise), state)
    found = deferred.matmuls(cell, params, state, z, r, *update_noise)
    # The other leaves are not cast: the update is pointwise in them, and computes in a wider type.
    spared = {matmul.leaf for matmul in found}
    leaves, structure = jax.tree.flatten(params.update)
    leaves = [leaf.astype(x.dtype) if k in spared else leaf for k, leaf in enumerate(leaves)]
    return maps, jax.tree.unflatten(structure, leaves), found


def _shown(cell, options):
    return (lambda state: state) if options.states else cell.output


def _map_gradients(cell, params, x, y_before, dz, dr, map_noise):
    """Gradients of the parameters of both maps, and of x, from the rows of one step or of all steps."""
    # With respect to the stored parameters, so that sums over several calls are not in half precision.
    _, input_pullback = jax.vjp(cell.input_map, params.input, x)
    d_input, dx = input_pullback(dz)
    _, recurrent_pullback = jax.vjp(lambda p: cell.recurrent_map(p, y_before, *map_noise), params.recurrent)
    return (d_input, *recurrent_pullback(dr)), dx


def _recompute_gates(cell, saved, states, ys_before, prepared):
    """The pullbacks of the updates, from the states before them; the gates take one matmul for each map."""
    maps, update_params, found = prepared
    sequence, locked = saved.sequence, saved.locked
    map_noise, _ = noises(locked, sequence.noise)
    zs = cell.input_map(maps.input, sequence.xs)
    rs = cell.recurrent_map(maps.recurrent, ys_before, *map_noise)

    def recompute(state, z, r, noise_t):
        _, update_noise = noises(locked, noise_t)
        _, *kept = deferred.vjp(cell, found, update_params, state, z, r, *update_noise)
        emitted, forms["kept"] = pack(kept, jax.tree.leaves((update_params, locked, noise_t)))
        return emitted

    forms: dict[str, Form] = {}
    return jax.vmap(recompute)(states, zs, rs, sequence.noise), forms["kept"]


def _steps_mapped_at_once(cell: Cell, params: Params, xs: jax.Array) -> int:
    """The number of steps whose input map is one matmul: all, before the loop, or one or a few, inside it.

    One large matmul before the loop saves launches on an accelerator. XLA:CPU emits the gates unvectorised
    once a slice of its result is fused into them, and is faster with a matmul in every step, or one for four
    where the kernel does not stay in the innermost cache: their static slices are vectorised. Time of a
    forward pass with four, by that with one: 1.0 at D=H=64 (64 KiB of kernel), 0.6 at 128 (B=1), 0.75 at 256,
    0.95 at 512, 1.0 at 650; 1.1 at D=32, H=64.
    """
    steps = xs.shape[0]
    if jax.default_backend() != "cpu" or is_symbolic(steps):
        return max(steps, 1)
    kernels = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params.input))
    return 4 if kernels >= 128 * 2**10 and cell.num_feature_axes == 1 else 1


def _accumulates_in_loop(cell: Cell, params: Params, xs: jax.Array) -> bool:
    """Whether the backward loop adds up the weight gradients itself, on a CPU.

    It does where the stacked dz would be written to memory and read back (more than 32 MiB, about the last
    level of a cache) and a step has enough rows (64) for an efficient matmul. In a trial this was faster at
    B=64, T=784, H=128, and much slower at B=20, T=32, H=650, which the rule leaves to the single matmul.
    """
    if jax.default_backend() != "cpu" or is_symbolic(*xs.shape):
        return False
    rows = math.prod(batch_shape(cell, xs))
    z = jax.eval_shape(cell.input_map, params.input, xs)
    stacked = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(z))
    return rows >= 64 and stacked > 32 * 2**20


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)
