"""How the values of trials are chosen, and which trials are ended early: spaces as Optuna knows them."""

import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from lstmx.sweeps.journal import SweepError, optuna
from lstmx.sweeps.space import Choice, Range, Space

SAMPLERS = ("tpe", "random", "grid", "cmaes")
PRUNERS = ("none", "median", "hyperband")

_MOST_FAILURES = 5


def stored(value: Any) -> Any:
    """A value as Optuna stores it: lists and other objects as JSON.

    Example:
        >>> stored(0.5), stored((7, 14))
        (0.5, '[7, 14]')
    """
    return (
        value
        if value is None or isinstance(value, bool | int | float | str)
        else json.dumps(value, default=str)
    )


def values_of(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a space's fields, of a trial's parameters as Optuna stores them."""
    values = dict(params)
    for name, part in space.items():
        if isinstance(part, Choice) and name in values:
            values[name] = next(value for value in part.values if stored(value) == params[name])
    return values


def distributions_of(space: Space) -> dict[str, Any]:
    """The space as Optuna's distributions."""
    return {name: _distribution(part) for name, part in space.items()}


def _distribution(part: Range | Choice) -> Any:
    distributions = optuna().distributions
    if isinstance(part, Choice):
        return distributions.CategoricalDistribution([stored(value) for value in part.values])
    if isinstance(part.low, int):
        return distributions.IntDistribution(part.low, part.high, log=part.log, step=part.step or 1)
    return distributions.FloatDistribution(part.low, part.high, log=part.log, step=part.step)


def require_samplable(sampler: str, space: Space) -> None:
    """Raises SweepError if a grid is asked for, but a range of the space has no end of values."""
    if sampler == "grid" and (endless := _endless(space)):
        raise SweepError(f"a grid needs lists or LOW:HIGH:STEP, and {endless[0]} is a continuous range")


def points_of(space: Space) -> float:
    """The number of points of the grid, infinite for a continuous range.

    Example:
        >>> points_of({"rate": Range(0.1, 0.3, step=0.1), "cell": Choice(("lstm", "gru"))})
        6
        >>> points_of({"rate": Range(0.1, 0.3)})
        inf
    """
    return math.inf if _endless(space) else math.prod(len(_grid(part)) for part in space.values())


def _endless(space: Space) -> list[str]:
    """The fields with a continuous range."""
    ranges = {name: part for name, part in space.items() if isinstance(part, Range)}
    return [
        name
        for name, part in ranges.items()
        if part.step is None and (not isinstance(part.low, int) or part.log)
    ]


def make_sampler(name: str, number: int) -> Any:
    """One of Optuna's samplers, seeded.

    A new one for each trial, seeded by its number, makes a choice depend on that and on the results before it
    only.
    """
    samplers = optuna().samplers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "random":
            return samplers.RandomSampler(seed=number)
        if name == "cmaes":
            try:
                return samplers.CmaEsSampler(seed=number)
            except ImportError:
                raise SweepError("the sampler cmaes needs cmaes: pip install cmaes") from None
        return samplers.TPESampler(seed=number)


def make_pruner(name: str) -> Any:
    """One of Optuna's pruners; SweepError if there is none of this name."""
    pruners = optuna().pruners
    with suppress(KeyError):
        return {
            "none": pruners.NopPruner,
            "median": pruners.MedianPruner,
            "hyperband": pruners.HyperbandPruner,
        }[name]()
    raise SweepError(f"pruners are {', '.join(PRUNERS)}, got {name}")


def next_point(space: Space, trials: Sequence[Any]) -> dict[str, Any] | None:
    """The first point of the grid that no trial has, None if all are taken."""
    taken = [record.params or record.system_attrs.get("fixed_params") for record in trials]
    points = itertools.product(*(_grid(part) for part in space.values()))
    named = (dict(zip(space, point, strict=True)) for point in points)
    return next((point for point in named if point not in taken), None)


def _grid(part: Range | Choice) -> list[Any]:
    if isinstance(part, Choice):
        return [stored(value) for value in part.values]
    step = part.step or 1
    count = int((part.high - part.low) / step + 1e-9)
    return [part.low + k * step for k in range(count + 1)]


def require_success(trials: Sequence[Any], called: str) -> None:
    """Raises SweepError if the last five trials that ended have failed.

    Args:
        trials: Optuna's records, with the reason of a failure in the attribute `error`.
        called: what stops, for the message.
    """
    finished = [record for record in trials if record.state.is_finished()]
    last = sorted(finished, key=lambda record: record.datetime_complete)[-_MOST_FAILURES:]
    if len(last) == _MOST_FAILURES and all(record.state.name == "FAIL" for record in last):
        raise SweepError(
            f"the last {_MOST_FAILURES} trials failed, so the {called} stops; the last one: "
            f"{last[-1].user_attrs.get('error', 'unknown')}"
        )
