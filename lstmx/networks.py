"""Cells composed: in layers, and in both directions of time.

A network is, like a cell, a frozen dataclass with pure methods; `lstmx.scan` takes either.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, NoReturn, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from lstmx.cells import base
from lstmx.cells.base import Cell, Params, PyTree, State, output_size
from lstmx.cells.capabilities import IsStochastic, Network, has
from lstmx.implementations import choice
from lstmx.scan import scan, step

Connections = Literal["plain", "residual", "dense"]


class BothDirections(NamedTuple):
    """Parameters or state of a bidirectional network."""

    forward: PyTree
    backward: PyTree


@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """Two cells over the same sequence, one in each direction.

        y_t = merge(forward_t, backward_t)

    Resets mark the first steps of sequences, in the order in which the forward cell reads them. The backward
    cell is reset after it has read such a step, since there it reaches the end of a sequence.

    Attributes:
      forward: the cell that reads from the first step.
      backward: the cell that reads from the last; None for one like `forward` (with its own parameters).
      merge: how outputs become one: `"concat"` (side by side), `"sum"`, `"mul"`, `"average"`, or None for
        both, as a pair.

    Parameters and state are `BothDirections(forward, backward)`.

    Raises:
      ValueError: if there is no such merge, or it needs outputs of one size and they differ.

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
    merge: Literal["concat", "sum", "mul", "average"] | None = "concat"

    def __post_init__(self):
        if self.merge is not None and self.merge not in _MERGES:
            raise ValueError(f"merge must be None or one of {sorted(_MERGES)}, got {self.merge!r}")
        sizes = [output_size(cell) for cell in self.cells]
        if self.merge in ("sum", "mul", "average") and sizes[0] != sizes[1]:
            raise ValueError(f"merge={self.merge!r} needs outputs of one size, got {sizes[0]} and {sizes[1]}")

    @property
    def cells(self) -> BothDirections:
        """The two cells."""
        return BothDirections(self.forward, self.backward or self.forward)

    @property
    def parts(self) -> tuple:
        """The two cells."""
        return self.cells

    @property
    def output_size(self) -> int:
        """The features of an output (of either, if they are not merged)."""
        sizes = [output_size(cell) for cell in self.cells]
        return sum(sizes) if self.merge == "concat" else sizes[0]

    @property
    def num_feature_axes(self) -> int:
        """Trailing axes of an input that belong to one element of the batch."""
        return self.forward.num_feature_axes

    @property
    def dtype(self) -> DTypeLike | None:
        """The compute type of the forward cell."""
        return self.forward.dtype

    @property
    def is_stochastic(self) -> bool:
        """Whether a key makes a difference."""
        return any(map(is_stochastic, self.cells))

    def init(self, key: jax.Array, input_size: int) -> BothDirections:
        """Draws the parameters of both cells."""
        keys = jax.random.split(key)
        return BothDirections(*(c.init(k, input_size) for c, k in zip(self.cells, keys, strict=True)))

    def input_shape(self, params: BothDirections) -> tuple[int, ...]:
        """The feature axes of an input."""
        return self.forward.input_shape(entries(self, "params", params)[0])

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> BothDirections:
        """The states of both cells before their first steps."""
        return BothDirections(*(cell.initial_state(batch_shape) for cell in self.cells))

    def start(self, params: BothDirections, batch_shape: tuple[int, ...] = ()) -> BothDirections:
        """The states before the first steps, learned where they are."""
        pairs = zip(self.cells, entries(self, "params", params), strict=True)
        return BothDirections(*(start(cell, p, batch_shape) for cell, p in pairs))

    def scan(
        self, params: PyTree, xs: ArrayLike, initial_state: State | None = None, *,
        lengths: ArrayLike | None = None, mask: ArrayLike | None = None, resets: ArrayLike | None = None,
        reverse: bool = False, key: jax.Array | None = None, **options: Any,
    ) -> tuple[State, Any, *tuple[PyTree, ...]]:  # fmt: skip
        """See `lstmx.scan`."""
        flags = {"lengths": lengths, "mask": mask, "resets": resets}
        whole = _in_one_call(self, params, xs, initial_state, key, **flags, reverse=reverse, **options)
        if whole is not None:
            return whole
        params = entries(self, "params", params)
        states = (None, None) if initial_state is None else entries(self, "state", initial_state)
        keys = (None, None) if key is None else jax.random.split(key)

        def run(k, flags, backward):
            return scan(
                self.cells[k], params[k], xs, states[k], lengths=lengths, mask=mask, resets=flags,
                reverse=backward, key=keys[k], **options,
            )  # fmt: skip

        forward = run(0, resets, reverse)  # checks the flags
        of_backward = (
            None if resets is None else _resets_of_backward_cell(jnp.asarray(resets), lengths, mask, reverse)
        )
        runs = forward, run(1, of_backward, not reverse)
        finals, ys, *more = map(BothDirections._make, zip(*runs, strict=True))
        return finals, ys if self.merge is None else _MERGES[self.merge](*ys), *more

    def step(self, params: PyTree, state: State, x: ArrayLike, **options: Any) -> NoReturn:
        """Raises TypeError: the backward cell would have to know the future."""
        raise TypeError(
            "a bidirectional network cannot be stepped: its backward cell starts from the last step"
        )


_MERGES = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    "sum": lambda forward, backward: forward + backward,
    "mul": lambda forward, backward: forward * backward,
    "average": lambda forward, backward: (forward + backward) / 2,
}


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers, each reading the outputs of the one below.

    Attributes:
      layers: cells or networks, the lowest first; they may differ.
      dropout_rate: the probability with which each output of a layer is dropped, independently in every step,
        before the next layer (not after the last), if `scan` is given a key (Zaremba et al. 2014). Without
        effect in a stack of one layer, as in torch.
      connections: `"plain"`; `"residual"`: each layer but the lowest adds what it reads to its outputs (He et
        al. 2016; Wu et al. 2016), all layers then have one output size; or `"dense"`: each layer reads the
        inputs and the outputs of all layers below, side by side, and the outputs are those of all layers
        (Graves 2013; Huang et al. 2017).

    Parameters and state are tuples, one entry a layer.

    Raises:
      ValueError: if there are no layers, a rate or a name is wrong, or the sizes do not fit the connections.

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
    connections: Connections = "plain"

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("a Stack needs at least one layer")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must lie in [0, 1), got {self.dropout_rate}")
        if self.connections not in ("plain", "residual", "dense"):
            raise ValueError(f'connections must be "plain", "residual" or "dense", got {self.connections!r}')
        if any(isinstance(layer, Bidirectional) and layer.merge is None for layer in self.layers):
            raise ValueError("a Bidirectional with merge=None gives two outputs: it cannot be a layer")
        sizes = list(map(output_size, self.layers))
        if self.connections == "residual" and len(set(sizes)) > 1:
            raise ValueError(f"residual connections need layers of one output size, got {sizes}")

    @property
    def parts(self) -> tuple:
        """The layers."""
        return self.layers

    @property
    def output_size(self) -> int:
        """The features of an output: those of the last layer, or with dense connections of all."""
        sizes = list(map(output_size, self.layers))
        return sum(sizes) if self.connections == "dense" else sizes[-1]

    @property
    def num_feature_axes(self) -> int:
        """Trailing axes of an input that belong to one element of the batch."""
        return self.layers[0].num_feature_axes

    @property
    def dtype(self) -> DTypeLike | None:
        """The compute type of the last layer."""
        return self.layers[-1].dtype

    @property
    def is_stochastic(self) -> bool:
        """Whether a key makes a difference."""
        return (self.dropout_rate > 0 and len(self.layers) > 1) or any(map(is_stochastic, self.layers))

    def init(self, key: jax.Array, input_size: int) -> tuple:
        """Draws the parameters of all layers."""
        sizes = [input_size, *map(output_size, self.layers[:-1])]
        if self.connections == "dense":
            sizes = [sum(sizes[: k + 1]) for k in range(len(sizes))]
        keys = jax.random.split(key, len(self.layers))
        return tuple(layer.init(k, n) for layer, k, n in zip(self.layers, keys, sizes, strict=True))

    def input_shape(self, params: tuple) -> tuple[int, ...]:
        """The feature axes of an input."""
        return self.layers[0].input_shape(entries(self, "params", params)[0])

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> tuple:
        """The states of all layers."""
        return tuple(layer.initial_state(batch_shape) for layer in self.layers)

    def start(self, params: tuple, batch_shape: tuple[int, ...] = ()) -> tuple:
        """The states before the first steps, learned where they are."""
        pairs = zip(self.layers, entries(self, "params", params), strict=True)
        return tuple(start(layer, p, batch_shape) for layer, p in pairs)

    def scan(
        self, params: PyTree, xs: ArrayLike, initial_state: State | None = None, *,
        key: jax.Array | None = None, **options: Any,
    ) -> tuple[State, jax.Array, *tuple[PyTree, ...]]:  # fmt: skip
        """See `lstmx.scan`."""
        whole = _in_one_call(self, params, xs, initial_state, key, **options)
        if whole is not None:
            return whole

        def run(k, layer, p, state, inputs):
            layer_key = None if key is None else jax.random.fold_in(key, 2 * k)
            if key is not None and k > 0:
                inputs = base.dropout(jax.random.fold_in(key, 2 * k - 1), inputs, self.dropout_rate)
            return scan(layer, p, inputs, state, key=layer_key, **options)

        return self._through_layers(run, params, initial_state, xs)

    def step(self, params: PyTree, state: State, x: ArrayLike, **options: Any) -> tuple[State, jax.Array]:
        """See `lstmx.step`."""

        def run(k, layer, p, state, inputs):
            return step(layer, p, state, inputs, **options)

        return self._through_layers(run, params, state, x)

    def _through_layers(self, run, params, states, x):
        """Calls `run(k, layer, params, state, inputs)` of each layer; the results of all, connected."""
        params = entries(self, "params", params)
        states = (None,) * len(self.layers) if states is None else entries(self, "state", states)
        x = jnp.asarray(x)
        outputs, others = [], []
        for k, (layer, p, state) in enumerate(zip(self.layers, params, states, strict=True)):
            inputs = outputs[-1] if outputs else x
            if self.connections == "dense":
                inputs = jnp.concatenate([x, *outputs], axis=-1)
            final, y, *more = run(k, layer, p, state, inputs)
            outputs.append(inputs + y if self.connections == "residual" and k > 0 else y)
            others.append((final, *more))
        y = jnp.concatenate(outputs, axis=-1) if self.connections == "dense" else outputs[-1]
        finals, *more = zip(*others, strict=True)
        return finals, y, *more


def stacked(
    cell: Cell,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout_rate: float = 0.0,
    connections: Connections = "plain",
) -> Stack:
    """The network that the Flax layers offer: `num_layers` equal layers, in one or both directions.

    Example:
      >>> import lstmx
      >>> lstmx.networks.stacked(lstmx.LSTM(4), num_layers=2, bidirectional=True).output_size
      8
    """
    base.require_sizes(num_layers=num_layers)
    layer = Bidirectional(cell) if bidirectional else cell
    return Stack((layer,) * num_layers, dropout_rate, connections)


def start(network: Cell | Network, params: PyTree, batch_shape: tuple[int, ...] = ()) -> State:
    """The state before the first step: learnt where the parameters have one, else `initial_state`.

    Args:
      network: a cell or network.
      params: its parameters.
      batch_shape: the batch axes.

    Example:
      >>> import jax, lstmx
      >>> cell = lstmx.GRU(4, learn_initial_state=True)
      >>> lstmx.networks.start(cell, cell.init(jax.random.key(0), 3), (2,)).shape
      (2, 4)
    """
    if has(network, Network):
        return network.start(params, batch_shape)
    return base.start(cast(Cell, network), params, batch_shape)


def is_stochastic(network: Cell | Network) -> bool:
    """Whether a cell or network computes something else when `scan` is given a key.

    Example:
      >>> import lstmx
      >>> is_stochastic(lstmx.LSTM(4)), is_stochastic(lstmx.Stack((lstmx.LSTM(4),) * 2, dropout_rate=0.1))
      (False, True)
    """
    return has(network, IsStochastic) and network.is_stochastic


def entries(network: Bidirectional | Stack, name: str, tree: PyTree) -> tuple:
    """The parameters or states of the parts of a network.

    Args:
      network: the network.
      name: "params" or "state", for messages.
      tree: a tuple or list with one entry for each part.

    Raises:
      TypeError: if it is anything else, as what a file gives without its structure.
      ValueError: if there are more or fewer entries.

    Example:
      >>> import lstmx
      >>> entries(lstmx.Stack((lstmx.GRU(2), lstmx.GRU(2))), "params", {"0": None, "1": None})
      Traceback (most recent call last):
      TypeError: params must be a tuple with one entry for each of 2 layers, got a dict of '0', '1'; orbax ...
    """
    parts = "directions" if isinstance(network, Bidirectional) else "layers"
    count = len(network.parts)
    if not isinstance(tree, tuple | list):
        advice = base.HOW_TO_RESTORE if name == "params" else "the arguments may be in another order"
        raise TypeError(
            f"{name} must be a tuple with one entry for each of {count} {parts}, got "
            f"{base.described(tree)}; {advice}"
        )
    if len(tree) != count:
        raise ValueError(f"{name} must have one entry for each of {count} {parts}, got {len(tree)}")
    return tuple(tree)


def _in_one_call(
    network, params, xs, initial_state, key, *, implementation=None, lengths=None, reverse=False, remat=None,
    unroll=None, **others,
):  # fmt: skip
    """`scan` by an implementation that runs all layers in one call; None if they must be run one by one.

    Running them one by one may still be refused, with the reason.
    """
    layers = _cells_by_layer(network)
    if layers is None or (key is not None and network.is_stochastic):
        return None
    if any(value is not None and value is not False for value in others.values()):
        return None
    xs = jnp.asarray(xs)
    for name, whole in choice.in_one_call(layers, implementation):
        whole = base.resolved(whole, params, xs)
        if choice.refusal(choice.Job(whole, xs, remat, choice.platform()), name) is not None:
            continue
        own, states = _per_cell(network, params), _per_cell(network, initial_state)
        if not len(own) == len(states) == len(whole.all_cells):
            continue
        batch, cells = xs.shape[1:-1], zip(whole.all_cells, own, states, strict=True)
        state = whole.joined([start(cell, p, batch) if s is None else s for cell, p, s in cells], batch)
        if state is None:
            continue
        options = {"lengths": lengths, "reverse": reverse, "remat": remat, "unroll": unroll}
        final, ys = scan(whole, Params(tuple(own), ()), xs, state, implementation=name, **options)
        leaves = jax.tree.leaves(whole.parted(final))
        return jax.tree.unflatten(jax.tree.structure(network.initial_state()), leaves), ys
    return None


def _cells_by_layer(network) -> tuple | None:
    """The cells of each layer, one for each direction; None if the layers are connected in other ways."""
    if isinstance(network, Stack):
        layers = [_cells_by_layer(layer) for layer in network.layers]
        if network.connections != "plain" or None in layers:
            return None
        return tuple(cells for layer in layers if layer is not None for cells in layer)
    if isinstance(network, Bidirectional):
        return (tuple(network.cells),) if network.merge == "concat" else None
    return ((network,),)


def _per_cell(network, entries: PyTree) -> list:
    """Parameters or states, None where there is none, of the cells in the order of their layers."""
    if not has(network, Network):
        return [entries]
    parts = network.parts
    entries = (None,) * len(parts) if entries is None else entries
    # Missing or surplus entries are reported when the layers are run one by one.
    pairs = zip(parts, entries, strict=False)
    return [one for part, entry in pairs for one in _per_cell(part, entry)] + list(entries[len(parts) :])


def _resets_of_backward_cell(resets: jax.Array, lengths, mask, reverse: bool) -> jax.Array:
    """Resets for the backward cell: at the last existing step of each sequence."""
    if lengths is not None:
        times = jnp.arange(resets.shape[0]).reshape((-1,) + (1,) * (resets.ndim - 1))
        mask = times < jnp.asarray(lengths)
    if reverse:
        mask = None if mask is None else jnp.flip(mask, 0)
        return jnp.flip(_resets_of_backward_cell(jnp.flip(resets, 0), None, mask, False), 0)
    if mask is None:
        return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    # Number the sequences; a step ends one if the next step that exists has another number.
    number = jnp.cumsum(resets & mask, axis=0)
    none = resets.shape[0] + 1
    ahead = jax.lax.cummin(jnp.where(mask, number, none), axis=0, reverse=True)
    ahead = jnp.concatenate([ahead[1:], jnp.full_like(ahead[:1], none)])
    return (ahead != number) & (ahead != none)
