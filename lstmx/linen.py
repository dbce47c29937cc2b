"""Flax Linen: layers, and any cell as a `flax.linen.RNNCellBase`; the counterpart of `lstmx.nnx`.

Arrays are batch-major: inputs `[*batch, T, D]`, masks and resets `[*batch, T]`.
"""

import functools

import jax
from flax import linen as nn

from lstmx import cells, networks
from lstmx.batch_major import batch_major_scan
from lstmx.cells.base import PyTree
from lstmx.nested import Layout, as_carry, layout_of, nest, unnest
from lstmx.scan import step


class Layer(nn.Module):
    """A cell or network as a layer.

    Attributes:
      network: a cell, or a network of `lstmx.networks`.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> layer = lstmx.linen.Layer(lstmx.Bidirectional(lstmx.GRU(4)))
      >>> (state, ys), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> ys.shape
      (2, 5, 8)
    """

    network: object

    @nn.compact
    def __call__(
        self,
        xs: jax.Array,
        initial_state: PyTree = None,
        *,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        reverse: bool = False,
        deterministic: bool = True,
        **options,
    ) -> tuple[PyTree, jax.Array]:
        """Runs the layer over a sequence; see `lstmx.nnx.Layer`.

        With `deterministic=False` dropout and regularizers draw from the collection `dropout`.
        """
        network = self.network
        drops = networks.is_stochastic(network) and not deterministic
        return batch_major_scan(
            network,
            _params(self, network, xs.shape[-1]),
            xs,
            initial_state,
            lengths=lengths,
            mask=mask,
            resets=resets,
            segment_ids=segment_ids,
            reverse=reverse,
            key=self.make_rng("dropout") if drops else None,
            **options,
        )


def variables(params: PyTree) -> dict:
    """Parameters as the variables of a `Layer` or `Cell`: of converted weights, for example.

    Args:
      params: as `network.init` and `lstmx.convert` give them.

    Returns:
      What `apply` takes, `{"params": ...}`.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.GRU(4)
      >>> own = lstmx.linen.variables(cell.init(jax.random.key(0), input_size=3))
      >>> state, ys = lstmx.linen.Layer(cell).apply(own, jnp.ones((2, 5, 3)))
      >>> ys.shape
      (2, 5, 4)
    """
    return {"params": {"cell": nest(params, layout_of(params))}}


def _layers(
    cell_type: type,
    hidden_size: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout_rate: float = 0.0,
    connections: str = "plain",
    name: str | None = None,
    **cell_options,
) -> Layer:
    cell = cell_type(hidden_size, **cell_options)
    return Layer(networks.stacked(cell, num_layers, bidirectional, dropout_rate, connections), name=name)


# LSTM(4, num_layers=2, bidirectional=True, dropout_rate=0.5) and so on: the arguments of
# lstmx.nnx.LSTM without in_features and rngs, which Linen finds out by itself.
LSTM = functools.partial(_layers, cells.LSTM)
GRU = functools.partial(_layers, cells.GRU)
Elman = functools.partial(_layers, cells.Elman)


class Cell(nn.RNNCellBase):
    """A cell as Flax's `RNNCellBase`, for `flax.linen.RNN` and `flax.linen.Bidirectional`.

    Attributes:
      cell: the cell.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> from flax import linen as nn
      >>> rnn = nn.RNN(lstmx.linen.Cell(lstmx.LSTM(4)))
      >>> ys, variables = rnn.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> ys.shape
      (2, 5, 4)
    """

    cell: object

    @nn.compact
    def __call__(self, carry: PyTree, inputs: jax.Array) -> tuple[PyTree, jax.Array]:
        """One step: `(carry, y)`."""
        state, y = step(self.cell, _params(self, self.cell, inputs.shape[-1]), carry, inputs)
        return as_carry(state, carry), y

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> PyTree:
        """The initial state for inputs `[*batch, D]`; it is no draw, so `rng` is not used.

        Raises:
          ValueError: if the cell learns it: Linen asks here, where no parameters are at hand.
        """
        if getattr(self.cell, "learn_initial_state", False):
            raise ValueError(
                "learn_initial_state=True: flax.linen.RNN cannot be given a learnt initial state; use "
                "lstmx.linen.Layer, or pass initial_carry"
            )
        return self.cell.initial_state(input_shape[: len(input_shape) - self.num_feature_axes])

    @property
    def num_feature_axes(self) -> int:
        """Trailing axes of an input that belong to one element of the batch."""
        return self.cell.num_feature_axes


def _params(module: nn.Module, network, in_features: int) -> PyTree:
    """The parameters of a cell or network, declared in the module that is running."""
    layout = _layout(network, in_features)
    nested = module.param("cell", lambda key: nest(network.init(key, in_features), layout))
    return unnest(nested, layout)


@functools.cache
def _layout(network, in_features: int) -> Layout:
    return layout_of(jax.eval_shape(lambda: network.init(jax.random.key(0), in_features)))
