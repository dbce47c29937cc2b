"""Curves as SVG within a page, whose style sheet gives them colours for light screens and for dark ones."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lstmx.training.progress import format_number
from scripts.reporting.markup import Markup, tag

Point = tuple[int, float | None]

# More points than these of a curve, and of all curves, are no longer told apart and would make a page large.
_MOST_POINTS, _MOST_OF_ALL, _FEWEST_POINTS = 800, 20_000, 40
_MOST_DOTS = 60
# A picture for each width of window, so that its letters are legible: (classes, width, height).
_LARGE = (("wide", 1000, 320), ("medium", 640, 320), ("narrow", 360, 260))
_SMALL = (("wide medium", 520, 240), ("narrow", 360, 220))
_FONT = 12
_TOP, _RIGHT, _BOTTOM = 12, 14, 44


class Line(NamedTuple):
    """A curve.

    Attributes:
        name: what it shows, for the legend and for the notes at its points.
        points: (step, value), by step; None for a value that is not finite.
        style: classes of the style sheet.
        trial: the trial it belongs to, None outside of a sweep.
        dots: whether to mark its points, if they are few.
    """

    name: str
    points: Sequence[Point]
    style: str
    trial: str | None = None
    dots: bool = True


class Axis(NamedTuple):
    """A range of values, on an equal or a logarithmic scale."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """The position of a value, from 0 to 1.

        Example:
            >>> Axis(1, 100, True).place(10), Axis(0, 50).place(10)
            (0.5, 0.2)
        """
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Round values on the axis, at most so many.

        Example:
            >>> Axis(0, 45).ticks(5), Axis(0.5, 2000, True).ticks(5)
            ([0.0, 10.0, 20.0, 30.0, 40.0], [1.0, 10.0, 100.0, 1000.0])
        """
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1,)):
                values = self._within(digit * 10.0**power for power in powers for digit in digits)
                if 2 < len(values) <= most:
                    return values
            if len(values) > most:
                return values[:: math.ceil(len(values) / most)]
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return self._within(k * step for k in range(first, last + 1))

    def _within(self, values: Iterable[float]) -> list[float]:
        margin = 1e-9 * (self.high - self.low)
        return [value for value in values if self.low - margin <= value <= self.high + margin]


def chart(label: str, lines: Sequence[Line], *, width: int = 520, height: int = 240) -> Markup:
    """Curves against the step, with axes.

    Args:
        label: what is shown, for those who cannot see it.
        lines: the curves; those that come later are drawn over the others.
        width: of the picture, in units of which a letter has about 7.
        height: likewise.

    Returns:
        An SVG element; its values have a logarithmic scale if they span more than a factor of 30.
    """
    most = min(max(_MOST_OF_ALL // max(len(lines), 1), _FEWEST_POINTS), _MOST_POINTS)
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points if value is not None]
    x_axis = Axis(0.0, float(max(steps, default=0) or 1))
    y_axis = value_axis(values)
    y_ticks = y_axis.ticks(max(3, height // 48))
    y_labels = tick_labels(y_ticks)
    left = 14 + 0.62 * _FONT * max(map(len, y_labels), default=1)
    frame = _Frame(left, _TOP, width - _RIGHT, height - _BOTTOM, x_axis, y_axis)
    x_ticks = [value for value in x_axis.ticks(max(3, width // 90)) if value == round(value)]
    return tag(
        "svg",
        tag("g", *_grid(frame, x_ticks, list(zip(y_ticks, y_labels, strict=True))), class_="axes"),
        *(_draw(frame, line, most) for line in lines),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
    )


def value_axis(values: Sequence[float]) -> Axis:
    """The axis of some finite values, with a margin.

    Example:
        >>> value_axis([1.0, 2.0]), value_axis([0.5, 50.0]).logarithmic, value_axis([])
        (Axis(low=0.95, high=2.05, logarithmic=False), True, Axis(low=0.0, high=1.0, logarithmic=False))
    """
    if not values:
        return Axis(0.0, 1.0)
    low, high = min(values), max(values)
    if 0 < 30 * low < high and math.isfinite(high * 1.2):
        return Axis(low / 1.2, high * 1.2, True)
    # A constant has a range of its own size, and numbers near the largest of a float have no margin.
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    if not math.isfinite(high - low + 2 * margin):
        return Axis(-1.7e308 / 2, 1.7e308 / 2)
    return Axis(low - margin, high + margin)


def tick_labels(values: Sequence[float]) -> list[str]:
    """Short texts for the ticks of an axis, all with the same digits after the point if they are even steps.

    Example:
        >>> tick_labels([0, 0.5, 1]), tick_labels([1000, 2000]), tick_labels([0, 2e6]), tick_labels([1e-6, 1])
        (['0.0', '0.5', '1.0'], ['1,000', '2,000'], ['0', '2M'], ['1e-06', '1'])
    """
    texts = [_short(value) for value in values]
    if any(text[-1] == "M" or "e" in text for text in texts) or not _are_even(values):
        return texts
    digits = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [f"{value:,.{digits}f}" for value in values]


def _short(value: float) -> str:
    if 1e6 <= abs(value) < 1e10:
        return f"{value / 1e6:,.6g}M"
    return f"{value:,.6g}" if 1e-4 <= abs(value) < 1e6 else f"{value:g}"


def _are_even(values: Sequence[float]) -> bool:
    gaps = [after - before for before, after in itertools.pairwise(values)]
    return bool(gaps) and max(gaps) - min(gaps) < 0.01 * max(gaps)


class _Frame(NamedTuple):
    """The rectangle between the axes."""

    left: float
    top: float
    right: float
    bottom: float
    x_axis: Axis
    y_axis: Axis

    def x(self, step: float) -> float:
        return self.left + self.x_axis.place(step) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - self.y_axis.place(value) * (self.bottom - self.top)


def _grid(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    parts = []
    for value, label in y_ticks:
        y = f"{frame.y(value):.1f}"
        parts.append(tag("line", x1=f"{frame.left:.1f}", x2=frame.right, y1=y, y2=y))
        place = {"x": f"{frame.left - 8:.1f}", "y": f"{frame.y(value) + 0.35 * _FONT:.1f}"}
        parts.append(tag("text", label, **place, text_anchor="end"))
    bottom = frame.bottom
    parts.append(tag("line", x1=f"{frame.left:.1f}", x2=frame.right, y1=bottom, y2=bottom, class_="base"))
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        x = f"{frame.x(value):.1f}"
        parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="base"))
        # The last label ends with the axis, beyond which it would be cut off.
        anchor = "end" if frame.x(value) + 3.5 * len(label) > frame.right + _RIGHT else "middle"
        parts.append(tag("text", label, x=x, y=bottom + 18, text_anchor=anchor))
    middle = f"{(frame.left + frame.right) / 2:.1f}"
    parts.append(tag("text", "step", x=middle, y=bottom + 36, text_anchor="middle", class_="name"))
    return parts


def _draw(frame: _Frame, line: Line, most: int) -> Markup:
    """A curve, interrupted where a value is not finite, which crosses at the top mark."""
    segments = [
        list(points)
        for finite, points in itertools.groupby(line.points, key=lambda point: point[1] is not None)
        if finite
    ]
    total = sum(map(len, segments))
    if total > most:
        segments = [thinned(points, max(2, most * len(points) // total)) for points in segments]
    dotted = line.dots and total <= _MOST_DOTS
    path = " ".join(
        "M" + "L".join(f"{frame.x(step):.1f},{frame.y(value):.1f}" for step, value in points)
        for points in segments
    )
    dots = [point for points in segments for point in points if dotted or len(points) == 1]
    lost = [step for step, value in line.points if value is None][:_MOST_DOTS]
    return tag(
        "g",
        tag("title", line.name),
        tag("path", d=path, class_="line") if path else None,
        *(_dot(frame, line, *point) for point in dots),
        *(_cross(frame, line, step) for step in lost),
        class_=line.style,
        data_trial=line.trial,
    )


def _dot(frame: _Frame, line: Line, step: int, value: float) -> Markup:
    note = tag("title", f"{line.name}, step {step:,}: {format_number(value)}")
    x, y = f"{frame.x(step):.1f}", f"{frame.y(value):.1f}"
    return tag("g", note, tag("circle", cx=x, cy=y, r=2.6))


def _cross(frame: _Frame, line: Line, step: int) -> Markup:
    note = tag("title", f"{line.name}, step {step:,}: not finite")
    x, y = frame.x(step), frame.top + 2
    shape = f"M{x - 3:.1f},{y - 3}l6,6m0,-6l-6,6"
    return tag("g", note, tag("path", d=shape, class_="cross"))


def thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Fewer points of the same shape: the ends, and of each stretch the lowest and the highest.

    Args:
        points: some points.
        most: about how many to keep.

    Example:
        >>> thinned([(step, float(step == 5)) for step in range(10)], 4)
        [(0, 0.0), (5, 1.0), (6, 0.0), (9, 0.0)]
    """
    if len(points) <= most:
        return list(points)
    length = math.ceil(2 * len(points) / most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), length):
        stretch = range(start, min(start + length, len(points)))
        kept |= {min(stretch, key=lambda k: points[k][1]), max(stretch, key=lambda k: points[k][1])}
    return [points[k] for k in sorted(kept)]


def legend(lines: Sequence[Line]) -> Markup:
    """The names of curves beside their colours."""
    return tag("ul", *(tag("li", tag("i", class_=line.style), line.name) for line in lines), class_="legend")


def figure(title: str, lines: Sequence[Line], *, large: bool = False, names: Sequence[Line] = ()) -> Markup:
    """Curves with a title and a legend.

    Args:
        title: what they show.
        lines: the curves.
        large: whether they have the whole width of a page.
        names: curves to name in the legend, by default all if there are several.
    """
    named = names or (lines if len(lines) > 1 else ())
    label = f"{title} against the step"
    pictures = [
        tag("div", chart(label, lines, width=width, height=height), class_=f"curves {windows}")
        for windows, width, height in (_LARGE if large else _SMALL)
    ]
    lost = any(value is None for line in lines for _, value in line.points)
    note = tag("small", "crosses: not finite") if lost else None
    caption = tag("figcaption", tag("span", title), legend(named) if named else None, note)
    return tag("figure", caption, *pictures)
