"""Where the time of a run goes: data, compilation, evaluations and checkpoints; what remains is the steps."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

Part = Literal["data", "compile", "evaluation", "checkpoint"]
PARTS: tuple[Part, ...] = get_args(Part)
# The fields of a record that hold seconds since the start of the run: no metrics, and different in each run.
TIMES = ("elapsed_s", *(f"{part}_s" for part in PARTS))


class Stopwatch:
    """The seconds of a run and of its parts, summed over all processes that have trained it.

    A batch is made while the device computes the step before: its time counts as that of data even where the
    device did not have to wait for it.

    Example:
        >>> stopwatch = Stopwatch([{"step": 5, "elapsed_s": 60.0, "data_s": 7.5}])
        >>> stopwatch.add("data", 0.5)
        >>> stopwatch.record()["data_s"], stopwatch.record()["checkpoint_s"]
        (8.0, 0.0)
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()):
        """Continues the sums of a run's records, if there are any."""
        records = list(records)
        before = {name: max((record.get(name) or 0.0 for record in records), default=0.0) for name in TIMES}
        self._started = time.perf_counter() - before["elapsed_s"]
        self._seconds = {part: before[f"{part}_s"] for part in PARTS}
        self._measured: tuple[Part, float] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the run, without those between its processes."""
        return time.perf_counter() - self._started

    def add(self, part: Part, seconds: float) -> None:
        """Counts seconds as those of a part."""
        self._seconds[part] += seconds

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Counts the time in the block as that of a part; blocks do not nest."""
        started = time.perf_counter()
        self._measured = (part, started)
        try:
            yield
        finally:
            self._measured = None
            self.add(part, time.perf_counter() - started)

    def record(self) -> dict[str, float]:
        """The fields `TIMES` of a record, in seconds; a part that is being measured counts up to now."""
        seconds = dict(self._seconds)
        if self._measured is not None:
            part, started = self._measured
            seconds[part] += time.perf_counter() - started
        return {
            "elapsed_s": round(self.elapsed, 3),
            **{f"{part}_s": round(seconds[part], 3) for part in PARTS},
        }
