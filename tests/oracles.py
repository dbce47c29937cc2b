"""The oracles: cells as Python loops over one row, in float64 NumPy, and the table of cells under test."""

import numpy as np

import lstmx


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lstm_step(params, state, x):
    c, h = state
    i, f, g, o = np.split(
        x @ params.input["kernel"] + params.input["bias"] + h @ params.recurrent["kernel"], 4
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return (c, sigmoid(o) * np.tanh(c))


def gru_step(params, h, x):
    z_r, z_u, z_n = np.split(x @ params.input["kernel"] + params.input["bias"], 3)
    r_r, r_u, r_n = np.split(h @ params.recurrent["kernel"] + params.recurrent["bias"], 3)
    reset, update = sigmoid(z_r + r_r), sigmoid(z_u + r_u)
    n = np.tanh(z_n + reset * r_n)
    return (1 - update) * n + update * h


def elman_step(activation):
    def step(params, h, x):
        a = x @ params.input["kernel"] + params.input["bias"] + h @ params.recurrent["kernel"]
        return np.tanh(a) if activation == "tanh" else np.maximum(a, 0)

    return step


# A new cell is one line here: it is then tested for everything that holds of all cells.
CELLS = {
    "lstm": (lambda size, **options: lstmx.LSTM(size, **options), lstm_step),
    "gru": (lambda size, **options: lstmx.GRU(size, **options), gru_step),
    "elman": (lambda size, **options: lstmx.Elman(size, **options), elman_step("tanh")),
    "elman-relu": (lambda size, **options: lstmx.Elman(size, "relu", **options), elman_step("relu")),
}


def make(name, size=4, **options):
    """A cell of the table."""
    return CELLS[name][0](size, **options)


def run(name, params, xs, state, keep=None, resets=None, reverse=False):
    """Runs a cell of the table over a batch, row by row and step by step.

    Args:
      name: of the cell.
      params: of the cell.
      xs: `[T, B, D]`.
      state: leaves `[B, H]`, a tuple for the LSTM.
      keep: bool `[T, B]`; the other steps are not there at all.
      resets: bool `[T, B]`.
      reverse: whether time runs backwards.

    Returns:
      Final state and outputs `[T, B, H]`, in float64.
    """
    step = CELLS[name][1]
    params = lstmx.Params(*({k: np.float64(v) for k, v in part.items()} for part in params[:2]))
    steps, batch = xs.shape[:2]
    rows, outputs = [], np.zeros((steps, batch, params.recurrent["kernel"].shape[0]))
    for b in range(batch):
        row = tuple(np.float64(leaf[b]) for leaf in state) if name == "lstm" else np.float64(state[b])
        for t in reversed(range(steps)) if reverse else range(steps):
            if keep is not None and not keep[t, b]:
                continue
            if resets is not None and resets[t, b]:
                row = tuple(map(np.zeros_like, row)) if name == "lstm" else np.zeros_like(row)
            row = step(params, row, np.float64(xs[t, b]))
            outputs[t, b] = row[1] if name == "lstm" else row
        rows.append(row)
    if name == "lstm":
        return tuple(np.stack(leaves) for leaves in zip(*rows, strict=True)), outputs
    return np.stack(rows), outputs


def random_case(cell, rng, steps=7, batch=(3,), features=5, dtype=np.float64):
    """Random parameters, inputs and initial state; biases and states are not zero."""
    import jax

    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    draw = lambda leaf: (rng.normal(size=leaf.shape) / 2).astype(dtype)  # noqa: E731
    state = jax.eval_shape(lambda: cell.initial_state(batch))
    return jax.tree.map(draw, params), draw(np.empty((steps, *batch, features))), jax.tree.map(draw, state)


def relative_error(tree, expected):
    """The largest error of a leaf relative to the largest magnitude in that leaf."""
    import jax

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
