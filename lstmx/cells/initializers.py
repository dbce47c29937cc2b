"""How parameters are drawn: by a cell's default rule, or by an initializer as of `jax.nn.initializers`.

An initializer is called once for each gate (and head), as if each were a layer of its own: one that depends
on the fan-out reads H, not 4H. Initializers of Flax that return an array with partitioning metadata
(`flax.nnx.with_partitioning`, `flax.linen.with_partitioning`) are accepted. Cells return plain arrays;
`collecting` hands the metadata to the layers of `lstmx.nnx` and `lstmx.linen`.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# `initializer(key, shape, dtype)`, as in jax.nn.initializers.
Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], Any]

FIELDS = ("kernel_init", "recurrent_init", "bias_init")

_boxes: contextvars.ContextVar[dict[int, tuple[jax.Array, Any]] | None] = contextvars.ContextVar(
    "boxes", default=None
)


def input_kernel(
    key: jax.Array,
    rows: int | tuple[int, ...],
    units: int,
    gates: int,
    dtype: DTypeLike,
    initializer: Initializer | None = None,
) -> jax.Array:
    """A kernel `[*rows, gates * units]`.

    Args:
      key: of the draw.
      rows: D, or the sizes of a convolution and D.
      units: H.
      gates: the number of gates.
      dtype: of the kernel.
      initializer: called with `(*rows, units)` for each gate; None for normal with variance 1/D (LeCun et al.
        1998).
    """
    rows = rows if isinstance(rows, tuple) else (rows,)
    if initializer is None:
        return jax.nn.initializers.lecun_normal()(key, (*rows, gates * units), dtype)
    return _by_gate("kernel_init", initializer, key, rows, units, gates, dtype)


def recurrent_kernel(
    key: jax.Array,
    rows: int | tuple[int, ...],
    units: int,
    gates: int,
    dtype: DTypeLike,
    initializer: Initializer | None = None,
    num_heads: int = 1,
) -> jax.Array:
    """A kernel `[*rows, gates * units]`.

    Args:
      key: of the draw.
      rows: P, the features that the map reads, or the sizes of a convolution and P.
      units: H.
      gates: the number of gates.
      dtype: of the kernel.
      initializer: called with `(*rows, units)` for each gate, with heads `(P/N, H/N)` for each head and gate;
        None for orthogonal (Saxe et al. 2014).
      num_heads: N; more than one gives the block-diagonal `[N, P/N, gates, H/N]` of `base.affine`.
    """
    rows = rows if isinstance(rows, tuple) else (rows,)
    initializer = initializer or jax.nn.initializers.orthogonal()
    return _by_gate("recurrent_init", initializer, key, rows, units, gates, dtype, num_heads)


def bias(
    key: jax.Array, units: int, gates: int, dtype: DTypeLike, initializer: Initializer | None = None
) -> jax.Array:
    """A bias `[gates * units]`: `initializer` is called with `(units,)` for each gate; None for zeros."""
    initializer = initializer or jax.nn.initializers.zeros
    return _by_gate("bias_init", initializer, key, (), units, gates, dtype)


def vector(name: str, key: jax.Array, size: int, dtype: DTypeLike, initializer: Initializer) -> jax.Array:
    """A vector `[size]` drawn by the initializer that the field `name` holds."""
    return _by_gate(name, initializer, key, (), size, 1, dtype)


def changed(old: jax.Array, new: jax.Array) -> jax.Array:
    """`new`, with the metadata of `old`, the same parameter before a change of its values or shape."""
    boxes = _boxes.get()
    if boxes is not None and id(old) in boxes:
        boxes[id(new)] = (new, boxes[id(old)][1])
    return new


@contextlib.contextmanager
def collecting() -> Iterator[Callable[[jax.Array], Any]]:
    """Collects the metadata that initializers return; yields what finds an array's, None if it has none."""
    boxes: dict[int, tuple[jax.Array, Any]] = {}
    token = _boxes.set(boxes)
    try:
        # The arrays are kept beside their metadata, so that no other array gets the id of one of them.
        yield lambda array: boxes.get(id(array), (array, None))[1]
    finally:
        _boxes.reset(token)


def check(cell: object) -> None:
    """Checks the initializers of a cell.

    Raises:
      TypeError: if one is not a function, or cannot be hashed, as the fields of a cell must be.
      ValueError: if there is a `bias_init` but no bias.
    """
    for name in FIELDS:
        value = getattr(cell, name, None)
        if value is None:
            continue
        if not callable(value):
            raise TypeError(
                f"{name} must be a function (key, shape, dtype) such as jax.nn.initializers.normal(), "
                f"got {value!r}"
            )
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(f"{name} must be hashable, as all fields of a cell: {error}") from None
    if getattr(cell, "bias_init", None) is not None and not getattr(cell, "use_bias", True):
        raise ValueError("bias_init has no effect with use_bias=False")


def names_in(cell: object) -> tuple[str, ...]:
    """The fields of a cell that hold an initializer."""
    return tuple(name for name in FIELDS if getattr(cell, name, None) is not None)


def _by_gate(name, initializer, key, rows, units, gates, dtype, num_heads=1):
    # Orthogonal matrices have no half-precision form, so all is drawn in float32 at least.
    wide = jnp.promote_types(dtype, jnp.float32)
    shape = (*rows[:-1], *(row // num_heads for row in rows[-1:]), units // num_heads)
    draws = [initializer(k, shape, wide) for k in jax.random.split(key, num_heads * gates)]
    blocks = [_array_in(draw) for draw in draws]
    for block in blocks:
        if block.shape != shape:
            raise ValueError(
                f"{name} must return an array of the shape asked for, {shape}, got {block.shape}"
            )
    if num_heads == 1:
        drawn = jnp.concatenate(blocks, axis=-1).astype(dtype)
    else:
        blocks = jnp.stack(blocks).reshape(num_heads, gates, *shape)
        drawn = jnp.moveaxis(blocks, 1, 2).astype(dtype)
    boxes = _boxes.get()
    if boxes is not None and _is_boxed(draws[0]):
        boxes[id(drawn)] = (drawn, draws[0])
    return drawn


def _is_boxed(draw: Any) -> bool:
    return not hasattr(draw, "shape") or (hasattr(draw, "unbox") and not isinstance(draw, jax.Array))


def _array_in(draw: Any) -> jax.Array:
    """An initializer's array, without what Flax may have put around it."""
    if _is_boxed(draw):
        # The names of flax.nnx.variablelib.VariableMetadata and of flax.core.meta.Partitioned.
        draw = draw.raw_value if hasattr(draw, "raw_value") else draw.value
    return jnp.asarray(draw)
