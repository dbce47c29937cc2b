"""Stacks of LSTMs against `jax.experimental.rnn.lstm_ref`, the reference of cuDNN's layer in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.experimental import rnn

import lstmx
from lstmx.networks import BothDirections

CASES = [
    {"layers": 1, "bidirectional": False, "lengths": [5, 5, 5], "features": 3, "units": 4},
    {"layers": 1, "bidirectional": True, "lengths": [5, 5, 5], "features": 3, "units": 4},
    {"layers": 2, "bidirectional": False, "lengths": [5, 1, 3], "features": 3, "units": 4},
    {"layers": 2, "bidirectional": True, "lengths": [5, 1, 3], "features": 3, "units": 4},
    {"layers": 3, "bidirectional": True, "lengths": [2, 4], "features": 1, "units": 1},
    {"layers": 1, "bidirectional": True, "lengths": [1, 1], "features": 6, "units": 2},
]


def params_of(unpacked, layers, bidirectional):
    """Our parameters of `unpack_lstm_weights`' result."""
    count = 2 * layers if bidirectional else layers
    w_ih, w_hh, b_ih, b_hh = unpacked
    cells = [
        lstmx.Params({"kernel": w_ih[k].T, "bias": b_ih[k] + b_hh[k]}, {"kernel": w_hh[k].T})
        for k in range(count)
    ]
    return tuple(map(BothDirections, cells[::2], cells[1::2])) if bidirectional else tuple(cells)


def stacked(state):
    """The state of a Stack as the reference has it: h and c, each `[layers * directions, B, H]`."""
    c, h = jax.tree.leaves(state)[::2], jax.tree.leaves(state)[1::2]
    return jnp.stack(h), jnp.stack(c)


def unstacked(net, h, c):
    """The inverse of `stacked`."""
    leaves = [leaf for pair in zip(c, h, strict=True) for leaf in pair]
    return jax.tree.unflatten(jax.tree.structure(net.initial_state()), leaves)


def results_of_both(*, layers, bidirectional, lengths, features, units):
    """What each makes of one random case: outputs, final h and c, and the gradients of a loss of them all.

    The gradients are those of the packed weights, of the inputs and of the initial h and c.
    """
    rng, sizes = np.random.default_rng(0), (features, units, layers, bidirectional)
    weights = rnn.init_lstm_weight(jax.random.key(0), *sizes).astype(jnp.float64)
    xs = rng.normal(size=(len(lengths), max(lengths), features))
    h, c = rng.normal(size=(2, layers * (1 + bidirectional), len(lengths), units))
    lengths = np.array(lengths, np.int32)
    net = lstmx.networks.stacked(lstmx.LSTM(units), layers, bidirectional)

    def ours(weights, xs, h, c):
        params = params_of(rnn.unpack_lstm_weights(weights, *sizes), layers, bidirectional)
        state = unstacked(net, h, c)
        final, ys = lstmx.scan(net, params, jnp.moveaxis(xs, 1, 0), state, lengths=lengths)
        return jnp.moveaxis(ys, 0, 1), *stacked(final)

    def theirs(weights, xs, h, c):
        unpacked = rnn.unpack_lstm_weights(weights, *sizes)
        return rnn.lstm_ref(xs, h, c, *unpacked, lengths, features, units, layers, 0.0, bidirectional)

    def evaluate(function):
        def loss(*arguments):
            return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in function(*arguments))

        return [
            jax.jit(compute)(weights, xs, h, c)
            for compute in (function, jax.grad(loss, argnums=(0, 1, 2, 3)))
        ]

    return evaluate(ours), evaluate(theirs)


@pytest.mark.full
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_lstm_ref(case):
    ours, theirs = results_of_both(**case)
    assert oracles.relative_error(ours, theirs) <= 1e-12
