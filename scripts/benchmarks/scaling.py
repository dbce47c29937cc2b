"""How the time of a training step grows with T, B and H."""

import dataclasses
import statistics
from collections.abc import Sequence

from scripts.benchmarks import chart, layers, rivals, tables
from scripts.benchmarks.problems import Shape
from scripts.benchmarks.rivals import OWN, Field
from scripts.benchmarks.tables import Row, Section

# Runs over long sequences take seconds, and a curve of many points is smooth enough.
_MOST_ROUNDS = 3
_COMPARED = ("flax", "torch")

STEPS = (1_000, 3_000, 10_000, 30_000, 100_000)
BATCHES = (1, 4, 16, 64, 256)
UNITS = (32, 64, 128, 256, 512, 1024)


def section(field: Field, stem: str) -> Section:
    """Tables and plots of the time of a training step against T, B and H.

    Args:
      field: the rivals, of which flax and torch are used.
      stem: the prefix of the names of the plots.
    """
    field = dataclasses.replace(field, rounds=min(field.rounds, _MOST_ROUNDS))
    steps, batches, units = ((10, 30), (1, 2), (4, 8)) if field.quick else (STEPS, BATCHES, UNITS)
    axes = {
        "T": ("B = 1, D = H = 64", [(t, Shape(1, t, 64, 64)) for t in steps]),
        "B": ("T = 64, D = H = 128", [(b, Shape(b, 64, 128, 128)) for b in batches]),
        "H": ("B = T = 32, D = H", [(h, Shape(32, 32, h, h)) for h in units]),
    }
    text, plots = [f"A training step, float32, milliseconds, medians of {field.rounds} rounds."], {}
    for axis, (fixed, shapes) in axes.items():
        rows = [_row(f"{value:,}", shape, field) for value, shape in shapes]
        file = f"{stem}-{axis.lower()}.svg"
        plots[file] = _plot(f"Training step against {axis}: {fixed}", axis, [v for v, _ in shapes], rows)
        text += [f"![Training step against {axis}]({file})", f"{fixed}:", tables.times_table(axis, rows)]
        if axis == "T":
            text.append(linearity(steps, rows))
    return Section("Scaling", "\n\n".join(text), plots)


def _row(label: str, shape: Shape, field: Field) -> Row:
    builders = rivals.layers(shape, "training", field)
    # The other implementations are in the tables of layers.
    builders = {name: build for name, build in builders.items() if name in (OWN, *_COMPARED)}
    row = layers.row(label, layers.built_from(builders), field)
    layers.say(f"scaling {shape}", row)
    return row._replace(note=rivals.default_implementation(shape))


def _plot(title: str, axis: str, values: Sequence[int], rows: Sequence[Row]) -> str:
    lines = {
        name: [
            (value, 1e3 * statistics.median(row.times[name])) for value, row in zip(values, rows, strict=True)
        ]
        for name in tables.columns(rows)
    }
    return chart.line_chart(title, axis, "milliseconds", lines, logarithmic=True)


def linearity(steps: Sequence[int], rows: Sequence[Row]) -> str:
    """The time per step of the longest sequence relative to the shortest."""
    growth = [
        f"{name} {_per_step(rows[-1], steps[-1], name) / _per_step(rows[0], steps[0], name):.2f}"
        for name in tables.columns(rows)
    ]
    return (
        f"Time per step with T = {steps[-1]:,} divided by that with T = {steps[0]:,} "
        "(1 means linear scaling): "
        f"{', '.join(growth)}."
    )


def _per_step(row: Row, steps: int, name: str) -> float:
    return statistics.median(row.times[name]) / steps
