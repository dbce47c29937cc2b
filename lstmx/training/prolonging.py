"""Whether a run can be given more steps, with the same bits as if it had been given them from the start."""

from collections.abc import Mapping
from typing import Any


def asks_for_more_steps(differences: Mapping[str, tuple[Any, Any]]) -> bool:
    """Whether two configs differ only in the number of steps, and the second one has more.

    Args:
        differences: as from `lstmx.training.config_differences`.

    Example:
        >>> asks_for_more_steps({"steps": (20, 40)}), asks_for_more_steps({"steps": (40, 20)})
        (True, False)
    """
    if set(differences) != {"steps"}:
        return False
    before, after = differences["steps"]
    return isinstance(before, int) and isinstance(after, int) and after > before


def refusal_to_prolong(config: Mapping[str, Any], steps: int) -> str | None:
    """Why a run cannot be given more steps.

    The learning rate of each step must not depend on their number, which holds for the constant schedule,
    with or without warmup. An optax transformation is assumed to be the one that the run was started with.

    Args:
        config: the config of the run as a dict, with the new number of steps.
        steps: how many it had.

    Returns:
        The reason; None if it can.

    Example:
        >>> refusal_to_prolong({"steps": 40, "optimizer": {"schedule": "constant"}}, 20)
        >>> refusal_to_prolong({"steps": 40, "optimizer": {"schedule": "cosine"}}, 20)
        'its schedule, cosine, ends at step 20: with 40 steps the learning rates would have been others'
    """
    optimizer, loop = config.get("optimizer"), config.get("loop")
    if not isinstance(optimizer, Mapping):
        return None
    schedule = optimizer.get("schedule", "constant")
    if schedule != "constant":
        return (
            f"its schedule, {schedule}, ends at step {steps}: with {config['steps']} steps the learning "
            "rates would have been others"
        )
    every = loop.get("eval_every", 0) if isinstance(loop, Mapping) else 0
    averages = any(optimizer.get(name) is not None for name in ("average_patience", "average_horizon"))
    if averages and (every == 0 or steps % every):
        return (
            f"its average of parameters has counted the evaluation at its end, step {steps}, which a "
            f"longer run does not have (eval_every is {every})"
        )
    return None
