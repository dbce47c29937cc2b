"""MGU, IndRNN, minGRU, minLSTM, sLSTM and ConvLSTM in float64 NumPy.

A step is `step(params, state, x) -> state` for one row, without a batch axis. A state of one leaf is an
array, one of several a tuple in the order of the cell's fields; y is the array, or the tuple's last entry, h.
"""

import functools
import itertools
import math

import numpy as np
import numpy_lstm
from numpy_lstm import sigmoid

from lstmx.cells.conv_lstm import ConvLSTM
from lstmx.cells.indrnn import IndRNN
from lstmx.cells.mgu import MGU
from lstmx.cells.minimal import MinGRU, MinLSTM
from lstmx.cells.slstm import SLSTM

ACTIVATIONS = {**numpy_lstm.ACTIVATIONS, "positive": lambda a: np.where(a >= 0, a + 0.5, sigmoid(a))}


def affine(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def mgu_step(reset="after", gate_keeps=True, gate_activation="sigmoid", candidate_activation="tanh"):
    gate, candidate = ACTIVATIONS[gate_activation], ACTIVATIONS[candidate_activation]

    def step(params, h, x):
        z_f, z_n = np.split(affine(params.input, x), 2)
        units, kernel = len(h), params.recurrent["kernel"]
        f = gate(z_f + h @ kernel[:, :units])
        if reset == "before":
            n = candidate(z_n + (f * h) @ params.update["kernel"])
        elif reset == "after":
            n = candidate(z_n + f * (h @ kernel[:, units:] + params.recurrent.get("bias", 0)))
        else:
            n = candidate(z_n + h @ kernel[:, units:])
        return f * h + (1 - f) * n if gate_keeps else f * n + (1 - f) * h

    return step


def indrnn_step(activation="relu"):
    def step(params, h, x):
        return ACTIVATIONS[activation](affine(params.input, x) + params.recurrent["scale"] * h)

    return step


def mingru_step(candidate_activation="positive"):
    def step(params, h, x):
        u, n = np.split(affine(params.input, x), 2)
        return (1 - sigmoid(u)) * h + sigmoid(u) * ACTIVATIONS[candidate_activation](n)

    return step


def minlstm_step(candidate_activation="positive"):
    def step(params, h, x):
        i, f, g = np.split(affine(params.input, x), 3)
        i, f = sigmoid(i), sigmoid(f)
        return (f * h + i * ACTIVATIONS[candidate_activation](g)) / (f + i)

    return step


def slstm_step(num_heads=1, forget_gate="sigmoid"):
    def step(params, state, x):
        c, n, m, h = state
        i, f, g, o = np.split(affine(params.input, x) + _by_heads(params.recurrent["kernel"], h), 4)
        log_f = -np.logaddexp(0, -f) if forget_gate == "sigmoid" else f
        m_next = np.where(n == 0, i, np.maximum(i, log_f + m))
        keep, admit = np.where(n == 0, 0, np.exp(log_f + m - m_next)), np.exp(i - m_next)
        c, n = keep * c + admit * np.tanh(g), keep * n + admit
        return c, n, m_next, sigmoid(o) * c / n

    def _by_heads(kernel, h):
        if num_heads == 1:
            return h @ kernel
        parts = np.split(h, num_heads)
        gates = [[part @ block[:, k] for part, block in zip(parts, kernel, strict=True)] for k in range(4)]
        return np.concatenate(list(itertools.chain(*gates)))

    return step


def convolve(x, kernel, strides, dilation, padding):
    """`[*spatial, D]` and `[*kernel_size, D, K]` give `[*out, K]`, place by place and tap by tap."""
    axes = len(strides)
    sizes = kernel.shape[:axes]
    reach = [(k - 1) * d + 1 for k, d in zip(sizes, dilation, strict=True)]
    if padding == "same":
        out = [math.ceil(n / s) for n, s in zip(x.shape, strides, strict=False)]
        missing = [
            max((m - 1) * s + r - n, 0) for m, s, r, n in zip(out, strides, reach, x.shape, strict=False)
        ]
        x = np.pad(x, [(n // 2, n - n // 2) for n in missing] + [(0, 0)])
    else:
        out = [(n - r) // s + 1 for n, s, r in zip(x.shape, strides, reach, strict=False)]
    y = np.zeros((*out, kernel.shape[-1]))
    for place in itertools.product(*map(range, out)):
        for tap in itertools.product(*map(range, sizes)):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, dilation, strict=True))
            y[place] += x[at] @ kernel[tap]
    return y


def conv_lstm_step(
    strides,
    dilation=None,
    padding="same",
    gate_activation="sigmoid",
    candidate_activation="tanh",
    output_activation="tanh",
):
    ones = (1,) * len(strides)
    gate = ACTIVATIONS[gate_activation]

    def step(params, state, x):
        c, _ = state
        peephole = dict(params.update or {}).get("peephole", dict.fromkeys("ifo", 0))
        z = convolve(x, params.input["kernel"], strides, dilation or ones, padding)
        r = convolve(state[1], params.recurrent["kernel"], ones, ones, "same")
        i, f, g, o = np.split(z + params.input.get("bias", 0) + r, 4, axis=-1)
        i, f = gate(i + peephole["i"] * c), gate(f + peephole["f"] * c)
        c = f * c + i * ACTIVATIONS[candidate_activation](g)
        return c, gate(o + peephole["o"] * c) * ACTIVATIONS[output_activation](c)

    return step


def _conv(spatial_shape, **fixed):
    return lambda size, **options: ConvLSTM(size, spatial_shape, **{**fixed, **options})


_PAPER = {"reset": "before", "gate_keeps": False}
_HARD = {"gate_activation": "hard_sigmoid", "candidate_activation": "relu"}

# Of each variant: what makes the cell from a size and options, and its step.
CELLS = {
    "mgu": (MGU, mgu_step()),
    "mgu-no-reset": (functools.partial(MGU, reset="none"), mgu_step("none")),
    "mgu-paper": (functools.partial(MGU, learn_initial_state=True, **_PAPER), mgu_step(**_PAPER)),
    "mgu-activations": (functools.partial(MGU, use_bias=False, **_HARD), mgu_step(**_HARD)),
    "indrnn": (IndRNN, indrnn_step()),
    "indrnn-tanh": (
        functools.partial(IndRNN, activation="tanh", use_bias=False, learn_initial_state=True),
        indrnn_step("tanh"),
    ),
    "mingru": (MinGRU, mingru_step()),
    "mingru-identity": (
        functools.partial(MinGRU, candidate_activation="identity", use_bias=False, learn_initial_state=True),
        mingru_step("identity"),
    ),
    "minlstm": (MinLSTM, minlstm_step()),
    "minlstm-identity": (
        functools.partial(MinLSTM, candidate_activation="identity", use_bias=False),
        minlstm_step("identity"),
    ),
    "slstm": (SLSTM, slstm_step()),
    "slstm-exp-heads": (
        functools.partial(SLSTM, num_heads=2, forget_gate="exp", use_bias=False),
        slstm_step(2, "exp"),
    ),
    "conv-lstm-1d": (_conv((5,), peephole=True), conv_lstm_step((1,))),
    "conv-lstm-2d": (
        _conv((5, 4), kernel_size=(3, 2), strides=(2, 1), use_bias=False, learn_initial_state=True),
        conv_lstm_step((2, 1)),
    ),
    "conv-lstm-2d-valid": (
        _conv((5, 4), kernel_size=2, dilation=2, padding="valid", output_activation="identity", **_HARD),
        conv_lstm_step((1, 1), (2, 2), "valid", output_activation="identity", **_HARD),
    ),
    "conv-lstm-3d": (_conv((2, 3, 2), kernel_size=(1, 2, 2)), conv_lstm_step((1, 1, 1))),
}
