"""The packed weights of `jax.experimental.rnn`, which are those of cuDNN's LSTM.

One vector: of each layer and, within it, each direction the tensors `W_ih` [4H, D] and `W_hh` [4H, H]; then,
in the same order, the biases `b_ih` and `b_hh` [4H] of all. Gates stand in the order of ours. Of the two
biases only the sum matters: it is read, and (bias, 0) is written.
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lstmx.cells import LSTM
from lstmx.cells.base import Cell, PyTree
from lstmx.convert.layers import shapes_of, to_network, to_tensors
from lstmx.convert.tensors import as_array
from lstmx.networks import Bidirectional, Stack


def from_blob(
    weights: ArrayLike, input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = False
) -> tuple[Stack, tuple]:
    """The network of packed weights, and its parameters; can be traced.

    Args:
      weights: a vector, as from `jax.experimental.rnn.init_lstm_weight`.
      input_size: D.
      hidden_size: H.
      num_layers: the number of layers.
      bidirectional: whether each layer runs in both directions.

    Returns:
      `(net, params)`: a Stack of LSTM or of Bidirectional.

    Raises:
      ValueError: if the vector has not the length that the sizes demand.

    Example:
      >>> import jax
      >>> from jax.experimental import rnn
      >>> blob = rnn.init_lstm_weight(jax.random.key(0), 3, 4, 2, True)
      >>> net, params = from_blob(blob, input_size=3, hidden_size=4, num_layers=2, bidirectional=True)
      >>> params[1].forward.input["kernel"].shape
      (8, 16)
    """
    weights = as_array(weights)
    cell = LSTM(hidden_size)
    shapes = shapes_of(cell, num_layers, bidirectional, input_size)
    order = _order(shapes)
    ends = np.cumsum([math.prod(shapes[name]) for name in order])
    if weights.shape != (ends[-1],):
        raise ValueError(
            f"weights must have shape {(int(ends[-1]),)} for input_size={input_size}, "
            f"hidden_size={hidden_size}, num_layers={num_layers}, bidirectional={bidirectional}, "
            f"got {weights.shape}"
        )
    parts = zip(order, jnp.split(weights, ends[:-1]), strict=True)
    tensors = {name: part.reshape(shapes[name]) for name, part in parts}
    return to_network(cell, tensors, num_layers, bidirectional)


def to_blob(net: Stack | Bidirectional | Cell, params: PyTree) -> jax.Array:
    """The packed weights of a network; can be traced.

    Args:
      net: an LSTM, Bidirectional or Stack, the same LSTM in all layers, with biases and without options.
      params: its parameters.

    Returns:
      A vector, as `jax.experimental.rnn.lstm` takes it.

    Raises:
      ValueError: if `jax.experimental.rnn` has no place for an option, naming it; if the layers are not all
        alike; if a parameter is missing, mis-shaped or one too many.
      TypeError: if a cell is no LSTM.

    Example:
      >>> import jax, lstmx
      >>> cell = lstmx.LSTM(4)
      >>> to_blob(cell, cell.init(jax.random.key(0), input_size=3)).shape
      (144,)
    """
    tensors = to_tensors(net, params, "jax.experimental.rnn", {LSTM: set()})
    return jnp.concatenate([tensors[name].ravel() for name in _order(tensors)])


def _order(names: Iterable[str]) -> list[str]:
    """Torch's names in the order of the vector: all weights, then all biases."""
    return sorted(names, key=lambda name: name.startswith("bias"))
