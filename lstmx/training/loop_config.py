"""What happens between training steps: evaluations, checkpoints, the log."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LoopConfig:
    """What happens between training steps.

    Attributes:
        eval_every: steps between evaluations on the validation split, each followed by a checkpoint; 0 for
            only one at the end.
        checkpoint_every: steps between further checkpoints; 0 for only those after evaluations.
        log_every: steps between records of the training loss.
        keep_latest: how many of the newest checkpoints to keep.
        keep_best: how many of the checkpoints with the lowest validation loss to keep as well.
        sample: whether to draw a sample at each evaluation, if the task can.
        tensorboard: whether to write event files as well, where tensorboardX is installed.
    """

    eval_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 50
    keep_latest: int = 2
    keep_best: int = 1
    sample: bool = True
    tensorboard: bool = True

    def __post_init__(self):
        for name, least in {
            "eval_every": 0,
            "checkpoint_every": 0,
            "log_every": 1,
            "keep_latest": 1,
            "keep_best": 0,
        }.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")


def checked_steps(steps: int) -> int:
    """A number of steps as an integer of Python: JSON has no other.

    Raises:
        ValueError: it is not an integer, or below 1.
    """
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise ValueError(f"steps must be an integer, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return int(steps)
