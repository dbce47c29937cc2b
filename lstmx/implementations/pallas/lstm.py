"""The LSTM's forward loop and its reverse, as steps of the kernel in `lstmx.implementations.pallas.kernel`.

    forward    r_t = W^T h_{t-1},      then i, f, g, o, c_t and h_t of z_t + r_t and c_{t-1}
    reverse    r_t = W da_{t+1},       then dh_t = dy_t + r_t,  dc_t = f_{t+1} dc_{t+1} + n_t dh_t  and
               da_t = (j_i dc_t, j_f dc_t, j_g dc_t, j_o dh_t)

The factors j and n of the reverse do not depend on cotangents, and all states are known by then: `factors`
computes them for all steps at once, outside of the kernel, which is left with one product and six multiplies
per step.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstmx.implementations.pallas.kernel import Elements, Plane, recurrence
from lstmx.implementations.pallas.memory import ROWS, UNITS


class Factors(NamedTuple):
    """The derivatives of a step, `[T, B, ...]`; for a skipped step such that the state passes unchanged."""

    local: jax.Array  # bfloat16 [T, B, 5H]: of c_t with respect to a_i, a_f, a_g; of h_t to a_o and to c_t
    # float32, since bfloat16 rounds a forget gate near 1 to 1, and such errors multiply over time.
    forget: jax.Array  # [T, B, H]


def factors(a: jax.Array, c_before: jax.Array, c: jax.Array, hold: jax.Array | None) -> Factors:
    """The derivatives of all steps.

    Args:
      a: float32 `[T, B, 4H]`, the gates' arguments.
      c_before: float32 `[T, B, H]`, c before each step.
      c: float32 `[T, B, H]`, c after each step.
      hold: bool `[T, B]`, True where a step is skipped; None for nowhere.
    """
    i, f, g, o = jnp.split(a, 4, axis=-1)
    i, f, g, o = lax.logistic(i), lax.logistic(f), jnp.tanh(g), lax.logistic(o)
    squashed = jnp.tanh(c)
    local = [
        g * i * (1 - i),
        c_before * f * (1 - f),
        i * (1 - g * g),
        squashed * o * (1 - o),
        o * (1 - squashed * squashed),
    ]
    local = jnp.concatenate(local, axis=-1)
    if hold is not None:
        local = jnp.where(hold[..., None], 0, local)
        f = jnp.where(hold[..., None], 1, f)
    return Factors(local.astype(jnp.bfloat16), f)


def forward(
    kernel: jax.Array,
    z: jax.Array,
    h: jax.Array,
    c: jax.Array,
    hold: jax.Array | None,
    *,
    keeping: bool,
    reverse: bool,
    interpreted: bool,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """The forward loop.

    Args:
      kernel: bfloat16 `[H, 4H]`, gates in the order i, f, g, o; `vmap` over it adds members.
      z: bfloat16 `[T, B, 4H]`, T at least 1.
      h: bfloat16 `[B, H]`, before the first step.
      c: float32 `[B, H]`.
      hold: bool `[T, B]`, True where a step is skipped; None for nowhere.
      keeping: whether to return the cell states of all steps.
      reverse: whether time runs from T-1 to 0.
      interpreted: whether to interpret the kernel.

    Returns:
      The outputs, bfloat16 `[T, B, H]`; the cell states, float32 `[T, B, H]`, or None; the last one.
    """

    def loop(kernel, z, h, c, hold):
        batch, hidden = c.shape
        pad = functools.partial(_padded, hidden=hidden)
        planes = _planes(pad(z), 4) + _flags(hold)
        carry = (pad(c),) if hold is None else (pad(c), pad(h.astype(c.dtype)))
        ys, emitted, carry = recurrence(
            functools.partial(_forward_elements, keeping=keeping),
            _forward_blocks(_padded_kernel(kernel)),
            pad(h),
            planes,
            carry,
            emitted=int(keeping),
            reverse=reverse,
            interpreted=interpreted,
        )
        cs = emitted[0][:, :batch, :hidden] if keeping else None
        return ys[:, :batch, :hidden], cs, carry[0][:batch, :hidden]

    return _merging(loop, (1, 0, 0, 1), (1, 1, 0))(kernel, z, h, c, hold)


def backward(
    kernel: jax.Array,
    factors: Factors,
    dys: jax.Array,
    dcs: jax.Array | None,
    dh: jax.Array,
    dc: jax.Array,
    hold: jax.Array | None,
    *,
    reverse: bool,
    interpreted: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The reverse of the forward loop.

    Args:
      kernel: bfloat16 `[H, 4H]`.
      factors: of all steps.
      dys: bfloat16 `[T, B, H]`, cotangents of the outputs.
      dcs: float32 `[T, B, H]`, cotangents of the cell states; None for none.
      dh: float32 `[B, H]`, of the last h.
      dc: float32 `[B, H]`, of the last c.
      hold: bool `[T, B]` or None, as in `forward`.
      reverse: as in `forward`, which this runs against.
      interpreted: whether to interpret the kernel.

    Returns:
      The cotangents of z, bfloat16 `[T, B, 4H]`; of the initial c, float32 `[B, H]`; and of the initial h the
      part that does not come through the products, because its step was skipped: the rest is da_1 W^T.
    """

    def loop(kernel, local, forget, dys, dcs, dh, dc, hold):
        batch, hidden = dc.shape
        pad = functools.partial(_padded, hidden=hidden)
        planes = _planes(pad(local), 5) + [Plane(pad(x)) for x in (forget, dys)]
        planes += ([] if dcs is None else [Plane(pad(dcs))]) + _flags(hold)
        carry = pad(dc), pad(dh)
        nothing = jnp.zeros((carry[0].shape[0], 4 * carry[0].shape[1]), jnp.bfloat16)
        elements = functools.partial(_backward_elements, shows_cells=dcs is not None, holds=hold is not None)
        das, _, (dc, dh) = recurrence(
            elements,
            _backward_blocks(_padded_kernel(kernel)),
            nothing,
            planes,
            carry,
            emitted=0,
            reverse=not reverse,
            interpreted=interpreted,
        )
        das = das.reshape(*das.shape[:2], 4, -1)[:, :batch, :, :hidden]
        return das.reshape(*das.shape[:2], 4 * hidden), dc[:batch, :hidden], dh[:batch, :hidden]

    run = _merging(loop, (1, 1, 1, 1, 0, 0, 1), (1, 0, 0))
    return run(kernel, *factors, dys, dcs, dh, dc, hold)


def _forward_elements(products, planes, carry, *, keeping):
    c, *held = carry
    z, flags = planes[:4], planes[4:]
    i, f, g, o = (r + x.astype(r.dtype) for r, x in zip(products, z, strict=True))
    new = lax.logistic(f) * c + lax.logistic(i) * lax.tanh(g)
    h = lax.logistic(o) * lax.tanh(new)
    if flags:
        hold = flags[0].astype(c.dtype) > 0
        new, h = lax.select(hold, c, new), lax.select(hold, held[0], h)
    carry = (new, h) if flags else (new,)
    return Elements([h.astype(jnp.bfloat16)], [new] if keeping else [], carry)


def _backward_elements(products, planes, carry, *, shows_cells, holds):
    dc, dh_held = carry
    *local, forget, dy = (plane.astype(dc.dtype) for plane in planes[:7])
    dh = products[0] + dh_held + dy
    if shows_cells:
        dc = dc + planes[7]
    dc = dc + local[4] * dh
    das = [local[0] * dc, local[1] * dc, local[2] * dc, local[3] * dh]
    # Zeros with the register layout of the carry.
    dh_held = (planes[-1].astype(dh.dtype) if holds else 0.0) * dh
    return Elements([da.astype(jnp.bfloat16) for da in das], [], (forget * dc, dh_held))


def _planes(array: jax.Array, count: int) -> list[Plane]:
    """The parts of an array `[T, B, count * H]`."""
    hidden = array.shape[-1] // count
    return [Plane(array, part * hidden) for part in range(count)]


def _flags(hold: jax.Array | None) -> list[Plane]:
    if hold is None:
        return []
    flags = _padded(hold[..., None].astype(jnp.bfloat16), hidden=1)[..., :1]
    return [Plane(jnp.broadcast_to(flags, (*flags.shape[:-1], UNITS)), shared=True)]


def _padded(x: jax.Array, hidden: int) -> jax.Array:
    """`[..., B, n * H]`, padded with zeros to the numbers of rows and units that the kernel takes.

    A unit of zeros stays zero, because its g is zero.
    """
    x = x.reshape(*x.shape[:-1], -1, hidden)
    widths = [(0, 0)] * (x.ndim - 3) + [(0, -x.shape[-3] % ROWS), (0, 0), (0, -hidden % UNITS)]
    x = jnp.pad(x, widths)
    return x.reshape(*x.shape[:-2], -1)


def _padded_kernel(kernel: jax.Array) -> jax.Array:
    """`[members, groups, UNITS, 4, groups, UNITS]`: unit read, then gate and unit."""
    hidden = kernel.shape[-2]
    more = -hidden % UNITS
    kernel = kernel.reshape(-1, hidden, 4, hidden)
    kernel = jnp.pad(kernel, ((0, 0), (0, more), (0, 0), (0, more)))
    groups = (hidden + more) // UNITS
    return kernel.reshape(-1, groups, UNITS, 4, groups, UNITS)


def _forward_blocks(kernel: jax.Array) -> jax.Array:
    """For the units of a warpgroup, gate by gate, the blocks of W^T for the units that are read."""
    return kernel.transpose(0, 4, 3, 1, 5, 2).reshape(*kernel.shape[:2], -1, UNITS, UNITS)


def _backward_blocks(kernel: jax.Array) -> jax.Array:
    """For the units of a warpgroup, the blocks of W for the gates of all units."""
    return kernel.transpose(0, 1, 3, 4, 2, 5).reshape(*kernel.shape[:2], -1, UNITS, UNITS)


def _merging(loop: Callable, axes: tuple[int, ...], out_axes: tuple[int, ...]) -> Callable:
    """A loop to which `vmap` adds rows or, if the kernels differ, members with rows of their own.

    Args:
      loop: a function of a kernel, `[H, 4H]` or `[members, H, 4H]`, and of arrays with a batch axis, each of
        which may be None; each member has an equal part of the rows, which is a multiple of ROWS.
      axes: the batch axis of each array except the kernel.
      out_axes: the batch axis of each result.
    """

    @jax.custom_batching.custom_vmap
    def run(*args):
        return loop(*args)

    @run.def_vmap
    def _(size, in_batched, kernel, *arrays):
        # Where `in_batched` is False, or None for an array that is None, there is no new axis.
        arrays = [
            x if x is None or batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, batched in zip(arrays, in_batched[1:], strict=True)
        ]
        rows = next(x.shape[axis + 1] for x, axis in zip(arrays, axes, strict=True) if x is not None)
        more = 0
        if in_batched[0] or kernel.ndim == 3:
            kernel = kernel if in_batched[0] else jnp.broadcast_to(kernel, (size, *kernel.shape))
            kernel = kernel.reshape(-1, *kernel.shape[-2:])
            more = -rows % ROWS
        merged = [_merge(x, axis, more) for x, axis in zip(arrays, axes, strict=True)]
        results = run(kernel, *merged)
        results = tuple(_split(x, axis, size, rows) for x, axis in zip(results, out_axes, strict=True))
        return results, jax.tree.map(lambda _: True, results)

    return run


def _merge(x: jax.Array | None, axis: int, more: int) -> jax.Array | None:
    """`[V, ..., B, ...]` as `[..., V * (B + more), ...]`, where `axis` is the axis of B without V."""
    if x is None:
        return None
    x = jnp.moveaxis(x, 0, axis)
    x = jnp.pad(x, [(0, more if k == axis + 1 else 0) for k in range(x.ndim)])
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _split(x: jax.Array | None, axis: int, size: int, rows: int) -> jax.Array | None:
    """The inverse of `_merge`."""
    if x is None:
        return None
    x = x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :])
    x = lax.slice_in_dim(x, 0, rows, axis=axis + 1)
    return jnp.moveaxis(x, axis, 0)
