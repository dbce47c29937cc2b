"""Language models that adapt to the text they are evaluated on: a neural cache, and dynamic evaluation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.language_model.task import LanguageModelTask
from lstmx.data import ContiguousStreams, EvaluationStreams
from lstmx.models import adapter, cached_nats, empty_cache, gradient_scale


def evaluate_with_cache(
    task: LanguageModelTask, params, tokens: np.ndarray, *, size: int, theta: float, weight: float
) -> dict[str, float]:
    """Evaluates a text as one stream, with a cache; see `lstmx.models.cached_nats`.

    Args:
      task: the task.
      params: its parameters.
      tokens: the ids of the text.
      size: tokens that the cache holds.
      theta: weight of the similarity of states.
      weight: the share of the cache in a prediction.

    Returns:
      The metrics of the task.
    """

    @jax.jit
    def run(params, carry, memory, batch):
        nats, carry, ys, _ = task.read(params, carry, batch)
        targets = jnp.where(batch["mask"], batch["targets"], -1)
        memory, nats = cached_nats(memory, ys, targets, nats, theta=theta, weight=weight)
        return carry, memory, jnp.sum(nats * batch["mask"])

    streams = EvaluationStreams(tokens, batch_size=1, window=128)
    model = task.model(params)
    carry = model.initial_state((1,))
    memory = empty_cache(1, size, model.recurrent.network.output_size)
    total = 0.0
    for batch in streams:
        carry, memory, nats = run(params, carry, memory, batch)
        total += float(nats)
    return task.summary(total / (tokens.size - 1))


def evaluate_dynamically(
    task: LanguageModelTask,
    params,
    tokens: np.ndarray,
    *,
    segment: int = 5,
    rate: float = 0.002,
    decay: float = 0.02,
    epsilon: float = 1e-3,
    statistics_batches: int | None = None,
) -> dict[str, float]:
    """Evaluates a text as one stream, the parameters adapting to it; see `lstmx.models.adapter`.

    Args:
      task: the task, with its training text: the update is scaled by the gradients there.
      params: the parameters after training; they are not changed.
      tokens: the ids of the text.
      segment: tokens that are predicted, then learnt from.
      rate: the learning rate.
      decay: how fast the parameters return to the given ones.
      epsilon: avoids division by a small scale.
      statistics_batches: number of training batches that the scale is measured on; None for one epoch.

    Returns:
      The metrics of the task.

    Raises:
      ValueError: if a number is out of range.
    """
    params = jax.tree.map(jnp.asarray, params)
    scale = gradient_scale(_training_gradients(task, params, segment, statistics_batches))
    update = adapter(params, scale, rate=rate, decay=decay, epsilon=epsilon)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(current, carry, batch):
        (_, (carry, nats)), gradient = jax.value_and_grad(_segment_loss(task), has_aux=True)(
            current, carry, batch
        )
        return update(current, gradient), carry, nats

    streams = EvaluationStreams(tokens, batch_size=1, window=segment)
    carry = task.model(params).initial_state((1,))
    current, totals = jax.tree.map(jnp.copy, params), []
    for batch in streams:
        current, carry, nats = run(current, carry, batch)
        totals.append(nats)
    return task.summary(float(np.sum(np.asarray(totals, np.float64))) / (tokens.size - 1))


def _training_gradients(task: LanguageModelTask, params, segment: int, batches: int | None):
    """The gradients of segments of the training text, without dropout, in a hundred streams."""
    tokens = task.tokens("train")
    rows = max(min(100, (tokens.size - 1) // segment), 1)
    streams = ContiguousStreams(tokens, rows, segment)
    gradient = jax.jit(jax.grad(_segment_loss(task), has_aux=True))
    carry = task.model(params).initial_state((rows,))
    for batch in itertools.islice(streams, batches or streams.steps_per_epoch):
        batch["mask"] = np.ones(batch["inputs"].shape, bool)
        gradients, (carry, _) = gradient(params, carry, batch)
        yield gradients


def _segment_loss(task: LanguageModelTask):
    def loss(params, carry, batch):
        nats, carry, *_ = task.read(params, carry, batch)
        total = jnp.sum(nats * batch["mask"])
        return total / jnp.sum(batch["mask"]), (carry, total)

    return loss
