"""Flax NNX: layers, and any cell as a `flax.nnx.RNNCellBase`; thin wrappers of `lstmx.scan` and `lstmx.step`.

Arrays are batch-major here, as everywhere in Flax: inputs `[*batch, T, D]`, masks and resets `[*batch, T]`.

An LSTM layer in a model of your own:

    >>> import jax.numpy as jnp, lstmx
    >>> from flax import nnx
    >>> class Tagger(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.lstm = lstmx.nnx.LSTM(16, 32, bidirectional=True, rngs=rngs)
    ...         self.head = nnx.Linear(64, 5, rngs=rngs)
    ...     def __call__(self, xs, lengths):
    ...         _, ys = self.lstm(xs, lengths=lengths)
    ...         return self.head(ys)
    >>> Tagger(nnx.Rngs(0))(jnp.ones((2, 7, 16)), jnp.array([7, 4])).shape
    (2, 7, 5)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from lstmx import cells, networks
from lstmx.batch_major import batch_major_scan, require_layers_between
from lstmx.cells import initializers
from lstmx.cells.base import PyTree
from lstmx.cells.capabilities import Network
from lstmx.cells.initializers import Initializer
from lstmx.nested import Layout, as_carry, layout_of, nest, require_params, unnest
from lstmx.scan import Implementation, step


class Layer(nnx.Module):
    """A cell or network as a layer.

    Args:
      network: a cell, or a network of `lstmx.networks`.
      in_features: D.
      params: the parameters, as `lstmx.convert` returns them; None draws them.
      rngs: `params` for the parameters, `dropout` for the noise of dropout and regularizers (not needed if
        every call passes its own). None if `params` are given and there is no noise.

    Raises:
      ValueError: if `params` do not fit the network, naming the part; if there are neither `params` nor
        `rngs`.

    Example:
      >>> import jax.numpy as jnp, lstmx
      >>> from flax import nnx
      >>> layer = lstmx.nnx.Layer(lstmx.Bidirectional(lstmx.GRU(4)), 3, rngs=nnx.Rngs(0))
      >>> state, ys = layer(jnp.ones((2, 5, 3)))
      >>> ys.shape
      (2, 5, 8)
    """

    def __init__(
        self,
        network: cells.Cell | Network,
        in_features: int,
        *,
        params: PyTree = None,
        rngs: nnx.Rngs | None = None,
    ):
        self.network: Any = network
        if params is not None:
            require_params(network, params, in_features)
            self.layout, self.params = _variables(params)
        elif rngs is None:
            raise ValueError("give rngs, to draw the parameters, or params")
        else:
            self.layout, self.params = _drawn(network, rngs.params(), in_features)
        self.deterministic = False
        self.rngs = nnx.data(dropout_stream(rngs) if networks.is_stochastic(network) else None)

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
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        **options: Any,
    ) -> tuple[PyTree, jax.Array, *tuple[PyTree, ...]]:
        """Runs the layer over a sequence.

        Args:
          xs: `[*batch, T, D]`.
          initial_state: leaves `[*batch, ...]`, None for zeros, or the learned one.
          lengths: integers `[*batch]`.
          mask: bool `[*batch, T]`, True where a step exists.
          resets: bool `[*batch, T]`, True where the state is reset before the step.
          segment_ids: integers `[*batch, T]`, for sequences packed into rows.
          reverse: whether sequences are read backwards.
          deterministic: True for no noise; None for the mode that `train()` or `eval()` has set (training at
            first, as in Flax's own layers).
          rngs: for the noise, instead of the layer's own stream.
          **options: `implementation`, `remat`, `unroll` and `return_states` of `lstmx.scan`.

        Returns:
          `(final_state, ys)`, ys `[*batch, T, H]` (2H if bidirectional); with `return_states` also states or
          gates, leaves `[*batch, T, ...]`.
        """
        if deterministic is None:
            deterministic = self.deterministic
        key = None
        if networks.is_stochastic(self.network) and not deterministic:
            key = dropout_key(self.rngs if rngs is None else rngs)
        return batch_major_scan(
            self.network,
            self.parameters(),
            xs,
            initial_state,
            lengths=lengths,
            mask=mask,
            resets=resets,
            segment_ids=segment_ids,
            reverse=reverse,
            key=key,
            **options,
        )

    def step(
        self,
        state: PyTree,
        x: jax.Array,
        *,
        resets: jax.Array | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[PyTree, jax.Array]:
        """One step without dropout, x `[*batch, D]`, resets bool `[*batch]`; see `lstmx.step`."""
        return step(self.network, self.parameters(), state, x, resets=resets, implementation=implementation)

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> PyTree:
        """The state before the first step: learned, or zeros."""
        return networks.start(self.network, self.parameters(), batch_shape)

    def parameters(self) -> PyTree:
        """The parameters in the form of `lstmx.scan`."""
        return _arrays(self.params, self.layout)


def dropout_stream(rngs: nnx.Rngs | None) -> nnx.RngStream | None:
    """A stream for the dropout of a new module; None if `rngs` has none.

    Example:
      >>> from flax import nnx
      >>> dropout_stream(nnx.Rngs(params=0)) is None, dropout_stream(nnx.Rngs(0)) is None
      (True, False)
    """
    if rngs is None or not ("dropout" in rngs or "default" in rngs):
        return None
    return rngs.dropout.fork()


def dropout_key(rngs: nnx.Rngs | nnx.RngStream | None) -> jax.Array:
    """The next key for dropout.

    Raises:
      ValueError: if there is no stream.
      TypeError: if `rngs` is anything else, such as a key.

    Example:
      >>> from flax import nnx
      >>> dropout_key(None)
      Traceback (most recent call last):
      ValueError: dropout needs rngs: give a dropout stream to the module or to the call, or call eval()
    """
    if rngs is None:
        raise ValueError(
            "dropout needs rngs: give a dropout stream to the module or to the call, or call eval()"
        )
    if isinstance(rngs, nnx.Rngs):
        return rngs.dropout()
    if not isinstance(rngs, nnx.RngStream):
        raise TypeError(
            f"rngs must be nnx.Rngs or nnx.RngStream, got {type(rngs).__name__}; "
            "from a key: nnx.Rngs(dropout=key)"
        )
    return rngs()


class LSTM(Layer):
    """LSTM layers; see `lstmx.LSTM` for the cell.

    Args:
      in_features: D.
      hidden_size: H, units of each layer and direction.
      num_layers: layers, each reading the outputs of the one below.
      bidirectional: whether each layer reads in both directions (outputs 2H).
      dropout_rate: dropout between layers, in [0, 1).
      connections: `"plain"`, `"residual"` or `"dense"`, as in `lstmx.Stack`.
      rngs: `params` and, with dropout, `dropout`.
      **cell_options: the other fields of `lstmx.LSTM`: `forget_bias`, `peephole`, `dtype`, `kernel_init`, ...
        Initializers may carry partitioning metadata (`nnx.with_partitioning`); the axes of each parameter are
        listed in docs/cells.md.

    Raises:
      ValueError: if an option is invalid, or has no effect with one layer.

    Example:
      >>> import jax.numpy as jnp, lstmx
      >>> from flax import nnx
      >>> layer = lstmx.nnx.LSTM(3, 4, num_layers=2, rngs=nnx.Rngs(0))
      >>> state, ys = layer(jnp.ones((2, 5, 3)), lengths=jnp.array([5, 2]))
      >>> ys.shape, state[1].c.shape
      ((2, 5, 4), (2, 4))
    """

    cell_type: type = cells.LSTM

    def __init__(
        self,
        in_features: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout_rate: float = 0.0,
        connections: networks.Connections = "plain",
        rngs: nnx.Rngs,
        **cell_options: Any,
    ):
        cell = self.cell_type(hidden_size, **cell_options)
        require_layers_between(num_layers, dropout_rate, connections)
        network = networks.stacked(cell, num_layers, bidirectional, dropout_rate, connections)
        super().__init__(network, in_features, rngs=rngs)


class GRU(LSTM):
    """GRU layers; see `lstmx.GRU` for the cell and `lstmx.nnx.LSTM` for the arguments."""

    cell_type = cells.GRU


class Elman(LSTM):
    """Elman layers; see `lstmx.Elman` for the cell and `lstmx.nnx.LSTM` for the arguments."""

    cell_type = cells.Elman


class Cell(nnx.RNNCellBase):
    """A cell as Flax's `RNNCellBase`, for `flax.nnx.RNN` and `flax.nnx.Bidirectional`.

    Args:
      cell: the cell.
      in_features: D.
      carry_init: draws each array of the initial state, as in Flax's cells; None for the learned state, or
        zeros.
      implementation: of each step, as for `lstmx.step`; `"reference"` for derivatives in forward mode.
      rngs: `params` for the parameters, and `carry` if there is a `carry_init`.

    Raises:
      ValueError: if the cell learns the state that `carry_init` would draw.

    Example:
      >>> import jax.numpy as jnp, lstmx
      >>> from flax import nnx
      >>> rnn = nnx.RNN(lstmx.nnx.Cell(lstmx.LSTM(4), 3, rngs=nnx.Rngs(0)))
      >>> rnn(jnp.ones((2, 5, 3))).shape
      (2, 5, 4)
    """

    def __init__(
        self,
        cell: cells.Cell,
        in_features: int,
        *,
        carry_init: Initializer | None = None,
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        self.cell = cell
        self.implementation = implementation
        self.layout, self.params = _drawn(cell, rngs.params(), in_features)
        if carry_init is not None and jax.tree.leaves(self.parameters().initial):
            raise ValueError("carry_init has no effect with learn_initial_state=True")
        self.carry_init = carry_init
        self.rngs = nnx.data(None) if carry_init is None else rngs.carry.fork()

    def __call__(self, carry: PyTree, inputs: jax.Array) -> tuple[PyTree, jax.Array]:
        """One step: `(carry, y)`; a carry of None is the initial state, learned or zeros."""
        state, y = step(self.cell, self.parameters(), carry, inputs, implementation=self.implementation)
        return state if carry is None else as_carry(state, carry), y

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> PyTree:
        """The initial state for inputs `[*batch, D]`.

        Args:
          input_shape: `(*batch, D)`.
          rngs: stream `carry`, for `carry_init`; None for the cell's own.
          carry_init: draws each array of the state; None for that of the constructor, else the learned state,
            or zeros.

        Raises:
          ValueError: if there is a `carry_init` but no stream.
        """
        batch_shape = input_shape[: len(input_shape) - self.num_feature_axes]
        carry_init = self.carry_init if carry_init is None else carry_init
        if carry_init is None:
            return networks.start(self.cell, self.parameters(), batch_shape)
        stream = self.rngs if rngs is None else rngs
        if stream is None:
            raise ValueError("carry_init needs rngs: give a carry stream to initialize_carry")
        stream = stream.carry if isinstance(stream, nnx.Rngs) else stream
        state = self.cell.initial_state(batch_shape)
        return jax.tree.map(lambda leaf: carry_init(stream(), leaf.shape, leaf.dtype), state)

    def parameters(self) -> PyTree:
        """The parameters in the form of `lstmx.step`."""
        return _arrays(self.params, self.layout)

    @property
    def num_feature_axes(self) -> int:
        """Trailing axes of an input that belong to one element of the batch."""
        return self.cell.num_feature_axes


def _drawn(network, key: jax.Array, in_features: int) -> tuple[Layout, Any]:
    """Fresh parameters, with the metadata that their initializers give them."""
    with initializers.collecting() as box_of:
        return _variables(network.init(key, in_features), box_of)


def _variables(params: PyTree, box_of: Callable = lambda array: None) -> tuple[Layout, Any]:
    """Parameters as `nnx.Param`s under the names of their parts, and the layout that restores the tree."""
    layout = layout_of(params)

    def param(array):
        box = box_of(array)
        if box is None:
            return nnx.Param(array)
        if not isinstance(box, nnx.VariableMetadata):
            raise TypeError(
                f"an initializer returned {type(box).__name__}: parameters of NNX are marked by "
                "flax.nnx.with_partitioning or with_metadata"
            )
        return nnx.Param(dataclasses.replace(box, raw_value=array))

    return layout, nest(params, layout, leaf=param, node=nnx.Dict)


def _arrays(variables: nnx.Dict, layout: Layout) -> PyTree:
    return unnest(variables, layout, leaf=lambda param: param[...])
