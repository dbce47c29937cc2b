"""Beam search for the most likely sequences of a model that predicts word by word."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstmx.cells.base import PyTree, require_sizes

Step = Callable[[PyTree, jax.Array], tuple[PyTree, jax.Array]]


class Beams(NamedTuple):
    """The sequences found for each of B rows, best first.

    Attributes:
      tokens: int32 `[B, K, T]`, `eos` included where a sequence has one, 0 after it.
      lengths: int32 `[B, K]`, including `eos`; 0 where nothing was found.
      scores: `[B, K]`, log-probabilities divided by the length penalty; -inf where nothing was found.
      finished: bool `[B, K]`, whether the sequence ends with `eos`.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    finished: jax.Array


class _Search(NamedTuple):
    position: jax.Array
    state: PyTree  # leaves [B, K, ...]
    tokens: jax.Array  # [B, K, T], of the open sequences
    log_probs: jax.Array  # [B, K]
    best: Beams  # the finished sequences


def length_penalty(length: jax.Array | float, alpha: float) -> jax.Array:
    """The divisor of the log-probability of a sequence, `((5 + length) / 6) ** alpha`.

    Source: Wu et al., "Google's neural machine translation system", 2016 (eq. 14).

    Example:
      >>> length_penalty(1, 0.6), length_penalty(7, 1.0)
      (1.0, 2.0)
    """
    return ((5 + length) / 6) ** alpha


def beam_search(
    step: Step,
    state: PyTree,
    *,
    batch_size: int,
    beam_size: int,
    max_length: int,
    bos: int,
    eos: int,
    alpha: float = 0.0,
    banned: tuple[int, ...] = (),
) -> Beams:
    """Searches for the sequences with the highest scores, for several rows at once.

    The score of a sequence is its log-probability divided by `length_penalty` of its length. In every step
    each of K open sequences of a row is continued by all words, and the K most probable continuations stay
    open; of the finished ones the K with the best scores are stored. A row is done when none of its open
    sequences can exceed the best finished one: log-probabilities only decrease, and the penalty is largest at
    `max_length`. The row does not change after that, so results do not depend on the other rows of the batch.
    Open sequences at `max_length` are discarded, unless the row has no finished one.

    `beam_size=1` without a penalty is greedy search. Everything is traced, as one `lax.while_loop`.

    Args:
      step: `(state, tokens) -> (state, logits)`: words int32 `[B, K]`, logits `[B, K, V]`, state leaves
        `[B, K, ...]`; called once.
      state: the state before the first word, leaves `[B, ...]`.
      batch_size: B.
      beam_size: K, at least 1.
      max_length: T, `eos` included, at least 1.
      bos: the word before the first.
      eos: the word that ends a sequence.
      alpha: exponent of the length penalty, at least 0; 0 for none.
      banned: words that are never chosen, such as padding.

    Returns:
      The sequences found.

    Raises:
      ValueError: if a number is out of range.

    Source: Wu et al., "Google's neural machine translation system", 2016 (section 7, without coverage).

    Example, where each word predicts the next larger one, and 3 is the last:

      >>> import jax.numpy as jnp
      >>> def step(state, tokens):
      ...     return state, 5.0 * jax.nn.one_hot(tokens + 1, 4)
      >>> beams = beam_search(step, (), batch_size=1, beam_size=2, max_length=6, bos=0, eos=3)
      >>> beams.tokens[0, 0].tolist(), int(beams.lengths[0, 0])
      ([1, 2, 3, 0, 0, 0], 3)
    """
    require_sizes(batch_size=batch_size, beam_size=beam_size, max_length=max_length)
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")

    def is_open(search: _Search) -> jax.Array:
        bound = search.log_probs.max(axis=1) / length_penalty(max_length, alpha)
        return bound > search.best.scores.max(axis=1)

    def continues(search: _Search) -> jax.Array:
        return (search.position < max_length) & jnp.any(is_open(search))

    def advance(search: _Search) -> _Search:
        at = search.position
        last = lax.dynamic_index_in_dim(search.tokens, jnp.maximum(at - 1, 0), axis=2, keepdims=False)
        state, logits = step(search.state, jnp.where(at == 0, bos, last))
        log_probs, beams, words = _continuations(search.log_probs, logits, banned)
        tokens = jnp.take_along_axis(search.tokens, beams[:, :, None], axis=1)
        tokens = lax.dynamic_update_index_in_dim(tokens, words, at, axis=2)
        ends = words == eos

        scores = jnp.where(ends, log_probs / length_penalty(at + 1.0, alpha), -jnp.inf)
        lengths = jnp.where(jnp.isfinite(scores), at + 1, 0)
        best = _merged(search.best, Beams(tokens, lengths, scores, ends & jnp.isfinite(scores)))
        best = _where(is_open(search), best, search.best)

        log_probs, indices = _top(jnp.where(ends, -jnp.inf, log_probs), beam_size)
        origins = jnp.take_along_axis(beams, indices, axis=1)
        return _Search(
            at + 1,
            jax.tree.map(lambda leaf: _rows(leaf, origins), state),
            jnp.take_along_axis(tokens, indices[:, :, None], axis=1),
            log_probs,
            best,
        )

    search = lax.while_loop(continues, advance, _initial(state, (batch_size, beam_size), max_length))
    # Only a row that reached `max_length` can have no finished sequence.
    scores = search.log_probs / length_penalty(search.position.astype(jnp.float32), alpha)
    lengths = jnp.where(jnp.isfinite(scores), search.position, 0)
    unfinished = Beams(search.tokens, lengths, scores, jnp.zeros_like(lengths, bool))
    return _where(search.best.finished.any(axis=1), search.best, unfinished)


def _initial(state: PyTree, shape: tuple[int, int], max_length: int) -> _Search:
    """The search before the first word, of shape (B, K)."""
    worst = jnp.full(shape, -jnp.inf)
    tokens = jnp.zeros((*shape, max_length), jnp.int32)
    return _Search(
        position=jnp.int32(0),
        state=jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], shape[1], axis=1), state),
        tokens=tokens,
        # Only one sequence, or all K would be the same.
        log_probs=worst.at[:, 0].set(0.0),
        best=Beams(tokens, jnp.zeros(shape, jnp.int32), worst, jnp.zeros(shape, bool)),
    )


def _continuations(log_probs: jax.Array, logits: jax.Array, banned: tuple[int, ...]):
    """The most likely one-word continuations of each row's open sequences: (log_probs, beams, words)."""
    batch_size, beam_size, vocabulary_size = logits.shape
    word_log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    for word in banned:
        word_log_probs = word_log_probs.at[..., word].set(-jnp.inf)
    totals = (log_probs[:, :, None] + word_log_probs).reshape(batch_size, -1)
    # At most K of these 2K finish a sequence, one for each beam: at least K stay open.
    log_probs, choices = lax.top_k(totals, min(2 * beam_size, totals.shape[1]))
    return log_probs, choices // vocabulary_size, (choices % vocabulary_size).astype(jnp.int32)


def _top(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of rows that may have fewer entries; missing ones are -infinity, at position 0."""
    missing = ((0, 0), (0, max(count - values.shape[1], 0)))
    best, indices = lax.top_k(values, min(count, values.shape[1]))
    return jnp.pad(best, missing, constant_values=-jnp.inf), jnp.pad(indices, missing)


def _merged(a: Beams, b: Beams) -> Beams:
    """The K best of both; ties go to the first."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), a, b)
    _, indices = lax.top_k(both.scores, a.scores.shape[1])
    return jax.tree.map(lambda leaf: _rows(leaf, indices), both)


def _where(flags: jax.Array, a: Beams, b: Beams) -> Beams:
    """Each row from `a` if its flag is True, else from `b`."""
    return jax.tree.map(lambda x, y: jnp.where(flags.reshape((-1,) + (1,) * (x.ndim - 1)), x, y), a, b)


def _rows(leaf: jax.Array, indices: jax.Array) -> jax.Array:
    """`[B, K, ...]` of `[B, N, ...]` by positions `[B, K]`."""
    return jnp.take_along_axis(leaf, indices.reshape(indices.shape + (1,) * (leaf.ndim - 2)), axis=1)
