"""A cache of recent tokens, mixed into a model's predictions (Grave et al. 2017)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class CacheMemory(NamedTuple):
    """The most recent tokens, each with the output that predicted it.

    Attributes:
      hidden: `[B, S, H]`, oldest first.
      targets: int32 `[B, S]`; -1 where there is none yet.
    """

    hidden: jax.Array
    targets: jax.Array


def empty_cache(batch_size: int, size: int, hidden_size: int) -> CacheMemory:
    """The memory of a cache before the first token.

    Args:
      batch_size: B.
      size: S, the number of tokens it holds.
      hidden_size: H.

    Raises:
      ValueError: if size is below 1.

    Example:
      >>> empty_cache(2, 3, 4).targets.tolist()
      [[-1, -1, -1], [-1, -1, -1]]
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    hidden = jnp.zeros((batch_size, size, hidden_size))
    return CacheMemory(hidden, jnp.full((batch_size, size), -1, jnp.int32))


def cached_nats(
    memory: CacheMemory,
    hidden: jax.Array,
    targets: jax.Array,
    nats: jax.Array,
    *,
    theta: float,
    weight: float,
) -> tuple[CacheMemory, jax.Array]:
    """Negative log-likelihoods of tokens under a model with a cache.

        p_cache(w | h_t) ~ sum over the S tokens x_{i+1} before of [w = x_{i+1}] exp(theta h_t . h_i)
        p(w) = (1 - weight) p_model(w) + weight p_cache(w)

    At the very first token, when the cache is empty, p is p_model.

    Args:
      memory: of the preceding tokens.
      hidden: `[B, T, H]`, the model's last outputs, `LanguageModel.hidden`.
      targets: integers `[B, T]`, the tokens they predict; -1 where there is none.
      nats: `[B, T]`, their negative log-likelihoods under the model.
      theta: the sharpness of the similarity.
      weight: lambda of the paper, in [0, 1).

    Returns:
      `(memory, nats)`: the memory after these tokens, and the negative log-likelihoods `[B, T]`.

    Raises:
      ValueError: if weight is out of range.

    Source: Grave, Joulin and Usunier, "Improving neural language models with a continuous cache", 2017.

    Example:
      >>> import jax.numpy as jnp
      >>> hidden, targets = jnp.ones((1, 4, 2)), jnp.array([[7, 7, 7, 8]])
      >>> model_nats = jnp.full((1, 4), 2.0)
      >>> _, nats = cached_nats(empty_cache(1, 10, 2), hidden, targets, model_nats, theta=1.0, weight=0.5)
      >>> print(nats.round(2))  # the first 7 is new, the next two are cached, 8 is new
      [[2.   0.57 0.57 2.69]]
    """
    if not 0 <= weight < 1:
        raise ValueError(f"weight must lie in [0, 1), got {weight}")
    size, count = memory.targets.shape[1], targets.shape[1]
    keys_BKH = jnp.concatenate([memory.hidden, hidden.astype(memory.hidden.dtype)], axis=1)
    words_BK = jnp.concatenate([memory.targets, targets.astype(jnp.int32)], axis=1)
    scores_BTK = theta * jnp.einsum("bth,bkh->btk", keys_BKH[:, size:], keys_BKH)
    # Token t, the key at size + t, reads the `size` keys before it.
    distance = size + jnp.arange(count)[:, None] - jnp.arange(size + count)
    within = (distance >= 1) & (distance <= size) & (words_BK >= 0)[:, None, :]
    same = within & (words_BK[:, None, :] == targets[:, :, None])
    total = jax.nn.logsumexp(scores_BTK, axis=-1, where=within)
    matching = jax.nn.logsumexp(scores_BTK, axis=-1, where=same)
    in_cache = jnp.where(same.any(-1), matching - total, -jnp.inf)
    mixed = -jnp.logaddexp(jnp.log1p(-weight) - nats, jnp.log(weight) + in_cache)
    nats = jnp.where(within.any(-1), mixed, nats)
    return CacheMemory(keys_BKH[:, count:], words_BK[:, count:]), nats
