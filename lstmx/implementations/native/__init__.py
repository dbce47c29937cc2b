"""C++ kernels for CPUs: the plain LSTM, GRU and Elman cell in float32, forwards and backwards.

The matmuls and the gates of a few rows are one pass over the registers, rows are divided among threads, and
in the reverse pass the cotangents of the gates are consumed block of time by block, while they are in the
caches (`kernels/`). The kernels are compiled at their first use (`library`).
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
from lstmx.implementations.native.layer import (
    Arrays,
    Flags,
    Kernel,
    Outputs,
    in_jax,
    kernel_name,
    slot_biases,
)
from lstmx.implementations.native.stepping import Stepper
from lstmx.implementations.reference import Sequence, batch_shape

_REFUSAL = reverse_only.message("native")


def refusal(job) -> str | None:
    """Why it cannot run a job (`lstmx.implementations.choice.Job`); None if it can.

    Example:
      >>> from lstmx.cells import SLSTM
      >>> from lstmx.implementations.choice import Job
      >>> refusal(Job(SLSTM(4)))
      'has kernels only for LSTM, GRU and Elman, got SLSTM'
    """
    cell = job.cell
    if job.platform != "cpu":
        return f"runs on CPUs, and the platform is {job.platform}"
    if type(cell) not in (LSTM, GRU, Elman):
        return f"has kernels only for LSTM, GRU and Elman, got {type(cell).__name__}"
    if not _is_plain(cell) or cell.num_heads > 1:
        return f"has kernels only for cells without options or heads, got {cell}"
    if cell.dtype is not None and jnp.dtype(cell.dtype) != jnp.float32:
        return f"computes in float32, got {jnp.dtype(cell.dtype).name}"
    if job.xs is not None and reference.is_symbolic(*job.xs.shape):
        return f"needs known sizes, got xs of shape {job.xs.shape}"
    if job.remat == "gates":
        return 'does not support remat="gates" (a number of steps and "sqrt" are supported)'
    return library.refusal()


def stepper(
    cells: tuple[Cell, ...], params: tuple[Params, ...], batch_shape: tuple[int, ...], in_tuple: bool
) -> Stepper:
    """A function of state and x that makes one step of layers, each reading the one below, on a CPU."""
    return Stepper(cells, params, batch_shape, in_tuple)


def prepare() -> None:
    """Compiles the kernels if this machine does not have them yet; if that fails, `refusal` says so."""
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
    """Runs a cell over time; see `reference.run`. `unroll` has no effect."""
    xs = sequence.xs
    if 0 in xs.shape:
        return fused.run(
            cell, params, state, fresh, sequence, locked,
            reverse=reverse, unroll=unroll, remat=remat, states=states,
        )  # fmt: skip
    batch, units, is_lstm = batch_shape(cell, xs), cell.hidden_size, isinstance(cell, LSTM)
    rows = math.prod(batch)
    kernel = Kernel(kernel_name(cell), units, reverse)

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
        bias=slot_biases(cell, params),
        h=h, c=c, fresh_h=fresh_h, fresh_c=fresh_c,
    )  # fmt: skip
    flags = Flags(*(None if f is None else f.reshape(-1, rows) for f in (sequence.keep, sequence.resets)))
    outputs, _ = _forward(kernel, states and is_lstm, False, arrays, flags)

    def shaped(leaf, like):
        return leaf.reshape(*leaf.shape[:-2], *batch, units).astype(like.dtype)

    if not is_lstm:
        return shaped(outputs.h, state), shaped(outputs.ys, state if states else xs)
    final = LSTMState(c=shaped(outputs.c, state.c), h=shaped(outputs.h, state.h))
    ys = shaped(outputs.ys, state.h)
    return final, LSTMState(c=shaped(outputs.cells, state.c), h=ys) if states else ys


def _is_plain(cell: LSTM | GRU | Elman) -> bool:
    if isinstance(cell, Elman):
        return cell.activation in ("tanh", "relu") and cell.gate_clip is None
    return cell.is_plain


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _forward(kernel, wants_cells, training, arrays, flags):
    """The outputs, and in training the tape."""
    ys, h, c, tape, cells = calls.forward(kernel, training, wants_cells, arrays, flags)
    return Outputs(ys, h, c, cells), tape


@_forward.defjvp
def _forward_jvp(kernel, wants_cells, training, primals, tangents):
    arrays, flags = primals
    outputs, tape = _forward(kernel, wants_cells, True, arrays, flags)
    if training:
        # A second derivative, by the reference. Only `_backward` reads the tape, and its derivative does not
        # need it.
        def by_reference(arrays):
            return in_jax(reference.run, kernel, arrays, flags, wants_cells)

        return (outputs, tape), (
            jax.jvp(by_reference, (arrays,), tangents[:1])[1],
            jax.tree.map(jnp.zeros_like, tape),
        )
    residuals, tree = jax.tree.flatten((arrays, flags, outputs.ys, tape))
    flat_outputs, output_tree = jax.tree.flatten(outputs)
    flat_tangents, tangent_tree = jax.tree.flatten(tangents[0])

    def reverse(residuals, cotangents):
        cotangents = jax.tree.unflatten(output_tree, cotangents)
        arrays, flags, ys, tape = jax.tree.unflatten(tree, residuals)
        return tangent_tree.flatten_up_to(_backward(kernel, arrays, flags, ys, tape, cotangents))

    d_outputs = reverse_only.linear_map(reverse, residuals, flat_tangents, flat_outputs, _REFUSAL)
    return (outputs, None), (jax.tree.unflatten(output_tree, d_outputs), None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(kernel, arrays, flags, ys, tape, cotangents):
    """The cotangents of `arrays`."""
    return calls.backward(kernel, arrays, flags, ys, tape, cotangents)


@_backward.defjvp
def _backward_jvp(kernel, primals, tangents):
    # Second derivatives, which are rare, by autodiff of the reference.
    arrays, flags, _, _, cotangents = primals
    d_arrays, _, _, _, d_cotangents = tangents

    def by_reference(arrays):
        return in_jax(reference.run, kernel, arrays, flags, cotangents.cells is not None)

    def gradients(arrays, cotangents):
        return jax.vjp(by_reference, arrays)[1](cotangents)[0]

    return jax.jvp(gradients, (arrays, cotangents), (d_arrays, d_cotangents))
