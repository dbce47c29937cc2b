"""A process that works on one part of a budgeted benchmark (see budgeted.py).

    python -m scripts.benchmarks.worker ORDER RESULTS

ORDER is a `budgeted.Order` in JSON; results are appended to the file RESULTS, a line of JSON each.
"""

import concurrent.futures
import dataclasses
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lstmx.training import keep_freed_memory
from scripts.benchmarks import (
    correctness,
    forecasters,
    layers,
    machine,
    members,
    models,
    parallel,
    problems,
    rivals,
    text_models,
)
from scripts.benchmarks.budgeted import Order
from scripts.benchmarks.problems import Shape
from scripts.benchmarks.rivals import OWN, Builders, Field

Record = dict[str, Any]
# Compilations at once: XLA compiles outside of Python's lock.
_THREADS = max(2, min(16, problems.threads()))
# Layers in order of worth: large and small language models, a stream, sequential MNIST, forecasting.
_SHAPES = tuple(
    Shape(*sizes)
    for sizes in (
        (32, 128, 256, 256),
        (64, 48, 512, 512),
        (32, 128, 64, 64),
        (20, 32, 650, 650),
        (1, 512, 128, 128),
        *problems.GPU_ONLY,
        (64, 784, 1, 128),
        (256, 96, 7, 128),
        (128, 24, 32, 64),
        (20, 32, 200, 200),
    )
)


class Results:
    """The file of results, and the time that is left."""

    def __init__(self, order: Order, path: Path):
        self._end = time.monotonic() + order.seconds
        self._part, self._path = order.part, path

    def has_time(self) -> bool:
        """Whether a new item may start."""
        return time.monotonic() < self._end

    def add(self, kind: str, **record: Any) -> None:
        """Appends a result."""
        line = json.dumps({"part": self._part, "kind": kind, **record})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def failure(self, label: str, error: BaseException) -> None:
        """Appends an error, and prints where it happened."""
        traceback.print_exception(error, limit=-8, file=sys.stderr)
        self.add("failure", label=label, message=_message(error))


def main() -> None:
    """Works on the part of the order."""
    order = Order(**json.loads(sys.argv[1]))
    results = Results(order, Path(sys.argv[2]))
    try:
        machine.choose_device(order.device)
    except RuntimeError as error:
        results.add("absent", text=str(error))
        return
    keep_freed_memory()
    results.add("machine", text=machine.description())
    only = tuple(name for name in rivals.names() if name not in order.without)
    with rivals.field(order.device, only, rounds=order.rounds, quick=order.quick) as field:
        _PARTS[order.part](field, results)


def _compare(field: Field, results: Results, pallas: bool) -> None:
    todo = list(correctness.items(field.quick, pallas))
    interpreted = pallas and field.device == "cpu"

    def one(implementation: str, kind: str, case: correctness.Case) -> None:
        if not results.has_time():
            return
        label = {"label": case.label, "implementation": implementation, "type": kind}
        start = time.monotonic()
        try:
            with correctness.interpreting(interpreted):
                found = correctness.compared(case, implementation, kind)
        except Exception as error:  # whatever it is, the others are compared
            traceback.print_exception(error, limit=-4, file=sys.stderr)
            results.add("comparison", **label, failed=_message(error))
            return
        if found is not None:
            results.add("comparison", **label, **found, seconds=time.monotonic() - start)

    with concurrent.futures.ThreadPoolExecutor(1 if interpreted else _THREADS) as pool:
        list(pool.map(lambda item: one(*item), todo))


def _layers(field: Field, results: Results) -> None:
    dtypes = ("float32",) if field.device == "cpu" else ("float32", "bfloat16")
    peaks = {dtype: machine.matmul_peak(dataclasses.replace(field, dtype=dtype)) for dtype in dtypes}
    results.add("peaks", rates=peaks)
    for shape in problems.TINY[:1] if field.quick else _SHAPES:
        _together(
            results,
            {
                (f"{mode}, {dtype}", str(shape)): functools.partial(_layer, shape, mode, field, dtype, peaks)
                for dtype in dtypes
                for mode in reversed(problems.MODES)
            },
            field,
        )


def _layer(
    shape: Shape, mode: problems.Mode, field: Field, dtype: str, peaks: dict[str, float]
) -> tuple[Builders, str, float]:
    typed = dataclasses.replace(field, dtype=dtype)
    limit = problems.limit(shape, mode, peaks[dtype], layers.latency(field.device))
    builders = rivals.layers(shape, mode, typed)
    if field.device == "gpu":
        builders.pop("reference", None)  # leaves time for more shapes
    return builders, rivals.default_implementation(shape, dtype), limit


def _streaming(field: Field, results: Results) -> None:
    for shape in (Shape(1, 1, 3, 4),) if field.quick else problems.STREAMING:
        table = {
            ("streaming", str(shape)): lambda shape=shape: (
                rivals.steps(shape, field),
                rivals.default_implementation(shape),
                None,
            )
        }
        _together(results, table, field)


def _models(field: Field, results: Results) -> None:
    for module in (models, text_models, forecasters):
        for problem in module.problems(field.quick):
            table = {
                ("models", problem.label): lambda module=module, problem=problem: (
                    field.asked(module.builders(problem, field)),
                    "",
                    None,
                )
            }
            _together(results, table, field)


def _parallel(field: Field, results: Results) -> None:
    for label, table in parallel.tables(field):
        _together(results, {(label, row): make for row, make in table.items()}, field)


def _members(field: Field, results: Results) -> None:
    for dtype in ("float32",) if field.device == "cpu" else ("bfloat16", "float32"):
        for label, table in members.tables_of(dataclasses.replace(field, dtype=dtype)):
            _together(results, {(label, row): make for row, make in table.items()}, field)


def _together(results: Results, rows: dict[tuple[str, str], Callable], field: Field) -> None:
    """Compiles the rivals of some rows all at once, then times row by row.

    Args:
      rows: by table and label, functions that return the builders of the rivals, the name of the default
        implementation, and the shortest possible time or None.
    """
    if not results.has_time():
        return
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = {}
        for (table, label), make in rows.items():
            try:
                builders, default, limit = make()
            except Exception as error:  # recorded; the others are timed
                results.failure(f"{table}: {label}", error)
                continue
            futures = {name: pool.submit(build) for name, build in builders.items()}
            found[table, label] = futures, default, limit
    for (table, label), (futures, default, limit) in found.items():
        built = {}
        for name, future in futures.items():
            if future.exception() is None:
                built[name] = future.result()
            else:
                results.failure(f"{table}: {label}, {name}", future.exception())
        if OWN not in built:
            continue
        try:
            row = layers.row(label, built, field, default, limit)
        except Exception as error:  # recorded; the others are timed
            results.failure(f"{table}: {label}", error)
            continue
        layers.say(f"{table} {label}", row)
        results.add("row", table=table, row=row._asdict())


def _message(error: BaseException) -> str:
    """The error in one line that is not too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {' '.join(lines)}"[:400]


_PARTS: dict[str, Callable[[Field, Results], None]] = {
    "correctness": functools.partial(_compare, pallas=False),
    "pallas": functools.partial(_compare, pallas=True),
    "layers": _layers,
    "streaming": _streaming,
    "models": _models,
    "members": _members,
    "parallel": _parallel,
}

if __name__ == "__main__":
    main()
