"""What a recurrent cell is: two linear maps and a pointwise update.

    z_t = input_map(params.input, x_t)                independent of time
    r_t = recurrent_map(params.recurrent, y_{t-1})    the only matmul that must stay in the loop
    s_t = update(params.update, s_{t-1}, z_t, r_t)    gates: cheap, (almost) elementwise
    y_t = output(s_t)                                 read by the caller and by the recurrent map

With these four functions a driver can compute the input map for all steps at once, mask, reset and reverse
time, and use one hand-written reverse pass for every cell (`lstmx.implementations.fused`).

Axes, in the order in which they occur:

    T  time            B  batch (any number of axes, including none)
    D  input features  H  hidden units    K  gate pre-activations (4H for an LSTM)
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from lstmx.cells import initializers
from lstmx.cells.capabilities import HasOutputSize, LearnsInitialState, Network, SetsOwnDtype, has

PyTree = Any
State = PyTree


class Params(NamedTuple):
    """Parameters of a cell: a pytree for each of its three parts, and the initial state if it is learned."""

    input: PyTree
    recurrent: PyTree
    update: PyTree = ()
    initial: PyTree = ()


class Noise(NamedTuple):
    """What a regularized cell has drawn for one run, before the loop (`lstmx.Regularized`)."""

    locked: PyTree  # the same in every step: leaves [*batch, ...]
    stepwise: PyTree  # leaves [T, *batch, ...]; inside of the loop those of one step


class Cell(Protocol):
    """The protocol of a recurrent cell: a frozen dataclass of hyperparameters with pure methods.

    Nothing is inherited: any hashable object with these members is a cell. `dtype` is the type that the
    matmuls compute in (None: promoted from parameters and inputs), `param_dtype` the one that `init` makes.
    The drivers give `dtype` a value before they call the maps, so that the maps can rely on it.
    `num_feature_axes` says how many trailing axes of an input belong to one element of the batch.

    What else a cell may offer, such as gates by name or a learned initial state, is described by the
    protocols of `lstmx.cells.capabilities`.
    """

    # Properties, so that the fields of a frozen dataclass satisfy the protocol.
    @property
    def hidden_size(self) -> int:
        """The number of units H."""

    @property
    def dtype(self) -> DTypeLike | None:
        """The compute type."""

    @property
    def param_dtype(self) -> DTypeLike:
        """The type of the parameters."""

    @property
    def num_feature_axes(self) -> int:
        """The number of feature axes of an input."""

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
    """`x @ kernel + bias`, computed in the type of `x`, regardless of that of the parameters.

    The bias is added, and its gradient summed, in float32 at least.

    Args:
      params: `kernel` `[D, K]`, or for a block-diagonal map of N heads `[N, D/N, G, H/N]` (then K = G * H,
        gate by gate), and, if the map has one, `bias` `[K]`.
      x: `[..., D]`.

    Returns:
      `[..., K]` of the type of `x`.
    """
    kernel = params["kernel"]
    z = matmul(kernel, x) if kernel.ndim == 2 else _block_matmul(kernel, x)
    return _with_bias(params, z)


def affine_by_gate(params: dict[str, jax.Array], xs: Sequence[jax.Array]) -> jax.Array:
    """`affine` with a separate input for each gate: `[..., D]` of each of G gates give `[..., G * H]`."""
    kernels = jnp.split(params["kernel"], len(xs), axis=-1)
    z = jnp.concatenate([dot(kernel, x) for kernel, x in zip(kernels, xs, strict=True)], axis=-1)
    return _with_bias(params, z)


def _with_bias(params: dict[str, jax.Array], z: jax.Array) -> jax.Array:
    if "bias" not in params:
        return z
    wide = carried_dtype(z.dtype)
    return (z.astype(wide) + params["bias"].astype(wide)).astype(z.dtype)


def matmul(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """`x @ kernel`, in the type of `x`: `[..., n]` and `[n, m]` give `[..., m]`.

    Cells call this for the matmuls of their updates, with an unmodified leaf of `params.update` as kernel: a
    driver can then record them (`recording`) and compute their weight gradients outside of the loop.
    """
    recorder = _recorder.get()
    product = None if recorder is None else recorder(kernel, x)
    return dot(kernel, x) if product is None else product


def dot(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """`matmul`, not recorded."""
    # One axis of rows: the gradient of the kernel contracts over them, and XLA:CPU is several times slower at
    # contracting over several axes.
    rows = x if x.ndim == 1 else x.reshape(-1, x.shape[-1])
    kernel = kernel.astype(x.dtype)
    if x.shape[-1] == 1 and x.ndim > 1:
        # XLA turns this into an elementwise product, which XLA:CPU then fuses into the gates together with
        # the slice of one step's x, without vectorising: twice as slow. A second feature prevents it.
        rows, kernel = jnp.pad(rows, ((0, 0), (0, 1))), jnp.pad(kernel, ((0, 1), (0, 0)))
    return (rows @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _block_matmul(kernel: jax.Array, x: jax.Array) -> jax.Array:
    heads, size, gates, units = kernel.shape
    # One matmul with two axes per head: the equivalent einsum with four axes is a fifth slower on XLA:CPU.
    rows = x.reshape(-1, heads, size).swapaxes(0, 1)
    z = rows @ kernel.astype(x.dtype).reshape(heads, size, gates * units)
    z = z.reshape(heads, -1, gates, units).transpose(1, 2, 0, 3)
    return z.reshape(*x.shape[:-1], gates * heads * units)


Recorder = Callable[[jax.Array, jax.Array], jax.Array | None]
_recorder: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar("recorder", default=None)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Calls `recorder(kernel, x)` for every `matmul` that is traced; it returns the product or None."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def dense_input_shape(params: Params) -> tuple[int, ...]:
    """`(D,)`: the feature axes of the inputs of a cell whose input map is `affine`."""
    return params.input["kernel"].shape[:1]


def carried_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The type of a state that integrates over time: the compute type, but float32 at least.

    Example:
      >>> carried_dtype("bfloat16"), carried_dtype("float64")
      (dtype('float32'), dtype('float64'))
    """
    return jnp.promote_types(dtype, jnp.float32)


def initial_params(cell: Cell) -> State:
    """The part `initial` of the parameters: zeros in `param_dtype` if the cell learns it, otherwise empty."""
    if not learns_initial_state(cell):
        return ()
    return jax.tree.map(lambda leaf: leaf.astype(cell.param_dtype), cell.initial_state())


def learns_initial_state(network: Any) -> bool:
    """Whether the parameters of a cell or network hold an initial state, of all its cells or of some.

    Example:
      >>> import lstmx
      >>> cell = lstmx.LSTM(4, learn_initial_state=True)
      >>> learns_initial_state(cell), learns_initial_state(lstmx.Stack((lstmx.GRU(4), lstmx.Mogrifier(cell))))
      (True, True)
    """
    if has(network, LearnsInitialState):
        return network.learn_initial_state
    return has(network, Network) and any(map(learns_initial_state, network.parts))


def start(cell: Cell, params: Params, batch_shape: tuple[int, ...]) -> State:
    """The state before the first step: the learned one if `params` hold it, else `cell.initial_state`."""
    require_params_type(cell, params)
    state = cell.initial_state(batch_shape)
    if not jax.tree.leaves(params.initial):
        return state
    # A copy: `broadcast_to` may return the parameter itself, and whoever donates the state would delete it.
    return jax.tree.map(
        lambda leaf, like: jnp.array(jnp.broadcast_to(leaf.astype(like.dtype), like.shape)),
        params.initial,
        state,
    )


def resolved(cell: Cell, params: PyTree, x: ArrayLike) -> Cell:
    """The same cell with a definite compute type: `cell.dtype`, else promoted from parameters and input."""
    if cell.dtype is not None:
        return with_dtype(cell, cell.dtype) if initializers.names_in(cell) else cell
    dtype = jnp.result_type(*jax.tree.leaves(params), x)
    return with_dtype(cell, dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32)


def with_dtype(cell: Cell, dtype: DTypeLike) -> Cell:
    """The same cell, computing in `dtype`, and without initializers: no step reads them.

    Cells that differ only in initializers thus share compiled code, as do cells that were given
    `jax.nn.initializers.normal()`, which makes another function each time, twice.
    """
    if has(cell, SetsOwnDtype):
        return cell.with_dtype(dtype)
    return dataclasses.replace(cast(Any, cell), dtype=dtype, **dict.fromkeys(initializers.names_in(cell)))


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, of Python or of NumPy; True and False are not.

    Example:
      >>> is_integer(3), is_integer(True), is_integer(3.0)
      (True, False, False)
    """
    return hasattr(value, "__index__") and not isinstance(value, bool)


def require_sizes(**sizes: int) -> None:
    """Checks sizes by the names of their arguments.

    Raises:
      TypeError: if one is not an integer; a bool is none.
      ValueError: if one is below 1.

    Example:
      >>> require_sizes(hidden_size=0)
      Traceback (most recent call last):
      ValueError: hidden_size must be at least 1, got 0
    """
    for name, size in sizes.items():
        if not is_integer(size):
            raise TypeError(f"{name} must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def require_params_type(cell: Cell, params: Any) -> None:
    """Checks that the parameters of a cell are `Params`, and not what a file gives without their structure.

    Raises:
      TypeError: if they are anything else, with the way to restore them.
    """
    if not isinstance(params, Params):
        advice = f"; {HOW_TO_RESTORE}" if isinstance(params, Mapping | list) else ""
        raise TypeError(
            f"the parameters of {type(cell).__name__} must be lstmx.Params, as `init` returns them, got "
            f"{described(params)}{advice}"
        )


HOW_TO_RESTORE = (
    "orbax returns plain dictionaries and lists unless it is given the structure to restore: "
    "jax.eval_shape(lambda: network.init(jax.random.key(0), input_size))"
)


def described(value: Any) -> str:
    """What a value is, in a few words, for the message of an error.

    Example:
      >>> described({"kernel": 0, "bias": 1}), described((0, 1)), described(None)
      ("a dict of 'kernel', 'bias'", 'a tuple of length 2', 'a NoneType')
    """
    kind = type(value).__name__
    article = "an" if kind[0] in "AEIOUaeiou" else "a"
    if isinstance(value, Mapping):
        return f"{article} {kind} of {', '.join(map(repr, value))}" if value else f"an empty {kind}"
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return f"{article} {kind} of length {len(value)}"
    if hasattr(value, "shape"):
        return f"an array of shape {value.shape}"
    return f"{article} {kind}"


def validate(cell: Cell) -> None:
    """Checks and normalises the fields that cells share; called by `__post_init__`.

    Raises:
      ValueError: if a size or a clip is out of range, or `num_heads` does not divide `hidden_size`.
      TypeError: if a size is not an integer, a dtype not a floating type, or an initializer not a function.
    """
    sizes = {name: getattr(cell, name, None) for name in ("hidden_size", "num_heads", "projection_size")}
    require_sizes(**{name: size for name, size in sizes.items() if size is not None})
    heads = getattr(cell, "num_heads", 1)
    for name in ("hidden_size", "projection_size"):
        size = getattr(cell, name, None)
        if size is not None and size % heads:
            raise ValueError(f"num_heads must divide {name}, got {heads} heads and {name}={size}")
    for name in ("gate_clip", "cell_clip", "projection_clip"):
        limit = getattr(cell, name, None)
        if limit is not None and not limit > 0:
            raise ValueError(f"{name} must be positive or None, got {limit}")
    for name in ("dtype", "param_dtype"):
        value = getattr(cell, name)
        if value is None and name == "dtype":
            continue
        dtype = jnp.dtype(value)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name} must be a floating type, got {dtype.name}")
        # Equal cells must have equal hashes, however their types were written.
        object.__setattr__(cell, name, dtype)
    initializers.check(cell)


def output_size(cell: Cell) -> int:
    """The features of an output of a cell or network: its `output_size`, or else its `hidden_size`."""
    return cell.output_size if has(cell, HasOutputSize) else cell.hidden_size


def dropout(key: jax.Array, x: jax.Array, rate: float, shape: tuple[int, ...] | None = None) -> jax.Array:
    """Dropout: each element is 0 with probability `rate`, otherwise divided by 1 - rate.

    Args:
      key: the key.
      x: any shape, of a floating type.
      rate: in [0, 1).
      shape: the shape of the mask, which is broadcast to x; that of x by default.

    Returns:
      An array like `x`.

    Example:
      >>> sorted(set(dropout(jax.random.key(0), jnp.ones(8), 0.5).tolist()))
      [0.0, 2.0]
    """
    if rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape if shape is None else shape)
    # A choice, not a product: what is dropped may be anything, even an infinity in the padding.
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def count(params: PyTree) -> int:
    """The number of scalars in a tree of arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> count({"kernel": jnp.zeros((3, 8)), "bias": jnp.zeros(8)})
      32
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
