"""torch as an oracle: its layers with the weights of a network of ours, in float64 on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import lstmx
from lstmx.networks import BothDirections

torch = pytest.importorskip("torch", reason="torch is the oracle of this test")

LAYERS = {
    lstmx.LSTM: lambda cell, **options: torch.nn.LSTM(hidden_size=cell.hidden_size, **options),
    lstmx.GRU: lambda cell, **options: torch.nn.GRU(hidden_size=cell.hidden_size, **options),
    lstmx.Elman: lambda cell, **options: torch.nn.RNN(
        hidden_size=cell.hidden_size, nonlinearity=cell.activation, **options
    ),
}


def directions(params):
    """`(torch's suffix, Params)` of each cell of a cell, or of a Stack of cells or Bidirectional cells."""
    if isinstance(params, lstmx.Params):
        params = (params,)
    for k, layer in enumerate(params):
        if isinstance(layer, BothDirections):
            yield f"l{k}", layer.forward
            yield f"l{k}_reverse", layer.backward
        else:
            yield f"l{k}", layer


def layer_of(cell, params):
    """The torch layer of a cell, stacked and bidirectional as its parameters are."""
    parts = dict(directions(params))
    layer = LAYERS[type(cell)](
        cell,
        input_size=parts["l0"].input["kernel"].shape[0],
        num_layers=sum(not suffix.endswith("reverse") for suffix in parts),
        bidirectional="l0_reverse" in parts,
        bias="bias" in parts["l0"].input,
        dtype=torch.float64,
    )
    with torch.no_grad():
        for suffix, p in parts.items():
            getattr(layer, f"weight_ih_{suffix}").copy_(torch.tensor(p.input["kernel"].T))
            getattr(layer, f"weight_hh_{suffix}").copy_(torch.tensor(p.recurrent["kernel"].T))
            if layer.bias:
                # torch has two biases everywhere; the second is ours in the GRU alone.
                getattr(layer, f"bias_ih_{suffix}").copy_(torch.tensor(p.input["bias"]))
                getattr(layer, f"bias_hh_{suffix}").copy_(
                    torch.tensor(p.recurrent.get("bias", 0 * p.input["bias"]))
                )
    return layer


def gradients_of(layer, params):
    """What is in the `.grad` of a layer, as a list of Params, one for each direction."""

    def grad(name, suffix):
        return getattr(layer, f"{name}_{suffix}").grad.numpy().T

    found = []
    for suffix, p in directions(params):
        parts = []
        for part, side in ((p.input, "ih"), (p.recurrent, "hh")):
            names = {"kernel": f"weight_{side}", "bias": f"bias_{side}"}
            parts.append({name: grad(names[name], suffix) for name in part})
        found.append(lstmx.Params(*parts))
    return found


def run(layer, xs, states, lengths=None):
    """Runs a layer over tensors.

    Args:
      layer: from `layer_of`.
      xs: `[T, B, D]`.
      states: `(c, h)` or `(h,)`, each `[layers * directions, B, H]`.
      lengths: `[B]`, all at least 1.

    Returns:
      The final states in the same form, and the outputs `[T, B, H]`, zero at the padding.
    """
    state = (states[1], states[0]) if len(states) == 2 else states[0]
    if lengths is None:
        ys, final = layer(xs, state)
    else:
        pack = torch.nn.utils.rnn.pack_padded_sequence(xs, torch.tensor(lengths), enforce_sorted=False)
        packed, final = layer(pack, state)
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, total_length=len(xs))
    return (final[1], final[0]) if len(states) == 2 else (final,), ys


def stacked(state, cell):
    """A state in torch's form: `[c, h]` or `[h]`, each `[layers * directions, B, H]`."""
    leaves = jax.tree.leaves(state)
    kinds = len(jax.tree.leaves(cell.initial_state()))
    return [jnp.stack(leaves[k::kinds]) for k in range(kinds)]


def results_of_both(network, cell, lengths=None, **sizes):
    """What torch and `lstmx.scan` make of one random case, values and gradients of a loss of them all.

    Args:
      network: `cell`, or a Stack of it or of Bidirectional(it).
      cell: that of every layer, of type float64.
      lengths: as for `run`.
      **sizes: of `oracles.random_case`.

    Returns:
      Two lists: final states, outputs, and the gradients of parameters, xs and initial states.
    """
    case = oracles.random_case(network, np.random.default_rng(0), **sizes)

    def loss(params, xs, state):
        final, ys = lstmx.scan(network, params, xs, state, lengths=lengths)
        results = stacked(final, cell), ys
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(results)), results

    # The loops are tiny: these options save most of the time, which is the compiler's.
    quick = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), compiler_options=quick)
    (_, values), (d_params, d_xs, d_state) = compute(*case)
    ours = [*values, [p for _, p in directions(d_params)], d_xs, stacked(d_state, cell)]

    params, xs, state = case
    layer = layer_of(cell, params)
    xs = torch.tensor(xs, requires_grad=True)
    states = [torch.tensor(np.array(leaf), requires_grad=True) for leaf in stacked(state, cell)]
    finals, ys = run(layer, xs, states, lengths)
    sum(torch.sin(leaf + 1).sum() for leaf in (*finals, ys)).backward()
    values = [[leaf.detach().numpy() for leaf in finals], ys.detach().numpy()]
    return ours, [
        *values,
        gradients_of(layer, params),
        xs.grad.numpy(),
        [leaf.grad.numpy() for leaf in states],
    ]
