"""The time of rows of unequal length, against the sum of their lengths."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np

import lstmx
from scripts.benchmarks import chart, layers, problems, rivals, tables, timing
from scripts.benchmarks.problems import Shape
from scripts.benchmarks.rivals import Builders, Field
from scripts.benchmarks.tables import Section
from scripts.benchmarks.timing import Run

SHAPE = Shape(64, 200, 128, 128)
FILLS = (0.1, 0.25, 0.5, 0.75, 1.0)
_LENGTHS, _PACKED, _FLAX = "lstmx", "lstmx, segment_ids", "flax"
_TORCH_PACKED, _TORCH_PADDED = "torch, PackedSequence", "torch, padded"


def section(field: Field, stem: str) -> Section:
    """The table and the plot of ragged batches.

    Args:
      field: the rivals.
      stem: the prefix of the name of the plot.
    """
    shape = Shape(3, 8, 2, 4) if field.quick else SHAPE
    rows, sums = [], []
    for fill in (0.5, 1.0) if field.quick else FILLS:
        lengths = problems.lengths(shape.batch, shape.steps, fill)
        built = layers.built_from(field.asked(_builders(shape, lengths, field)))
        sums.append(int(lengths.sum()))
        rows.append(layers.row(f"{sums[-1]:,} ({sums[-1] / (shape.batch * shape.steps):.0%})", built, field))
        layers.say(f"ragged {rows[-1].label}", rows[-1])
    lines = {
        name: [
            (total, 1e3 * statistics.median(row.times[name])) for total, row in zip(sums, rows, strict=True)
        ]
        for name in tables.columns(rows)
    }
    title = f"Ragged batches: B, T, D, H = {shape}"
    plot = chart.line_chart(title, "sum of lengths", "milliseconds", lines, logarithmic=False)
    file = f"{stem}-ragged.svg"
    text = [_explanation(shape, field), tables.comparison("sum of lengths", rows)]
    return Section("Ragged batches", "\n\n".join([*text, f"![Ragged batches]({file})"]), {file: plot})


def _explanation(shape: Shape, field: Field) -> str:
    return (
        f"A training step over a batch of B, T, D, H = {shape}, float32, whose rows fill only some of the "
        "B * T steps; padding is excluded from the loss. `lstmx` uses `lengths`; with `segment_ids` the same "
        "sequences are packed into fewer rows. `flax` uses `seq_lengths`, and returns the state at the end "
        "of each row. torch uses a PackedSequence, or also computes the padding (its final state is then "
        "that after the padding). Packing is not timed. "
        f"Milliseconds, medians of {field.rounds} rounds."
    )


def _builders(shape: Shape, lengths: np.ndarray, field: Field) -> Builders:
    builders: Builders = {
        _LENGTHS: lambda: timing.rival(lengths_run(shape, lengths)),
        _PACKED: lambda: timing.rival(packed_run(shape, lengths)),
        _FLAX: lambda: timing.rival(flax_run(shape, lengths)),
    }
    if field.torch:
        from scripts.benchmarks import torch_rivals

        arguments = (tuple(shape), lengths.tolist())
        device = field.torch_device
        builders |= {
            _TORCH_PACKED: lambda: timing.rival(torch_rivals.ragged(*arguments, True, device)),
            _TORCH_PADDED: lambda: timing.rival(torch_rivals.ragged(*arguments, False, device)),
        }
    return builders


def lengths_run(shape: Shape, lengths: np.ndarray) -> Run:
    """A training step of lstmx over padded rows."""
    cell, params = rivals.lstmx_params(shape)
    count = int(lengths.sum()) * shape.units

    def loss(params, xs, lengths):
        _, ys = lstmx.scan(cell, params, xs, lengths=lengths)
        return jnp.sum(ys**2) / count  # padded outputs are zero

    return _training(loss, params, jnp.asarray(problems.arrays(shape).xs), jnp.asarray(lengths))


def packed_run(shape: Shape, lengths: np.ndarray) -> Run:
    """A training step of lstmx over the same sequences, packed into fewer rows."""
    cell, params = rivals.lstmx_params(shape)
    xs, ids = packed(problems.arrays(shape).xs, lengths)
    count = int(lengths.sum()) * shape.units

    def loss(params, xs, ids):
        _, ys = lstmx.scan(cell, params, xs, segment_ids=ids)
        return jnp.sum(ys**2) / count

    return _training(loss, params, jnp.asarray(xs), jnp.asarray(ids))


def packed(xs: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sequences packed into rows: inputs `[T, R, D]` and segment ids `[T, R]`."""
    steps, _, features = xs.shape
    rows = problems.packed_rows(lengths, steps)
    inputs = np.zeros((steps, len(rows), features), xs.dtype)
    ids = np.zeros((steps, len(rows)), np.int32)
    left = {length: list(np.flatnonzero(lengths == length)) for length in set(lengths.tolist())}
    for r, row in enumerate(rows):
        start = 0
        for number, length in enumerate(row, start=1):
            stop = start + length
            inputs[start:stop, r] = xs[:length, left[length].pop()]
            ids[start:stop, r] = number
            start = stop
    return inputs, ids


def flax_run(shape: Shape, lengths: np.ndarray) -> Run:
    """A training step of Flax's RNN over padded rows."""
    call, leaves, xs = rivals.flax_call(shape)
    count = int(lengths.sum()) * shape.units
    keep = np.arange(shape.steps)[:, None] < lengths

    def loss(leaves, xs, lengths, keep):
        carry, ys = call(leaves, xs, seq_lengths=lengths)
        return jnp.sum(jnp.where(keep[..., None], ys, 0.0) ** 2) / count, carry

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    lengths, keep = jnp.asarray(lengths), jnp.asarray(keep)
    return lambda: jax.block_until_ready(step(leaves, xs, lengths, keep))


def _training(loss, params, xs: jax.Array, marks: jax.Array) -> Run:
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(step(params, xs, marks))
