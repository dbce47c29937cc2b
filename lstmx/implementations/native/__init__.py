"""C++ kernels for CPUs: the plain LSTM, GRU and Elman cell in float32, forwards and backwards.

The matmuls and the gates of a few rows are one pass over the registers, rows are shared among XLA's threads,
and in the reverse pass the cotangents of the gates are used up, block of time by block, while they are in the
caches (`kernels/`). Compiled at first use (`library`).
"""

import functools
import math

import jax
import jax.numpy as jnp

from lstmx.cells.base import Cell, Params, PyTree, State
from lstmx.cells.elman import Elman
from lstmx.cells.gru import GRU
from lstmx.cells.lstm import LSTM, LSTMState
from lstmx.implementations import fused, reference, reverse_only
from lstmx.implementations.native import calls, library
from lstmx.implementations.native.layer import Arrays, Flags, Kernel, Shown, in_jax
from lstmx.implementations.reference import Sequence, batch_shape

_REFUSAL = reverse_only.message("native")


def refusal(job) -> str | None:
    """Why it cannot do a job (`lstmx.implementations.choice.Job`); None if it can.

    Example:
      >>> from lstmx.cells import SLSTM
      >>> from lstmx.implementations.choice import Job
      >>> refusal(Job(SLSTM(4)))
      'has kernels for LSTM, GRU and Elman alone, got SLSTM'
    """
    cell = job.cell
    if job.platform != "cpu":
        return f"runs on CPUs, and the platform is {job.platform}"
    if type(cell) not in (LSTM, GRU, Elman):
        return f"has kernels for LSTM, GRU and Elman alone, got {type(cell).__name__}"
    if not _is_plain(cell) or cell.num_heads > 1:
        return f"has kernels for the plain cells, without options or heads, got {cell}"
    if cell.dtype is not None and jnp.dtype(cell.dtype) != jnp.float32:
        return f"computes in float32, got {jnp.dtype(cell.dtype).name}"
    if job.xs is not None and reference.is_symbolic(*job.xs.shape):
        return f"needs known sizes, got xs of shape {job.xs.shape}"
    if job.remat == "gates":
        return 'keeps the gates: it has no remat="gates" (a number of steps or "sqrt" it has)'
    return library.refusal()


def prepare() -> None:
    """Compiles the kernels if this machine does not have them yet; `refusal` then says if that failed."""
    library.load()


def run(
    cell: Cell,
    params: Params,
    state: State,
    fresh: State,
    sequence: Sequence,
    locked: PyTree = None,
    *,
    reverse: bool,
    unroll: int,
    remat: str | None,
    states: bool,
) -> tuple[State, PyTree]:
    """Runs a cell over time; see `reference.run`. `unroll` has no meaning here."""
    xs = sequence.xs
    if 0 in xs.shape:
        return fused.run(
            cell, params, state, fresh, sequence, locked,
            reverse=reverse, unroll=unroll, remat=remat, states=states,
        )  # fmt: skip
    batch, units, is_lstm = batch_shape(cell, xs), cell.hidden_size, isinstance(cell, LSTM)
    rows = math.prod(batch)
    kernel = Kernel(_name(cell), units, reverse)

    def flat(leaf):
        return leaf.reshape(rows, units).astype(jnp.float32)

    def parts(state):
        return (flat(state.h), flat(state.c)) if is_lstm else (flat(state), None)

    h, c = parts(state)
    fresh_h, fresh_c = (None, None) if sequence.resets is None else parts(fresh)
    arrays = Arrays(
        x=xs.reshape(xs.shape[0], rows, xs.shape[-1]),
        input=params.input["kernel"].astype(jnp.float32),
        recurrent=params.recurrent["kernel"].astype(jnp.float32),
        bias=_slot_biases(cell, params),
        h=h, c=c, fresh_h=fresh_h, fresh_c=fresh_c,
    )  # fmt: skip
    flags = Flags(*(None if f is None else f.reshape(-1, rows) for f in (sequence.keep, sequence.resets)))
    shown, _ = _forward(kernel, states and is_lstm, False, arrays, flags)

    def shaped(leaf, like):
        return leaf.reshape(*leaf.shape[:-2], *batch, units).astype(like.dtype)

    if not is_lstm:
        return shaped(shown.h, state), shaped(shown.ys, state if states else xs)
    final = LSTMState(c=shaped(shown.c, state.c), h=shaped(shown.h, state.h))
    ys = shaped(shown.ys, state.h)
    return final, LSTMState(c=shaped(shown.cells, state.c), h=ys) if states else ys


def _name(cell: LSTM | GRU | Elman) -> str:
    return f"elman_{cell.activation}" if isinstance(cell, Elman) else type(cell).__name__.lower()


def _is_plain(cell: LSTM | GRU | Elman) -> bool:
    if isinstance(cell, Elman):
        return cell.activation in ("tanh", "relu") and cell.gate_clip is None
    return cell.is_plain


def _slot_biases(cell: LSTM | GRU | Elman, params: Params) -> jax.Array:
    """The constants of the pre-activations, `[slots, H]`."""
    units = cell.hidden_size
    if not cell.use_bias:
        return jnp.zeros((1 if isinstance(cell, Elman) else 4, units), jnp.float32)
    bias = params.input["bias"].astype(jnp.float32)
    if not isinstance(cell, GRU):
        return bias.reshape(-1, units)
    bias, recurrent = bias.reshape(3, units), params.recurrent["bias"].astype(jnp.float32).reshape(3, units)
    return jnp.concatenate([bias[:2] + recurrent[:2], bias[2:], recurrent[2:]])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _forward(kernel, wants_cells, training, arrays, flags):
    """What is shown, and in training the tape."""
    ys, h, c, tape, cells = calls.forward(kernel, training, wants_cells, arrays, flags)
    return Shown(ys, h, c, cells), tape


@_forward.defjvp
def _forward_jvp(kernel, wants_cells, training, primals, tangents):
    arrays, flags = primals
    shown, tape = _forward(kernel, wants_cells, True, arrays, flags)
    if training:
        # A second derivative, by the reference. `_backward` alone reads the tape, and its own derivative does
        # without it.
        def outputs(arrays):
            return in_jax(reference.run, kernel, arrays, flags, wants_cells)

        return (shown, tape), (
            jax.jvp(outputs, (arrays,), tangents[:1])[1],
            jax.tree.map(jnp.zeros_like, tape),
        )
    residuals, tree = jax.tree.flatten((arrays, flags, shown.ys, tape))
    outputs, output_tree = jax.tree.flatten(shown)
    flat_tangents, tangent_tree = jax.tree.flatten(tangents[0])

    def reverse(residuals, cotangents):
        cotangents = jax.tree.unflatten(output_tree, cotangents)
        arrays, flags, ys, tape = jax.tree.unflatten(tree, residuals)
        return tangent_tree.flatten_up_to(_backward(kernel, arrays, flags, ys, tape, cotangents))

    d_shown = reverse_only.linear_map(reverse, residuals, flat_tangents, outputs, _REFUSAL)
    return (shown, None), (jax.tree.unflatten(output_tree, d_shown), None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(kernel, arrays, flags, ys, tape, cotangents):
    """The cotangents of `arrays`."""
    return calls.backward(kernel, arrays, flags, ys, tape, cotangents)


@_backward.defjvp
def _backward_jvp(kernel, primals, tangents):
    # Second derivatives, which are rare, by autodiff of the reference.
    arrays, flags, _, _, cotangents = primals
    d_arrays, _, _, _, d_cotangents = tangents

    def outputs(arrays):
        return in_jax(reference.run, kernel, arrays, flags, cotangents.cells is not None)

    def gradients(arrays, cotangents):
        return jax.vjp(outputs, arrays)[1](cotangents)[0]

    return jax.jvp(gradients, (arrays, cotangents), (d_arrays, d_cotangents))
