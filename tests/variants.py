"""The table of every cell, option and regularizer, each with its step in NumPy; and what its tests share."""

import functools

import jax
import jax.numpy as jnp
import losses
import numpy as np
import oracles
import pytest
from numpy_cells import CELLS
from numpy_lstm import elman_step, gru_step, lstm_step, mogrifier_step

import lstmx

LSTMS = {
    "lstm": {},
    "lstm-no-bias": {"use_bias": False},
    "lstm-peephole": {"peephole": True},
    "lstm-coupled": {"input_gate": "coupled"},
    "lstm-coupled-peephole": {"input_gate": "coupled", "peephole": True, "num_heads": 2},
    "lstm-capped": {"input_gate": "capped", "peephole": True},
    "lstm-no-input-gate": {"input_gate": "none", "peephole": True},
    "lstm-no-forget-gate": {"forget_gate": False, "peephole": True},
    "lstm-no-output-gate": {"output_gate": False, "peephole": True},
    "lstm-no-input-activation": {"candidate_activation": "identity", "peephole": True},
    "lstm-no-output-activation": {"output_activation": "identity", "peephole": True},
    "lstm-gate-recurrence": {"gate_recurrence": True, "peephole": True},
    "lstm-gate-recurrence-coupled": {"gate_recurrence": True, "input_gate": "coupled", "projection_size": 3},
    "lstm-activations": {
        "gate_activation": "hard_sigmoid",
        "candidate_activation": ("scaled_tanh", 1.5, 0.5),
        "output_activation": "softsign",
    },
    "lstm-ba": {"layer_norm": "ba"},
    "lstm-ba-projection": {"layer_norm": "ba", "projection_size": 2, "peephole": True, "use_bias": False},
    "lstm-fastrnns": {"layer_norm": "fastrnns", "layer_norm_epsilon": 1e-3},
    "lstm-fastrnns-coupled-clip": {"layer_norm": "fastrnns", "input_gate": "coupled", "cell_clip": 0.8},
    "lstm-per-gate": {"layer_norm": "per_gate"},
    "lstm-per-gate-peephole": {
        "layer_norm": "per_gate",
        "peephole": True,
        "input_gate": "coupled",
        "projection_size": 2,
    },
    "lstm-projection": {"projection_size": 3},
    "lstm-projection-clip": {"projection_size": 2, "projection_clip": 0.1, "num_heads": 2},
    "lstm-clips": {"gate_clip": 0.5, "cell_clip": 0.3, "peephole": True},
    "lstm-heads": {"num_heads": 2},
    "lstm-heads-ba": {"num_heads": 4, "layer_norm": "ba", "gate_clip": 1.0},
    "lstm-chrono": {"chrono": 20.0},
    "lstm-learnt-start": {"learn_initial_state": True, "projection_size": 2},
}
GRUS = {
    "gru": {},
    "gru-no-bias": {"use_bias": False},
    "gru-reset-before": {"reset_after": False},
    "gru-reset-before-heads": {"reset_after": False, "num_heads": 2, "gate_clip": 0.5},
    "gru-heads": {"num_heads": 2, "learn_initial_state": True},
    "gru-activations": {
        "gate_activation": "hard_sigmoid",
        "candidate_activation": ("leaky_relu", 0.1),
        "gate_clip": 0.5,
    },
}
ELMANS = {
    "elman": {},
    "elman-relu": {"activation": "relu"},
    "elman-heads": {"num_heads": 2, "gate_clip": 0.5, "learn_initial_state": True},
}


def wrapped(inner, wrapper, **fixed):
    """Makes a wrapped cell from a size and the options of the cell inside."""
    return lambda size, **options: wrapper(inner(size, **options), **fixed)


def mogrifiers():
    for name, fixed in {"mogrifier": {"rounds": 3}, "mogrifier-rank": {"rounds": 2, "rank": 2}}.items():
        inner = functools.partial(lstmx.LSTM, peephole=True, learn_initial_state=True)
        yield (
            name,
            (
                wrapped(inner, lstmx.Mogrifier, **fixed),
                mogrifier_step(lstm_step(peephole=True), fixed["rounds"]),
            ),
        )


# Every variant: what makes the cell from a size and options, and its step (None: see test_regularizers.py).
VARIANTS = {
    **{k: (functools.partial(lstmx.LSTM, **options), lstm_step(**options)) for k, options in LSTMS.items()},
    **{k: (functools.partial(lstmx.GRU, **options), gru_step(**options)) for k, options in GRUS.items()},
    **{
        k: (functools.partial(lstmx.Elman, **options), elman_step(**options)) for k, options in ELMANS.items()
    },
    **dict(mogrifiers()),
    "mogrifier-gru": (wrapped(functools.partial(lstmx.GRU, reset_after=False), lstmx.Mogrifier), None),
    **CELLS,
}

# Regularizers, each around cells that differ in how it reaches them.
_ALL = {
    "input_dropout": 0.2,
    "output_dropout": 0.3,
    "recurrent_dropout": 0.3,
    "update_dropout": 0.2,
    "hidden_zoneout": 0.3,
}
REGULARIZED = {
    "locked dropout": (lstmx.LSTM, {"input_dropout": 0.3, "output_dropout": 0.4}),
    "locked dropout of an image": (
        VARIANTS["conv-lstm-1d"][0],
        {"input_dropout": 0.3, "recurrent_dropout": 0.4},
    ),
    "recurrent dropout": (lstmx.LSTM, {"recurrent_dropout": 0.4}),
    "recurrent dropout of a GRU": (
        functools.partial(lstmx.GRU, reset_after=False),
        {"recurrent_dropout": 0.4},
    ),
    "per gate": (lstmx.LSTM, {"recurrent_dropout": 0.4, "per_gate": True}),
    "per gate of a GRU": (lstmx.GRU, {"recurrent_dropout": 0.4, "per_gate": True}),
    "per gate of a GRU that resets before": (
        functools.partial(lstmx.GRU, reset_after=False),
        {"recurrent_dropout": 0.4, "per_gate": True},
    ),
    "per gate with peepholes": (
        functools.partial(lstmx.LSTM, peephole=True, input_gate="coupled", projection_size=3),
        {"recurrent_dropout": 0.4, "per_gate": True},
    ),
    "update dropout": (lstmx.LSTM, {"update_dropout": 0.4}),
    "update dropout, locked": (lstmx.GRU, {"update_dropout": 0.4, "update_dropout_locked": True}),
    "update dropout of an sLSTM": (lstmx.SLSTM, {"update_dropout": 0.4}),
    "update dropout of an MGU": (lstmx.MGU, {"update_dropout": 0.4, "recurrent_dropout": 0.3}),
    "update dropout of an image": (VARIANTS["conv-lstm-1d"][0], {"update_dropout": 0.4}),
    "zoneout": (lstmx.LSTM, {"hidden_zoneout": 0.3, "cell_zoneout": 0.4}),
    "zoneout of a GRU": (lstmx.GRU, {"hidden_zoneout": 0.3}),
    "zoneout with gate recurrence": (
        functools.partial(lstmx.LSTM, gate_recurrence=True, projection_size=3),
        {"hidden_zoneout": 0.3, "cell_zoneout": 0.4},
    ),
    "zoneout of an sLSTM": (lstmx.SLSTM, {"hidden_zoneout": 0.3}),
    "weight drop": (lstmx.LSTM, {"weight_drop": 0.4}),
    "weight drop of rows": (
        functools.partial(lstmx.GRU, num_heads=2),
        {"weight_drop": 0.4, "weight_drop_rows": True},
    ),
    "all at once": (lstmx.LSTM, {**_ALL, "cell_zoneout": 0.3, "per_gate": True, "weight_drop": 0.2}),
    "all around a Mogrifier": (VARIANTS["mogrifier"][0], _ALL),
    "minimal": (lstmx.MinLSTM, {"input_dropout": 0.3}),
}
EVERY = {
    **{name: make for name, (make, _) in VARIANTS.items()},
    **{name: wrapped(make, lstmx.Regularized, **rates) for name, (make, rates) in REGULARIZED.items()},
}

# What the plain run takes of the table: every family and kind of option; .ci/run takes all.
CROSS_SECTION = {
    "lstm", "lstm-ba-projection", "lstm-fastrnns-coupled-clip", "lstm-gate-recurrence-coupled",
    "lstm-learnt-start", "gru-reset-before-heads", "elman-heads", "mogrifier-rank", "mgu", "indrnn", "mingru",
    "minlstm", "slstm", "conv-lstm-1d", "per gate of a GRU", "all at once",
}  # fmt: skip


def cross_section(names):
    """Names of variants as parameters, of which those of CROSS_SECTION are left to the plain run."""
    return [name if name in CROSS_SECTION else pytest.param(name, marks=pytest.mark.full) for name in names]


OPTIONS = {name: losses.OPTIONS[name] for name in ("plain", "mask and resets", "reverse, lengths and resets")}


def random_case(cell, rng, steps=7, batch=(4,), features=3, dtype=np.float64):
    """Random parameters, inputs and initial state; the normaliser of an sLSTM is positive."""

    def draw(leaf):
        return (rng.normal(size=leaf.shape) / 2).astype(dtype)

    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    state = jax.tree.map(draw, jax.eval_shape(lambda: cell.initial_state(batch)))
    if isinstance(state, lstmx.SLSTMState):
        state = state._replace(n=np.abs(state.n) + dtype(0.5))
    inner = getattr(cell, "cell", cell) if isinstance(cell, lstmx.Regularized) else cell
    xs = draw(np.empty((steps, *batch, *inner.input_shape(params))))
    return jax.tree.map(draw, params), xs, state


def rows_of(name, options):
    """What `results` must have for values, by the NumPy step."""
    _, (params, xs, state) = double_case(name)
    options = dict(OPTIONS[options])
    keep = options.pop("mask", None)
    if "lengths" in options:
        keep = np.arange(xs.shape[0])[:, None] < options.pop("lengths")
    return oracles.run_rows(VARIANTS[name][1], params, xs, state, keep, **options)


@functools.cache
def double_case(name):
    """A variant with random parameters, inputs and state, in float64."""
    cell = EVERY[name](4, param_dtype="float64")
    return cell, random_case(cell, np.random.default_rng(2))


def with_gradients(function):
    """A function of a case that returns `(gradients by the whole case of a loss of all results, results)`."""

    def loss(*case):
        results = function(*case)
        # Shifted, so that the cotangent of a zero is not zero.
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(results)), results

    return lambda *case: jax.grad(loss, argnums=tuple(range(len(case))), has_aux=True)(*case)


def loss_of(cell, **options):
    """A loss that depends on every output and on every leaf of the final state; and both."""

    def loss(params, xs, state):
        got = lstmx.scan(cell, params, xs, state, **options)
        # Shifted, so that the cotangent of a zero is not zero.
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(got)), got

    return loss


@functools.cache
def results(name, options, implementation, remat=None):
    """`((final state, outputs), gradients of parameters, xs and state)` under one of OPTIONS."""
    cell, case = double_case(name)
    key = jax.random.key(3) if name in REGULARIZED else None
    loss = loss_of(cell, implementation=implementation, remat=remat, key=key, **OPTIONS[options])
    gradients, values = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*case)
    return values, gradients


def random_case_of_network(net, rng, steps, batch, features):
    """Random parameters, inputs and initial state of a network of dense cells, in float64."""

    def draw(leaf):
        return rng.normal(size=leaf.shape) / 2

    params = jax.tree.map(draw, jax.eval_shape(lambda: net.init(jax.random.key(0), features)))
    state = jax.tree.map(draw, jax.eval_shape(lambda: net.initial_state(batch)))
    return params, draw(np.empty((steps, *batch, features))), state
