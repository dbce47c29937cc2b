"""torch as an oracle: its layers with the weights of a network of ours, in float64 on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import lstmx
from lstmx.convert.torch import from_state_dict, to_state_dict

torch = pytest.importorskip("torch", reason="torch is the oracle of this test")

LAYERS = {lstmx.LSTM: torch.nn.LSTM, lstmx.GRU: torch.nn.GRU, lstmx.Elman: torch.nn.RNN}


def layer_of(cell, network, params):
    """The torch layer of a cell, or of a Stack of it or of Bidirectional(it)."""
    state_dict = to_state_dict(network, params)
    options = {"nonlinearity": cell.activation} if isinstance(cell, lstmx.Elman) else {}
    if getattr(cell, "projection_size", None):
        options["proj_size"] = cell.projection_size
    layer = LAYERS[type(cell)](
        input_size=state_dict["weight_ih_l0"].shape[1],
        hidden_size=cell.hidden_size,
        num_layers=len(network.layers) if isinstance(network, lstmx.Stack) else 1,
        bidirectional="weight_ih_l0_reverse" in state_dict,
        bias=cell.use_bias,
        dtype=torch.float64,
        **options,
    )
    layer.load_state_dict({name: torch.from_dlpack(array) for name, array in state_dict.items()})
    return layer


def run(layer, xs, states, lengths=None):
    """Runs a layer over tensors.

    Args:
      layer: of torch, `batch_first` or not.
      xs: `[T, B, D]`.
      states: `(c, h)` or `(h,)`, each `[layers * directions, B, H]`.
      lengths: `[B]`, all at least 1.

    Returns:
      The final states in the same form, and the outputs `[T, B, H]`, zero at the padding.
    """
    steps, first = len(xs), layer.batch_first
    xs = xs.swapaxes(0, 1) if first else xs
    state = (states[1], states[0]) if len(states) == 2 else states[0]
    if lengths is None:
        ys, final = layer(xs, state)
    else:
        pack = torch.nn.utils.rnn.pack_padded_sequence(
            xs, torch.tensor(lengths), batch_first=first, enforce_sorted=False
        )
        packed, final = layer(pack, state)
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=first, total_length=steps)
    return (final[1], final[0]) if len(states) == 2 else (final,), ys.swapaxes(0, 1) if first else ys


def stacked(state, cell):
    """A state in torch's form: `[c, h]` or `[h]`, each `[layers * directions, B, H]`."""
    leaves = jax.tree.leaves(state)
    kinds = len(jax.tree.leaves(cell.initial_state()))
    return [jnp.stack(leaves[k::kinds]) for k in range(kinds)]


def results(layer, cell, network, xs, state, lengths=None):
    """What a torch layer and `lstmx.scan` with its weights make of one case.

    Args:
      layer: of torch, in float64.
      cell: that of every layer.
      network: the network to scan: `cell`, or a Stack of it or of Bidirectional(it).
      xs: `[T, B, D]`.
      state: of the network.
      lengths: as for `run`.

    Returns:
      Two lists, ours and torch's: final states, outputs, and the gradients of a loss of them all with respect
      to torch's tensors (ours through `from_state_dict`), xs and the initial states.
    """
    nonlinearity = getattr(cell, "activation", None)

    def loss(tensors, xs, state):
        _, params = from_state_dict(tensors, nonlinearity=nonlinearity)
        params = params if isinstance(network, lstmx.Stack) else params[0]
        final, ys = lstmx.scan(network, params, xs, state, lengths=lengths)
        values = stacked(final, cell), ys
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(values)), values

    tensors = {name: jnp.asarray(tensor.numpy()) for name, tensor in layer.state_dict().items()}
    compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, values), (d_tensors, d_xs, d_state) = compute(tensors, xs, state)
    ours = [*values, d_tensors, d_xs, stacked(d_state, cell)]

    xs = torch.tensor(xs, requires_grad=True)
    states = [torch.tensor(np.array(leaf), requires_grad=True) for leaf in stacked(state, cell)]
    finals, ys = run(layer, xs, states, lengths)
    sum(torch.sin(leaf + 1).sum() for leaf in (*finals, ys)).backward()
    return ours, [
        [leaf.detach().numpy() for leaf in finals],
        ys.detach().numpy(),
        {name: parameter.grad.numpy() for name, parameter in layer.named_parameters()},
        xs.grad.numpy(),
        [leaf.grad.numpy() for leaf in states],
    ]


def results_of_both(network, cell, lengths=None, **sizes):
    """`results` of a random case of a network: torch has the network's weights.

    Args:
      network: `cell`, or a Stack of it or of Bidirectional(it).
      cell: that of every layer, of type float64.
      lengths: as for `run`.
      **sizes: of `oracles.random_case`.
    """
    params, xs, state = oracles.random_case(network, np.random.default_rng(0), **sizes)
    return results(layer_of(cell, network, params), cell, network, xs, state, lengths)
