"""Flax Linen: layers, and any cell as a `flax.linen.RNNCellBase`; the counterpart of `lstmx.nnx`.

Arrays are batch-major: inputs `[*batch, T, D]`, masks and resets `[*batch, T]`.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import jax
from flax import linen as nn

from lstmx import cells, networks
from lstmx.batch_major import batch_major_scan, require_layers_between, require_sequences
from lstmx.cells import initializers
from lstmx.cells.base import PyTree, learns_initial_state
from lstmx.cells.initializers import Initializer
from lstmx.nested import Layout, as_carry, layout_of, nest, unnest
from lstmx.scan import Implementation, step


class Layer(nn.Module):
    """A cell or network as a layer.

    Attributes:
      network: a cell, or a network of `lstmx.networks`.
      deterministic: whether dropout and regularizers are off; None if it is an argument of each call.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> layer = lstmx.linen.Layer(lstmx.Bidirectional(lstmx.GRU(4)))
      >>> (state, ys), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> ys.shape
      (2, 5, 8)
    """

    network: Any
    deterministic: bool | None = dataclasses.field(default=None, kw_only=True)

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
        deterministic: bool | None = None,
        **options: Any,
    ) -> tuple[PyTree, jax.Array, *tuple[PyTree, ...]]:
        """Runs the layer over a sequence; see `lstmx.nnx.Layer`.

        A layer with dropout or regularizers needs `deterministic`, as the field or in the call, like
        `flax.linen.Dropout`; with False it draws from the collection `dropout`.
        """
        network = self.network
        xs = require_sequences(network, xs)
        drops = False
        if networks.is_stochastic(network):
            drops = not nn.merge_param("deterministic", self.deterministic, deterministic)
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
    """Parameters, such as converted weights, as the variables of a `Layer` or `Cell`.

    Args:
      params: as `network.init` and `lstmx.convert` return them.

    Returns:
      The variables for `apply`, `{"params": ...}`.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.GRU(4)
      >>> own = lstmx.linen.variables(cell.init(jax.random.key(0), input_size=3))
      >>> state, ys = lstmx.linen.Layer(cell).apply(own, jnp.ones((2, 5, 3)))
      >>> ys.shape
      (2, 5, 4)
    """
    return {"params": {"cell": nest(params, layout_of(params))}}


class _Layers(Layer):
    """Layers of one type of cell, whose options are fields of the module; see `LSTM`."""

    # A property here: the network follows from the other fields. ClassVar removes the inherited field.
    network: ClassVar  # type: ignore[misc]
    cell_type: ClassVar[type]

    # Flax does not tell type checkers that fields can be keyword-only.
    hidden_size: int  # type: ignore[misc]
    num_layers: int = dataclasses.field(default=1, kw_only=True)
    bidirectional: bool = dataclasses.field(default=False, kw_only=True)
    dropout_rate: float = dataclasses.field(default=0.0, kw_only=True)
    connections: networks.Connections = dataclasses.field(default="plain", kw_only=True)

    def __init_subclass__(cls, cell_type: type | None = None, **kwargs):
        if cell_type is not None:
            options = [field for field in dataclasses.fields(cell_type) if field.name != "hidden_size"]
            cls.__annotations__ = {field.name: field.type for field in options}
            for field in options:
                setattr(cls, field.name, dataclasses.field(default=field.default, kw_only=True))
            cls.cell_type = cell_type
            # Flax names submodules after their class. These were once instances of `Layer`: with its name,
            # variables saved then still load.
            cls.__name__ = "Layer"
        super().__init_subclass__(**kwargs)

    def __post_init__(self):
        # Options are refused now, not in the first call.
        require_layers_between(self.num_layers, self.dropout_rate, self.connections)
        _network_of(self)
        super().__post_init__()

    @property  # type: ignore[no-redef]
    def network(self) -> networks.Stack:
        """The network that the options describe."""
        return _network_of(self)


def _network_of(layers: _Layers):
    names = {field.name for field in dataclasses.fields(layers.cell_type)}
    cell = layers.cell_type(**{name: getattr(layers, name) for name in names})
    return networks.stacked(
        cell, layers.num_layers, layers.bidirectional, layers.dropout_rate, layers.connections
    )


class LSTM(_Layers, cell_type=cells.LSTM):  # type: ignore[misc]
    """LSTM layers.

    The size of the inputs is inferred at the first call, as everywhere in Linen. Lifted transforms
    (`nn.remat`, `nn.vmap`, ...) apply to the class. Unnamed submodules are called `Layer_0`, `Layer_1`, ...

    Attributes:
      hidden_size: H, units of each layer and direction.
      num_layers, bidirectional, dropout_rate, connections: as in `lstmx.nnx.LSTM`.
      forget_bias, peephole, dtype, kernel_init, ...: all fields of `lstmx.LSTM`, with their defaults.
        Initializers may carry partitioning metadata (`nn.with_partitioning`); the axes of each parameter are
        listed in docs/cells.md.
      deterministic: as in `Layer`.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> layer = lstmx.linen.LSTM(4, num_layers=2, bidirectional=True, peephole=True)
      >>> (state, ys), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> ys.shape
      (2, 5, 8)
    """

    if TYPE_CHECKING:  # the fields of the cell are known only when Python runs

        def __init__(
            self,
            hidden_size: int,
            *,
            num_layers: int = 1,
            bidirectional: bool = False,
            dropout_rate: float = 0.0,
            connections: networks.Connections = "plain",
            deterministic: bool | None = None,
            name: str | None = None,
            **cell_options: Any,
        ) -> None: ...


class GRU(_Layers, cell_type=cells.GRU):  # type: ignore[misc]
    """GRU layers; see `lstmx.GRU` for the cell and `lstmx.linen.LSTM` for the other fields."""

    if TYPE_CHECKING:  # see LSTM

        def __init__(self, hidden_size: int, **options: Any) -> None: ...


class Elman(_Layers, cell_type=cells.Elman):  # type: ignore[misc]
    """Elman layers; see `lstmx.Elman` for the cell and `lstmx.linen.LSTM` for the other fields."""

    if TYPE_CHECKING:  # see LSTM

        def __init__(self, hidden_size: int, **options: Any) -> None: ...


class Cell(nn.RNNCellBase):
    """A cell as Flax's `RNNCellBase`, for `flax.linen.RNN` and `flax.linen.Bidirectional`.

    Attributes:
      cell: the cell.
      carry_init: draws each array of the initial state, as in Flax's cells; None for zeros.
      implementation: of each step, as for `lstmx.step`; `"reference"` for derivatives in forward mode.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> from flax import linen as nn
      >>> rnn = nn.RNN(lstmx.linen.Cell(lstmx.LSTM(4)))
      >>> ys, variables = rnn.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> ys.shape
      (2, 5, 4)
    """

    cell: cells.Cell
    carry_init: Initializer | None = None
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, carry: PyTree, inputs: jax.Array) -> tuple[PyTree, jax.Array]:
        """One step: `(carry, y)`; a carry of None is the initial state, learned or zeros."""
        params = _params(self, self.cell, inputs.shape[-1])
        state, y = step(self.cell, params, carry, inputs, implementation=self.implementation)
        return state if carry is None else as_carry(state, carry), y

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> PyTree:
        """The initial state for inputs `[*batch, D]`; `rng` is used only if there is a `carry_init`.

        Raises:
          ValueError: if the cell learns its initial state: Linen calls this method without parameters.
        """
        if learns_initial_state(self.cell):
            raise ValueError(
                "learn_initial_state=True: flax.linen.RNN does not support a learned initial state; use "
                "lstmx.linen.Layer, or pass initial_carry"
            )
        state = self.cell.initial_state(input_shape[: len(input_shape) - self.num_feature_axes])
        if self.carry_init is None:
            return state
        leaves, structure = jax.tree.flatten(state)
        keys = jax.random.split(rng, len(leaves))
        drawn = [self.carry_init(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    @property
    def num_feature_axes(self) -> int:
        """Trailing axes of an input that belong to one element of the batch."""
        return self.cell.num_feature_axes


def _params(module: nn.Module, network, in_features: int) -> PyTree:
    """The parameters of a cell or network, as a variable of the running module."""
    layout = _layout(network, in_features)

    def init(key):
        with initializers.collecting() as box_of:
            params = network.init(key, in_features)
            return nest(params, layout, leaf=lambda array: _boxed(array, box_of(array)))

    return unnest(module.param("cell", init), layout)


def _boxed(array: jax.Array, box: Any):
    """An array in a box like the one that its initializer returned."""
    if box is None:
        return array
    if not isinstance(box, nn.meta.AxisMetadata):
        raise TypeError(
            f"an initializer returned {type(box).__name__}: parameters of Linen are marked by "
            "flax.linen.with_partitioning or with_logical_partitioning"
        )
    return box.replace_boxed(array)


@functools.cache
def _layout(network, in_features: int) -> Layout:
    return layout_of(jax.eval_shape(lambda: network.init(jax.random.key(0), in_features)))
