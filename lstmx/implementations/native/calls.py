"""The two calls of a kernel into C++, and their rules for `vmap` and sharding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec

from lstmx.implementations import fused
from lstmx.implementations.native import library
from lstmx.implementations.native.layer import Arrays, Flags, Kernel, Outputs, in_jax

# Vectors of the tape for each vector of units, as in kernels/cells.h.
_KEPT = {"lstm": 5, "gru": 4, "elman_tanh": 1, "elman_relu": 1}

# Axes as letters: m members of a sweep, t time, b batch, d input features, g gates * H, h units, s slots, w
# floats of the tape for one step and row; 0 stands for an absent array.
_ARRAYS = ("tbd", "dg", "hg", "sh", "bh", "bh", "bh", "bh")
_FLAGS = ("tb", "tb")
_MORE_BACKWARD = ("tbh", "tbw", "tbh", "bh", "bh", "tbh")  # ys, tape, cotangents
_WEIGHTS = ("dg", "hg", "sh")


def forward(kernel: Kernel, training: bool, wants_cells: bool, arrays: Arrays, flags: Flags):
    """ys `[T, B, H]`, the last h and c `[B, H]`, the tape, all c `[T, B, H]`; None for absent ones."""
    has_cell = kernel.name == "lstm"
    axes = ("tbh", "bh", "bh" if has_cell else "0", "tbw" if training else "0", "tbh" if wants_cells else "0")
    results = _call(kernel, False, axes)([*_present(arrays), *_present(flags, bool)])
    return [None if a == "0" else r for a, r in zip(axes, results, strict=True)]


def backward(kernel: Kernel, arrays: Arrays, flags: Flags, ys, tape, cotangents) -> Arrays:
    """The cotangents of `arrays`, from those of ys, h, c and cells."""
    axes = tuple(a if leaf is not None else "0" for a, leaf in zip(_ARRAYS, arrays, strict=True))
    operands = [*_present(arrays), *_present(flags, bool), ys, tape, *_present(cotangents)]
    results = _call(kernel, True, axes)(operands)
    return Arrays(*(None if a == "0" else r for a, r in zip(axes, results, strict=True)))


def _present(leaves, dtype=jnp.float32) -> list[jax.Array]:
    return [jnp.zeros((0,), dtype) if leaf is None else leaf for leaf in leaves]


def _operands(backward: bool) -> list[str]:
    """The axes of the arguments of a call."""
    return [*_ARRAYS, *_FLAGS, *(_MORE_BACKWARD if backward else ())]


@functools.cache
def _call(kernel: Kernel, backward: bool, outputs: tuple[str, ...], mapped: tuple[bool, ...] | None = None):
    """The function of a list of arrays that calls the kernel.

    Args:
      kernel: the kernel.
      backward: whether it is the reverse pass.
      outputs: the axes of the results.
      mapped: whether each array has an axis of members in front, and so all results have one; None where
        there are no members.
    """
    operands = _operands(backward)
    if mapped is not None:
        operands = [
            "m" + axes if is_mapped else axes for axes, is_mapped in zip(operands, mapped, strict=True)
        ]
        outputs = tuple(axes if axes == "0" else "m" + axes for axes in outputs)

    def on_one_device(*arrays):
        sizes = _sizes(kernel, operands, arrays)
        shapes = tuple(tuple(0 if a == "0" else sizes[a] for a in axes) for axes in outputs)
        members = 0 if mapped is None else sizes["m"]
        return _kernel_p.bind(*arrays, kernel=kernel, backward=backward, shapes=shapes, members=members)

    sharded = _over_devices(on_one_device, operands, outputs)

    @custom_vmap
    def call(arrays):
        return list(sharded(*arrays))

    @call.def_vmap
    def _(size, batched, arrays):
        batched = batched[0]
        if size == 0:
            one = [jax.ShapeDtypeStruct(a.shape[b:], a.dtype) for a, b in zip(arrays, batched, strict=True)]
            results = [jnp.zeros((0, *r.shape), r.dtype) for r in jax.eval_shape(call, one)]
            return results, [True] * len(outputs)
        shown = [axes != "0" for axes in outputs]
        if mapped is not None:
            # Members of members: one axis of all.
            ones = [a[0] if b else a for a, b in zip(arrays, batched, strict=True)]
            count = _sizes(kernel, operands, ones)["m"]
            every = zip(arrays, batched, mapped, strict=True)
            merged = [_merge_members(*each, size, count) for each in every]
            either = tuple(b or m for b, m in zip(batched, mapped, strict=True))
            plain = tuple(axes.removeprefix("m") for axes in outputs)
            results = zip(_call(kernel, backward, plain, either)(merged), shown, strict=True)
            return [r.reshape(size, count, *r.shape[1:]) if s else r for r, s in results], shown
        if backward or any(batched[k] for k, axes in enumerate(operands) if axes in _WEIGHTS):
            # Each element has its own weights, or gradients of weights.
            present = tuple(b and a.size > 0 for a, b in zip(arrays, batched, strict=True))
            arrays = [a if a.size else jnp.zeros((0,), a.dtype) for a in arrays]
            return _call(kernel, backward, outputs, present)(arrays), shown
        merged = [
            _merge_batch(a, axes, is_batched, size)
            for a, axes, is_batched in zip(arrays, operands, batched, strict=True)
        ]
        results = call(merged)
        return [_split_batch(r, axes, size) for r, axes in zip(results, outputs, strict=True)], shown

    return call


# The call into C++. On other platforms than CPUs, and in exported programs, since other machines do not have
# this one's kernels, it is replaced by the same computation in JAX operations.
_kernel_p = Primitive("lstmx_native")
_kernel_p.multiple_results = True


def _lower(ctx, *operands, kernel, backward, shapes, members):
    module = ctx.module_context
    if tuple(module.platforms) == ("cpu",) and not module.lowering_parameters.for_export:
        target = f"lstmx_{kernel.name}_{'backward' if backward else 'forward'}"
        return jax.ffi.ffi_lowering(target)(ctx, *operands, reverse=kernel.reverse, members=np.int64(members))
    function = functools.partial(_backward_in_jax if backward else _forward_in_jax, kernel, shapes)
    if members:
        function = functools.partial(_members_in_jax, backward, kernel, shapes)
    return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)


@functools.partial(jax.jit, static_argnames=("kernel", "backward", "shapes", "members"))
def _compiled(*operands, **params):
    return _kernel_p.bind(*operands, **params)


def _shapes(*_, shapes, **__):
    return [jax.core.ShapedArray(shape, jnp.float32) for shape in shapes]


_kernel_p.def_abstract_eval(_shapes)
_kernel_p.def_impl(_compiled)
mlir.register_lowering(_kernel_p, _lower)


def _forward_in_jax(kernel, shapes, *operands):
    arrays, flags, _ = _unpacked(operands)
    wants_cells = 0 not in shapes[-1]
    ys, h, c, cells = in_jax(_fused, kernel, arrays, flags, wants_cells)
    # Nothing reads the tape.
    return _filled((ys, h, c, None, cells), shapes)


def _backward_in_jax(kernel, shapes, *operands):
    arrays, flags, (_, _, *cotangents) = _unpacked(operands)
    cotangents = Outputs(*cotangents)

    def outputs(arrays):
        return in_jax(_fused, kernel, arrays, flags, cotangents.cells is not None)

    return _filled(jax.vjp(outputs, arrays)[1](cotangents)[0], shapes)


def _members_in_jax(backward, kernel, shapes, *operands):
    axes = [0 if a.ndim > len(own) else None for a, own in zip(operands, _operands(backward), strict=True)]
    # Absent results have no axis of members.
    one_shapes = tuple(shape if 0 in shape else shape[1:] for shape in shapes)
    out_axes = [None if 0 in shape else 0 for shape in shapes]
    one = functools.partial(_backward_in_jax if backward else _forward_in_jax, kernel, one_shapes)
    return jax.vmap(one, axes, out_axes)(*operands)


_fused = functools.partial(fused.run, locked=None)


def _unpacked(operands) -> tuple[Arrays, Flags, list]:
    leaves = [leaf if leaf.size else None for leaf in operands]
    flags = len(_ARRAYS)
    rest = flags + len(_FLAGS)
    return Arrays(*leaves[:flags]), Flags(*leaves[flags:rest]), leaves[rest:]


def _filled(leaves, shapes) -> list[jax.Array]:
    return [
        jnp.zeros(shape, jnp.float32) if leaf is None else leaf
        for leaf, shape in zip(leaves, shapes, strict=True)
    ]


def _sizes(kernel: Kernel, operands, arrays) -> dict[str, int]:
    sizes = {}
    for axes, array in zip(operands, arrays, strict=True):
        if array.size:
            sizes |= dict(zip(axes, array.shape, strict=True))
    lanes = library.lanes()
    sizes["w"] = -(-kernel.units // lanes) * lanes * _KEPT[kernel.name]
    return sizes


def _merge_members(array, is_batched: bool, is_mapped: bool, size: int, count: int):
    """`[size, count, ...]` as `[size * count, ...]`, where either axis may be missing."""
    if not (is_batched or is_mapped) or not array.size:
        return array[0] if is_batched else array
    if is_batched and is_mapped:
        return array.reshape(size * count, *array.shape[2:])
    return jnp.repeat(array, count, axis=0) if is_batched else jnp.concatenate([array] * size)


def _merge_batch(array, axes: str, is_batched: bool, size: int):
    if "b" not in axes or array.ndim - is_batched != len(axes):
        return array[0] if is_batched else array
    if not is_batched:
        array = jnp.broadcast_to(array, (size, *array.shape))
    at = axes.index("b")
    array = jnp.moveaxis(array, 0, at)
    return array.reshape(*array.shape[:at], -1, *array.shape[at + 2 :])


def _split_batch(array, axes: str, size: int):
    if axes == "0":
        return array
    at = axes.index("b")
    array = array.reshape(*array.shape[:at], size, -1, *array.shape[at + 1 :])
    return jnp.moveaxis(array, at, 0)


def _over_devices(function, operands, outputs):
    """The same function, of which each device runs its rows of the batch; gradients of weights are summed."""

    def partition(mesh, arguments, results):
        rows = _rows(operands, arguments)

        def sharding(axes, leaf):
            named = (rows if axis == "b" and leaf.size else None for axis in axes)
            return NamedSharding(mesh, PartitionSpec(*named))

        def on_each_device(*arrays):
            parts = function(*arrays)
            if rows is None:
                return parts
            summed = [axes.removeprefix("m") in _WEIGHTS for axes in outputs]
            return [jax.lax.psum(p, rows) if s else p for p, s in zip(parts, summed, strict=True)]

        given, made = map(sharding, operands, arguments), map(sharding, outputs, results)
        return mesh, on_each_device, list(made), tuple(given)

    def rule(mesh, given, made):
        del mesh
        absent = (f"absent{k}" for k in itertools.count())

        def factors(axes, type):
            return " ".join(axes) if len(type.shape) == len(axes) and 0 not in type.shape else next(absent)

        left, right = (", ".join(map(factors, *pair)) for pair in ((operands, given), (outputs, made)))
        return f"{left} -> {right}", {"need_replication_factors": _not_split(left, right)}

    call = custom_partitioning(function)
    call.def_partition(partition=partition, sharding_rule=rule)
    return call


def _not_split(*sides: str) -> tuple[str, ...]:
    """All factors of a sharding rule except the batch, in the order of their first appearance."""
    names = (name for side in sides for name in side.replace(",", " ").split())
    return tuple(name for name in dict.fromkeys(names) if name != "b")


def _rows(operands, arguments):
    """The mesh axes over which the batch is sharded; None for none."""
    for axes, leaf in zip(operands, arguments, strict=True):
        if "b" in axes and leaf.size and isinstance(leaf.sharding, NamedSharding):
            spec = (*leaf.sharding.spec, *[None] * len(axes))
            if spec[axes.index("b")] is not None:
                return spec[axes.index("b")]
    return None
