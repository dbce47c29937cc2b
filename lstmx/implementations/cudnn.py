"""cuDNN's LSTM on NVIDIA GPUs, through `jax.experimental.rnn`: all layers, directions and steps in one call.

Compared with float64 on an H100 (docs/benchmarks_gpu.md), where "fused" is faster at every shape: it is
chosen only by name. Experimental: gradients inside `vmap` over parameters or row by row have not been
compared there.

It computes in float32, with TF32 inside matmuls where `jax.default_matmul_precision` allows it. It supports
rows of different lengths, but neither gaps nor resets, and has a reverse pass but no other derivatives. XLA
cannot split the call: a batch that is spread over devices needs `jax.shard_map`.

`vmap` adds rows to one call, and so does its gradient. Two cases need a call for each element: parameters
that differ along the mapped axis, and a gradient that is taken inside `vmap`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

from lstmx.cells.base import Params, State, with_dtype
from lstmx.cells.lstm import LSTM, LSTMState
from lstmx.implementations.reverse_only import linear_map, message

_REFUSED = {
    "mask": "supports rows of different lengths but no gaps, which a mask may have: pass lengths instead",
    "resets": "cannot reset states within a row",
    "segment_ids": "cannot reset states within a row",
    "return_states": "returns only the final cell state, not those of all steps",
}


@dataclasses.dataclass(frozen=True)
class Layers:
    """Layers of LSTMs, each reading all directions of the one below, as one cell in the eyes of the driver.

    Attributes:
      cells: of each layer its cells: the forward one, or the forward and the backward one.
      dtype: the compute type, as of a cell.

    Parameters: `Params` whose `input` holds the `Params` of all cells, layer by layer. State: an `LSTMState`
    with leaves `[P, *batch, H]` of the P cells; not the initial states that the cells may learn.

    Example:
      >>> cell = LSTM(4)
      >>> Layers(((cell, cell), (cell, cell))).initial_state((3,)).c.shape
      (4, 3, 4)
    """

    cells: tuple[tuple[LSTM, ...], ...]
    dtype: DTypeLike | None = None

    num_feature_axes = 1

    @property
    def all_cells(self) -> tuple[LSTM, ...]:
        """The cells of all layers."""
        return tuple(itertools.chain(*self.cells))

    def joined(self, states: Sequence[State], batch_shape: tuple[int, ...]) -> LSTMState | None:
        """The state of all cells from the states of each; None if one does not have the shape it needs."""
        shape = (*batch_shape, self.all_cells[0].hidden_size)
        leaves = [jax.tree.leaves(state) for state in states]
        if any([jnp.shape(leaf) for leaf in of_cell] != [shape, shape] for of_cell in leaves):
            return None
        return LSTMState(*map(jnp.stack, zip(*leaves, strict=True)))

    def parted(self, state: LSTMState) -> list[LSTMState]:
        """The states of each cell, the inverse of `joined`."""
        return [LSTMState(c, h) for c, h in zip(state.c, state.h, strict=True)]

    def input_shape(self, params: Params) -> tuple[int, ...]:
        """`(D,)`: the feature axes of the inputs that `params` are made for."""
        return self.all_cells[0].input_shape(params.input[0])

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        """Zeros."""
        cells = self.all_cells
        state = with_dtype(cells[0], self.dtype).initial_state(batch_shape)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(cells), *leaf.shape)), state)


def in_one_call(layers: tuple[tuple[Any, ...], ...]) -> Layers:
    """The layers of a network, each with the cells of its directions, as one cell."""
    return Layers(layers, layers[0][0].dtype)


def refusal(job) -> str | None:
    """Why it cannot do a job (`lstmx.implementations.choice.Job`); None if it can.

    Example:
      >>> from lstmx.implementations.choice import Job
      >>> refusal(Job(LSTM(4)))
      'runs on NVIDIA GPUs, and the platform is cpu'
    """
    if job.platform not in ("gpu", "cuda"):
        return f"runs on NVIDIA GPUs, and the platform is {job.platform}"
    layers = _as_layers(job.cell)
    for cell in layers.all_cells:
        if type(cell) is not LSTM:
            return f"runs LSTMs, and this is a {type(cell).__name__}"
        if not cell.is_plain or cell.num_heads > 1:
            return f"runs LSTMs without options, and this is {cell}"
    if len({cell.dtype for cell in layers.all_cells}) > 1:
        return "needs layers of one compute type"
    sizes = sorted({cell.hidden_size for cell in layers.all_cells})
    if len(sizes) > 1:
        return f"needs layers of one size, got {sizes}"
    directions = sorted(set(map(len, layers.cells)))
    if len(directions) > 1:
        return "needs layers that all have as many directions"
    if jnp.dtype(layers.dtype) != jnp.float32:
        return f"computes in float32, not in {jnp.dtype(layers.dtype).name}"
    if job.remat == "gates":
        return 'cannot recompute gates; remat="sqrt" or a number of steps are possible'
    if job.remat is not None and directions == [2]:
        return "cannot recompute both directions of a layer step by step"
    return next((reason for name, reason in _REFUSED.items() if name in job.options), None)


def run(
    cell, params, state, fresh, sequence, locked=None, *, reverse, unroll, remat, states
) -> tuple[LSTMState, jax.Array]:
    """Runs an LSTM, or `Layers` of them, over time; see `reference.run`. `unroll` has no meaning here.

    Args:
      cell: as in `reference.run`, and so on.
      sequence: where a step is left out, so are all that follow it in the row.

    Raises:
      NotImplementedError: if there are resets or noise, or if states or recomputed gates are asked for.
      ValueError: if a parameter is of a wrong shape.
    """
    del fresh, unroll
    if not (sequence.resets is sequence.noise is locked is remat is None) or states:
        raise NotImplementedError('implementation "cudnn" has no resets, noise, gates or states of all steps')
    layers = _as_layers(cell)
    xs = sequence.xs
    steps, *batch, features = xs.shape
    rows = math.prod(batch)
    units, directions = layers.all_cells[0].hidden_size, len(layers.cells[0])
    if not (steps and rows):
        return state, jnp.zeros((steps, *batch, directions * units), xs.dtype)

    lengths = jnp.full(rows, steps, jnp.int32)
    if sequence.keep is not None:
        lengths = jnp.sum(sequence.keep, axis=0, dtype=jnp.int32).reshape(rows)
    x = jnp.swapaxes(xs.reshape(steps, rows, features), 0, 1)
    initial = jax.tree.map(lambda leaf: leaf.reshape(-1, rows, units), state)
    sizes = Sizes(features, units, len(layers.cells), directions == 2, _allows_tf32())
    weights = _weights(params.input if layers is cell else (params,), sizes, xs.dtype)

    x = _turned(x, lengths, sequence.keep) if reverse else x
    # A length of 0 is an error to cuDNN (jax#17966): such a row makes one step, which nothing reads.
    y, h, c = _lstm_p.bind(x, initial.h, initial.c, weights, jnp.maximum(lengths, 1), sizes=sizes)
    y = _turned(y, lengths, sequence.keep) if reverse else y

    final = LSTMState(c=c, h=h)
    if sequence.keep is not None:
        empty = (lengths == 0)[:, None]
        final = jax.tree.map(lambda before, after: jnp.where(empty, before, after), initial, final)
    final = jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), final, state)
    return final, jnp.swapaxes(y, 0, 1).reshape(steps, *batch, -1)


class Tensors(NamedTuple):
    """The weights of one direction of one layer, rows in the order i, f, g, o."""

    w_ih: jax.Array  # [4H, D]
    w_hh: jax.Array  # [4H, H]
    b_ih: jax.Array  # [4H]
    b_hh: jax.Array  # [4H]


def pack(tensors: Sequence[Tensors]) -> jax.Array:
    """cuDNN's vector of weights: of all directions of all layers `w_ih` and `w_hh`, then all biases.

    Example:
      >>> pack([Tensors(jnp.zeros((16, 3)), jnp.zeros((16, 4)), jnp.zeros(16), jnp.zeros(16))]).shape
      (144,)
    """
    return jnp.concatenate([tensors[k][name].ravel() for k, name in _order(len(tensors))])


def unpack(
    weights: jax.Array, input_size: int, hidden_size: int, num_layers: int, bidirectional: bool
) -> list[Tensors]:
    """The inverse of `pack`, a `Tensors` for each direction of each layer.

    Raises:
      ValueError: if the length of the vector does not match the sizes.

    Example:
      >>> unpack(jnp.arange(24), 3, 1, num_layers=1, bidirectional=False)[0].b_hh
      Array([20, 21, 22, 23], dtype=int32)
    """
    expected = shapes(input_size, hidden_size, num_layers, bidirectional)
    order = _order(len(expected))
    ends = list(itertools.accumulate(math.prod(expected[k][name]) for k, name in order))
    if weights.shape != (ends[-1],):
        raise ValueError(
            f"weights must have shape {(ends[-1],)} for input_size={input_size}, hidden_size={hidden_size}, "
            f"num_layers={num_layers}, bidirectional={bidirectional}, got {weights.shape}"
        )
    parts = dict(zip(order, jnp.split(weights, ends[:-1]), strict=True))
    return [
        Tensors(*(parts[k, name].reshape(shape) for name, shape in enumerate(of_one)))
        for k, of_one in enumerate(expected)
    ]


def _order(count: int) -> list[tuple[int, int]]:
    weights, biases = (0, 1), (2, 3)
    return [(k, name) for names in (weights, biases) for k in range(count) for name in names]


class Sizes(NamedTuple):
    """The static arguments of a call."""

    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    allow_tf32: bool


def shapes(input_size: int, hidden_size: int, num_layers: int, bidirectional: bool) -> list[Tensors]:
    """The shapes of all tensors, a `Tensors` for each direction of each layer.

    Example:
      >>> [one.w_ih for one in shapes(3, 4, num_layers=2, bidirectional=True)]
      [(16, 3), (16, 3), (16, 8), (16, 8)]
    """
    directions, rows = 2 if bidirectional else 1, 4 * hidden_size
    widths = [input_size] + [directions * hidden_size] * (num_layers - 1)
    found = [Tensors((rows, width), (rows, hidden_size), (rows,), (rows,)) for width in widths]
    return [one for one in found for _ in range(directions)]


def _weights(params: Sequence[Params], sizes: Sizes, dtype: DTypeLike) -> jax.Array:
    """The parameters of all cells as cuDNN's vector."""
    found = []
    for p, expected in zip(params, shapes(*sizes[:4]), strict=True):
        w_ih, w_hh = p.input["kernel"].T, p.recurrent["kernel"].T
        none = jnp.zeros(expected.b_ih, dtype)
        # Of the two biases only the sum matters.
        tensors = Tensors(*(leaf.astype(dtype) for leaf in (w_ih, w_hh, p.input.get("bias", none), none)))
        got = tuple(leaf.shape for leaf in tensors)
        if got != expected:  # cuDNN would read past the end
            raise ValueError(f"the tensors of cell {len(found)} must have shapes {expected}, got {got}")
        found.append(tensors)
    return pack(found)


def _as_layers(cell) -> Layers:
    return cell if isinstance(cell, Layers) else Layers(((cell,),), cell.dtype)


def _turned(x: jax.Array, lengths: jax.Array, keep: jax.Array | None) -> jax.Array:
    """Each row of `[B, T, ...]` reversed within its length."""
    if keep is None:
        return jnp.flip(x, 1)
    times = jnp.arange(x.shape[1])
    source = jnp.where(times < lengths[:, None], lengths[:, None] - 1 - times, times)
    rows = jnp.arange(x.shape[0])[:, None]
    # No place is read twice, so that the gradient needs no atomic additions.
    return x.at[rows, source].get(unique_indices=True, mode="promise_in_bounds")


# Formats no more precise than TF32 in their products.
_COARSE = ("default", "high", "bfloat16", "tensorfloat32", "BF16_BF16_F32", "TF32_TF32_F32")


def _allows_tf32() -> bool:
    # JAX's own matmuls of float32 use TF32 on a GPU unless something else is asked for.
    precision = jax.config.jax_default_matmul_precision
    return precision is None or precision in _COARSE


@functools.partial(jax.jit, static_argnames="sizes", inline=True)
def _call(x, h, c, weights, lengths, sizes: Sizes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`y [B, T, directions * H], h, c` of `x [B, T, D]` and states `[P, B, H]`; lengths are at least 1."""
    from jax.experimental import rnn  # only here: it is experimental, and not needed elsewhere

    # Not None: that reads the configuration, and fails where it asks for bfloat16.
    precision = lax.Precision.HIGH if sizes.allow_tf32 else lax.Precision.HIGHEST
    dropout = 0.0
    x, h, c = map(_in_rows, (x, h, c))
    results = rnn.lstm(x, h, c, weights, lengths, *sizes[:3], dropout, sizes.bidirectional, precision)
    return tuple(map(_in_rows, results))


def _in_rows(x: jax.Array) -> jax.Array:
    """The array with its last axis contiguous and its first one outermost; so too its cotangent.

    jax.experimental.rnn states no layouts, and the call reads memory as if they were the default ones, but
    XLA may have made a transpose before or after the call by changing the layout alone.
    """
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


# A primitive, and no function with custom rules, because what `vmap` and derivatives do depends on which of
# them comes first: a mapped call is a call of more rows only as long as nobody wants gradients row by row.
_lstm_p = Primitive("lstmx_cudnn")
_lstm_p.multiple_results = True


def _shapes(x, h, c, weights, lengths, *, sizes):
    del weights, lengths
    width = sizes.hidden_size * (2 if sizes.bidirectional else 1)
    return [x.update(shape=(*x.shape[:2], width)), h, c]


def _jvp(primals, tangents, *, sizes):
    *operands, lengths = primals
    forms = {}

    @_without_derivatives
    @jax.custom_batching.sequential_vmap
    def forward(lengths, *operands):
        outputs, pullback = jax.vjp(lambda *those: _call(*those, lengths, sizes), *operands)
        residuals, forms["pullback"] = jax.tree.flatten(pullback)
        return list(outputs), [operands[-1], *residuals]

    @_without_derivatives
    @_one_by_one
    def backward(residuals, cotangents):
        weights, *residuals = residuals
        *gradients, d_weights = jax.tree.unflatten(forms["pullback"], residuals)(tuple(cotangents))
        # The call accumulates this gradient in place: stacked by a loop as it is, it came out as zeros (jax
        # 0.11.2 on an H100). The sum keeps a loop from writing it where it is stacked.
        return [*gradients, d_weights + 0 * weights]

    outputs, residuals = forward(lengths, *operands)
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents[:-1]]
    return outputs, linear_map(backward, residuals, tangents, outputs, message("cudnn"))


def _one_by_one(function):
    """A function that `vmap` calls for each element in turn, without a loop (see `backward` in `_jvp`)."""
    function = jax.custom_batching.custom_vmap(function)

    @function.def_vmap
    def each(size, in_batched, *args):
        def element(k):
            return jax.tree.map(lambda x, batched: x[k] if batched else x, args, tuple(in_batched))

        results = [function(*element(k)) for k in range(size)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
        return stacked, jax.tree.map(lambda _: True, stacked)

    return function


def _without_derivatives(function):
    function = jax.custom_jvp(function)

    @function.defjvp
    def refuse(primals, tangents):
        raise NotImplementedError(
            'implementation "cudnn" has only first derivatives; use implementation="reference" for more'
        )

    return function


def _batch(operands, axes, *, sizes):
    size = next(a.shape[axis] for a, axis in zip(operands, axes, strict=True) if axis is not None)
    if axes[3] is not None:
        # One call has one set of weights.
        fronts = [batching.bdim_at_front(a, axis, size) for a, axis in zip(operands, axes, strict=True)]
        return lax.map(lambda those: _lstm_p.bind(*those, sizes=sizes), fronts), [0, 0, 0]
    row_axes = (0, 1, 1, None, 0)

    def merged(operand, axis, row_axis):
        if row_axis is None:
            return operand
        operand = batching.bdim_at_front(operand, axis, size)
        operand = jnp.moveaxis(operand, 0, row_axis)
        shape = operand.shape
        return operand.reshape(*shape[:row_axis], -1, *shape[row_axis + 2 :])

    def split(result, row_axis):
        shape = result.shape
        return result.reshape(*shape[:row_axis], size, -1, *shape[row_axis + 1 :])

    results = _lstm_p.bind(*map(merged, operands, axes, row_axes), sizes=sizes)
    return list(map(split, results, row_axes)), [0, 1, 1]


def _results(*operands, sizes) -> list[jax.Array]:
    return list(_call(*operands, sizes))


_lstm_p.def_abstract_eval(_shapes)
_lstm_p.def_impl(functools.partial(jax.jit, static_argnames="sizes")(_results))
mlir.register_lowering(_lstm_p, mlir.lower_fun(_results, multiple_results=True))
ad.primitive_jvps[_lstm_p] = _jvp
batching.primitive_batchers[_lstm_p] = _batch
