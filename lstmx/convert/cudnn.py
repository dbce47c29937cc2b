"""The packed weights of `jax.experimental.rnn`, which are those of cuDNN's LSTM.

Their order is known to `lstmx.implementations.cudnn` only. Of the two biases only the sum matters: it is
read, and (bias, 0) is written.
"""

import itertools

import jax
from jax.typing import ArrayLike

from lstmx.cells import LSTM, base
from lstmx.cells.base import Cell, PyTree
from lstmx.convert.layers import shapes_of, to_network, to_tensors
from lstmx.convert.tensors import as_array
from lstmx.implementations import cudnn
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
      ValueError: if the length of the vector does not match the sizes.

    Example:
      >>> import jax
      >>> from jax.experimental import rnn
      >>> blob = rnn.init_lstm_weight(jax.random.key(0), 3, 4, 2, True)
      >>> net, params = from_blob(blob, input_size=3, hidden_size=4, num_layers=2, bidirectional=True)
      >>> params[1].forward.input["kernel"].shape
      (8, 16)
    """
    base.require_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
    sizes = input_size, hidden_size, num_layers, bidirectional
    cell = LSTM(hidden_size)
    names = shapes_of(cell, num_layers, bidirectional, input_size)
    found = itertools.chain(*cudnn.unpack(as_array(weights), *sizes))
    return to_network(cell, dict(zip(names, found, strict=True)), num_layers, bidirectional)


def to_blob(net: Stack | Bidirectional | Cell, params: PyTree) -> jax.Array:
    """The packed weights of a network; can be traced.

    Args:
      net: an LSTM, Bidirectional or Stack, the same LSTM in all layers, with biases and without options.
      params: its parameters.

    Returns:
      A vector, as `jax.experimental.rnn.lstm` takes it.

    Raises:
      ValueError: if `jax.experimental.rnn` cannot express an option, which is named; if the layers are not
        all alike; if a parameter is missing, has a wrong shape or is unexpected.
      TypeError: if a cell is no LSTM.

    Example:
      >>> import jax, lstmx
      >>> cell = lstmx.LSTM(4)
      >>> to_blob(cell, cell.init(jax.random.key(0), input_size=3)).shape
      (144,)
    """
    tensors = iter(to_tensors(net, params, "jax.experimental.rnn", {LSTM: set()}).values())
    return cudnn.pack([cudnn.Tensors(*four) for four in zip(*[tensors] * 4, strict=True)])
