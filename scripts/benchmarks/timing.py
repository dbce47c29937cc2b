"""Timing rivals in turn, and what is made of the times."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Run = Callable[[], object]

# Threads of a rival go on spinning after its run (OpenMP's do), on the cores that the next one wants.
PAUSE = 0.05
# What is shorter than this is run several times in a row.
LEAST_SECONDS = 0.01
_MOST_RUNS = 1000
_LONG = 3.0


class Rival(NamedTuple):
    """Something compiled and ready to be timed."""

    time: Callable[[int], float]  # seconds a run takes: the mean of so many, after as many untimed ones
    compiling: float  # seconds that its first run took beyond those of a later one


class Ratio(NamedTuple):
    """The ratio of two rivals' times over the rounds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile


def settle_allocator() -> None:
    """Brings malloc to the state that it reaches in a process which has freed a large array.

    glibc returns blocks to the system at once until it has seen one of their size freed, up to 32 MiB, and
    then keeps them. Before that, a training step of torch may take a fifth more, in page faults.
    """
    np.ones(31 << 20, np.uint8)


def rival(run: Run) -> Rival:
    """Makes a rival of a function, in this process: runs it for the first time."""
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    return Rival(lambda runs: seconds(run, runs), max(0.0, first - seconds(run, 1)))


def seconds(run: Run, runs: int) -> float:
    """The mean time of so many runs in a row, after as many untimed ones: threads have slept in the pause."""
    for _ in range(runs):
        run()
    start = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - start) / runs


def fastest(runs: Mapping[str, Run]) -> str:
    """The name of the fastest of the variants of one rival: the least of three, or of one if it is long."""
    if len(runs) == 1:
        return next(iter(runs))
    times = {name: [] for name in runs}
    start = time.perf_counter()
    for _ in range(3):
        for name, run in runs.items():
            times[name].append(seconds(run, 1))
        if time.perf_counter() - start > _LONG:
            break
    return min(times, key=lambda name: min(times[name]))


def interleaved(rivals: Mapping[str, Rival], rounds: int, pause: float = PAUSE) -> dict[str, list[float]]:
    """Times all rivals in turn, round after round.

    Whatever else the machine does hits them alike. The order moves on by one with each round, so that nobody
    always runs after the same neighbour.

    Args:
      rivals: by name.
      rounds: how often each is timed.
      pause: seconds before each.

    Returns:
      For each rival its seconds a run, one number a round.
    """
    names = list(rivals)
    runs = {
        name: min(_MOST_RUNS, max(1, math.ceil(LEAST_SECONDS / max(rivals[name].time(1), 1e-9))))
        for name in names
    }
    times = {name: [] for name in names}
    for k in range(rounds):
        shift = k % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(pause)
            times[name].append(rivals[name].time(runs[name]))
    return times


def ratio(own: Sequence[float], other: Sequence[float]) -> Ratio:
    """The quotients own / other of the same rounds: their median and quartiles.

    Example:
      >>> ratio([1.0, 4.0, 3.0], [1.0, 2.0, 1.0])
      Ratio(median=2.0, low=1.5, high=2.5)
    """
    quotients = [a / b for a, b in zip(own, other, strict=True)]
    if len(quotients) == 1:
        return Ratio(*quotients * 3)
    low, median, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return Ratio(median, low, high)


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers.

    Example:
      >>> geometric_mean([1.0, 4.0])
      2.0
    """
    return math.exp(statistics.fmean(map(math.log, values)))
