"""Progress of a run: a bar in a terminal, plain lines in a file."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def format_number(value: float, digits: int = 4) -> str:
    """A number with this many significant digits, and all digits before the point.

    Example:
        >>> [format_number(value, 5) for value in (57543043.7872, 112.1, 0.0224, 0.0, 3, 2.5e-9, math.nan)]
        ['57,543,044', '112.10', '0.022400', '0.0000', '3', '2.5000e-09', 'nan']
    """
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    exponent = math.floor(math.log10(abs(value))) if value else 0
    if not -5 < exponent < 12:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def format_numbers(numbers: Mapping[str, float]) -> str:
    """Named numbers in a row, four significant digits each.

    Example:
        >>> format_numbers({"loss": 1.23456, "accuracy": 0.5})
        'loss 1.235  accuracy 0.5000'
    """
    return "  ".join(f"{name} {format_number(value)}" for name, value in numbers.items())


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Named rows of numbers, five significant digits each, aligned at the decimal point.

    Args:
        rows: name of the row -> name of the column -> number; a row may lack columns.

    Returns:
        Lines: the names of the columns, if there is more than one, and the rows.

    Example:
        >>> print(format_table({"mse": {"": 57543043.7872}, "smape": {"": 0.0224}}))
        mse    57,543,044
        smape           0.022400
        >>> print(format_table({"plain": {"loss": 4.75, "perplexity": 115.58}, "cache": {"loss": 4.5}}))
               loss    perplexity
        plain  4.7500  115.58
        cache  4.5000
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [
        [name, *(format_number(row[c], 5) if c in row else "" for c in columns)] for name, row in rows.items()
    ]
    for column in range(1, len(columns) + 1):
        before = max(_before_point(row[column]) for row in cells)
        for row in cells:
            row[column] = " " * (before - _before_point(row[column])) + row[column] if row[column] else ""
    table = [["", *columns], *cells] if len(columns) > 1 else cells
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)
    return "\n".join(lines)


def _before_point(text: str) -> int:
    return len(text.split(".")[0])


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units.

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
    """Speed of training, not counting compilation, evaluation and saving."""

    def __init__(self):
        self._start: float | None = None
        self._steps = 0
        self._rate = 0.0

    def restart(self) -> None:
        """Training begins, or continues after something else."""
        self._start, self._steps = time.perf_counter(), 0

    def tick(self) -> None:
        """A step has finished; those before the first `restart` are not counted."""
        if self._start is not None:
            self._steps += 1
            self._rate = self._steps / max(time.perf_counter() - self._start, 1e-9)

    def exclude(self, seconds: float) -> None:
        """Excludes some of the time since `restart`, which was not training."""
        if self._start is not None:
            self._start += seconds

    @property
    def is_settled(self) -> bool:
        """Whether enough steps were timed to estimate how long the others will take."""
        return self._steps >= 10 and self._steps >= 2 * self._rate

    @property
    def steps_per_second(self) -> float:
        """Steps per second since the last restart, or before it; 0 while unknown."""
        return self._rate


class Progress:
    """A bar, plain lines or nothing.

    Attributes:
        every_step: whether to call `update` at each step (for the bar), or only at those that are logged.
    """

    def __init__(
        self, steps: int, say: Callable[[str], None], move: Callable[[int, str], None] | None = None
    ):
        """`say` prints a line, `move` moves the bar if there is one."""
        self.say = say
        self.every_step = move is not None
        self._steps = steps
        self._move = move
        self._moved = -math.inf

    def update(self, step: int, numbers: Mapping[str, float], speed: str, seconds_left: float) -> None:
        """Shows how far the training has come."""
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
        start: steps that were done before.
        quiet: show nothing at all.

    Yields:
        The progress: `say` prints a line, `update` shows numbers.
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
