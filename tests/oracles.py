"""The oracles of the plain cells: Python loops over one row, in float64 NumPy."""

import jax
import numpy as np
from numpy_lstm import elman_step, gru_step, lstm_step

import lstmx

# The cells of the tests that go through every option of a run; all variants: variants.py.
CELLS = {
    "lstm": (lambda size, **options: lstmx.LSTM(size, **options), lstm_step()),
    "gru": (lambda size, **options: lstmx.GRU(size, **options), gru_step()),
    "elman": (lambda size, **options: lstmx.Elman(size, **options), elman_step("tanh")),
    "elman-relu": (lambda size, **options: lstmx.Elman(size, "relu", **options), elman_step("relu")),
}


def make(name, size=4, **options):
    """A cell of the table."""
    return CELLS[name][0](size, **options)


def run(name, *arguments, **options):
    """`run_rows` of a cell of the table."""
    return run_rows(CELLS[name][1], *arguments, **options)


def run_rows(step, params, xs, state, keep=None, resets=None, reverse=False):
    """Final state and outputs `[T, B, ...]`, row by row, step by step; y is zero where a step is left out.

    Args:
      step: of numpy_lstm or numpy_cells.
      params: of the cell.
      xs: `[T, B, ...]`.
      state: leaves `[B, ...]`, a tuple or one array.
      keep: bool `[T, B]`; the other steps are not there at all.
      resets: bool `[T, B]`.
      reverse: whether time runs backwards.
    """
    params = jax.tree.map(np.float64, params)
    times = range(xs.shape[0])[:: -1 if reverse else 1]
    leaves = list(state) if isinstance(state, tuple) else [state]
    fresh = jax.tree.leaves(params.initial) or [np.zeros(leaf.shape[1:]) for leaf in leaves]
    finals, outputs = [], np.zeros(xs.shape[:1] + _shown(state).shape)
    for b in range(xs.shape[1]):
        row = tuple(np.float64(leaf[b]) for leaf in leaves)
        for t in times:
            if keep is not None and not keep[t, b]:
                continue
            if resets is not None and resets[t, b]:
                row = tuple(fresh)
            row = step(params, row if len(row) > 1 else row[0], np.float64(xs[t, b]))
            row = row if isinstance(row, tuple) else (row,)
            outputs[t, b] = row[-1]
        finals.append(row)
    return [np.stack(leaf) for leaf in zip(*finals, strict=True)], outputs


def _shown(state):
    """y, the last leaf of a state."""
    return state[-1] if isinstance(state, tuple) else state


def random_case(cell, rng, steps=7, batch=(3,), features=5, dtype=np.float64):
    """Random parameters, inputs and initial state; biases and states are not zero."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    draw = lambda leaf: (rng.normal(size=leaf.shape) / 2).astype(dtype)  # noqa: E731
    state = jax.eval_shape(lambda: cell.initial_state(batch))
    return jax.tree.map(draw, params), draw(np.empty((steps, *batch, features))), jax.tree.map(draw, state)


def relative_error(tree, expected):
    """The largest error of a leaf relative to the largest magnitude in that leaf."""
    leaves, others = jax.tree.leaves(tree), jax.tree.leaves(expected)
    assert len(leaves) == len(others) > 0
    errors = [0.0]
    for a, b in zip(leaves, others, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.all(np.isfinite(a))
        scale = np.max(np.abs(b), initial=0)
        errors.append(np.max(np.abs(a - b), initial=0) / scale if scale > 0 else np.max(np.abs(a), initial=0))
    return max(errors)
