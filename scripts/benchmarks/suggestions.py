"""What the measured times and comparisons say about the choice of implementations."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.benchmarks.rivals import OWN
from scripts.benchmarks.tables import Row
from scripts.benchmarks.timing import geometric_mean

# A difference that is worth a change of the default.
_WORTH = 0.95
_NOT_OURS = ("flax", "torch", "jax", "onnxruntime", "one by one", OWN)


def of(device: str, records: Sequence[Mapping[str, Any]], times: Mapping[str, Sequence[Row]]) -> list[str]:
    """The suggestions, a line of Markdown each.

    Args:
      device: the platform.
      records: the results, for the implementations that failed.
      times: rows by table.
    """
    from scripts.benchmarks.budgeted import failed

    lines = [f"* `{name}` stays experimental: {why}" for name, why in failed(records).items()]
    for table, rows in times.items():
        lines += _order(device, table, rows)
    return lines or ["Nothing was measured."]


def _order(device: str, table: str, rows: Sequence[Row]) -> list[str]:
    """The implementations of a table from fast to slow, relative to the default one."""
    names = dict.fromkeys(name for row in rows for name in row.times if not name.startswith(_NOT_OURS))
    ratios: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name in names:
        present = [row for row in rows if name in row.times]
        quotients = [
            statistics.median(row.times[name]) / statistics.median(row.times[OWN]) for row in present
        ]
        ratios[name], counts[name] = geometric_mean(quotients), len(quotients)
    if not ratios:
        return []
    order = sorted(ratios, key=ratios.__getitem__)
    shown = ", ".join(f"`{name}` {ratios[name]:.2f} ({counts[name]})" for name in order)
    best = order[0]
    text = f"* {device}, {table}: times over the default's, geometric means (of how many problems): {shown}."
    if ratios[best] < _WORTH:
        text += f" Put `{best}` first here."
    return [text]
