"""A recurrent classifier of token sequences, and the contribution of each token."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import lstmx
import lstmx.nnx
from lstmx.cells.base import require_sizes
from lstmx.models.arguments import make_cell, noise_options, require_choice
from lstmx.regularizers import require_rate

POOLINGS = ("last", "max", "mean", "attention")


class SequenceClassifier(nnx.Module):
    """Embedding, stacked recurrent layers, one vector for the sequence, and a softmax over the classes.

    The vector of a sequence is computed from the outputs `y_t` of the last layer, without padding:

        last       the output after the last step; for the backward direction the one at the first step
        max, mean  the maximum, and the mean, of each feature
        attention  sum_t a_t y_t,  a = softmax over t of v . tanh(W y_t + b)

    A sequence of length 0 has a zero vector, and its logits are the bias.

    Args:
      vocabulary_size: V.
      num_classes: classes, at least 2.
      embedding_size: E.
      hidden_size: H, units of each layer and direction.
      num_layers: recurrent layers.
      bidirectional: whether each layer reads in both directions.
      cell: `"lstm"`, `"gru"` or `"elman"`.
      pooling: `"last"`, `"max"`, `"mean"` or `"attention"`.
      dropout_rate: of the outputs of each layer, and of the sequence's vector; in [0, 1).
      embedding_dropout_rate: of features of the embeddings, the same in all steps of a sequence; in [0, 1).
      word_dropout_rate: probability that a token's embedding is set to zero, in [0, 1).
      unknown: the token for unknown words, whose embedding is always zero. With word dropout the model thus
        learns to handle unknown words though all words of the training data are known.
      predicts_words: whether to add the layers that `neighbours` needs, to train as a language model first.
      dtype: compute type; None for float32.
      rngs: `params` and, for calls without `rngs`, `dropout`.

    Raises:
      ValueError: if a size or a rate is out of range, a name is unknown, there are fewer than 2 classes, or
        words would be predicted by a layer that has already read them.

    Source: the maximum over a bidirectional LSTM: Conneau et al. 2017; attention: Yang et al. 2016; training
    as a language model first: Dai & Le 2015.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstmx.models import SequenceClassifier
      >>> model = SequenceClassifier(100, 2, embedding_size=8, hidden_size=16, rngs=nnx.Rngs(0))
      >>> logits = model(jnp.ones((3, 7), int), jnp.array([7, 2, 0]))
      >>> logits.shape
      (3, 2)
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_classes: int,
        *,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = True,
        cell: Literal["lstm", "gru", "elman"] = "lstm",
        pooling: Literal["last", "max", "mean", "attention"] = "max",
        dropout_rate: float = 0.0,
        embedding_dropout_rate: float = 0.0,
        word_dropout_rate: float = 0.0,
        unknown: int | None = None,
        predicts_words: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        require_choice("pooling", pooling, POOLINGS)
        require_sizes(
            vocabulary_size=vocabulary_size,
            num_classes=num_classes,
            embedding_size=embedding_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        require_rate("embedding_dropout_rate", embedding_dropout_rate)
        require_rate("word_dropout_rate", word_dropout_rate)
        if unknown is not None and not 0 <= unknown < vocabulary_size:
            raise ValueError(f"unknown must be a token in 0..{vocabulary_size - 1}, got {unknown}")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if predicts_words and bidirectional and num_layers > 1:
            raise ValueError(
                f"predicts_words needs num_layers=1 in a bidirectional network, got {num_layers}: "
                "a second layer reads outputs that depend on the words on both sides"
            )
        self.pooling, self.bidirectional, self.hidden_size = pooling, bidirectional, hidden_size
        self.unknown = unknown
        self.embedding = nnx.Embed(vocabulary_size, embedding_size, dtype=dtype, rngs=rngs)
        network = lstmx.networks.stacked(
            make_cell(cell, hidden_size, dtype=dtype), num_layers, bidirectional, dropout_rate
        )
        self.recurrent = lstmx.nnx.Layer(network, embedding_size, rngs=rngs)
        features = hidden_size * (2 if bidirectional else 1)
        if pooling == "attention":
            self.keys = nnx.Linear(features, hidden_size, dtype=dtype, rngs=rngs)
            self.query = nnx.Linear(hidden_size, 1, use_bias=False, dtype=dtype, rngs=rngs)
        self.word_dropout = nnx.Dropout(word_dropout_rate, broadcast_dims=(-1,))
        self.embedding_dropout = nnx.Dropout(embedding_dropout_rate, broadcast_dims=(-2,))
        self.dropout = nnx.Dropout(dropout_rate)
        self.output = nnx.Linear(features, num_classes, dtype=dtype, rngs=rngs)
        if predicts_words:
            self.next_word = nnx.Linear(hidden_size, embedding_size, dtype=dtype, rngs=rngs)
            if bidirectional:
                self.previous_word = nnx.Linear(hidden_size, embedding_size, dtype=dtype, rngs=rngs)
            self.word_bias = nnx.Param(jnp.zeros(vocabulary_size))
        rates = dropout_rate, embedding_dropout_rate, word_dropout_rate
        self.rngs = nnx.data(lstmx.nnx.dropout_stream(rngs) if any(rates) else None)

    def __call__(
        self,
        tokens: jax.Array,
        lengths: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> jax.Array:
        """The logits of each sequence.

        Args:
          tokens: integers `[B, T]`; padding after the end of a sequence is ignored.
          lengths: integers `[B]`, from 0 to T.
          deterministic: True for no dropout; None for the mode that `train()` or `eval()` has set (training
            at first).
          rngs: stream `dropout`; None for the model's own.

        Returns:
          float32 `[B, C]`.
        """
        return self.from_vectors(self.vectors(tokens), lengths, deterministic=deterministic, rngs=rngs)

    def vectors(self, tokens: jax.Array) -> jax.Array:
        """The embeddings `[B, T, E]` of tokens `[B, T]`."""
        xs = self.embedding(tokens)
        return xs if self.unknown is None else jnp.where((tokens == self.unknown)[..., None], 0, xs)

    def from_vectors(
        self,
        xs: jax.Array,
        lengths: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> jax.Array:
        """The logits from embeddings `[B, T, E]` instead of tokens."""
        options = noise_options(self, deterministic, rngs)
        pooled = self._pooled(self._read(xs, lengths, **options), lengths)
        return self.output(self.dropout(pooled, **options)).astype(jnp.float32)

    def _read(self, xs: jax.Array, lengths: jax.Array, **options) -> jax.Array:
        xs = self.embedding_dropout(self.word_dropout(xs, **options), **options)
        _, ys = self.recurrent(xs, lengths=lengths, **options)
        return ys

    def neighbours(
        self,
        tokens: jax.Array,
        lengths: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What each direction predicts for the token that it reads next, for models with `predicts_words`.

        The score of token w is `v . e_w + b_w`, where e is the embedding and b is `word_bias`. Each of D
        directions makes T - 1 predictions per sequence.

        Args:
          tokens, lengths, deterministic, rngs: as of a call.

        Returns:
          (vectors, targets, exist): v, `[D B (T - 1), E]`; the tokens to predict; and bool, False for
          padding.
        """
        options = noise_options(self, deterministic, rngs)
        ys, size = self._read(self.vectors(tokens), lengths, **options), self.hidden_size
        ys = self.dropout(ys, **options)
        vectors, targets = [self.next_word(ys[:, :-1, :size])], [tokens[:, 1:]]
        if self.bidirectional:
            vectors.append(self.previous_word(ys[:, 1:, size:]))
            targets.append(tokens[:, :-1])
        exists = jnp.arange(1, tokens.shape[1]) < jnp.asarray(lengths)[:, None]
        flat = jnp.concatenate(vectors).reshape(-1, vectors[0].shape[-1])
        return flat, jnp.concatenate(targets).ravel(), jnp.tile(exists.ravel(), len(vectors))

    def attention(self, ys: jax.Array, lengths: jax.Array) -> jax.Array:
        """The attention weights `[B, T]` of the steps, with sum 1 (0 if the length is 0)."""
        scores_BT = self.query(jnp.tanh(self.keys(ys)))[..., 0].astype(jnp.float32)
        exists_BT = jnp.arange(ys.shape[1]) < jnp.asarray(lengths)[:, None]
        # A finite number, so that the gradients of a sequence without steps are zero, not NaN.
        weights_BT = jax.nn.softmax(jnp.where(exists_BT, scores_BT, -1e30), axis=1)
        return jnp.where(exists_BT, weights_BT, 0)

    def _pooled(self, ys: jax.Array, lengths: jax.Array) -> jax.Array:
        lengths = jnp.asarray(lengths)
        if self.pooling == "last":
            last = jnp.maximum(lengths - 1, 0)[:, None, None]
            end = jnp.take_along_axis(ys, last, axis=1)[:, 0]
            if not self.bidirectional:
                return end
            size = self.hidden_size
            return jnp.concatenate([end[:, :size], ys[:, 0, size:]], axis=-1)
        if self.pooling == "attention":
            return jnp.einsum("bt,bth->bh", self.attention(ys, lengths).astype(ys.dtype), ys)
        if self.pooling == "mean":
            # Padded outputs are zero.
            return ys.sum(axis=1) / jnp.maximum(lengths, 1)[:, None].astype(ys.dtype)
        exists = (jnp.arange(ys.shape[1]) < lengths[:, None])[..., None]
        largest = jnp.max(ys, axis=1, where=exists, initial=-jnp.inf)
        return jnp.where(lengths[:, None] > 0, largest, 0)


def saliency(
    model: SequenceClassifier, tokens: jax.Array, lengths: jax.Array, classes: jax.Array, *, points: int = 32
) -> jax.Array:
    """How much each token contributes to a class: integrated gradients from zero embeddings to the tokens'.

        s_t = x_t . mean over a in (0, 1) of  d l(a x) / d (a x_t)

    where l is the log-odds of the class: positive values are evidence for it, negative ones against it, and
    their sum over a sequence is `l(x) - l(0)`, up to the error of the mean over `points` values of a, without
    dropout.

    Args:
      model: the classifier.
      tokens: integers `[B, T]`.
      lengths: integers `[B]`.
      classes: integers `[B]`, the class to explain.
      points: number of values of a, at least 1; more are more accurate.

    Returns:
      float32 `[B, T]`, 0 at padding.

    Raises:
      ValueError: if points is below 1.

    Source: Sundararajan, Taly & Yan, "Axiomatic attribution for deep networks", 2017, equation 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = SequenceClassifier(100, 2, embedding_size=8, hidden_size=16, rngs=nnx.Rngs(0))
      >>> saliency(model, jnp.ones((1, 7), int), jnp.array([5]), jnp.array([1])).shape
      (1, 7)
    """
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    xs, classes = model.vectors(tokens), jnp.asarray(classes)

    def log_odds(xs):
        logp = jax.nn.log_softmax(model.from_vectors(xs, lengths, deterministic=True))
        own = jnp.take_along_axis(logp, classes[:, None], axis=1)[:, 0]
        others = jnp.where(jnp.arange(logp.shape[1]) == classes[:, None], -jnp.inf, logp)
        return jnp.sum(own - jax.nn.logsumexp(others, axis=1))

    middles = (jnp.arange(points) + 0.5) / points
    gradients = jax.lax.map(lambda a: jax.grad(log_odds)(a * xs), middles)
    return jnp.sum(xs * gradients.mean(axis=0), axis=-1).astype(jnp.float32)
