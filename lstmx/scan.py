"""The driver: a cell over time, with ragged rows, gaps, resets and reversal."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lstmx.cells.base import Cell, Params, State, resolved
from lstmx.implementations import fused, reference

Implementation = Literal["reference", "fused"]

_IMPLEMENTATIONS = {"reference": reference.run, "fused": fused.run}


def scan(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    initial_state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    implementation: Implementation | None = None,
    remat: Literal["gates"] | None = None,
    unroll: int = 1,
) -> tuple[State, jax.Array]:
    """Runs a cell, or a network of cells, over a sequence.

    A step that `lengths` or `mask` leaves out does not exist: its input is not read (it may be NaN), its
    reset is not applied, the state passes it unchanged, its output and all gradients through it are zero. A
    row of length 0 returns its initial state.

    Args:
      cell: the cell or network.
      params: its parameters, as `cell.init` makes them.
      xs: `[T, *batch, D]`, time first, any number of batch axes.
      initial_state: leaves `[*batch, ...]`; None for `cell.initial_state`.
      lengths: integers `[*batch]` in 0..T: row b consists of its first `lengths[b]` steps. With `reverse`,
        each row is read from its own end.
      mask: bool `[T, *batch]`, True where a step exists; holes anywhere. At most one of `lengths` and `mask`.
      resets: bool `[T, *batch]`, True where the state is made fresh (`cell.initial_state`) before x_t is
        consumed, as between the episodes of reinforcement learning.
      reverse: whether time runs backwards. The outputs stay in the order of the inputs, and the final state
        is the one after x_0.
      key: for the dropout of networks; None for none.
      implementation: `"reference"` (`lax.scan` and autodiff, every derivative), `"fused"` (a hand-written
        reverse pass, reverse mode only), or None for the fastest that can do it.
      remat: `"gates"` to recompute the gates in the reverse pass instead of keeping them: less memory, more
        time.
      unroll: steps per iteration of the compiled loop.

    Returns:
      `(final_state, ys)`, as from `jax.lax.scan`: state leaves `[*batch, ...]`, ys `[T, *batch, H]` in the
      compute type (`cell.dtype`, or promoted from parameters and xs).

    Raises:
      ValueError: if a shape does not fit, with the rule and the shape; if both lengths and mask are given.
      TypeError: if a type does not.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.LSTM(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)), lengths=jnp.array([5, 0]))
      >>> ys.shape, float(jnp.abs(ys[:, 1]).max())
      ((5, 2, 4), 0.0)
    """
    if hasattr(cell, "scan"):  # a network scans itself, by means of this function
        return cell.scan(
            params,
            xs,
            initial_state,
            lengths=lengths,
            mask=mask,
            resets=resets,
            reverse=reverse,
            key=key,
            implementation=implementation,
            remat=remat,
            unroll=unroll,
        )
    implementation = which_implementation(cell, implementation)
    if remat not in (None, "gates"):
        raise ValueError(f'remat must be None or "gates", got {remat!r}')
    if unroll < 1:
        raise ValueError(f"unroll must be at least 1, got {unroll}")
    xs = jnp.asarray(xs)
    _check_input(cell, params, xs, "time, ", "xs")
    batch = reference.batch_shape(cell, xs)
    cell = resolved(cell, params, xs)
    keep = _keep(lengths, mask, xs.shape[0], batch)
    resets = None if resets is None else _flags("resets", resets, xs.shape[0], batch)
    state = _state(cell, initial_state, batch)
    return _scan(
        cell, params, xs, state, keep, resets,
        implementation=implementation, reverse=reverse, remat=remat, unroll=unroll,
    )  # fmt: skip


def step(cell: Cell, params: Params, state: State, x: ArrayLike) -> tuple[State, jax.Array]:
    """One step of a cell or network, for streaming.

    Args:
      cell: the cell or network.
      params: its parameters.
      state: leaves `[*batch, ...]`, `cell.initial_state(batch)` at the start.
      x: `[*batch, D]`.

    Returns:
      `(state, y)`, y `[*batch, H]`: what `scan` gives for a sequence of one step.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.GRU(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, y = lstmx.step(cell, params, cell.initial_state(), jnp.ones(3))
      >>> y.shape
      (4,)
    """
    if hasattr(cell, "step"):
        return cell.step(params, state, x)
    x = jnp.asarray(x)
    _check_input(cell, params, x, "", "x")
    cell = resolved(cell, params, x)
    state = _state(cell, state, x.shape[: x.ndim - cell.num_feature_axes])
    x = x.astype(cell.dtype)
    z = cell.input_map(params.input, x)
    r = cell.recurrent_map(params.recurrent, cell.output(state))
    state = cell.update(params.update, state, z, r)
    return state, cell.output(state)


def which_implementation(cell: Cell, implementation: Implementation | None = None) -> Implementation:
    """The implementation that `scan` takes, without running it.

    Args:
      cell: the cell or network.
      implementation: the one asked for, None for the fastest.

    Raises:
      ValueError: if there is none of that name.

    Example:
      >>> import lstmx
      >>> lstmx.which_implementation(lstmx.LSTM(8))
      'fused'
    """
    del cell  # both implementations serve every cell
    if implementation is None:
        return "fused"
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be None or one of {sorted(_IMPLEMENTATIONS)}, got {implementation!r}"
        )
    return implementation


@functools.partial(
    jax.jit, static_argnames=("cell", "implementation", "reverse", "remat", "unroll"), inline=True
)
def _scan(cell, params, xs, state, keep, resets, *, implementation, reverse, remat, unroll):
    xs = xs.astype(cell.dtype)
    if keep is not None:
        exists = keep.reshape(keep.shape + (1,) * cell.num_feature_axes)
        # Whatever stands in the padding, NaN included, must reach neither values nor gradients.
        xs = jnp.where(exists, xs, 0)
        resets = None if resets is None else resets & keep
    run = _IMPLEMENTATIONS[implementation]
    state, ys = run(cell, params, xs, state, keep, resets, reverse=reverse, unroll=unroll, remat=remat)
    if keep is not None:
        ys = jnp.where(keep.reshape(keep.shape + (1,) * (ys.ndim - keep.ndim)), ys, 0)
    return state, ys


def _check_input(cell: Cell, params: Params, x: jax.Array, time: str, name: str) -> None:
    feature_axes = cell.num_feature_axes
    least = feature_axes + (1 if time else 0)
    if x.ndim < least:
        raise ValueError(f"{name} must be [{time}*batch, features], got shape {x.shape}")
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"{name} must hold real numbers, got {x.dtype.name}")
    want, got = cell.input_shape(params), x.shape[x.ndim - feature_axes :]
    if any(w is not None and w != g for w, g in zip(want, got, strict=True)):
        raise ValueError(
            f"{name} has {' x '.join(map(str, got))} features, the parameters are made for "
            f"{' x '.join(map(str, want))}; {name} has shape {x.shape}, read as [{time}*batch, features]"
        )


def _keep(lengths, mask, steps: int, batch: tuple[int, ...]) -> jax.Array | None:
    if lengths is not None and mask is not None:
        raise ValueError("give lengths or mask, not both; a mask can express lengths: mask[t] = t < lengths")
    if mask is not None:
        return _flags("mask", mask, steps, batch)
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, got {lengths.dtype.name}")
    if lengths.shape != batch:
        raise ValueError(f"lengths must have the batch shape {batch}, got {lengths.shape}")
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        least, most = int(np.min(lengths)), int(np.max(lengths))
        if least < 0 or most > steps:
            raise ValueError(f"lengths must lie in 0..{steps} (the time steps of xs), got {least}..{most}")
    times = jnp.arange(steps).reshape((steps,) + (1,) * len(batch))
    return times < lengths


def _flags(name: str, flags: Any, steps: int, batch: tuple[int, ...]) -> jax.Array:
    flags = jnp.asarray(flags)
    if flags.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got {flags.dtype.name}")
    if flags.shape != (steps, *batch):
        raise ValueError(f"{name} must be [time, *batch] = {(steps, *batch)}, got {flags.shape}")
    return flags


def _state(cell: Cell, state: State | None, batch: tuple[int, ...]) -> State:
    fresh = cell.initial_state(batch)
    if state is None:
        return fresh
    want, got = jax.tree.structure(fresh), jax.tree.structure(state)
    if got != want:
        # A plain (c, h) is what Flax and older code carry.
        if not (isinstance(state, tuple | list) and len(state) == want.num_leaves == got.num_leaves):
            raise ValueError(f"the state must be a {type(fresh).__name__}, got {got}")
        state = jax.tree.unflatten(want, jax.tree.leaves(state))
    for path, like in jax.tree.leaves_with_path(fresh):
        leaf = functools.reduce(lambda node, entry: getattr(node, entry.name), path, state)
        if jnp.shape(leaf) != like.shape:
            name = jax.tree_util.keystr(path) or "state"
            raise ValueError(f"the state's {name} must have shape {like.shape}, got {jnp.shape(leaf)}")
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, fresh)
