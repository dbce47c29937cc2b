"""The state of a training, and the compiled function that advances it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from lstmx.training.task import PyTree, Task

if TYPE_CHECKING:
    import optax


class TrainState(NamedTuple):
    """Everything that the next step depends on; with the config it determines the rest of the run.

    Attributes:
        step: updates made so far, int32; also the position in the data.
        params: parameters.
        opt_state: state of the optax transformation.
        carry: recurrent state, carried from batch to batch.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    carry: PyTree


class Keys(NamedTuple):
    """The independent streams of randomness of a run."""

    init: jax.Array
    step: jax.Array
    sample: jax.Array


def make_keys(seed: int) -> Keys:
    """The keys of a seed; steps and samples fold in their step.

    Example:
        >>> make_keys(0).step == make_keys(0).step, make_keys(0).step == make_keys(1).step
        (Array(True, dtype=bool), Array(False, dtype=bool))
    """
    return Keys(*jax.random.split(jax.random.key(seed), 3))


def init_state(
    task: Task, optimizer: "optax.GradientTransformation", key: jax.Array, params: PyTree | None = None
) -> TrainState:
    """The state before the first step.

    Args:
        task: the task.
        optimizer: the optax transformation.
        key: the key given to `task.init`.
        params: parameters to start from instead of those of `task.init`.

    Returns:
        A state whose every leaf has a buffer of its own.

    Raises:
        ValueError: the parameters differ from those of the task in structure, shape or dtype.
    """
    own, carry = task.init(key)
    if params is None:
        params = own
    else:
        require_same_types(jax.tree.map(_own, own), params)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), carry)
    # Some optimizers put the parameters themselves into their state, and a buffer cannot be donated twice.
    # Python numbers and weakly typed arrays become arrays, or the second step would be compiled again.
    return jax.tree.map(_own, state)


def _own(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return jnp.copy(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.array(leaf, leaf.dtype)


def abstract_state(task: Task, optimizer: "optax.GradientTransformation") -> TrainState:
    """Shapes, dtypes and devices of the state, without computing it: the target of a restore."""
    return on_default_device(jax.eval_shape(lambda key: init_state(task, optimizer, key), jax.random.key(0)))


def on_default_device(abstract: PyTree) -> PyTree:
    """Puts the default device into a pytree of `jax.ShapeDtypeStruct`.

    Without a device in the target a checkpoint is restored onto the devices it was saved from, which fails on
    a machine that has fewer or others.
    """
    sharding = jax.sharding.SingleDeviceSharding(jnp.zeros(()).device)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )


def array_types(tree: PyTree) -> dict[str, str]:
    """Dtypes and shapes by the names of arrays.

    Example:
        >>> array_types({"kernel": jnp.zeros((4, 2))})
        {'kernel': 'float32[4,2]'}
    """
    return {
        jax.tree_util.keystr(
            path, simple=True, separator="."
        ): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def make_step(
    loss: Callable[..., Any],
    optimizer: "optax.GradientTransformation",
    schedule: "optax.Schedule | None" = None,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the compiled training step.

    Args:
        loss: `Task.loss`.
        optimizer: the optax transformation, clipping included.
        schedule: the learning rate by step, only for the metrics; None if it is unknown.

    Returns:
        `step(state, batch, key) -> (state, metrics)`, compiled, the given state donated (do not use it
        again). key is the run's, the step is folded in. metrics holds those of the task, the loss, grad_norm
        (before clipping) and learning_rate.
    """
    import optax

    def step(state: TrainState, batch: PyTree, key: jax.Array):
        key = jax.random.fold_in(key, state.step)
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (value, (carry, metrics)), grads = value_and_grad(state.params, state.carry, batch, key)
        _check_outputs(state.carry, carry, {**metrics, "loss": value})
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "loss": value, "grad_norm": optax.tree.norm(grads)}
        if schedule is not None:
            metrics["learning_rate"] = jnp.asarray(schedule(state.step))
        return TrainState(state.step + 1, params, opt_state, carry), metrics

    return jax.jit(step, donate_argnums=0)


def _check_outputs(before: PyTree, after: PyTree, metrics: dict[str, jax.Array]) -> None:
    """Checks at trace time what would otherwise fail later and far from its cause."""
    for name, value in metrics.items():
        if jnp.shape(value) != ():
            raise ValueError(f"the task's loss must return scalars, got {name} of shape {jnp.shape(value)}")
    old: Any = jax.tree.structure(before)
    new: Any = jax.tree.structure(after)
    if old != new:
        raise ValueError(f"the carry must keep its structure, got {new} after {old}")
    for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ValueError(
                f"the carry must keep its shapes and dtypes, got {new.dtype}{new.shape} after "
                f"{old.dtype}{old.shape} at {jax.tree_util.keystr(path) or 'its root'}"
            )


def require_same_types(expected: PyTree, params: PyTree) -> None:
    """Checks parameters against those of a task.

    Args:
        expected: the task's, arrays or `jax.ShapeDtypeStruct`.
        params: the given ones.

    Raises:
        ValueError: they differ in structure, shape or dtype; the message names the parameters.

    Example:
        >>> require_same_types({"kernel": jnp.zeros((4, 3))}, {"kernel": jnp.zeros((4, 2))})
        Traceback (most recent call last):
        ValueError: params must be those of the task's model: kernel is float32[4,2], must be float32[4,3]
    """
    wanted, given = array_types(expected), array_types(params)
    differing = [
        f"{name} is {given.get(name, 'missing')}, must be {wanted.get(name, 'absent')}"
        for name in [*wanted, *(name for name in given if name not in wanted)]
        if given.get(name) != wanted.get(name)
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(f"params must be those of the task's model: {'; '.join(differing[:3])}{more}")
    want: Any = jax.tree.structure(expected)
    if want != jax.tree.structure(params):
        raise ValueError(
            "params must have the structure of the task's, "
            f"got {jax.tree.structure(params)} for {jax.tree.structure(expected)}"
        )
