"""Which implementation runs a job: one table, and each implementation's own reasons to refuse.

An implementation is a module with `run`, which has the signature of `reference.run`, and, where they are
needed,

    refusal(job)          returns None, or why it cannot run a job
    worthwhile(job)       whether to choose it by default for a job that it can run
    prepare()             is called before a run, and may find that the implementation is not available after
                          all; `refusal` then returns the reason
    stepper(cells, params, batch_shape, in_tuple)
                          one step of plain layers outside of XLA, see `native.stepper`
    in_one_call(layers)   where all layers of a network can run in one call: returns them as one cell, which
                          also has `all_cells`, `joined` and `parted`, see `cudnn.Layers`
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax

from lstmx.cells.base import Cell
from lstmx.implementations import associative, cudnn, fused, native, pallas, reference

Name = Literal["reference", "fused", "associative", "native", "cudnn", "pallas"]


class Job(NamedTuple):
    """A scan, as far as its arguments are known."""

    cell: Cell  # its compute type resolved
    xs: Any = None  # shape and type of the inputs, [T, *batch, D]
    remat: str | int | None = None
    platform: str = "cpu"
    options: tuple[str, ...] = ()  # names of other arguments given: "mask", "resets", "return_states", ...


IMPLEMENTATIONS: dict[str, ModuleType] = {
    "reference": reference,
    "fused": fused,
    "associative": associative,
    "native": native,
    "cudnn": cudnn,
    "pallas": pallas,
}

# The order in which they are tried; each refuses the platforms that it does not support. "native" is at least
# as fast as "fused" at every shape of docs/benchmarks.md; so is "pallas" at those of docs/benchmarks_gpu.md
# that it finds worthwhile. "cudnn" is slower than "fused" there: it is chosen only by name.
_PREFERRED = ("associative", "native", "pallas", "fused")

# A single step has no loop to speed up, and "reference" has every derivative.
_PREFERRED_FOR_ONE_STEP = ("native", "reference")


def choose(job: Job, name: str | None = None) -> str:
    """The implementation to run a job with.

    Args:
      job: the scan to run.
      name: the name of an implementation; None for the default.

    Raises:
      ValueError: if there is no implementation of that name.
      NotImplementedError: if it cannot run the job, with the reason and those that can.

    Example:
      >>> from lstmx.cells.minimal import MinGRU
      >>> choose(Job(MinGRU(4)))
      'associative'
    """
    if name is None:
        preferred = _PREFERRED_FOR_ONE_STEP if _has_one_step(job) else _PREFERRED
        return next(name for name in preferred if refusal(job, name) is None and _is_worthwhile(job, name))
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be None or one of {sorted(IMPLEMENTATIONS)}, got {name!r}")
    reason = refusal(job, name)
    if reason is not None:
        able = [other for other in IMPLEMENTATIONS if refusal(job, other) is None]
        raise NotImplementedError(f'implementation "{name}" {reason}; these can run it: {", ".join(able)}')
    return name


def prepare(job: Job, name: str | None = None) -> str:
    """Chooses the implementation to run a job with, and makes it ready to run.

    This is where the kernels of `native` are compiled if this machine does not have them yet. If that fails
    and `name` is None, another implementation is chosen.

    Args:
      job: as for `choose`.
      name: as for `choose`.

    Raises:
      ValueError, NotImplementedError: as `choose`.

    Example:
      >>> from lstmx.cells.minimal import MinGRU
      >>> prepare(Job(MinGRU(4)))
      'associative'
    """
    chosen = choose(job, name)
    prepare = _optional(chosen, "prepare")
    if prepare is None:
        return chosen
    prepare()
    return choose(job, name)


def refusal(job: Job, name: str) -> str | None:
    """Why an implementation cannot run a job; None if it can.

    Example:
      >>> from lstmx.cells import GRU
      >>> refusal(Job(GRU(4)), "reference")
    """
    own = _optional(name, "refusal")
    return None if own is None else own(job)


def in_one_call(layers: tuple[tuple[Cell, ...], ...], name: str | None) -> Iterator[tuple[str, Any]]:
    """The layers of a network as one cell, for each implementation that runs all of them in one call.

    Args:
      layers: the cells of each layer: the forward cell, or the forward and the backward cell.
      name: the name of an implementation; None for those that are chosen by default.

    Yields:
      (name, cell); whether the implementation can run the cell is for `refusal` to say.

    Example:
      >>> from lstmx.cells import LSTM
      >>> layers = ((LSTM(4),), (LSTM(4),))
      >>> [name for name, _ in in_one_call(layers, "cudnn")], list(in_one_call(layers, "fused"))
      (['cudnn'], [])
    """
    for each in _PREFERRED if name is None else [name] if name in IMPLEMENTATIONS else []:
        whole = _optional(each, "in_one_call")
        if whole is not None:
            yield each, whole(layers)


def _is_worthwhile(job: Job, name: str) -> bool:
    own = _optional(name, "worthwhile")
    return own is None or own(job)


def stepper(
    cells: tuple[Cell, ...], params: tuple[Any, ...], xs: Any, in_tuple: bool
) -> Callable[[Any, Any], tuple[Any, Any]] | None:
    """One step of layers, each reading the one below, outside of XLA; None where there is no such way.

    Args:
      cells: the cells, their compute types resolved.
      params: the parameters of each.
      xs: shape and type of the inputs of one step, `[1, *batch, D]`.
      in_tuple: whether states are tuples with one entry for each cell.

    Example:
      >>> from lstmx.cells import SLSTM
      >>> stepper((SLSTM(4),), (), jax.ShapeDtypeStruct((1, 3, 2), "float32"), False)
    """
    for name in _PREFERRED_FOR_ONE_STEP:
        jobs = [Job(cell, xs, platform=platform()) for cell in cells]
        if _optional(name, "stepper") is None or any(refusal(job, name) for job in jobs):
            continue
        if prepare(jobs[0]) == name:
            return _optional(name, "stepper")(cells, params, xs.shape[1:-1], in_tuple)
    return None


def _optional(name: str, function: str) -> Any:
    return getattr(IMPLEMENTATIONS[name], function, None)


def _has_one_step(job: Job) -> bool:
    return job.xs is not None and job.xs.shape[0] == 1


def unrolled(platform: str) -> int:
    """The default of `unroll`: the steps per iteration of a compiled loop.

    On a GPU a loop of small steps waits for launches, of which each iteration has some of its own: 8 steps in
    one take 0.5 to 0.7 of the time of 8 iterations. On a CPU it gains nothing and takes longer to compile.

    Example:
      >>> unrolled("cpu")
      1
    """
    return 8 if platform == "gpu" else 1


def platform() -> str:
    """The default platform of computations."""
    return jax.default_backend()
