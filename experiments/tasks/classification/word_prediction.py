"""Pretraining of a classifier's network as a language model (Dai & Le 2015)."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstmx.models import SequenceClassifier, sampled_softmax_nats


class WordPrediction:
    """Each direction of the network learns to predict the token it reads next, among a few candidates.

    Args:
      texts: the training texts as ids.
      vocabulary_size: V.
      candidates: number of tokens that compete with each, drawn for each step by their frequency.
      seed: seed of the draws.
    """

    def __init__(self, texts: Sequence[np.ndarray], vocabulary_size: int, candidates: int, seed: int):
        counts = np.bincount(np.concatenate(texts), minlength=vocabulary_size)
        # Every token can be drawn, whatever its count.
        shares = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
        self._log_probabilities = np.log(shares).astype(np.float32)
        self._reached, self._candidates, self._seed = np.cumsum(shares), candidates, seed

    def batch(self, step: int, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch for token prediction, made of a batch of texts and labels."""
        drawn = np.random.default_rng([self._seed, step]).random(self._candidates)
        candidates = np.minimum(np.searchsorted(self._reached, drawn), len(self._reached) - 1)
        return {
            "tokens": batch["tokens"],
            "lengths": batch["lengths"],
            "candidates": candidates.astype(np.int32),
        }

    def nats(self, model: SequenceClassifier, batch: Mapping[str, jax.Array], rngs: nnx.Rngs) -> jax.Array:
        """Mean negative log-likelihood of a token, estimated by the sampled softmax."""
        vectors, targets, exist = model.neighbours(
            batch["tokens"], batch["lengths"], deterministic=False, rngs=rngs
        )
        nats = sampled_softmax_nats(
            vectors,
            targets,
            embeddings=model.embedding.embedding[...],
            bias=model.word_bias[...],
            candidates=batch["candidates"],
            log_probabilities=jnp.asarray(self._log_probabilities),
        )
        return jnp.sum(nats, where=exist) / jnp.maximum(exist.sum(), 1)
