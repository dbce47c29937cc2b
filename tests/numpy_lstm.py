"""LSTM, GRU, Elman and their options in float64 NumPy, for one row: `step(params, state, x) -> state`.

Written from the papers' equations, not from the package: dictionaries of gates, one gate at a time. A state
of one leaf is an array, one of several a tuple whose last entry is y.
"""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


ACTIVATIONS = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "identity": lambda a: a,
    "softsign": lambda a: a / (1 + abs(a)),
    "hard_sigmoid": lambda a: np.clip(a / 6 + 0.5, 0, 1),
    ("scaled_tanh", 1.5, 0.5): lambda a: 1.5 * np.tanh(0.5 * a),
    ("leaky_relu", 0.1): lambda a: np.where(a > 0, a, 0.1 * a),
}


def clip(a, limit):
    return a if limit is None else np.clip(a, -limit, limit)


def through(kernel, y):
    """`y U`, gate by gate: `[gates, H]` from a dense kernel cut into gates, or from blocks of heads."""
    if kernel.ndim == 2:
        raise AssertionError("a dense kernel is cut by the caller")
    heads, size, gates, units = kernel.shape
    out = np.zeros((gates, heads * units))
    for n in range(heads):
        for k in range(gates):
            out[k, n * units : (n + 1) * units] = y[n * size : (n + 1) * size] @ kernel[n, :, k]
    return out


def recurrent(kernel, y, gates):
    """`y U` as a list of one array a gate."""
    return list(through(kernel, y)) if kernel.ndim == 4 else np.split(y @ kernel, gates)


def normalised(a, scale, bias, epsilon):
    return (a - a.mean()) / np.sqrt(a.var() + epsilon) * scale + (0 if bias is None else bias)


def lstm_step(
    peephole=False,
    input_gate="full",
    forget_gate=True,
    output_gate=True,
    gate_recurrence=False,
    gate_activation="sigmoid",
    candidate_activation="tanh",
    output_activation="tanh",
    layer_norm=None,
    layer_norm_epsilon=1e-5,
    projection_size=None,
    gate_clip=None,
    cell_clip=None,
    projection_clip=None,
    use_bias=True,
    **of_init,
):
    """The step of an LSTM with the options of `lstmx.LSTM`."""
    del use_bias, of_init  # what they change is in the parameters
    names = [n for n in "ifgo" if not (
        (n == "i" and input_gate in ("coupled", "none")) or (n == "f" and not forget_gate)
        or (n == "o" and not output_gate))]  # fmt: skip
    gates = [n for n in names if n != "g"]
    joint = layer_norm in ("ba", "fastrnns")

    def step(params, state, x):
        c, h = state[0], state[-1]
        update = dict(params.update or {})
        z = x @ params.input["kernel"]
        if joint:
            z = normalised(z, params.input["scale"], params.input.get("bias"), layer_norm_epsilon)
        else:
            z = z + params.input.get("bias", 0)
        r = np.concatenate(recurrent(params.recurrent["kernel"], h, len(names)))
        if joint:
            r = normalised(r, update["recurrent_scale"], update.get("recurrent_bias"), layer_norm_epsilon)
        a = dict(zip(names, np.split(z + r, len(names)), strict=True))
        if gate_recurrence:
            blocks = np.split(update["gate_recurrence"], len(gates), axis=1)
            for name, block in zip(gates, blocks, strict=True):
                a[name] = a[name] + state[1] @ block

        def activated(name, seen):
            pre = a[name]
            if peephole and name != "g":
                pre = pre + update["peephole"][name] * seen
            if layer_norm == "per_gate":
                at = slice(names.index(name) * len(c), (names.index(name) + 1) * len(c))
                bias = update["bias"][at] if "bias" in update else None
                pre = normalised(pre, update["scale"][at], bias, layer_norm_epsilon)
            pre = clip(pre, gate_clip)
            return ACTIVATIONS[candidate_activation if name == "g" else gate_activation](pre)

        f = activated("f", c) if forget_gate else np.ones_like(c)
        if input_gate == "coupled":
            i = 1 - f
        elif input_gate == "none":
            i = np.ones_like(c)
        else:
            i = activated("i", c)
        if input_gate == "capped":
            i = np.minimum(i, 1 - f)
        c = f * c + i * activated("g", c)
        if layer_norm == "fastrnns":
            c = normalised(c, update["cell_scale"], update["cell_bias"], layer_norm_epsilon)
        c = clip(c, cell_clip)
        o = activated("o", c) if output_gate else np.ones_like(c)
        shown = c
        if layer_norm == "ba":
            shown = normalised(c, update["cell_scale"], update["cell_bias"], layer_norm_epsilon)
        h = o * ACTIVATIONS[output_activation](shown)
        if projection_size is not None:
            h = clip(h @ update["projection"], projection_clip)
        if not gate_recurrence:
            return c, h
        return c, np.concatenate([{"i": i, "f": f, "o": o}[name] for name in gates]), h

    return step


def gru_step(
    reset_after=True, gate_activation="sigmoid", candidate_activation="tanh", gate_clip=None, **of_init
):
    """The step of a GRU with the options of `lstmx.GRU`."""
    del of_init
    gate, candidate = ACTIVATIONS[gate_activation], ACTIVATIONS[candidate_activation]

    def step(params, h, x):
        z_r, z_u, z_n = np.split(x @ params.input["kernel"] + params.input.get("bias", 0), 3)
        r_r, r_u, *r_n = recurrent(params.recurrent["kernel"], h, 3 if reset_after else 2)
        b_r, b_u, b_n = np.split(params.recurrent.get("bias", np.zeros(3 * len(h))), 3)
        reset, update = gate(clip(z_r + r_r + b_r, gate_clip)), gate(clip(z_u + r_u + b_u, gate_clip))
        if reset_after:
            inner = reset * (r_n[0] + b_n)
        else:
            (inner,) = recurrent(params.update["kernel"], reset * h, 1)
        n = candidate(clip(z_n + inner, gate_clip))
        return (1 - update) * n + update * h

    return step


def elman_step(activation="tanh", gate_clip=None, **of_init):
    """The step of an Elman cell with the options of `lstmx.Elman`."""
    del of_init

    def step(params, h, x):
        (r,) = recurrent(params.recurrent["kernel"], h, 1)
        a = x @ params.input["kernel"] + params.input.get("bias", 0) + r
        return ACTIVATIONS[activation](clip(a, gate_clip))

    return step


def mogrifier_step(inner, rounds):
    """The step of a Mogrifier around a cell with the step `inner`."""

    def step(params, state, x):
        own = params.update
        h = state[-1] if isinstance(state, tuple) else state
        for n in range(rounds):
            p = own["rounds"][n]
            seen = x if n % 2 else h
            gate = 2 * sigmoid((seen @ p["down"] if "down" in p else seen) @ p["kernel"] + p.get("bias", 0))
            if n % 2:
                h = gate * h
            else:
                x = gate * x
        return inner(own["cell"], _with_output(state, h), x)

    return step


def _with_output(state, h):
    # Enough for cells that read y in their recurrent map alone: an LSTM. A GRU also keeps h.
    return (*state[:-1], h)
