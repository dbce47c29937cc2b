"""The softmax over a large vocabulary, estimated from a sample of its words."""

import jax
import jax.numpy as jnp


def sampled_softmax_nats(
    vectors: jax.Array,
    targets: jax.Array,
    *,
    embeddings: jax.Array,
    bias: jax.Array,
    candidates: jax.Array,
    log_probabilities: jax.Array,
) -> jax.Array:
    """Negative log-likelihoods under a softmax whose normalizer is summed over candidates only.

        -log p_n ~ -s(t_n) + log(exp s(t_n) + 1/K sum over c != t_n of exp s(c) / q_c),
        s(w) = v_n . e_w + b_w

    with K candidates c drawn from q with replacement. The sum is an unbiased estimate of the full
    softmax's; its logarithm, and thus the gradient, converge to those of the full softmax only as K grows:
    use it for training, but compare models by the full softmax.

    Args:
      vectors: v, float `[N, E]`, one per prediction.
      targets: t, integers `[N]`.
      embeddings: e, float `[V, E]`.
      bias: b, float `[V]`.
      candidates: c, integers `[K]`, the same for all predictions.
      log_probabilities: log q, float32 `[V]`.

    Returns:
      float32 `[N]`.

    Source: Bengio & Senecal, "Adaptive importance sampling to accelerate training of a neural probabilistic
    language model", 2008, section III.

    Example:
      >>> import jax.numpy as jnp
      >>> nats = sampled_softmax_nats(
      ...     jnp.zeros((2, 4)), jnp.array([1, 5]), embeddings=jnp.zeros((8, 4)), bias=jnp.zeros(8),
      ...     candidates=jnp.arange(8), log_probabilities=jnp.full(8, -jnp.log(8.0)),
      ... )
      >>> nats.round(3).tolist()  # log 8: all words are equally likely
      [2.0789999961853027, 2.0789999961853027]
    """
    embeddings, bias, log_probabilities = map(jnp.asarray, (embeddings, bias, log_probabilities))
    own = jnp.sum(vectors * embeddings[targets], axis=-1, dtype=jnp.float32) + bias[targets]
    others = jnp.matmul(vectors, embeddings[candidates].T, preferred_element_type=jnp.float32)
    others += bias[candidates] - log_probabilities[candidates] - jnp.log(len(candidates))
    # A target that was also drawn would compete with itself.
    others = jnp.where(candidates == targets[:, None], -jnp.inf, others)
    return jnp.logaddexp(own, jax.nn.logsumexp(others, axis=-1)) - own
