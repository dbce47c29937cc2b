"""Line charts as SVG: plots need no package, and their files are small."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 40, 50
# The colours of Okabe & Ito, which colour-blind readers can distinguish.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


class Axis(NamedTuple):
    """An axis: its label, range and scale."""

    label: str
    low: float
    high: float
    logarithmic: bool

    def place(self, value: float) -> float:
        """The position of a value, from 0 to 1.

        Example:
          >>> Axis("T", 1, 100, True).place(10)
          0.5
        """
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within the axis: powers of ten, or about five equal steps."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1,) if self.high / self.low > 100 else (1, 2, 5)
            values = [digit * 10.0**power for power in powers for digit in digits]
        else:
            rough = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
            values = [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [
            value for value in values if self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)
        ]


def line_chart(
    title: str, x_label: str, y_label: str, lines: Mapping[str, Points], *, logarithmic: bool
) -> str:
    """A chart with one line per name and markers at the points.

    Args:
      title: the title.
      x_label: the label of the x axis.
      y_label: the label of the y axis.
      lines: positive points (x, y) by name, with at least two different x and y in all.
      logarithmic: whether both axes are logarithmic; otherwise both start at 0.

    Returns:
      An SVG document.
    """
    x_axis = _axis(x_label, [x for points in lines.values() for x, _ in points], logarithmic)
    y_axis = _axis(y_label, [y for points in lines.values() for _, y in points], logarithmic)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 22, title, size=15),
        *_grid(x_axis, y_axis),
    ]
    for k, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[k % len(_COLOURS)]
        places = [(_across(x_axis, x), _down(y_axis, y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        height, start = _TOP + 12 + 20 * k, _WIDTH - _RIGHT + 15
        parts.append(
            f'<line x1="{start}" y1="{height - 4}" x2="{start + 18}" y2="{height - 4}" '
            f'stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(_text(start + 24, height, name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axis(label: str, values: Sequence[float], logarithmic: bool) -> Axis:
    low, high = min(values), max(values)
    return Axis(label, low / 1.2, high * 1.2, True) if logarithmic else Axis(label, 0.0, high * 1.05, False)


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in x_axis.ticks():
        x = _across(x_axis, value)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(_text(x, bottom + 18, _number(value), anchor="middle"))
    for value in y_axis.ticks():
        y = _down(y_axis, value)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, _number(value), anchor="end"))
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" fill="none" '
        'stroke="#888"/>'
    )
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 12, x_axis.label, anchor="middle"))
    parts.append(
        _text(18, middle, y_axis.label, anchor="middle", extra=f' transform="rotate(-90 18 {middle})"')
    )
    return parts


def _across(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _RIGHT - _LEFT)


def _down(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _BOTTOM - _TOP)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.10g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, extra: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{extra}'
    return f"<text {place}>{escape(text)}</text>"
