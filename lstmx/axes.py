"""How messages describe the axes of sequences: time first in `lstmx.scan`, batch first in the Flax layers."""

import contextlib
import contextvars
from collections.abc import Iterator

_batch_first: contextvars.ContextVar[bool] = contextvars.ContextVar("batch_first", default=False)


@contextlib.contextmanager
def batch_first() -> Iterator[None]:
    """Within it the caller's arrays have the batch axes before the time axis."""
    token = _batch_first.set(True)
    try:
        yield
    finally:
        _batch_first.reset(token)


def is_batch_first() -> bool:
    """Whether the caller's arrays have the batch axes first."""
    return _batch_first.get()


def described(shape: tuple[int, ...], num_feature_axes: int = 0) -> tuple[str, tuple[int, ...]]:
    """The names of the axes of a sequence, and its shape, both in the caller's order.

    Args:
      shape: `(time, *batch, *features)`.
      num_feature_axes: the number of axes of features.

    Example:
      >>> described((5, 2, 3), num_feature_axes=1)
      ('[time, *batch, features]', (5, 2, 3))
      >>> with batch_first():
      ...     described((5, 2))
      ('[*batch, time]', (2, 5))
    """
    features = ", features" if num_feature_axes else ""
    if not _batch_first.get():
        return f"[time, *batch{features}]", tuple(shape)
    batch_end = len(shape) - num_feature_axes
    return f"[*batch, time{features}]", (*shape[1:batch_end], *shape[:1], *shape[batch_end:])
