"""`scan` and `step`: cells and networks over time, with ragged batches, gaps, resets and reversal."""

import functools
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lstmx import axes
from lstmx.cells import base
from lstmx.cells.base import Cell, PyTree, State, resolved, start
from lstmx.cells.capabilities import DrawsNoise, HasGates, Network, has
from lstmx.implementations import choice, chunks, reference
from lstmx.implementations.reference import Sequence

Implementation = choice.Name
Remat = Literal["gates", "sqrt"] | int | None


def scan(
    cell: Cell | Network,
    params: PyTree,
    xs: ArrayLike,
    initial_state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    implementation: Implementation | None = None,
    remat: Remat = None,
    unroll: int | None = None,
    return_states: bool | Literal["gates"] = False,
) -> tuple[State, jax.Array, *tuple[PyTree, ...]]:
    """Runs a cell, or a network of cells, over a sequence.

    Steps that `lengths` or `mask` excludes are skipped: the input is not read (it may be NaN), a reset is not
    applied, the state does not change, and the output and all gradients through the step are zero. A row of
    length 0 returns its initial state.

    T and the batch sizes may be symbolic (`jax.export.symbolic_shape`). With a symbolic T, `unroll` and
    `remat` in chunks of time have no effect.

    Args:
      cell: the cell or network.
      params: its parameters, as `cell.init` returns them.
      xs: `[T, *batch, D]`, time first, any number of batch axes.
      initial_state: leaves `[*batch, ...]`; None for the learnt initial state if there is one, else
        `cell.initial_state`.
      lengths: integers `[*batch]` in 0..T: row b consists of its first `lengths[b]` steps. With `reverse`,
        each row is read from its own end.
      mask: bool `[T, *batch]`, False where a step is skipped; gaps may be anywhere. At most one of `lengths`
        and `mask` can be given.
      resets: bool `[T, *batch]`, True where the state is reset to the initial state (learnt, or
        `cell.initial_state`) before x_t is read, as between episodes in reinforcement learning.
      segment_ids: integers `[T, *batch]` for several sequences packed into one row: 0 for padding, otherwise
        the number of the sequence that the step belongs to, which must not decrease along a row. The state is
        reset at the start of each sequence except the first of a row, which continues from `initial_state`
        (with `reverse`, except the last). Replaces lengths, mask and resets.
      reverse: whether to run from the last step to the first. The outputs stay in the order of the inputs,
        and the final state is the one after x_0.
      key: for the noise of regularized cells and networks; None for no noise (evaluation).
      implementation: None for the fastest that can run it, or its name: `"native"` (C++ kernels for CPUs,
        reverse mode only), `"fused"` (a hand-written reverse pass, reverse mode only), `"reference"`
        (`lax.scan` and autodiff, every derivative), `"associative"` (parallel over time, for cells that are
        linear in their state), or for NVIDIA GPUs `"pallas"` (the LSTM in bfloat16 in one kernel, on Hopper,
        reverse mode only) and `"cudnn"` (experimental: float32, reverse mode only, chosen only by name).
      remat: what the reverse pass recomputes instead of storing, which saves memory and costs time.
        `"gates"`: the gates, from the states of all steps. An integer n: everything but one state every n
        steps (nothing is copied if n divides T). `"sqrt"`: the same with n near the square root of T, which
        needs the least memory.
      unroll: steps per iteration of the compiled loop; None for 8 on GPUs, where launches take
        most of the time, and 1 elsewhere.
      return_states: True to return the states of all steps as a third result, leaves `[T, *batch, ...]`
        (skipped steps repeat the state); `"gates"` to return a dictionary of the cell's gates instead,
        `[T, *batch, H]` (zero for skipped steps). For a network, a tuple with one entry for each part.

    Returns:
      `(final_state, ys)`, as from `jax.lax.scan`: state leaves `[*batch, ...]`, ys `[T, *batch, H]` in the
      compute type (`cell.dtype`, or promoted from parameters and xs); with `return_states` also states or
      gates.

    Raises:
      ValueError: if a shape does not fit, if both lengths and mask are given, or if segment ids decrease.
      TypeError: if an argument has the wrong type.
      NotImplementedError: if the named implementation cannot run this, with the reason and those that can.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.LSTM(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)), lengths=jnp.array([5, 0]))
      >>> ys.shape, float(jnp.abs(ys[:, 1]).max())
      ((5, 2, 4), 0.0)
    """
    _require_array("scan", "xs", xs)
    if has(cell, Network):  # a network scans itself, by calls of this function
        return cell.scan(
            params,
            xs,
            initial_state,
            lengths=lengths,
            mask=mask,
            resets=resets,
            segment_ids=segment_ids,
            reverse=reverse,
            key=key,
            implementation=implementation,
            remat=remat,
            unroll=unroll,
            return_states=return_states,
        )
    cell = cast(Cell, cell)
    if remat not in (None, "gates", "sqrt"):
        if not base.is_integer(remat) or cast(int, remat) < 1:
            raise ValueError(f'remat must be None, "gates", "sqrt" or a number of steps, got {remat!r}')
        remat = int(cast(int, remat))
    if return_states not in (False, True, "gates"):
        raise ValueError(f'return_states must be False, True or "gates", got {return_states!r}')
    if return_states == "gates" and not has(cell, HasGates):
        raise ValueError(f'return_states="gates": {type(cell).__name__} has no gates')
    if unroll is None:
        unroll = choice.unrolled(choice.platform())
    elif not base.is_integer(unroll) or unroll < 1:
        raise ValueError(f"unroll must be an integer of at least 1, got {unroll!r}")
    if not isinstance(reverse, bool | np.bool_):
        raise TypeError(f"reverse must be True or False, got {reverse!r}")
    xs = jnp.asarray(xs)
    base.require_params_type(cell, params)
    _check_input(cell, params, xs, "time, ", "xs")
    batch = reference.batch_shape(cell, xs)
    cell = resolved(cell, params, xs)
    given = {
        "lengths": lengths is not None,
        "mask": mask is not None,
        "resets": resets is not None,
        "segment_ids": segment_ids is not None,
        "return_states": bool(return_states),
    }
    options = tuple(name for name, is_given in given.items() if is_given)
    job = choice.Job(cell, xs, remat, choice.platform(), options)
    chosen = choice.prepare(job, implementation)
    if segment_ids is not None:
        if not (lengths is mask is resets is None):
            raise ValueError(
                "segment_ids cannot be combined with lengths, mask or resets: they define padding and resets"
            )
        keep: jax.Array | None
        keep, resets = _segments(segment_ids, xs.shape[0], batch, reverse)
    else:
        keep = _keep(lengths, mask, xs.shape[0], batch)
        resets = None if resets is None else _flags("resets", resets, (xs.shape[0], *batch))
    state = None if initial_state is None else _state("scan", cell, initial_state, batch)
    # A symbolic number of steps cannot be divided by another number.
    unroll = 1 if reference.is_symbolic(xs.shape[0]) else int(unroll)
    return _scan(
        cell, params, state, Sequence(xs, keep, resets), key, implementation=chosen,
        reverse=bool(reverse), remat=remat, unroll=unroll, return_states=return_states,
    )  # fmt: skip


def step(
    cell: Cell | Network,
    params: PyTree,
    state: State | None,
    x: ArrayLike,
    *,
    resets: ArrayLike | None = None,
    implementation: Implementation | None = None,
) -> tuple[State, jax.Array]:
    """Runs one step of a cell or network, for streaming: `scan` for a sequence of one step.

    Args:
      cell: the cell or network.
      params: its parameters, as `cell.init` returns them.
      state: leaves `[*batch, ...]`; None for the learnt initial state if there is one, else
        `cell.initial_state`.
      x: `[*batch, D]`.
      resets: bool `[*batch]`, True where the state is reset to the initial state before x is read.
      implementation: as for `scan`; None for `"native"` if it can run the cell, else `"reference"`.

    Returns:
      `(state, y)`, y `[*batch, H]`.

    Raises:
      ValueError, TypeError, NotImplementedError: as `scan`.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.GRU(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, y = lstmx.step(cell, params, None, jnp.ones((2, 3)))
      >>> state, y = lstmx.step(cell, params, state, jnp.ones((2, 3)), resets=jnp.array([True, False]))
      >>> y.shape
      (2, 4)
    """
    _require_array("step", "x", x)
    if has(cell, Network):
        return cell.step(params, state, x, resets=resets, implementation=implementation)
    cell = cast(Cell, cell)
    x = jnp.asarray(x)
    base.require_params_type(cell, params)
    _check_input(cell, params, x, "", "x")
    batch = x.shape[: x.ndim - cell.num_feature_axes]
    cell = resolved(cell, params, x)
    job = choice.Job(cell, x[None], None, choice.platform(), () if resets is None else ("resets",))
    chosen = choice.prepare(job, implementation)
    resets = None if resets is None else _flags("resets", resets, batch, has_time=False)[None]
    state = None if state is None else _state("step", cell, state, batch)
    state, ys = _scan(
        cell, params, state, Sequence(job.xs, None, resets), None, implementation=chosen,
        reverse=False, remat=None, unroll=1, return_states=False,
    )  # fmt: skip
    return state, ys[0]


def which_implementation(
    cell: Cell | Network,
    implementation: Implementation | None = None,
    *,
    xs: ArrayLike | jax.ShapeDtypeStruct | None = None,
    remat: Remat = None,
    options: tuple[str, ...] = (),
) -> str | tuple[Any, ...]:
    """The implementation that `scan` would choose; nothing is run or compiled.

    Args:
      cell: the cell or network.
      implementation: the name to check; None for the default.
      xs: the inputs, or their shape and type, `[T, *batch, D]`; None for a long sequence of the type of the
        parameters. With T = 1, the answer holds for `step`.
      remat: as for `scan`.
      options: the names of the other arguments that `scan` will be given: "lengths", "mask", "resets",
        "segment_ids", "return_states".

    Returns:
      Its name; for a network whose parts use different ones, a tuple of their names.

    Raises:
      ValueError: if there is no implementation of that name.
      NotImplementedError: if it cannot run this, with the reason and those that can.

    Example:
      >>> import lstmx
      >>> lstmx.which_implementation(lstmx.MinGRU(8))
      'associative'
    """
    if has(cell, Network):
        names = tuple(
            which_implementation(p, implementation, xs=xs, remat=remat, options=options) for p in cell.parts
        )
        return names[0] if len(set(names)) == 1 else names
    cell = cast(Cell, cell)
    if xs is not None:
        xs = jax.typeof(xs) if not isinstance(xs, jax.ShapeDtypeStruct) else xs
    like = jax.ShapeDtypeStruct((), cell.param_dtype)
    cell = resolved(cell, like, cast(Any, like if xs is None else xs))
    return choice.choose(choice.Job(cell, xs, remat, choice.platform(), options), implementation)


@functools.partial(
    jax.jit,
    static_argnames=("cell", "implementation", "reverse", "remat", "unroll", "return_states"),
    inline=True,
)
def _scan(cell, params, state, sequence, key, *, implementation, reverse, remat, unroll, return_states):
    xs, keep, resets, _ = sequence
    batch = reference.batch_shape(cell, xs)
    xs = xs.astype(cell.dtype)
    if keep is not None:
        # Nothing in the padding, not even NaN, may reach values or gradients.
        xs = _zero_unless(keep, xs)
        resets = None if resets is None else resets & keep
    noise = cell.noise(key, xs.shape[0], batch) if key is not None and has(cell, DrawsNoise) else None
    locked, stepwise = (None, None) if noise is None else noise
    sequence = Sequence(xs, keep, resets, stepwise)
    fresh = start(cell, params, batch)
    state = fresh if state is None else state

    run = choice.IMPLEMENTATIONS[implementation].run
    options = {"reverse": reverse, "unroll": unroll, "states": bool(return_states)}
    if remat in (None, "gates"):
        options["remat"] = remat
    else:
        run = functools.partial(chunks.run, run, chunks.length_of(remat, xs.shape[0]))
        options["remat"] = None
    final, emitted = run(cell, params, state, fresh, sequence, locked, **options)
    ys = cell.output(emitted) if return_states else emitted
    ys = ys if keep is None else _zero_unless(keep, ys)
    if not return_states:
        return final, ys
    if return_states == "gates":
        emitted = _gates(cell, params, state, fresh, sequence, locked, emitted, reverse)
    return final, ys, emitted


def _gates(cell, params, state, fresh, sequence, locked, states, reverse):
    """The gates of all steps, from their states."""
    xs, keep, resets, stepwise = sequence
    before = reference.before_each_step(state, states, fresh, resets, reverse=reverse)
    map_noise, _ = reference.noises(locked, stepwise)
    z = cell.input_map(params.input, xs)
    r = cell.recurrent_map(params.recurrent, cell.output(before), *map_noise)
    gates = cell.gates(params.update, before, z, r)
    return gates if keep is None else jax.tree.map(functools.partial(_zero_unless, keep), gates)


def _zero_unless(keep: jax.Array, leaf: jax.Array) -> jax.Array:
    return jnp.where(keep.reshape(keep.shape + (1,) * (leaf.ndim - keep.ndim)), leaf, 0)


def _order(function: str) -> str:
    """The call of a function, for messages to callers who may have swapped two arguments."""
    calls = {
        "scan": "layer(xs, initial_state)"
        if axes.is_batch_first()
        else "scan(cell, params, xs, initial_state)",
        "step": "step(cell, params, state, x)",
    }
    return f"the order of arguments is {calls[function]}"


def _require_array(function: str, name: str, x: Any) -> None:
    """Refuses a state given for an array; it would be converted to one array of all its leaves."""
    if isinstance(x, tuple | dict):
        raise TypeError(f"{name} must be an array, got {base.described(x)}; {_order(function)}")


def _check_input(cell: Cell, params: PyTree, x: jax.Array, time: str, name: str) -> None:
    feature_axes = cell.num_feature_axes
    least = feature_axes + (1 if time else 0)
    names, shape = axes.described(x.shape, feature_axes) if time else ("[*batch, features]", x.shape)
    if x.ndim < least:
        raise ValueError(f"{name} must be {names}, got shape {x.shape}")
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"{name} must hold real numbers, got {x.dtype.name}")
    want, got = cell.input_shape(params), x.shape[x.ndim - feature_axes :]
    if any(w is not None and w != g for w, g in zip(want, got, strict=True)):
        raise ValueError(
            f"{name} has {' x '.join(map(str, got))} features, the parameters are for "
            f"{' x '.join(map(str, want))}; {name} has shape {shape}, read as {names}"
        )


def _keep(lengths, mask, steps: int, batch: tuple[int, ...]) -> jax.Array | None:
    if lengths is not None and mask is not None:
        raise ValueError("pass lengths or mask, not both; as a mask, lengths are mask[t] = t < lengths")
    if mask is not None:
        return _flags("mask", mask, (steps, *batch))
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, got {lengths.dtype.name}")
    if lengths.shape != batch:
        raise ValueError(f"lengths must have the batch shape {batch}, got {lengths.shape}")
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        bounds = np.asarray(lengths)
        least, most = int(bounds.min()), int(bounds.max())
        if least < 0 or (not reference.is_symbolic(steps) and most > steps):
            raise ValueError(f"lengths must lie in 0..{steps} (the time steps of xs), got {least}..{most}")
    times = jnp.arange(steps).reshape((steps,) + (1,) * len(batch))
    return times < lengths


def _segments(ids: Any, steps: int, batch: tuple[int, ...], reverse: bool) -> tuple[jax.Array, jax.Array]:
    """Which steps are not padding, and which of them start a sequence that is not the first to be read."""
    ids = jnp.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"segment_ids must be integers, got {ids.dtype.name}")
    _require_shape("segment_ids", ids.shape, (steps, *batch))
    if not isinstance(ids, jax.core.Tracer) and ids.size:
        _check_segments(np.asarray(ids))
    if reverse:
        return ids > 0, _first_of_segment(ids[::-1], falling=True)[::-1]
    return ids > 0, _first_of_segment(ids, falling=False)


def _first_of_segment(ids: jax.Array, falling: bool) -> jax.Array:
    # The last id that was read: since ids never decrease, the extreme of all ids so far.
    none = jnp.iinfo(ids.dtype).max if falling else 0
    extreme = jax.lax.cummin if falling else jax.lax.cummax
    last = extreme(jnp.where(ids > 0, ids, none), axis=0)
    last = jnp.concatenate([jnp.full_like(last[:1], none), last[:-1]])
    return (ids > 0) & (ids != last) & (last != none)


def _check_segments(ids: np.ndarray) -> None:
    if ids.min() < 0:
        raise ValueError(f"segment_ids must be 0 (padding) or positive, got {ids.min()}")
    before = np.maximum.accumulate(ids, axis=0)
    back = (ids > 0) & (ids < before)
    if back.any():
        where = tuple(int(k) for k in np.argwhere(back)[0])
        names, index = axes.described(where)
        raise ValueError(
            f"segment_ids must not decrease along a row (except for padding, 0): got {ids[where]} after "
            f"{before[where]} at {names} = {list(index)}"
        )


def _flags(name: str, flags: Any, shape: tuple[int, ...], has_time: bool = True) -> jax.Array:
    flags = jnp.asarray(flags)
    if flags.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got {flags.dtype.name}")
    _require_shape(name, flags.shape, shape, has_time)
    return flags


def _require_shape(name: str, shape: tuple, want: tuple, has_time: bool = True) -> None:
    if shape != want:
        (names, want), (_, shape) = (
            axes.described(each) if has_time else ("[*batch]", each) for each in (want, shape)
        )
        raise ValueError(f"{name} must be {names} = {want}, got {shape}")


def _state(function: str, cell: Cell, state: State, batch: tuple[int, ...]) -> State:
    """The given state with the structure and types of the cell's state."""
    fresh = cell.initial_state(batch)
    want: Any = jax.tree.structure(fresh)
    got: Any = jax.tree.structure(state)
    if got != want:
        # Flax and older code carry a plain tuple (c, h).
        if not (isinstance(state, tuple | list) and len(state) == want.num_leaves == got.num_leaves):
            kind = "one array" if jax.tree_util.treedef_is_leaf(want) else f"a {type(fresh).__name__}"
            raise ValueError(f"the state must be {kind}, got {base.described(state)}; {_order(function)}")
        state = jax.tree.unflatten(want, jax.tree.leaves(state))
    for (path, like), leaf in zip(jax.tree.leaves_with_path(fresh), jax.tree.leaves(state), strict=True):
        if jnp.shape(leaf) != like.shape:
            name = jax.tree_util.keystr(path) or "state"
            raise ValueError(
                f"the state's {name} must have shape {like.shape}, got {jnp.shape(leaf)}; {_order(function)}"
            )
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, fresh)
