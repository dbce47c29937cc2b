"""What a person sees while a run goes on: a bar in a terminal, plain lines in a file."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def format_numbers(numbers: Mapping[str, float]) -> str:
    """Named numbers in a row, four significant digits each.

    Example:
        >>> format_numbers({"loss": 1.23456, "accuracy": 0.5})
        'loss 1.235  accuracy 0.5'
    """
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def format_seconds(seconds: float) -> str:
    """A duration in the two units that matter.

    Example:
        >>> [format_seconds(s) for s in (0.84, 75, 7500, 200000)]
        ['0.8 s', '1 min 15 s', '2 h 05 min', '2 d 7 h']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


class Throughput:
    """Speed of training alone: compilation, evaluation and saving are left out."""

    def __init__(self):
        self._start: float | None = None
        self._steps = 0
        self._rate = 0.0

    def restart(self) -> None:
        """Training begins, or goes on after something else."""
        self._start, self._steps = time.perf_counter(), 0

    def tick(self) -> None:
        """A step has finished; those before the first `restart` are not counted."""
        if self._start is not None:
            self._steps += 1
            self._rate = self._steps / max(time.perf_counter() - self._start, 1e-9)

    def leave_out(self, seconds: float) -> None:
        """So much of the time since `restart` was no training."""
        if self._start is not None:
            self._start += seconds

    @property
    def is_settled(self) -> bool:
        """Whether enough steps were timed to say how long the others will take."""
        return self._steps >= 10 and self._steps >= 2 * self._rate

    @property
    def steps_per_second(self) -> float:
        """Steps per second since the last restart, or before it; 0 while unknown."""
        return self._rate


class Progress:
    """A bar, plain lines or nothing.

    Attributes:
        every_step: whether `update` wants each step (the bar), or only those that are logged.
    """

    def __init__(
        self, steps: int, say: Callable[[str], None], move: Callable[[int, str], None] | None = None
    ):
        """Takes how to print a line of its own, and how to move the bar if there is one."""
        self.say = say
        self.every_step = move is not None
        self._steps = steps
        self._move = move
        self._moved = -math.inf

    def update(self, step: int, numbers: Mapping[str, float], speed: str, seconds_left: float) -> None:
        """Shows how far the training is."""
        left = f"  {format_seconds(seconds_left)} left" if 0 < seconds_left < math.inf else ""
        text = f"{step}/{self._steps}  {format_numbers(numbers)}  {speed}{left}".rstrip()
        if self._move is None:
            self.say(f"step {text}")
        elif time.perf_counter() - self._moved > 0.1:
            self._moved = time.perf_counter()
            self._move(step, text)


@contextmanager
def show_progress(steps: int, start: int, quiet: bool = False) -> Iterator[Progress]:
    """Shows a bar if the standard output is a terminal and plain lines if not.

    Args:
        steps: steps of the whole run.
        start: steps done before.
        quiet: show nothing at all.

    Yields:
        What to tell: `say` a line, `update` the numbers.
    """
    if quiet:
        yield Progress(steps, say=lambda text: None)
        return
    if not sys.stdout.isatty():
        yield Progress(steps, say=lambda text: print(text, flush=True))
        return
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(24), TextColumn("{task.fields[text]}", markup=False), transient=True) as bar:
        task = bar.add_task("", total=steps, completed=start, text=f"{start}/{steps}  compiling")
        yield Progress(
            steps,
            say=lambda text: bar.console.print(text, markup=False, highlight=False),
            move=lambda step, text: bar.update(task, completed=step, text=text),
        )
