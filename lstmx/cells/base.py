"""What a recurrent cell is: two linear maps and a pointwise update.

    z_t = input_map(params.input, x_t)                knows nothing of time
    r_t = recurrent_map(params.recurrent, y_{t-1})    the only matmul that time cannot escape
    s_t = update(params.update, s_{t-1}, z_t, r_t)    gates: cheap, elementwise or nearly
    y_t = output(s_t)                                 shown to the world and to the cell's own recurrent map

A driver that knows these four can hoist the input map, mask, reset and reverse time, and run one
hand-written reverse pass for every cell (`lstmx.implementations.fused`).

Axes, in the order in which arrays carry them:

    T  time            B  batch (any number of axes, none included)
    D  input features  H  hidden units    K  gate pre-activations (4H for an LSTM)
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

PyTree = Any
State = PyTree


class Params(NamedTuple):
    """Parameters of a cell, one pytree for each of its three parts."""

    input: PyTree
    recurrent: PyTree
    update: PyTree = ()


class Cell(Protocol):
    """The protocol of a recurrent cell: a frozen dataclass of hyperparameters with pure methods.

    Nothing is inherited: any hashable object with these members is a cell. `dtype` is the type that the
    matmuls compute in (None: promoted from parameters and inputs), `param_dtype` the one that `init` makes.
    The drivers give `dtype` a value before they call the maps, so that the maps can rely on it.
    `num_feature_axes` says how many trailing axes of an input belong to one element of the batch.
    """

    hidden_size: int
    dtype: DTypeLike | None
    param_dtype: DTypeLike

    num_feature_axes: int

    def init(self, key: jax.Array, input_size: int) -> Params:
        """Draws parameters for inputs of `input_size` features."""

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> State:
        """The state before the first step; its leaves are `[*batch_shape, ...]`."""

    def input_shape(self, params: Params) -> tuple[int, ...]:
        """The feature axes of the inputs that `params` are made for, `(D,)` for a dense cell."""

    def input_map(self, params: PyTree, x: jax.Array) -> PyTree:
        """`z`, affine in `x`."""

    def recurrent_map(self, params: PyTree, y: jax.Array) -> PyTree:
        """`r`, affine in `y`."""

    def update(self, params: PyTree, state: State, z: PyTree, r: PyTree) -> State:
        """The next state."""

    def output(self, state: State) -> jax.Array:
        """`y`, a linear function of the state, in the compute type."""


def affine(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """`x @ kernel + bias`, computed in the type of `x` whatever the parameters are stored in.

    Args:
      params: `kernel` `[D, K]` and, if the map has one, `bias` `[K]`.
      x: `[..., D]`.

    Returns:
      `[..., K]` of the type of `x`.
    """
    z = x @ params["kernel"].astype(x.dtype)
    return z + params["bias"].astype(x.dtype) if "bias" in params else z


def dense_input_shape(params: Params) -> tuple[int, ...]:
    """`(D,)`: the feature axes of the inputs of a cell whose input map is `affine`."""
    return params.input["kernel"].shape[:1]


def input_kernel(key: jax.Array, input_size: int, units: int, gates: int, dtype: DTypeLike) -> jax.Array:
    """A kernel `[D, gates * H]`, normal with variance 1/D (LeCun et al. 1998)."""
    return jax.nn.initializers.lecun_normal()(key, (input_size, gates * units), dtype)


def recurrent_kernel(key: jax.Array, units: int, gates: int, dtype: DTypeLike) -> jax.Array:
    """A kernel `[H, gates * H]`, orthogonal for each gate (Saxe et al. 2014)."""
    # QR has no half-precision form, so the draw is made in float32 at least.
    draw = jax.nn.initializers.orthogonal()
    wide = jnp.promote_types(dtype, jnp.float32)
    kernels = [draw(k, (units, units), wide) for k in jax.random.split(key, gates)]
    return jnp.concatenate(kernels, axis=-1).astype(dtype)


def carried_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The type of a state that integrates over time: float32 where the compute type is narrower.

    Example:
      >>> carried_dtype("bfloat16"), carried_dtype("float64")
      (dtype('float32'), dtype('float64'))
    """
    return jnp.promote_types(dtype, jnp.float32)


def resolved(cell: Cell, params: PyTree, x: ArrayLike) -> Cell:
    """The same cell with its compute type settled: `cell.dtype`, else promoted from parameters and input."""
    if cell.dtype is not None:
        return cell
    dtype = jnp.result_type(*jax.tree.leaves(params), x)
    return dataclasses.replace(cell, dtype=dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32)


def validate(cell: Cell) -> None:
    """Checks and normalises the fields that every cell has; called by `__post_init__`.

    Raises:
      ValueError: if `hidden_size` is less than 1.
      TypeError: if `hidden_size` is no integer, or a dtype no floating type.
    """
    size = cell.hidden_size
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise TypeError(f"hidden_size must be an integer, got {size!r}")
    if size < 1:
        raise ValueError(f"hidden_size must be at least 1, got {size}")
    for name in ("dtype", "param_dtype"):
        value = getattr(cell, name)
        if value is None and name == "dtype":
            continue
        dtype = jnp.dtype(value)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name} must be a floating type, got {dtype.name}")
        # Equal cells must hash alike, however their types were written.
        object.__setattr__(cell, name, dtype)


def require_input_size(input_size: int) -> None:
    """Raises ValueError unless `input_size` is at least 1."""
    if input_size < 1:
        raise ValueError(f"input_size must be at least 1, got {input_size}")


def count(params: PyTree) -> int:
    """The number of scalars in a tree of arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> count({"kernel": jnp.zeros((3, 8)), "bias": jnp.zeros(8)})
      32
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
