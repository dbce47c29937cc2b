"""Sequence to sequence: a bidirectional encoder and a decoder with attention."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import lstmx
import lstmx.nnx
from lstmx.cells.base import require_sizes
from lstmx.models.arguments import make_cell, noise_options, require_choice
from lstmx.models.attention import AttentionCell, AttentionState, Memory


class Seq2Seq(nnx.Module):
    """Encoder and attention decoder, as in machine translation.

    The encoder reads the source in both directions; a tanh layer computes the decoder's initial state from
    the last outputs of both directions. The decoder (`AttentionCell`) reads the target word by word and
    predicts the next word. The attention vectors have E features, so that the output layer can be the
    target's embedding.

    Dropout is applied to the embeddings, between the encoder's layers, to its outputs, and to the attention
    vectors before the output layer.

    Args:
      source_size: V of the source vocabulary.
      target_size: V of the target vocabulary.
      embedding_size: E.
      hidden_size: H, units of each decoder layer, and of an encoder layer in both directions together; even.
      encoder_layers: layers of the encoder.
      decoder_layers: layers of the decoder.
      cell: `"lstm"`, `"gru"` or `"elman"`.
      attention: the score, `"multiplicative"` or `"additive"`.
      input_feeding: whether the decoder reads its last attention vector. Without it the layers process the
        whole target first and the attention all steps at once, which is faster.
      dropout_rate: in [0, 1).
      tied: whether the output layer is the target's embedding (Press & Wolf 2017).
      shared: whether source and target share one embedding, and thus one vocabulary.
      dtype: compute type; None for float32.
      rngs: `params` and, for calls without `rngs`, `dropout`.

    Raises:
      ValueError: if a size is below 1, a name is unknown, hidden_size is odd, or the vocabularies of a shared
        embedding differ in size.

    Source: Luong, Pham & Manning, "Effective approaches to attention-based neural machine translation", 2015;
    encoder and initial state: Bahdanau, Cho & Bengio, "Neural machine translation by jointly learning to
    align and translate", 2015.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstmx.models import Seq2Seq
      >>> model = Seq2Seq(11, 13, embedding_size=4, hidden_size=8, rngs=nnx.Rngs(0))
      >>> source, before = jnp.ones((2, 5), int), jnp.ones((2, 7), int)
      >>> model(source, jnp.array([5, 3]), before).shape
      (2, 7, 13)
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        *,
        embedding_size: int,
        hidden_size: int,
        encoder_layers: int = 1,
        decoder_layers: int = 1,
        cell: Literal["lstm", "gru", "elman"] = "lstm",
        attention: Literal["multiplicative", "additive"] = "multiplicative",
        input_feeding: bool = True,
        dropout_rate: float = 0.0,
        tied: bool = True,
        shared: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        require_sizes(
            source_size=source_size,
            target_size=target_size,
            embedding_size=embedding_size,
            hidden_size=hidden_size,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
        )
        require_choice("attention", attention, ("multiplicative", "additive"))
        if hidden_size % 2:
            raise ValueError(f"hidden_size must be even, half for each direction, got {hidden_size}")
        if shared and source_size != target_size:
            raise ValueError(
                f"a shared embedding needs one vocabulary, got {source_size} and {target_size} words"
            )
        self.target_embedding = nnx.Embed(target_size, embedding_size, dtype=dtype, rngs=rngs)
        self.source_embedding = (
            nnx.data(None) if shared else nnx.Embed(source_size, embedding_size, dtype=dtype, rngs=rngs)
        )
        encoder = lstmx.networks.stacked(
            make_cell(cell, hidden_size // 2, dtype=dtype), encoder_layers, True, dropout_rate
        )
        self.encoder = lstmx.nnx.Layer(encoder, embedding_size, rngs=rngs)
        decoder = AttentionCell(
            (make_cell(cell, hidden_size, dtype=dtype),) * decoder_layers,
            vector_size=embedding_size,
            score=attention,
            input_feeding=input_feeding,
        )
        self.decoder = lstmx.nnx.Layer(decoder, embedding_size, rngs=rngs)
        sizes = [leaf.shape[-1] for leaf in jax.tree.leaves(decoder.initial_state().layers)]
        self.bridge = nnx.Linear(hidden_size, sum(sizes), dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate)
        self.tied = tied
        if tied:
            self.bias = nnx.Param(jnp.zeros(target_size))
        else:
            self.output = nnx.Linear(embedding_size, target_size, dtype=dtype, rngs=rngs)
        self.rngs = nnx.data(lstmx.nnx.dropout_stream(rngs) if dropout_rate else None)

    def __call__(
        self,
        source: jax.Array,
        lengths: jax.Array,
        before: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> jax.Array:
        """Logits of the target's words, each given the source and the preceding words (teacher forcing).

        Args:
          source: integers `[B, S]`.
          lengths: integers `[B]`, the number of words of each source; padding is not read.
          before: integers `[B, T]`: the word before each word of the target; the first is a begin-of-sequence
            token.
          deterministic: True for no dropout; None for the mode that `train()` or `eval()` has set (training
            at first).
          rngs: stream `dropout`; None for the model's own.

        Returns:
          `[B, T, V]`.
        """
        options = noise_options(self, deterministic, rngs)
        memory, state = self.encode(source, lengths, **options)
        vectors, _ = self._attended(memory, state, before, with_weights=False, **options)
        return self._logits(self.dropout(vectors, **options))

    def encode(
        self,
        source: jax.Array,
        lengths: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> tuple[Memory, AttentionState]:
        """The decoder's memory and its state before the first word; arguments as in a call."""
        options = noise_options(self, deterministic, rngs)
        embedding = self.target_embedding if self.source_embedding is None else self.source_embedding
        xs = self.dropout(embedding(source), **options)
        finals, ys = self.encoder(xs, lengths=lengths, **options)
        cell, decoder = self.encoder.network.layers[-1].cells[0], self.decoder.network
        last = jnp.concatenate([cell.output(final) for final in finals[-1]], axis=-1)
        state = decoder.initial_state(source.shape[:1])
        leaves, structure = jax.tree.flatten(state.layers)
        ends = [sum(leaf.shape[-1] for leaf in leaves[: k + 1]) for k in range(len(leaves))]
        parts = jnp.split(jnp.tanh(self.bridge(last)), ends[:-1], axis=-1)
        parts = [part.astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        memory = decoder.remember(self.decoder.parameters(), self.dropout(ys, **options), lengths=lengths)
        return memory, state._replace(layers=jax.tree.unflatten(structure, parts))

    def step(
        self, memory: Memory, state: AttentionState, words: jax.Array
    ) -> tuple[AttentionState, jax.Array]:
        """One step of decoding, of one or several targets per source.

        Args:
          memory: of `encode`, for B sources.
          state: leaves `[B, *more, ...]`.
          words: integers `[B, *more]`, the preceding words.

        Returns:
          `(state, logits)`, logits `[B, *more, V]`.
        """
        cell = self.decoder.network
        params = cell.with_memory(self.decoder.parameters(), memory)
        state, y = lstmx.step(cell, params, state, self.target_embedding(words))
        return state, self._logits(cell.vectors(y))

    def attention(self, source: jax.Array, lengths: jax.Array, before: jax.Array) -> jax.Array:
        """Attention weights `[B, T, S]` of each word of a target, without dropout; arguments as in a call."""
        memory, state = self.encode(source, lengths, deterministic=True)
        return self._attended(memory, state, before, with_weights=True, deterministic=True)[1]

    def _attended(self, memory, state, before, *, with_weights, deterministic, rngs=None):
        """Attention vectors `[B, T, E]`, and the weights if requested, otherwise possibly None."""
        cell = self.decoder.network
        params = cell.with_memory(self.decoder.parameters(), memory)
        xs = self.dropout(self.target_embedding(before), deterministic=deterministic, rngs=rngs)
        xs = xs.swapaxes(0, 1)
        if not cell.input_feeding:
            _, hs = lstmx.scan(lstmx.Stack(cell.layers), cell.stacked(params), xs, tuple(state.layers))
        elif with_weights:
            _, _, states = lstmx.scan(cell, params, xs, state, return_states=True)
            hs = cell.layers[-1].output(states.layers[-1])
        else:
            _, ys = lstmx.scan(cell, params, xs, state)
            return cell.vectors(ys).swapaxes(0, 1), None
        return cell.attend(params.update, hs.swapaxes(0, 1))

    def _logits(self, vectors: jax.Array) -> jax.Array:
        if not self.tied:
            return self.output(vectors).astype(jnp.float32)
        return self.target_embedding.attend(vectors).astype(jnp.float32) + self.bias[...]
