"""Times rivals in turn, and summarizes the times."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Run = Callable[[], object]

# Threads of a rival (such as OpenMP's) keep spinning after its run, on the cores that the next one needs.
PAUSE = 0.05
# Shorter runs are timed several in a row.
LEAST_SECONDS = 0.01
_MOST_RUNS = 1000
_LONG = 3.0


class Rival(NamedTuple):
    """Something compiled and ready to be timed."""

    time: Callable[[int], float]  # mean seconds of this many runs, after as many untimed ones
    compiling: float  # seconds of the first run minus those of a later one


class Ratio(NamedTuple):
    """The ratio of two rivals' times over the rounds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile


def rival(run: Run) -> Rival:
    """A rival that calls a function in this process; runs it for the first time."""
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    return Rival(lambda runs: seconds(run, runs), max(0.0, first - seconds(run, 1)))


def seconds(run: Run, runs: int) -> float:
    """The mean time of consecutive runs, after as many untimed ones, which wake the threads."""
    for _ in range(runs):
        run()
    start = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - start) / runs


def fastest(runs: Mapping[str, Run]) -> str:
    """The name of the fastest variant of a rival, by the minimum of three runs, or of one if it is long."""
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

    Other load on the machine thus affects all of them equally. The order rotates by one in each round, so
    that no rival always runs after the same one.

    Args:
      rivals: by name.
      rounds: how often to time each.
      pause: seconds to wait before each.

    Returns:
      The seconds per run of each rival, one number per round.
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
