"""A recurrent language model (Mikolov et al. 2010), with the dropout of Zaremba et al. or of an AWD-LSTM."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import lstmx
import lstmx.nnx
from lstmx.cells.base import PyTree, require_sizes
from lstmx.models.arguments import make_cell, noise_options
from lstmx.regularizers import embedding_dropout, locked_dropout, require_rate


class LanguageModel(nnx.Module):
    """Embedding, stacked recurrent layers, and a softmax over the vocabulary.

    `dropout_rate` is applied to the embeddings, between the layers and to the last outputs, with a new mask
    in each step, never to the recurrent connection (Zaremba et al. 2014). The other rates are those of an
    AWD-LSTM (Merity et al. 2018): masks that are constant over time ("locked") at the same three places,
    words dropped from the embedding, and weights dropped from the recurrent kernels.

    Args:
      vocabulary_size: V.
      embedding_size: E.
      hidden_size: H, units of each layer.
      num_layers: recurrent layers.
      cell: `"lstm"`, `"gru"` or `"elman"`.
      dropout_rate: in [0, 1).
      tied: whether the output layer uses the embedding's matrix (Press & Wolf 2017), after a projection to E
        if E differs from the size of the last layer.
      last_hidden_size: units of the last layer; None for H.
      input_dropout: locked, on the embeddings.
      hidden_dropout: locked, between the layers.
      output_dropout: locked, on the last outputs.
      embedding_dropout: on words.
      weight_drop: on the weights that read h.
      init_scale: draws all parameters uniformly from [-init_scale, init_scale], as Zaremba et al. do; None
        for the default initializers.
      dtype: compute type; None for float32.
      rngs: `params` and, for calls without `rngs`, `dropout`.

    Raises:
      ValueError: if a size is below 1, a rate outside [0, 1), the cell unknown, `init_scale` not positive, or
        there is `hidden_dropout` with one layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstmx.models import LanguageModel
      >>> model = LanguageModel(65, embedding_size=8, hidden_size=16, rngs=nnx.Rngs(0))
      >>> state, logits = model(jnp.zeros((2, 5), int))
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
        last_hidden_size: int | None = None,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        weight_drop: float = 0.0,
        init_scale: float | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        for name, rate in {
            "input_dropout": input_dropout,
            "output_dropout": output_dropout,
            "embedding_dropout": embedding_dropout,
        }.items():
            require_rate(name, rate)
        last_size = hidden_size if last_hidden_size is None else last_hidden_size
        require_sizes(
            vocabulary_size=vocabulary_size,
            embedding_size=embedding_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            last_hidden_size=last_size,
        )
        if hidden_dropout and num_layers == 1:
            raise ValueError(
                f"hidden_dropout={hidden_dropout} has no effect with num_layers=1: it is between layers"
            )
        self.embedding = nnx.Embed(vocabulary_size, embedding_size, dtype=dtype, rngs=rngs)
        layers = []
        for at, size in enumerate([hidden_size] * (num_layers - 1) + [last_size]):
            between = hidden_dropout if at < num_layers - 1 else 0.0
            layer: Any = make_cell(cell, size, dtype=dtype)
            if between or weight_drop:
                layer = lstmx.Regularized(layer, output_dropout=between, weight_drop=weight_drop)
            layers.append(layer)
        self.recurrent = lstmx.nnx.Layer(lstmx.Stack(tuple(layers), dropout_rate), embedding_size, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate)
        self.input_dropout, self.output_dropout = input_dropout, output_dropout
        self.embedding_dropout = embedding_dropout
        self.tied = tied
        if tied:
            self.projection = (
                nnx.Linear(last_size, embedding_size, use_bias=False, dtype=dtype, rngs=rngs)
                if last_size != embedding_size
                else nnx.data(None)
            )
            self.bias = nnx.Param(jnp.zeros(vocabulary_size))
        else:
            self.output = nnx.Linear(last_size, vocabulary_size, dtype=dtype, rngs=rngs)
        if init_scale is not None:
            self._draw_uniformly(init_scale, rngs)
        self.deterministic = False
        rates = dropout_rate, input_dropout, hidden_dropout, output_dropout, embedding_dropout, weight_drop
        self.rngs = nnx.data(lstmx.nnx.dropout_stream(rngs) if any(rates) else None)

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> PyTree:
        """The recurrent state before the first token."""
        return self.recurrent.initial_state(batch_shape)

    def __call__(
        self,
        tokens: jax.Array,
        state: PyTree = None,
        *,
        resets: jax.Array | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> tuple[PyTree, jax.Array]:
        """Logits of the token that follows each token.

        Args:
          tokens: integers `[B, T]`.
          state: the state after the preceding tokens; None for the initial state.
          resets: bool `[B, T]`, True where a text begins.
          deterministic: True for no dropout; None for the mode that `train()` or `eval()` has set (training
            at first).
          rngs: stream `dropout`; None for the model's own.

        Returns:
          `(state, logits)`, logits `[B, T, V]`.
        """
        options = noise_options(self, deterministic, rngs)
        state, ys = self.hidden(tokens, state, resets=resets, **options)
        return state, self.logits(self.drop_outputs(ys, **options))

    def hidden(
        self,
        tokens: jax.Array,
        state: PyTree = None,
        *,
        resets: jax.Array | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> tuple[PyTree, jax.Array]:
        """The outputs of the last layer, before their dropout; arguments as of a call.

        Returns:
          `(state, ys)`, ys `[B, T, H]`. `logits(drop_outputs(ys))` is what a call returns.
        """
        options = noise_options(self, deterministic, rngs)
        xs = self.dropout(self._embed(tokens, **options), **options)
        xs = self._locked(xs, self.input_dropout, **options)
        return self.recurrent(xs, state, resets=resets, **options)

    def drop_outputs(
        self,
        ys: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> jax.Array:
        """Dropout of the last outputs `[B, T, H]`."""
        options = noise_options(self, deterministic, rngs)
        return self._locked(self.dropout(ys, **options), self.output_dropout, **options)

    def logits(self, ys: jax.Array) -> jax.Array:
        """Logits `[..., V]`, float32, of outputs `[..., H]`."""
        if not self.tied:
            return self.output(ys).astype(jnp.float32)
        if self.projection is not None:
            ys = self.projection(ys)
        return self.embedding.attend(ys).astype(jnp.float32) + self.bias[...]

    def step(self, state: PyTree, tokens: jax.Array) -> tuple[PyTree, jax.Array]:
        """One token at a time: tokens `[*batch]`, logits `[*batch, V]`."""
        state, y = self.recurrent.step(state, self.embedding(tokens))
        return state, self.logits(y)

    def _is_off(self, rate, deterministic) -> bool:
        return rate == 0 or (self.deterministic if deterministic is None else deterministic)

    def _embed(self, tokens, *, deterministic, rngs):
        if self._is_off(self.embedding_dropout, deterministic):
            return self.embedding(tokens)
        table = self.embedding.embedding[...]
        table = embedding_dropout(lstmx.nnx.dropout_key(rngs), table, self.embedding_dropout)
        return jnp.take(table.astype(self.embedding.dtype or table.dtype), tokens, axis=0)

    def _locked(self, xs, rate, *, deterministic, rngs):
        if self._is_off(rate, deterministic):
            return xs
        # One mask for all steps of a row: `locked_dropout` reads the time first.
        mask_key = lstmx.nnx.dropout_key(rngs)
        return jnp.moveaxis(locked_dropout(mask_key, jnp.moveaxis(xs, 1, 0), rate), 0, 1)

    def _draw_uniformly(self, scale: float, rngs: nnx.Rngs) -> None:
        if not scale > 0:
            raise ValueError(f"init_scale must be positive, got {scale}")
        state = nnx.state(self, nnx.Param)
        draw = lambda leaf: jax.random.uniform(  # noqa: E731
            rngs.params(), leaf.shape, leaf.dtype, -scale, scale
        )
        nnx.update(self, jax.tree.map(draw, state))
