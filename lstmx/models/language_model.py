"""A recurrent language model (Mikolov et al. 2010; dropout as in Zaremba et al. 2014)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

import lstmx
import lstmx.nnx
from lstmx.cells.base import PyTree

CELLS = {"lstm": lstmx.LSTM, "gru": lstmx.GRU, "elman": lstmx.Elman}


class LanguageModel(nnx.Module):
    """Embedding, stacked recurrent layers, and a softmax over the vocabulary.

    Dropout is applied to the embeddings, between the layers and to the last outputs, never to the recurrent
    connection.

    Args:
      vocabulary_size: V.
      embedding_size: E.
      hidden_size: H, units of each layer.
      num_layers: recurrent layers.
      cell: `"lstm"`, `"gru"` or `"elman"`.
      dropout_rate: in [0, 1).
      tied: whether the output uses the embedding's matrix (Press & Wolf 2017); if E differs from H, through a
        projection from H to E.
      dtype: compute type; None for float32.
      rngs: `params`; dropout draws from the stream given to the call, so that a step's randomness is its own.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstmx.models import LanguageModel
      >>> model = LanguageModel(65, embedding_size=8, hidden_size=16, rngs=nnx.Rngs(0))
      >>> state, logits = model(jnp.zeros((2, 5), int), deterministic=True)
      >>> logits.shape
      (2, 5, 65)
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: Literal["lstm", "gru", "elman"] = "lstm",
        dropout_rate: float = 0.0,
        tied: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.embedding = nnx.Embed(vocabulary_size, embedding_size, dtype=dtype, rngs=rngs)
        network = lstmx.networks.stacked(
            CELLS[cell](hidden_size, dtype=dtype), num_layers, False, dropout_rate
        )
        self.recurrent = lstmx.nnx.Layer(network, embedding_size, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate)
        self.tied = tied
        if tied:
            self.projection = (
                nnx.Linear(hidden_size, embedding_size, use_bias=False, dtype=dtype, rngs=rngs)
                if hidden_size != embedding_size
                else nnx.data(None)
            )
            self.bias = nnx.Param(jnp.zeros(vocabulary_size))
        else:
            self.output = nnx.Linear(hidden_size, vocabulary_size, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> PyTree:
        """The recurrent state before the first token."""
        return self.recurrent.initial_state(batch_shape)

    def __call__(
        self,
        tokens: jax.Array,
        state: PyTree = None,
        *,
        resets: jax.Array | None = None,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[PyTree, jax.Array]:
        """Logits of the token after each one.

        Args:
          tokens: integers `[B, T]`.
          state: the state after the tokens before, None for none.
          resets: bool `[B, T]`, True where a text begins.
          deterministic: True for no dropout.
          rngs: stream `dropout`.

        Returns:
          `(state, logits)`, logits `[B, T, V]`.
        """
        options = {"deterministic": deterministic, "rngs": rngs}
        xs = self.dropout(self.embedding(tokens), **options)
        state, ys = self.recurrent(xs, state, resets=resets, **options)
        return state, self._logits(self.dropout(ys, **options))

    def step(self, state: PyTree, tokens: jax.Array) -> tuple[PyTree, jax.Array]:
        """One token at a time: tokens `[*batch]`, logits `[*batch, V]`."""
        state, y = self.recurrent.step(state, self.embedding(tokens))
        return state, self._logits(y)

    def _logits(self, ys: jax.Array) -> jax.Array:
        if not self.tied:
            return self.output(ys).astype(jnp.float32)
        if self.projection is not None:
            ys = self.projection(ys)
        return self.embedding.attend(ys).astype(jnp.float32) + self.bias[...]
