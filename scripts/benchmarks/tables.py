"""Measurements as tables in Markdown."""

import statistics
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from scripts.benchmarks.timing import Ratio, geometric_mean, ratio

_RATIOS = (
    "The time of lstmx divided by that of the column, in the same round (below 1: lstmx is faster): median "
    "(quartiles)."
)


class Row(NamedTuple):
    """The measurements of one problem.

    Attributes:
        label: the problem.
        times: seconds in each round, by column; lstmx comes first.
        limit: the shortest possible time in seconds, None if unknown.
        note: shown next to the time of lstmx.
    """

    label: str
    times: dict[str, list[float]]
    limit: float | None = None
    note: str = ""


class Section(NamedTuple):
    """A part of the page."""

    title: str
    text: str
    plots: Mapping[str, str] = types.MappingProxyType({})  # SVG by file name


def milliseconds(seconds: float) -> str:
    """Formats seconds as milliseconds with three digits.

    Example:
      >>> milliseconds(0.0123456), milliseconds(1.2345)
      ('12.3', '1234')
    """
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def comparison(head: str, rows: Sequence[Row]) -> str:
    """The times, and the ratios if there is something to compare with."""
    times = times_table(head, rows)
    if len(columns(rows)) == 1 and rows[0].limit is None:
        return times
    return "\n\n".join([times, _RATIOS, ratios_table(head, rows)])


def times_table(head: str, rows: Sequence[Row]) -> str:
    """Medians in milliseconds."""
    names = columns(rows)
    limited = any(row.limit is not None for row in rows)
    lines = [[head, *(["limit"] if limited else []), *names]]
    for row in rows:
        cells = [
            milliseconds(statistics.median(row.times[name])) if name in row.times else "" for name in names
        ]
        cells[0] += f" ({row.note})" if row.note else ""
        limit = [] if not limited else ["" if row.limit is None else milliseconds(row.limit)]
        lines.append([row.label, *limit, *cells])
    return markdown(lines)


def ratios_table(head: str, rows: Sequence[Row]) -> str:
    """The time of lstmx divided by the other columns: median (quartiles) over rounds; geometric means."""
    own, *names = columns(rows)
    limited = any(row.limit is not None for row in rows)
    lines = [[head, *(["limit"] if limited else []), *names]]
    for row in rows:
        limit = [] if not limited else ["" if row.limit is None else f"{_times_limit(row, own):.2f}"]
        cells = [shown(ratio(row.times[own], row.times[name])) if name in row.times else "" for name in names]
        lines.append([row.label, *limit, *cells])
    if len(rows) > 1:
        limits = [_times_limit(row, own) for row in rows if row.limit is not None]
        means = [_mean(rows, lambda row, name=name: row.times.get(name), own) for name in names]
        lines.append(["geometric mean", *([f"{geometric_mean(limits):.2f}"] if limits else []), *means])
    return markdown(lines)


def shown(value: Ratio) -> str:
    """A ratio and its quartiles, without quartiles for the column of lstmx itself.

    Example:
      >>> shown(Ratio(0.5, 0.456, 0.55))
      '0.50 (0.46-0.55)'
    """
    if value == Ratio(1.0, 1.0, 1.0):
        return "1"
    return f"{value.median:.2f} ({value.low:.2f}-{value.high:.2f})"


def columns(rows: Iterable[Row]) -> list[str]:
    """The columns of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row.times))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first line is the header."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest))


def _times_limit(row: Row, own: str) -> float:
    return statistics.median(row.times[own]) / row.limit


def _mean(rows: Sequence[Row], times: Callable, own: str) -> str:
    present = [row for row in rows if times(row) is not None]
    mean = geometric_mean([ratio(row.times[own], times(row)).median for row in present])
    return f"{mean:.2f}" + ("" if len(present) == len(rows) else f" (of {len(present)})")
