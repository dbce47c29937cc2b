"""Regularization: recurrent forms of dropout, zoneout, weight drop, penalties on activations.

All noise is drawn before the loop over time, from a key that the caller passes, so that every implementation
computes the same result. Without a key there is no noise, as in evaluation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from lstmx.cells import base
from lstmx.cells.base import Cell, Noise, Params, PyTree, State
from lstmx.cells.capabilities import HasCandidate, IsLinear, MasksByGate, Network, has
from lstmx.scan import scan, step

RATES = (
    "input_dropout",
    "output_dropout",
    "recurrent_dropout",
    "update_dropout",
    "hidden_zoneout",
    "cell_zoneout",
    "weight_drop",
)
_IN_LOOP = ("recurrent_dropout", "update_dropout", "hidden_zoneout", "cell_zoneout")


@dataclasses.dataclass(frozen=True)
class Regularized:
    """A cell with noise, if `lstmx.scan` is given a key.

    All rates are probabilities of being dropped (for zoneout, of keeping the old value), in [0, 1); what is
    not dropped is scaled by 1 / (1 - rate). "Locked" masks are drawn once for a sequence and used in all of
    its steps.

    Attributes:
      cell: the cell.
      input_dropout: locked, on the inputs (Gal & Ghahramani 2016).
      output_dropout: locked, on the outputs that are returned, not on those that the recurrent map reads.
      recurrent_dropout: locked, on the inputs of the recurrent map (Gal & Ghahramani 2016).
      per_gate: whether `recurrent_dropout` draws a mask for each gate, as Keras does.
      update_dropout: on the candidate (g of an LSTM, n of a GRU), so that no memory is lost (Semeniuta et al.
        2016).
      update_dropout_locked: whether that mask is locked; otherwise it is drawn again in each step.
      hidden_zoneout: the probability that a unit of h keeps its value through a step (Krueger et al. 2017).
        In evaluation h is the mean, `rate * old + (1 - rate) * new`.
      cell_zoneout: the same for c of an LSTM.
      weight_drop: on the kernels that read h, once for all steps and rows (Merity et al. 2018).
      weight_drop_rows: whether all weights into one gate of one unit are dropped together, instead of
        independently (the rows of the matrix as torch stores it).

    Parameters and state are those of the cell.

    Raises:
      ValueError: if a rate is outside [0, 1), or the cell does not support a regularizer.

    Source: Gal & Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks",
    2016; Semeniuta et al., "Recurrent dropout without memory loss", 2016; Krueger et al., "Zoneout", 2017;
    Merity et al., "Regularizing and optimizing LSTM language models", 2018.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.Regularized(lstmx.LSTM(4), recurrent_dropout=0.25, cell_zoneout=0.1)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)), key=jax.random.key(1))
      >>> ys.shape
      (5, 2, 4)
    """

    cell: Cell
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    per_gate: bool = False
    update_dropout: float = 0.0
    update_dropout_locked: bool = False
    hidden_zoneout: float = 0.0
    cell_zoneout: float = 0.0
    weight_drop: float = 0.0
    weight_drop_rows: bool = False

    def __post_init__(self):
        if has(self.cell, Network):
            raise TypeError(
                f"Regularized wraps a cell, got {type(self.cell).__name__}; wrap the cells inside of it"
            )
        for name in RATES:
            require_rate(name, getattr(self, name))
        _require_support(self)

    @property
    def hidden_size(self) -> int:
        """H of the cell."""
        return self.cell.hidden_size

    @property
    def output_size(self) -> int:
        """The features of an output."""
        return base.output_size(self.cell)

    @property
    def parts(self) -> tuple[Cell]:
        """The cell that runs in the loop."""
        return (self._in_loop,)

    @property
    def num_feature_axes(self) -> int:
        """Trailing axes of an input that belong to one element of the batch."""
        return self.cell.num_feature_axes

    @property
    def dtype(self) -> DTypeLike | None:
        """The compute type of the cell."""
        return self.cell.dtype

    @property
    def is_stochastic(self) -> bool:
        """Whether a key makes a difference."""
        return any(getattr(self, name) > 0 for name in RATES)

    def init(self, key: jax.Array, input_size: int) -> Params:
        """The parameters of the cell."""
        return self.cell.init(key, input_size)

    def input_shape(self, params: Params) -> tuple[int, ...]:
        """The feature axes of the inputs that the parameters are made for."""
        return self.cell.input_shape(params)

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> State:
        """The state of the cell before the first step."""
        return self.cell.initial_state(batch_shape)

    def start(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        """The state of the cell before the first step, learned if it is a parameter."""
        return base.start(self.cell, params, batch_shape)

    def scan(
        self,
        params: PyTree,
        xs: ArrayLike,
        initial_state: State | None = None,
        *,
        key: jax.Array | None = None,
        **options: Any,
    ) -> tuple[State, jax.Array, *tuple[PyTree, ...]]:
        """See `lstmx.scan`."""
        cell = self._in_loop
        if key is None or not self.is_stochastic:
            return scan(cell, params, xs, initial_state, **options)
        weight_key, input_key, output_key, loop_key = jax.random.split(key, 4)
        params = self._dropped_weights(weight_key, params)
        xs = jnp.asarray(xs)
        if xs.ndim > self.num_feature_axes:
            xs = locked_dropout(input_key, xs, self.input_dropout)
        final, ys, *states = scan(cell, params, xs, initial_state, key=loop_key, **options)
        return final, locked_dropout(output_key, ys, self.output_dropout), *states

    def step(self, params: PyTree, state: State, x: ArrayLike, **options: Any) -> tuple[State, jax.Array]:
        """See `lstmx.step`: one step of evaluation, zoneout as its mean."""
        return step(self._in_loop, params, state, x, **options)

    @property
    def _in_loop(self) -> "Cell":
        return _Noisy(self) if any(getattr(self, name) > 0 for name in _IN_LOOP) else self.cell

    def _dropped_weights(self, key, params):
        if self.weight_drop == 0:
            return params
        if "kernel" not in params.recurrent:
            raise ValueError(f"weight_drop: {type(self.cell).__name__} has no recurrent kernel")
        key, candidate_key = jax.random.split(key)
        recurrent = {**params.recurrent, "kernel": self._dropped(key, params.recurrent["kernel"])}
        params = params._replace(recurrent=recurrent)
        if "kernel" not in params.update:
            return params
        # Of a candidate that reads h after its reset.
        kernel = self._dropped(candidate_key, params.update["kernel"])
        return params._replace(update={**params.update, "kernel": kernel})

    def _dropped(self, key, kernel):
        shape = kernel.shape
        if self.weight_drop_rows and getattr(self.cell, "num_heads", 1) > 1:
            shape = (shape[0], 1, *shape[2:])  # [heads, in, gates, out]
        elif self.weight_drop_rows:
            shape = (1,) * (kernel.ndim - 1) + shape[-1:]  # [..., in, out]
        return kernel * _mask(key, shape, self.weight_drop, kernel.dtype)


@dataclasses.dataclass(frozen=True)
class _Noisy:
    """The cell inside the loop: the protocol of a cell, and the noise that the drivers pass to it."""

    options: Regularized

    def __getattr__(self, name: str):
        if name in ("hidden_size", "output_size", "num_feature_axes", "dtype", "param_dtype", "input_shape"):
            return getattr(self.options.cell, name)
        if name in ("init", "initial_state", "input_map", "output", "gates", "learn_initial_state"):
            return getattr(self.options.cell, name)
        raise AttributeError(name)

    def with_dtype(self, dtype: DTypeLike) -> "_Noisy":
        cell = base.with_dtype(self.options.cell, dtype)
        return _Noisy(dataclasses.replace(self.options, cell=cell))

    def noise(self, key: jax.Array, steps: int, batch_shape: tuple[int, ...]) -> Noise:
        """Draws the noise of the loop."""
        options = self.options
        cell: Any = options.cell  # with what only some cells have
        state = jax.eval_shape(lambda: cell.initial_state(batch_shape))
        y = jax.eval_shape(cell.output, state)
        recurrent_key, update_key, hidden_key, cell_key = jax.random.split(key, 4)
        locked: dict[str, jax.Array] = {}
        stepwise: dict[str, jax.Array] = {}
        if options.recurrent_dropout > 0:
            gates = (cell.num_gates_masked,) if options.per_gate else ()
            shape = (*y.shape[:-1], *gates, y.shape[-1])
            locked["recurrent"] = _mask(recurrent_key, shape, options.recurrent_dropout, y.dtype)
        if options.update_dropout > 0:
            where, time = (locked, ()) if options.update_dropout_locked else (stepwise, (steps,))
            candidate = jax.tree.leaves(state)[0]  # as wide as the candidate: c, or h
            where["candidate"] = _mask(update_key, (*time, *candidate.shape), options.update_dropout, y.dtype)
        for name, leaf_key in (("h", hidden_key), ("c", cell_key)):
            rate = _zoneout_rate(options, name)
            if rate > 0:
                shape = (steps, *_leaf(state, name).shape)
                stepwise[name] = jax.random.bernoulli(leaf_key, rate, shape)
        return Noise(locked, stepwise)

    def recurrent_map(self, params: PyTree, y: jax.Array, locked: PyTree = None) -> PyTree:
        cell: Any = self.options.cell
        mask = (locked or {}).get("recurrent")
        if mask is None:
            return cell.recurrent_map(params, y)
        mask = mask.astype(y.dtype)
        if not self.options.per_gate:
            return cell.recurrent_map(params, y * mask)
        return cell.recurrent_map_by_gate(params, [y * mask[..., n, :] for n in range(mask.shape[-2])])

    def update(self, params: PyTree, state: State, z: PyTree, r: PyTree, noise: Noise | None = None) -> State:
        drawn = {} if noise is None else {**noise.locked, **noise.stepwise}
        candidate = {"candidate_mask": drawn["candidate"]} if "candidate" in drawn else {}
        new = self.options.cell.update(params, state, z, r, **candidate)
        for name in ("h", "c"):
            rate = _zoneout_rate(self.options, name)
            if rate == 0:
                continue
            old_leaf, new_leaf = _leaf(state, name), _leaf(new, name)
            if noise is None:
                leaf = (rate * old_leaf + (1 - rate) * new_leaf).astype(new_leaf.dtype)
            else:
                leaf = jnp.where(drawn[name], old_leaf, new_leaf)
            new = leaf if _is_bare(new) else new._replace(**{name: leaf})
        return new


def locked_dropout(key: jax.Array, xs: jax.Array, rate: float) -> jax.Array:
    """Dropout with one mask for all steps of a sequence (Gal & Ghahramani 2016).

    Args:
      key: the random key.
      xs: `[T, ...]`.
      rate: the probability of being dropped, in [0, 1); the rest is scaled by 1 / (1 - rate).

    Returns:
      The same shape and type.

    Raises:
      ValueError: if the rate is outside [0, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> ys = locked_dropout(jax.random.key(0), jnp.ones((3, 1, 8)), 0.5)
      >>> bool((ys == ys[0]).all()), sorted(set(ys.ravel().tolist()))
      (True, [0.0, 2.0])
    """
    require_rate("rate", rate)
    if rate == 0:
        return xs
    dtype = xs.dtype if jnp.issubdtype(xs.dtype, jnp.floating) else jnp.float32
    return base.dropout(key, xs.astype(dtype), rate, xs.shape[1:])


def embedding_dropout(key: jax.Array, table: jax.Array, rate: float) -> jax.Array:
    """Drops whole words from an embedding table, wherever they occur (Gal & Ghahramani 2016).

    Args:
      key: the random key.
      table: `[V, D]`.
      rate: the probability that a word is dropped, in [0, 1); the others are scaled by 1 / (1 - rate).

    Returns:
      `[V, D]`, the table to use for one batch of sequences.

    Raises:
      ValueError: if the rate is outside [0, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> embedding_dropout(jax.random.key(1), jnp.ones((4, 2)), 0.5).shape
      (4, 2)
    """
    require_rate("rate", rate)
    return table if rate == 0 else table * _mask(key, (table.shape[0], 1), rate, table.dtype)


def activation_penalty(ys: jax.Array, rate: float = 2.0, mask: ArrayLike | None = None) -> jax.Array:
    """Activation regularization (AR; Merity et al. 2018): `rate * mean(y_t^2)`.

    Args:
      ys: `[T, *batch, H]`, the outputs of the last layer after dropout.
      rate: alpha of the paper.
      mask: bool `[T, *batch]`, the steps that count; None for all.

    Returns:
      A scalar, to be added to the loss.

    Example:
      >>> import jax.numpy as jnp
      >>> float(activation_penalty(2 * jnp.ones((3, 2, 4)), rate=0.5))
      2.0
    """
    return rate * _mean(ys.astype(base.carried_dtype(ys.dtype)) ** 2, mask)


def temporal_activation_penalty(ys: jax.Array, rate: float = 1.0, mask: ArrayLike | None = None) -> jax.Array:
    """Temporal activation regularization (TAR; Merity et al. 2018): `rate * mean((y_t - y_{t-1})^2)`.

    Args:
      ys: `[T, *batch, H]`, the outputs of the last layer before dropout.
      rate: beta of the paper.
      mask: bool `[T, *batch]`, the steps that exist; None for all. A pair counts if both its steps do.

    Returns:
      A scalar, to be added to the loss.

    Example:
      >>> import jax.numpy as jnp
      >>> float(temporal_activation_penalty(jnp.array([[[0.0]], [[3.0]], [[3.0]]])))
      4.5
    """
    wide = ys.astype(base.carried_dtype(ys.dtype))
    pairs = None if mask is None else jnp.asarray(mask)[1:] & jnp.asarray(mask)[:-1]
    return rate * _mean((wide[1:] - wide[:-1]) ** 2, pairs)


def require_rate(name: str, rate: float) -> None:
    """Raises ValueError unless `rate` lies in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {rate}")


def _mean(values: jax.Array, mask: ArrayLike | None) -> jax.Array:
    if mask is None:
        return jnp.sum(values) / max(values.size, 1)
    mask = jnp.asarray(mask).reshape(*values.shape[:-1], 1)
    count = jnp.maximum(jnp.sum(mask), 1) * values.shape[-1]
    return jnp.sum(jnp.where(mask, values, 0)) / count


def _mask(key, shape, rate, dtype):
    """0 with probability `rate`, else 1 / (1 - rate)."""
    return jax.random.bernoulli(key, 1 - rate, shape).astype(dtype) / jnp.asarray(1 - rate, dtype)


def _zoneout_rate(options: Regularized, name: str) -> float:
    return options.hidden_zoneout if name == "h" else options.cell_zoneout


def _is_bare(state: State) -> bool:
    return not hasattr(state, "_fields")


def _leaf(state: State, name: str) -> jax.Array:
    return state if _is_bare(state) else getattr(state, name)


_VARIANTS_OF = {
    "per_gate": "recurrent_dropout",
    "update_dropout_locked": "update_dropout",
    "weight_drop_rows": "weight_drop",
}


def _require_support(options: Regularized) -> None:
    cell = options.cell
    kind = type(cell).__name__
    state = jax.eval_shape(cell.initial_state)
    fields = getattr(state, "_fields", ("h",))
    if options.cell_zoneout > 0 and not {"c"} < set(fields) <= {"c", "h", "gates"}:
        raise ValueError(
            f"cell_zoneout={options.cell_zoneout} needs a cell c that stands for itself; the state of {kind} "
            f"is {', '.join(fields)}"
        )
    if options.update_dropout > 0 and not (has(cell, HasCandidate) and cell.has_candidate):
        raise ValueError(f"update_dropout={options.update_dropout}: {kind} has no candidate to drop")
    if options.per_gate and not (has(cell, MasksByGate) and cell.num_gates_masked):
        raise ValueError(f"per_gate=True: the gates of this {kind} cannot each read an h of their own")
    if options.recurrent_dropout > 0 and has(cell, IsLinear):
        raise ValueError(f"recurrent_dropout={options.recurrent_dropout}: {kind} has no recurrent map")
    for option, rate in _VARIANTS_OF.items():
        if getattr(options, option) and getattr(options, rate) == 0:
            raise ValueError(f"{option}=True has no effect without {rate}")
