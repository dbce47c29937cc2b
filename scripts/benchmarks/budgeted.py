"""A benchmark within a budget of time, for machines that are lent by the minute.

Each part runs in a process of its own with its share of the budget, and writes each result as soon as it has
it. Whatever ends a part, an error, a hanging kernel or its time, leaves what it has measured, and the next
part runs. An implementation that fails the comparison with float64 is not timed.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lstmx.implementations import native
from scripts.benchmarks import budgeted_page

_ROOT = Path(__file__).resolve().parents[2]
LEAST_SECONDS = 10  # for one part: imports and one compilation
# Of a part's time before it is ended by force: it starts no new item after the rest.
_LAST = 0.2


class Part(NamedTuple):
    """A part of the benchmark, with its share of the budget."""

    name: str
    share: float


# In order of worth. What a part does not use is left to those after it.
PARTS = (
    Part("correctness", 0.20),
    Part("pallas", 0.10),
    Part("layers", 0.36),
    Part("streaming", 0.06),
    Part("models", 0.11),
    Part("members", 0.08),
    Part("parallel", 0.09),
)


@dataclasses.dataclass(frozen=True)
class Order:
    """What a worker is to do.

    Attributes:
      part: the name of the part.
      device: `"cpu"` or `"gpu"`.
      seconds: it starts nothing new after these.
      rounds: how often to time each rival.
      quick: tiny problems.
      without: implementations that are left out.
    """

    part: str
    device: str
    seconds: float
    rounds: int
    quick: bool = False
    without: tuple[str, ...] = ()


def least_budget(parts: Sequence[Part] = PARTS) -> int:
    """The smallest budget in seconds that gives each part `LEAST_SECONDS`."""
    return LEAST_SECONDS * len(parts)


def run(
    device: str,
    budget: float,
    rounds: int,
    quick: bool,
    command: Sequence[str],
    output: Path | None,
    work: Callable[[Order, Path, float], str | None] | None = None,
) -> str:
    """Runs all parts; returns the page, which is also written after each part if there is an output.

    Args:
      device: `"cpu"` or `"gpu"`.
      budget: seconds for everything.
      rounds: how often to time each rival.
      quick: tiny problems, for the tests.
      command: the arguments of the command, for the page.
      output: where to write the page; the results are written beside it as `.jsonl`.
      work: runs a part, for the tests: a function of the order, the file of results and the seconds after
        which to end it; returns why the part ended early, None if it did not.

    Raises:
      ValueError: if the budget is too small.
      RuntimeError: if the device is not there.
    """
    least = least_budget()
    if budget < least:
        raise ValueError(
            f"--budget must be at least {least} seconds, {LEAST_SECONDS} for each of {len(PARTS)} parts, "
            f"got {budget:g}"
        )
    end = time.monotonic() + budget
    if work is None:
        work = _in_process
        if device == "cpu":
            native.prepare()  # compiles the kernels at the first use on a machine
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl" if output is None else output.with_suffix(".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
        for index, part in enumerate(PARTS):
            shares = [each.share for each in PARTS[index:]]
            seconds = (end - time.monotonic()) * shares[0] / sum(shares)
            without = tuple(failed(read(path)))
            order = Order(part.name, device, (1 - _LAST) * seconds, rounds, quick, without)
            print(f"{part.name}: {seconds:.0f} seconds", file=sys.stderr, flush=True)
            start = time.monotonic()
            ended = work(order, path, seconds)
            record = {"part": part.name, "kind": "end", "seconds": time.monotonic() - start, "why": ended}
            _append(path, record)
            absent = next((r["text"] for r in read(path) if r["kind"] == "absent"), None)
            if absent is not None:
                raise RuntimeError(absent)
            text = budgeted_page.page(command, device, budget, read(path))
            if output:
                output.write_text(text, encoding="utf-8")
    return text


def failed(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The implementations that must not be timed, and why."""
    found: dict[str, str] = {}
    for record in records:
        if record["kind"] == "comparison":
            reason = budgeted_page.fault(record)
            if reason is not None and record["implementation"] != "reference":
                found.setdefault(record["implementation"], f"{record['label']}: {reason}")
    for record in records:
        # It hung or crashed before it could report anything.
        if record["kind"] == "end" and record["part"] == "pallas" and record["why"] is not None:
            found.setdefault("pallas", record["why"])
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The results so far; a line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if _is_cut(path) else "")
        file.write(json.dumps(record) + "\n")


def _is_cut(path: Path) -> bool:
    text = path.read_bytes()
    return bool(text) and not text.endswith(b"\n")


def _in_process(order: Order, path: Path, seconds: float) -> str | None:
    command = [
        sys.executable,
        "-m",
        "scripts.benchmarks.worker",
        json.dumps(dataclasses.asdict(order)),
        str(path.resolve()),
    ]
    environment = dict(os.environ)
    if order.part in ("correctness", "pallas"):
        # Trying out several kernels for each matmul takes longer than to compile it.
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
    with subprocess.Popen(command, cwd=_ROOT, env=environment) as process:
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"ended after {seconds:.0f} seconds"
    if status == 0:
        return None
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"ended by {name}"
