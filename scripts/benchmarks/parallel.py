"""Implementations that are parallel in time, for sequences of more and more steps."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lstmx
from lstmx.implementations import choice
from scripts.benchmarks import problems, rivals, timing
from scripts.benchmarks.problems import Mode
from scripts.benchmarks.rivals import OWN, Builders, Field
from scripts.benchmarks.timing import Run

# Implementations whose depth grows with log T, or that take all steps at once.
PARALLEL = ("associative",)
_SEQUENTIAL = ("fused", "reference")
_LONGEST = {"cpu": 4096, "gpu": 65536}
_ROWS, _UNITS, _FEATURES = 4, 128, 64


def cells() -> dict[str, lstmx.Cell]:
    """The cells that have such an implementation, by name."""
    return {"MinGRU": lstmx.MinGRU(_UNITS), "MinLSTM": lstmx.MinLSTM(_UNITS)}


def tables(field: Field) -> Iterator[tuple[str, dict[str, Callable]]]:
    """For each T the rows of all cells: functions that return builders, the default's name, and no limit."""
    steps = 16 if field.quick else 256
    longest = 16 if field.quick else _LONGEST[field.device]
    while steps <= longest:
        for name, cell in cells().items():
            for mode in reversed(problems.MODES):
                row = functools.partial(_row, cell, steps, mode, field)
                yield f"{name}, {mode}", {f"T = {steps}": row}
        steps *= 4


def _row(cell: lstmx.Cell, steps: int, mode: Mode, field: Field) -> tuple[Builders, str, None]:
    xs = jax.ShapeDtypeStruct((steps, _ROWS, _FEATURES), jnp.float32)
    default = lstmx.which_implementation(cell, xs=xs)
    builders: Builders = {OWN: lambda: timing.rival(run(cell, steps, mode))}
    for name in (*PARALLEL, *_SEQUENTIAL):
        job = choice.Job(cell, xs, platform=choice.platform())
        if name != default and choice.refusal(job, name) is None:
            builders[name] = functools.partial(_built, cell, steps, mode, name)
    return field.asked(builders), default, None


def _built(cell: lstmx.Cell, steps: int, mode: Mode, name: str) -> timing.Rival:
    return timing.rival(run(cell, steps, mode, implementation=name))


def run(cell: lstmx.Cell, steps: int, mode: Mode, **options: Any) -> Run:
    """A run of `lstmx.scan` over this many steps."""
    params = cell.init(jax.random.key(0), _FEATURES)
    xs = np.random.default_rng(0).normal(size=(steps, _ROWS, _FEATURES)).astype(np.float32)
    function = rivals.compiled(lambda params, xs: lstmx.scan(cell, params, xs, **options), mode)
    xs = jnp.asarray(xs)
    return lambda: jax.block_until_ready(function(params, xs))
