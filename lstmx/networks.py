"""Cells composed: in layers, and in both directions of time.

A network is, like a cell, a frozen dataclass with pure methods; `lstmx.scan` takes either.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstmx.cells.base import Cell, PyTree
from lstmx.scan import scan, step


class BothDirections(NamedTuple):
    """Parameters or state of a bidirectional network."""

    forward: PyTree
    backward: PyTree


@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """Two cells over the same sequence, one in each direction; their outputs side by side.

        y_t = [forward_t, backward_t]

    Resets mark first steps, in the order in which the forward cell reads: the backward cell is made fresh
    after it has consumed one, which is where, read from the other end, the sequence that it belongs to ends.

    Attributes:
      forward: the cell that reads from the first step.
      backward: the cell that reads from the last; None for one like `forward` (with its own parameters).

    Parameters and state are `BothDirections(forward, backward)`.

    Source: Schuster & Paliwal, "Bidirectional recurrent neural networks", 1997.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> net = lstmx.Bidirectional(lstmx.GRU(4))
      >>> params = net.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(net, params, jnp.ones((5, 2, 3)), lengths=jnp.array([5, 3]))
      >>> ys.shape, state.backward.shape
      ((5, 2, 8), (2, 4))
    """

    forward: Cell
    backward: Cell | None = None

    @property
    def cells(self) -> BothDirections:
        """The two cells."""
        return BothDirections(self.forward, self.backward or self.forward)

    @property
    def output_size(self) -> int:
        """The features of an output: the units of both cells."""
        return sum(cell.hidden_size for cell in self.cells)

    @property
    def dtype(self):
        """The compute type of the forward cell."""
        return self.forward.dtype

    def init(self, key: jax.Array, input_size: int) -> BothDirections:
        """Draws the parameters of both cells."""
        keys = jax.random.split(key)
        return BothDirections(*(c.init(k, input_size) for c, k in zip(self.cells, keys, strict=True)))

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> BothDirections:
        """The states of both cells before their first steps."""
        return BothDirections(*(cell.initial_state(batch_shape) for cell in self.cells))

    def scan(
        self,
        params,
        xs,
        initial_state=None,
        *,
        lengths=None,
        mask=None,
        resets=None,
        reverse=False,
        **options,
    ):
        """See `lstmx.scan`."""
        states = (None, None) if initial_state is None else initial_state

        def run(cell, params, state, flags, backward):
            return scan(
                cell, params, xs, state, lengths=lengths, mask=mask, resets=flags, reverse=backward, **options
            )

        forward, ys_forward = run(self.cells.forward, params[0], states[0], resets, reverse)
        turned = None if resets is None else _turned(jnp.asarray(resets), lengths, mask, reverse)
        backward, ys_backward = run(self.cells.backward, params[1], states[1], turned, not reverse)
        return BothDirections(forward, backward), jnp.concatenate([ys_forward, ys_backward], axis=-1)

    def step(self, params, state, x):
        """Raises TypeError: the backward cell would have to know the future."""
        raise TypeError(
            "a bidirectional network cannot be stepped: its backward cell starts from the last step"
        )


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers, each reading the outputs of the one below.

    Attributes:
      layers: cells or networks, the lowest first.
      dropout_rate: the fraction of each layer's outputs that is dropped, anew in every step, before the next
        layer (not after the last), when `scan` is given a key (Zaremba et al. 2014).

    Parameters and state are tuples, one entry a layer.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.LSTM(4)
      >>> net = lstmx.Stack((lstmx.Bidirectional(cell), cell), dropout_rate=0.5)
      >>> params = net.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(net, params, jnp.ones((5, 2, 3)), key=jax.random.key(1))
      >>> ys.shape, len(state)
      ((5, 2, 4), 2)
    """

    layers: tuple
    dropout_rate: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("a Stack needs at least one layer")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must lie in [0, 1), got {self.dropout_rate}")

    @property
    def output_size(self) -> int:
        """The features of an output: those of the last layer."""
        return output_size(self.layers[-1])

    @property
    def dtype(self):
        """The compute type of the last layer."""
        return self.layers[-1].dtype

    def init(self, key: jax.Array, input_size: int) -> tuple:
        """Draws the parameters of all layers."""
        sizes = [input_size, *map(output_size, self.layers[:-1])]
        keys = jax.random.split(key, len(self.layers))
        return tuple(layer.init(k, n) for layer, k, n in zip(self.layers, keys, sizes, strict=True))

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> tuple:
        """The states of all layers."""
        return tuple(layer.initial_state(batch_shape) for layer in self.layers)

    def scan(self, params, xs, initial_state=None, *, key=None, **options):
        """See `lstmx.scan`."""
        states = self._per_layer("state", initial_state or (None,) * len(self.layers))
        params = self._per_layer("params", params)
        last = len(self.layers) - 1
        finals = []
        for k, (layer, p, s) in enumerate(zip(self.layers, params, states, strict=True)):
            layer_key = None if key is None else jax.random.fold_in(key, 2 * k)
            final, xs = scan(layer, p, xs, s, key=layer_key, **options)
            finals.append(final)
            if key is not None and k < last:
                xs = _dropout(jax.random.fold_in(key, 2 * k + 1), xs, self.dropout_rate)
        return tuple(finals), xs

    def step(self, params, state, x):
        """See `lstmx.step`."""
        state = self._per_layer("state", state)
        finals = []
        for layer, p, s in zip(self.layers, self._per_layer("params", params), state, strict=True):
            final, x = step(layer, p, s, x)
            finals.append(final)
        return tuple(finals), x

    def _per_layer(self, name: str, entries) -> tuple:
        if len(entries) != len(self.layers):
            raise ValueError(
                f"{name} must have one entry for each of {len(self.layers)} layers, got {len(entries)}"
            )
        return tuple(entries)


def stacked(cell: Cell, num_layers: int = 1, bidirectional: bool = False, dropout_rate: float = 0.0):
    """The network that the Flax layers offer: `num_layers` equal layers, in one or both directions.

    Example:
      >>> import lstmx
      >>> lstmx.networks.stacked(lstmx.LSTM(4), num_layers=2, bidirectional=True).output_size
      8
    """
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    return Stack((Bidirectional(cell) if bidirectional else cell,) * num_layers, dropout_rate)


def output_size(layer) -> int:
    """The features of an output of a cell or network."""
    return layer.output_size if hasattr(layer, "output_size") else layer.hidden_size


def _dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    if rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def _turned(resets: jax.Array, lengths, mask, reverse: bool) -> jax.Array:
    """Resets as a reader from the other end needs them: before the last existing step of each sequence."""
    if lengths is not None:
        times = jnp.arange(resets.shape[0]).reshape((-1,) + (1,) * (resets.ndim - 1))
        mask = times < jnp.asarray(lengths)
    if reverse:
        mask = None if mask is None else jnp.flip(mask, 0)
        return jnp.flip(_turned(jnp.flip(resets, 0), None, mask, False), 0)
    if mask is None:
        return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    # Number the sequences; a step ends one if the next step that exists has another number.
    number = jnp.cumsum(resets & mask, axis=0)
    none = resets.shape[0] + 1
    ahead = jax.lax.cummin(jnp.where(mask, number, none), axis=0, reverse=True)
    ahead = jnp.concatenate([ahead[1:], jnp.full_like(ahead[:1], none)])
    return (ahead != number) & (ahead != none)
