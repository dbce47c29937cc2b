"""Which implementation runs a job: one table, and each implementation's own reasons to refuse.

An implementation is a module with `run`, of the signature of `reference.run`, and, unless it can do
everything, `refusal(job)`: None, or why it cannot do a job.
"""

from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax

from lstmx.cells.base import Cell
from lstmx.implementations import associative, cudnn, fused, native, pallas, reference

Name = Literal["reference", "fused", "associative", "native", "cudnn", "pallas"]


class Job(NamedTuple):
    """What there is to run, as far as it is known."""

    cell: Cell  # its compute type settled
    xs: Any = None  # shape and type of the inputs, [T, *batch, D]
    remat: str | int | None = None
    platform: str = "cpu"
    options: tuple[
        str, ...
    ] = ()  # names of what `scan` was given besides: "mask", "resets", "return_states", ...


IMPLEMENTATIONS: dict[str, ModuleType] = {
    "reference": reference,
    "fused": fused,
    "associative": associative,
    "native": native,
    "cudnn": cudnn,
    "pallas": pallas,
}

# The order in which they are tried; each refuses the platforms that it is not made for. "native" is at least
# as fast as "fused" at every shape of docs/benchmarks.md. "cudnn" and "pallas" have not been measured yet: by
# name alone.
_PREFERRED = ("associative", "native", "fused")


def choose(job: Job, name: str | None = None) -> str:
    """The implementation to run a job with.

    Args:
      job: what there is to run.
      name: the one asked for, None for the fastest.

    Raises:
      ValueError: if there is none of that name.
      NotImplementedError: if it cannot do the job, with the reason and the ones that can.

    Example:
      >>> from lstmx.cells.minimal import MinGRU
      >>> choose(Job(MinGRU(4)))
      'associative'
    """
    if name is None:
        return next(name for name in _PREFERRED if refusal(job, name) is None)
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be None or one of {sorted(IMPLEMENTATIONS)}, got {name!r}")
    reason = refusal(job, name)
    if reason is not None:
        able = [other for other in IMPLEMENTATIONS if refusal(job, other) is None]
        raise NotImplementedError(f'implementation "{name}" {reason}; these can do it: {", ".join(able)}')
    return name


def refusal(job: Job, name: str) -> str | None:
    """Why an implementation cannot do a job; None if it can.

    Example:
      >>> from lstmx.cells import GRU
      >>> refusal(Job(GRU(4)), "reference")
    """
    return getattr(IMPLEMENTATIONS[name], "refusal", lambda job: None)(job)


def platform() -> str:
    """The platform that computations go to unless something else is asked for."""
    return jax.default_backend()
