"""Averaging: training continues with the parameters, evaluation uses the mean of recent ones.

The average starts at once, or when the validation loss stops falling (non-monotonically triggered averaging,
Merity et al. 2018). It is part of the training's state, like the losses it waits for.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    import optax

PyTree = Any


class AveragingState(NamedTuple):
    """State of `averaged`.

    Attributes:
        average: the mean of the parameters since averaging began; before, the parameters.
        count: how many parameters are in the mean.
        started: whether averaging has begun.
        recent: the last validation losses, as many as the patience; infinite where there is none yet.
        older: the lowest of those before.
        inner: state of the transformation whose updates are averaged.
    """

    average: PyTree
    count: jax.Array  # type: ignore[assignment]  # it hides the method of tuples
    started: jax.Array
    recent: jax.Array
    older: jax.Array
    inner: PyTree


def averaged(
    inner: "optax.GradientTransformation", patience: int | None = None, horizon: float = jnp.inf
) -> "optax.GradientTransformation":
    """Keeps the mean of the parameters that a transformation leads to.

    Args:
        inner: the transformation; it is not changed by the average.
        patience: averaging begins when a validation loss is above the lowest of those before the
            last `patience` ones; None to begin with the first step.
        horizon: steps after which a parameter's weight in the mean falls as `exp(-steps / horizon)`, about;
            at least 1, infinite for equal weights.

    Returns:
        An optax transformation with an `AveragingState`.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Merity, Keskar
    and Socher, "Regularizing and optimizing LSTM language models", 2018.

    Example:
        >>> import optax
        >>> optimizer = averaged(optax.sgd(1.0), patience=1)
        >>> params = jnp.asarray(0.0)
        >>> state = optimizer.init(params)
        >>> for loss in (1.0, 2.0, 3.0):  # the third is above the first
        ...     state = observe_validation(state, loss)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jnp.asarray(-1.0), state, params)
        ...     params = params + updates
        >>> float(params), float(state.average)
        (3.0, 2.0)
    """
    import optax

    def init(params):
        recent, begun = jnp.full(patience or 1, jnp.inf), jnp.asarray(patience is None)
        zero, infinity = jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf)
        return AveragingState(params, zero, begun, recent, infinity, inner.init(params))

    def update(updates, state, params):
        updates, inner_state = inner.update(updates, state.inner, params)
        reached = optax.apply_updates(params, updates)
        count = state.count + state.started
        share = jnp.maximum(1 / jnp.maximum(count, 1), 1 / horizon)
        average = jax.tree.map(
            lambda mean, now: jnp.where(state.started, mean + share.astype(now.dtype) * (now - mean), now),
            state.average,
            reached,
        )
        return updates, state._replace(average=average, count=count, inner=inner_state)

    return optax.GradientTransformation(init, update)


def observe_validation(opt_state: PyTree, loss: float) -> PyTree:
    """Tells the state of an optimizer a validation loss; one that does not average is left as it is."""
    if not isinstance(opt_state, AveragingState):
        return opt_state
    latest = jnp.asarray(loss, opt_state.older.dtype)
    return opt_state._replace(
        started=opt_state.started | (latest > opt_state.older),
        older=jnp.minimum(opt_state.older, opt_state.recent[0]),
        recent=jnp.append(opt_state.recent[1:], latest),
    )


def exchange_average(params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
    """Puts the average in the place of the parameters, and these into its place; twice is nothing.

    Evaluation takes the average, and checkpoints hold it as their parameters.

    Args:
        params: the parameters.
        opt_state: the state of the optimizer; if it does not average, nothing changes.

    Returns:
        (params, opt_state), exchanged.
    """
    if not isinstance(opt_state, AveragingState):
        return params, opt_state
    return opt_state.average, opt_state._replace(average=params)
