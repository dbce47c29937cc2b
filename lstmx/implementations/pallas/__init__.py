"""The LSTM in one persistent kernel on NVIDIA's Hopper GPUs, its recurrent weights in shared memory.

A scan costs several kernel launches per step. Here there is one launch in all, and a step is a product with
weights that never leave the multiprocessors: a single one up to H = 128, above that a cluster with 64 units
on each. The input map is one matmul before the loop, and the gradients of both maps are single matmuls after
the reverse loop, for which the gates are recomputed from the states, also by one matmul.

The tests interpret it on a CPU; docs/benchmarks_gpu.md has the measurements on an H100.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstmx.cells.base import Params, PyTree, State
from lstmx.cells.lstm import LSTM, LSTMState
from lstmx.implementations import reference
from lstmx.implementations.pallas.memory import MOST_UNITS, ROWS, most_ctas
from lstmx.implementations.reverse_only import linear_map, message

_MULTIPROCESSORS = 132  # of an H100 or H200
_COMPARED_UNITS = 256

_interpreted: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)


class Options(NamedTuple):
    """The static options of a run."""

    reverse: bool
    remat: str | None
    states: bool
    interpreted: bool


class Saved(NamedTuple):
    """What the reverse pass needs of the forward pass."""

    params: Params
    initial: State
    xs: jax.Array  # [T, B, D]
    hold: jax.Array | None  # [T, B]
    z: jax.Array | None  # None with remat="gates"
    states: State  # after each step


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Interprets kernels that are traced in this context on the CPU, for tests; `refusal` then allows it.

    A function that `jit` has traced here is interpreted wherever it is called later.

    Example:
      >>> from lstmx.implementations.choice import Job
      >>> with interpreted():
      ...     refusal(Job(LSTM(4, dtype="bfloat16")))
    """
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def refusal(job) -> str | None:
    """Why it cannot run a job; None if it can.

    Example:
      >>> from lstmx.implementations.choice import Job
      >>> refusal(Job(LSTM(4, dtype="float32"), platform="gpu"))
      'computes in bfloat16, got float32'
    """
    cell = job.cell
    if not (isinstance(cell, LSTM) and cell.is_plain):
        return f"runs only the plain LSTM, got {cell}"
    if cell.num_heads != 1:
        return f"has no block-diagonal recurrent map, got num_heads={cell.num_heads}"
    if cell.dtype != jnp.bfloat16:
        return f"computes in bfloat16, got {jnp.dtype(cell.dtype).name}"
    if cell.hidden_size > MOST_UNITS:
        return f"keeps W_hh in shared memory: hidden_size <= {MOST_UNITS}, got {cell.hidden_size}"
    if job.remat not in (None, "gates"):
        return f'supports remat=None and "gates", got {job.remat!r}'
    if job.xs is not None and reference.is_symbolic(*job.xs.shape):
        return f"needs known sizes, got xs of shape {job.xs.shape}"
    if {"resets", "segment_ids"} & set(job.options):
        return "cannot reset states (resets, segment_ids)"
    if _interpreted.get():
        return None
    if job.platform != "gpu":
        return f"needs an NVIDIA GPU, got platform {job.platform!r}"
    capability = str(getattr(jax.devices()[0], "compute_capability", "none"))
    if capability.split(".")[0] != "9":
        return f"needs a Hopper GPU (compute capability 9.0) for its wgmma instructions, got {capability}"
    return None


def worthwhile(job) -> bool:
    """Whether a job is faster than with "fused": if all clusters of the kernel run at the same time.

    It is chosen only by name for what has not been compared with float64 on a GPU yet: jax 0.10, skipped
    steps, the gradients of returned states, more than 256 units; and with several devices, because XLA cannot
    split the kernel, so that each might run the whole batch.

    Example:
      >>> from lstmx.implementations.choice import Job
      >>> def job(rows):
      ...     return Job(LSTM(256, dtype="bfloat16"), jax.ShapeDtypeStruct((99, rows, 8), "bfloat16"))
      >>> jax.__version_info__ < (0, 11) or (worthwhile(job(256)), worthwhile(job(2048))) == (True, False)
      True
    """
    if jax.__version_info__ < (0, 11) or jax.device_count() > 1:
        return False
    if job.options or job.cell.hidden_size > _COMPARED_UNITS:
        return False
    if job.xs is None:
        return True
    rows = math.prod(reference.batch_shape(job.cell, job.xs))
    ctas = -(-rows // ROWS) * most_ctas(job.cell.hidden_size)
    return ctas <= getattr(jax.devices()[0], "core_count", _MULTIPROCESSORS)


def run(
    cell, params, state, fresh, sequence, locked=None, *, reverse, unroll, remat, states
) -> tuple[State, PyTree]:
    """Runs an LSTM over time; see `reference.run`.

    Raises:
      NotImplementedError: if there are resets, or the derivative is taken in forward mode.
    """
    if sequence.resets is not None:
        raise NotImplementedError(
            'implementation "pallas" cannot reset states (resets, segment_ids); "reference" and "fused" can'
        )
    batch = reference.batch_shape(cell, sequence.xs)
    if 0 in (*batch, sequence.xs.shape[0]):
        return reference.run(
            cell, params, state, fresh, sequence, reverse=reverse, unroll=unroll, remat=remat, states=states
        )
    rows = math.prod(batch)
    xs = sequence.xs.reshape(sequence.xs.shape[0], rows, -1)
    hold = None if sequence.keep is None else ~sequence.keep.reshape(-1, rows)
    state = jax.tree.map(lambda leaf: leaf.reshape(rows, -1), state)
    options = Options(reverse, remat, states, _interpreted.get())
    final, emitted = _run(cell, options, params, state, xs, hold)
    final = jax.tree.map(lambda leaf: leaf.reshape(*batch, -1), final)
    return final, jax.tree.map(lambda leaf: leaf.reshape(-1, *batch, leaf.shape[-1]), emitted)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(cell, options, params, state, xs, hold):
    final, emitted, _ = _forward(cell, options, params, state, xs, hold, keeping=options.states)
    return final, emitted


@_run.defjvp
def _run_jvp(cell, options, primals, tangents):
    final, emitted, saved = _forward(cell, options, *primals, keeping=True)
    residuals, tree = jax.tree.flatten(saved)
    flat_tangents, tangent_tree = jax.tree.flatten(tangents[:3])
    outputs, output_tree = jax.tree.flatten((final, emitted))

    def reverse(residuals, cotangents):
        saved = jax.tree.unflatten(tree, residuals)
        gradients = _reverse(cell, options, saved, *jax.tree.unflatten(output_tree, cotangents))
        return tangent_tree.flatten_up_to(gradients)

    tangents = linear_map(reverse, residuals, flat_tangents, outputs, message("pallas"))
    return (final, emitted), jax.tree.unflatten(output_tree, tangents)


def _forward(cell, options, params, state, xs, hold, *, keeping):
    """The final state, the outputs or states, and what the reverse pass needs; all states if `keeping`."""
    # Imported here because Pallas doubles the import time of lstmx, and few users have a GPU for it.
    from lstmx.implementations.pallas import lstm

    z = cell.input_map(params.input, xs)
    hs, cs, c = lstm.forward(
        params.recurrent["kernel"].astype(jnp.bfloat16), z, state.h, state.c, hold,
        keeping=keeping, reverse=options.reverse, interpreted=options.interpreted,
    )  # fmt: skip
    final = LSTMState(c=c, h=hs[0 if options.reverse else -1])
    states = LSTMState(c=cs, h=hs)
    saved = Saved(params, state, xs, hold, None if options.remat == "gates" else z, states)
    return final, states if options.states else hs, saved


def _reverse(cell, options, saved, d_final, d_outputs):
    """The gradients of the parameters, of the initial state and of xs."""
    from lstmx.implementations.pallas import lstm

    params, initial, xs, hold, z, states = saved
    before = reference.before_each_step(initial, states, None, None, reverse=options.reverse)
    kernel = params.recurrent["kernel"].astype(jnp.bfloat16)
    z = cell.input_map(params.input, xs) if z is None else z
    wide = states.c.dtype
    a = z.astype(wide) + jnp.dot(before.h, kernel, preferred_element_type=wide)
    dhs, dcs = (d_outputs.h, d_outputs.c) if options.states else (d_outputs, None)
    dzs, dc, dh = lstm.backward(
        kernel, lstm.factors(a, before.c, states.c, hold), dhs, dcs,
        d_final.h.astype(wide), d_final.c, hold,
        reverse=options.reverse, interpreted=options.interpreted,
    )  # fmt: skip
    first = dzs[-1 if options.reverse else 0]
    dh = dh + jnp.dot(first, kernel.T, preferred_element_type=wide)

    # With respect to the parameters as stored, so that gradients are not rounded to bfloat16.
    _, input_pullback = jax.vjp(cell.input_map, params.input, xs)
    d_input, dxs = input_pullback(dzs)
    _, recurrent_pullback = jax.vjp(lambda p: cell.recurrent_map(p, before.h), params.recurrent)
    # The LSTM's update has no parameters, and the initial state is used only before the loop.
    nothing = jax.tree.map(jnp.zeros_like, (params.update, params.initial))
    d_params = Params(d_input, *recurrent_pullback(dzs), *nothing)
    return d_params, LSTMState(c=dc, h=dh.astype(initial.h.dtype)), dxs
