"""The page of a budgeted benchmark, from its results."""

import datetime
import shlex
from collections.abc import Sequence
from typing import Any

from scripts.benchmarks import suggestions, tables
from scripts.benchmarks.tables import Row

Record = dict[str, Any]


def page(command: Sequence[str], device: str, budget: float, records: Sequence[Record]) -> str:
    """The page in Markdown: the machine, comparisons with float64, tables of times, failures, suggestions.

    Args:
      command: the arguments of the command.
      device: `"cpu"` or `"gpu"`.
      budget: the seconds it was given.
      records: the results so far.
    """
    machines = list(dict.fromkeys(record["text"] for record in records if record["kind"] == "machine"))
    parts = [
        f"# Benchmarks within {budget:g} seconds",
        f"Measured by\n\n    {shlex.join(command)}\n\non {datetime.date.today()}: {'; '.join(machines)}.",
        *_peaks(records),
        _ended(records),
        "## Correctness",
        _comparisons([record for record in records if record["kind"] == "comparison"]),
    ]
    times = rows(records)
    for name, found in times.items():
        head = "B, T, D, H" if name.startswith(("forward", "training", "streaming")) else name
        parts += [f"## {name[0].upper()}{name[1:]}", tables.comparison(head, found)]
    failures = [record for record in records if record["kind"] == "failure"]
    if failures:
        lines = [f"* {record['label']}: {record['message']}" for record in failures]
        parts += ["## Failures", "\n".join(lines)]
    parts += ["## Suggestions for choice.py", "\n".join(suggestions.of(device, records, times))]
    return "\n\n".join(parts) + "\n"


def rows(records: Sequence[Record]) -> dict[str, list[Row]]:
    """The measured rows by table."""
    found: dict[str, list[Row]] = {}
    for record in records:
        if record["kind"] == "row":
            found.setdefault(record["table"], []).append(Row(**record["row"]))
    return found


def fault(record: Record) -> str | None:
    """What is wrong in a comparison; None if nothing is.

    Example:
      >>> fault({"values": 0.5, "gradients": 0.001, "worst": "[0].h", "tolerance": 0.01})
      'relative error 0.5 at [0].h, tolerance 0.01'
    """
    if "failed" in record:
        return record["failed"]
    error = max(record["values"], record["gradients"], key=lambda x: (x != x, x))
    if error <= record["tolerance"]:
        return None
    return f"relative error {error:.2g} at {record['worst']}, tolerance {record['tolerance']:g}"


def _peaks(records: Sequence[Record]) -> list[str]:
    rates = {dtype: rate for r in records if r["kind"] == "peaks" for dtype, rate in r["rates"].items()}
    shown = ", ".join(f"{rate / 1e12:,.3g} TFLOP/s in {dtype}" for dtype, rate in rates.items())
    return [f"The fastest square matmul by jax: {shown}."] if rates else []


def _ended(records: Sequence[Record]) -> str:
    lines = [["part", "seconds", "results", "ended"]]
    for end in (record for record in records if record["kind"] == "end"):
        count = sum(r["part"] == end["part"] and r["kind"] in ("row", "comparison") for r in records)
        lines.append([end["part"], f"{end['seconds']:.0f}", str(count), end["why"] or "by itself"])
    return tables.markdown(lines)


def _comparisons(records: Sequence[Record]) -> str:
    """The largest relative errors: a line for each case, a column for each implementation and type."""
    if not records:
        return "Nothing was compared."
    names = list(dict.fromkeys((r["implementation"], r["type"]) for r in records))
    labels = list(dict.fromkeys(r["label"] for r in records))
    by_place = {(r["label"], r["implementation"], r["type"]): r for r in records}
    lines = [["case", *(", ".join(name) for name in names)]]
    for label in labels:
        cells = [by_place.get((label, *name)) for name in names]
        lines.append([label, *("" if cell is None else _errors(cell) for cell in cells)])
    faults = [
        f"* {r['label']}, {r['implementation']}, {r['type']}: {fault(r)}"
        for r in records
        if fault(r) is not None
    ]
    text = (
        "The largest relative error in the norm of outputs and final states / of gradients, against float64 "
        "on the host."
    )
    wrong = "None exceeds its tolerance." if not faults else "**Wrong:**\n\n" + "\n".join(faults)
    return "\n\n".join([text, tables.markdown(lines), wrong])


def _errors(record: Record) -> str:
    if "failed" in record:
        return "failed"
    return f"{record['values']:.1e} / {record['gradients']:.1e}"
