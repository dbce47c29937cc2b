"""A recurrent cell that attends to a memory in every step: the decoder of a translation model."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import base, initializers
from lstmx.cells.base import Params

# Added to the scores of padding: the weight becomes zero in any floating type.
_NOWHERE = -1e9


class Memory(NamedTuple):
    """What the cell attends to, computed once for all steps.

    Attributes:
      keys: `[B, S, H]`.
      values: `[B, S, A]`.
      bias: `[B, S]`, 0 except for padding.
    """

    keys: jax.Array
    values: jax.Array
    bias: jax.Array


class AttentionState(NamedTuple):
    """State of an attention cell: the states of its layers, lowest first, and a_t `[*batch, A]`."""

    layers: tuple
    vector: jax.Array


@dataclasses.dataclass(frozen=True)
class AttentionCell:
    """Recurrent layers, and attention from the top layer to a memory m_1 .. m_S.

        h_t = layers([x_t, a_{t-1}], h_{t-1})       a_{t-1} only with input feeding
        e_ts = h_t . W_k m_s                        multiplicative, or
        e_ts = v . tanh(W_q h_t + W_k m_s)          additive
        w_ts = softmax_s(e_ts)
        a_t = tanh(W_h h_t + sum_s w_ts (W_m m_s + b))

    The last line is tanh(W [context; h_t] + b) of Luong et al.: like W_k, W_m is applied to the memory once
    instead of to the context in every step. Otherwise it is a cell like any other: `lstmx.scan` maps the
    inputs of all steps at once and computes the weight gradients outside of the loop.

    The memory is part of the parameters: `remember` computes it, `with_memory` inserts it.

    Attributes:
      layers: cells with one feature axis, lowest first; all of the same type.
      vector_size: A, the features of an attention vector.
      memory_size: the features of the memory; None for as many as the top layer's outputs have.
      score: `"multiplicative"` (Luong et al. 2015: general) or `"additive"` (Bahdanau et al. 2015: concat).
      input_feeding: whether the lowest layer also reads the last attention vector.

    Parameters: `input` of the lowest layer; `recurrent.layer`, `recurrent.feed`; `update.lowest`,
    `update.above` (the other layers') and `update.attention`: `keys`, `values`, `vector` and, of the additive
    score, `query` and `score`.

    The output `[*batch, H + A]` is the lowest layer's output and the attention vector, concatenated, since
    the recurrent map reads both; `vectors` extracts the latter.

    Raises:
      ValueError: if there are no layers, a size is out of range or the score is unknown.

    Source: Luong, Pham & Manning, "Effective approaches to attention-based neural machine translation", 2015
    (eq. 5, 7 and section 3.3); Bahdanau, Cho & Bengio, "Neural machine translation by jointly learning to
    align and translate", 2015.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = AttentionCell((lstmx.LSTM(8),), vector_size=4, memory_size=6)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> memory = cell.remember(params, jnp.ones((2, 5, 6)), lengths=jnp.array([5, 3]))
      >>> state, ys = lstmx.scan(cell, cell.with_memory(params, memory), jnp.ones((7, 2, 3)))
      >>> cell.vectors(ys).shape
      (7, 2, 4)
    """

    layers: tuple
    vector_size: int
    memory_size: int | None = None
    score: Literal["multiplicative", "additive"] = "multiplicative"
    input_feeding: bool = True

    num_feature_axes = 1

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("an AttentionCell needs at least one layer")
        if self.vector_size < 1:
            raise ValueError(f"vector_size must be at least 1, got {self.vector_size}")
        if self.score not in ("multiplicative", "additive"):
            raise ValueError(f'score must be "multiplicative" or "additive", got {self.score!r}')

    @property
    def hidden_size(self) -> int:
        """H of the top layer."""
        return self.layers[-1].hidden_size

    @property
    def output_size(self) -> int:
        """The features of an output."""
        return base.output_size(self.layers[0]) + self.vector_size

    @property
    def dtype(self) -> DTypeLike | None:
        """The compute type of the layers."""
        return self.layers[0].dtype

    @property
    def param_dtype(self) -> DTypeLike:
        """The stored type of the parameters."""
        return self.layers[0].param_dtype

    def with_dtype(self, dtype: DTypeLike) -> "AttentionCell":
        """The same, computing in `dtype`."""
        return dataclasses.replace(self, layers=tuple(base.with_dtype(layer, dtype) for layer in self.layers))

    def init(self, key: jax.Array, input_size: int) -> Params:
        """Draws parameters for inputs of `input_size` features."""
        base.require_sizes(input_size=input_size)
        key, *keys = jax.random.split(key, 1 + len(self.layers))
        sizes = [base.output_size(layer) for layer in self.layers]
        fed = self.vector_size if self.input_feeding else 0
        lowest = self.layers[0].init(keys[0], input_size + fed)
        above = tuple(
            layer.init(k, size) for layer, k, size in zip(self.layers[1:], keys[1:], sizes[:-1], strict=True)
        )
        kernel = lowest.input["kernel"]
        recurrent = {"layer": lowest.recurrent}
        if fed:
            recurrent["feed"] = {"kernel": initializers.changed(kernel, kernel[input_size:])}
        attention = self._attention_params(key, sizes[-1])
        return Params(
            {**lowest.input, "kernel": initializers.changed(kernel, kernel[:input_size])},
            recurrent,
            {"lowest": lowest.update, "above": above, "attention": attention},
        )

    def _attention_params(self, key, size):
        dtype, vector_size, memory_size = self.param_dtype, self.vector_size, self.memory_size or size
        keys_key, values_key, vector_key, query_key, score_key = jax.random.split(key, 5)
        params = {
            "keys": {"kernel": initializers.input_kernel(keys_key, memory_size, size, 1, dtype)},
            "values": {
                "kernel": initializers.input_kernel(values_key, memory_size, vector_size, 1, dtype),
                "bias": jnp.zeros(vector_size, dtype),
            },
            "vector": {"kernel": initializers.input_kernel(vector_key, size, vector_size, 1, dtype)},
        }
        if self.score == "additive":
            params["query"] = {"kernel": initializers.input_kernel(query_key, size, size, 1, dtype)}
            params["score"] = initializers.input_kernel(score_key, size, 1, 1, dtype)[:, 0]
        return params

    def remember(self, params: Params, xs: jax.Array, *, lengths: jax.Array | None = None) -> Memory:
        """The memory that all steps attend to.

        Args:
          params: the parameters, with or without a memory.
          xs: `[B, S, memory_size]`.
          lengths: integers `[B]`: row b has `lengths[b]` places; None for S in all rows.
        """
        attention = params.update["attention"]
        bias = jnp.zeros(xs.shape[:2], base.carried_dtype(xs.dtype))
        if lengths is not None:
            bias = jnp.where(jnp.arange(xs.shape[1]) < lengths[:, None], bias, _NOWHERE)
        return Memory(base.affine(attention["keys"], xs), base.affine(attention["values"], xs), bias)

    def with_memory(self, params: Params, memory: Memory) -> Params:
        """The parameters with a memory."""
        return params._replace(update={**params.update, "memory": memory})

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> AttentionState:
        """The state before the first step, zeros."""
        vector = jnp.zeros((*batch_shape, self.vector_size), self.dtype or self.param_dtype)
        return AttentionState(tuple(layer.initial_state(batch_shape) for layer in self.layers), vector)

    input_shape = staticmethod(base.dense_input_shape)

    def input_map(self, params: base.PyTree, x: jax.Array) -> base.PyTree:
        """The input map of the lowest layer."""
        return self.layers[0].input_map(params, x)

    def recurrent_map(self, params: base.PyTree, y: jax.Array) -> base.PyTree:
        """The lowest layer's map of its last output, and that of the last attention vector."""
        own, vector = jnp.split(y, [y.shape[-1] - self.vector_size], axis=-1)
        r = self.layers[0].recurrent_map(params["layer"], own)
        return r, base.affine(params["feed"], vector) if self.input_feeding else None

    def update(self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree) -> base.State:
        """One step of each layer, then the attention."""
        own, fed = r
        z = z if fed is None else z + fed
        states = [self.layers[0].update(params["lowest"], state.layers[0], z, own)]
        y = self.layers[0].output(states[0])
        for layer, own, before in zip(self.layers[1:], params["above"], state.layers[1:], strict=True):
            z = layer.input_map(own.input, y)
            r = layer.recurrent_map(own.recurrent, layer.output(before))
            states.append(layer.update(own.update, before, z, r))
            y = layer.output(states[-1])
        vector, _ = self.attend(params, y)
        return AttentionState(tuple(states), vector)

    def output(self, state: base.State) -> jax.Array:
        """The lowest layer's output and the attention vector, `[*batch, H + A]`."""
        return jnp.concatenate([self.layers[0].output(state.layers[0]), state.vector], axis=-1)

    def vectors(self, ys: jax.Array) -> jax.Array:
        """The attention vectors `[..., A]` of outputs `[..., H + A]`."""
        return ys[..., -self.vector_size :]

    def attend(self, update_params: dict, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attention vectors of outputs of the top layer.

        Args:
          update_params: `params.update`, with a memory.
          h: `[B, *more, H]`.

        Returns:
          `(vectors, weights)`: `[B, *more, A]` and `[B, *more, S]`.
        """
        attention, (keys, values, bias) = update_params["attention"], update_params["memory"]
        rows = h.reshape(h.shape[0], -1, h.shape[-1])
        if self.score == "multiplicative":
            scores = rows @ keys.swapaxes(1, 2)
        else:
            queries = base.affine(attention["query"], h).reshape(rows.shape)
            hidden = jnp.tanh(queries[:, :, None] + keys[:, None])
            scores = hidden @ attention["score"].astype(hidden.dtype)
        weights = jax.nn.softmax(scores.astype(bias.dtype) + bias[:, None])
        context = (weights.astype(values.dtype) @ values).reshape(*h.shape[:-1], self.vector_size)
        vectors = jnp.tanh(base.affine(attention["vector"], h) + context)
        return vectors, weights.reshape(*h.shape[:-1], -1)

    def stacked(self, params: Params) -> tuple[Params, ...]:
        """The parameters of the layers, for an `lstmx.Stack` of them; without input feeding."""
        lowest = Params(params.input, params.recurrent["layer"], params.update["lowest"])
        return (lowest, *params.update["above"])
