"""The page of a run."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lstmx.training import VALIDATION, best_validation
from lstmx.training.progress import format_number, format_seconds
from lstmx.training.timing import PARTS, TIMES
from scripts.reporting import curves, page
from scripts.reporting.curves import Line
from scripts.reporting.markup import Markup, tag
from scripts.reporting.reading import RunData, number, pictures_in, samples_in

_TRAIN = "train"
# What a record holds besides metrics.
_NO_METRICS = frozenset({"step", "split", "units_per_s", *TIMES})
_SAMPLES, _LONGEST_SAMPLE = 5, 5000
_EXPLANATIONS = {
    "finished": "all steps are done",
    "interrupted": "it ended before its last step",
    "unfinished": "it is still training, or was killed",
}
_NAMES_OF_PARTS = {
    "data": "making batches",
    "step": "training steps",
    "compile": "compiling the step",
    "evaluation": "evaluations and samples",
    "checkpoint": "checkpoints",
}


def run_page(run: RunData) -> str:
    """The page of a run as the text of an HTML file."""
    name, experiment = run.folder.resolve().name, Path(run.record.experiment).stem
    pictures = page.gallery(pictures_in(run.folder / "plots"))
    samples = _samples(run.folder / "samples")
    spent = _time(run)
    return page.document(
        f"{experiment}: {name}",
        page.header(experiment, f"run {name}", run.status, _EXPLANATIONS[run.status]),
        page.tiles(_facts(run)) if run.metrics else None,
        page.section("Curves", *_curves(run.metrics)),
        page.section("Time", spent) if spent else None,
        page.section("Samples", *samples) if samples else None,
        page.section("Pictures", pictures) if pictures else None,
        page.section("Config", page.config_cards(run.record.experiment, run.record.config)),
        page.section("Environment", page.environment(run.record)),
    )


def metrics_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a record, without its step, split and times.

    Example:
        >>> metrics_of({"step": 1, "split": "train", "loss": 2.0, "elapsed_s": 0.5})
        {'loss': 2.0}
    """
    return {name: value for name, value in record.items() if name not in _NO_METRICS}


def points_of(records: Sequence[Mapping[str, Any]], split: str, name: str) -> list[curves.Point]:
    """The values of a metric by step, None where it is not finite."""
    return [
        (record["step"], number(record[name]))
        for record in records
        if record["split"] == split and name in record
    ]


def _facts(run: RunData) -> list[tuple[str, str, str]]:
    """The numbers on top of the page."""
    facts = []
    best = best_validation(list(run.metrics))
    if best is not None:
        at = f"at step {best['step']:,}"
        facts.append(("best validation loss", format_number(best["loss"]), at))
        values = {name: number(value) for name, value in metrics_of(best).items() if name != "loss"}
        facts += [(name, format_number(v), "at the same step") for name, v in values.items() if v is not None]
    done, steps = max(record["step"] for record in run.metrics), run.record.config.get("steps")
    facts.append(("steps", f"{done:,}", f"of {steps:,}" if isinstance(steps, int) else ""))
    seconds = number((run.result or {}).get("seconds")) or _last_of(run.metrics, "elapsed_s")
    if seconds is not None:
        facts.append(("time", format_seconds(seconds), "all processes together"))
    speeds = [number(record.get("units_per_s")) for record in run.metrics]
    if known := [speed for speed in speeds if speed]:
        facts.append(("speed", f"{statistics.median(known):,.0f}", "units of data a second"))
    return facts


def _last_of(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = (number(record.get(name)) for record in reversed(records))
    return next((value for value in values if value is not None), None)


def _curves(records: Sequence[Mapping[str, Any]]) -> list[Markup]:
    if not records:
        return [page.note("There are no records yet: the run has not come to the first of them.")]
    validated = [name for name in _names(records, VALIDATION) if name != "loss"]
    trained = [name for name in _names(records, _TRAIN) if name not in ("loss", *validated)]
    parts = [curves.figure("loss", _lines(records, "loss"), large=True)]
    if validated:
        parts.append(_panels(records, validated))
    if trained:
        summary = tag("summary", "Other numbers of training")
        parts.append(tag("details", summary, _panels(records, trained)))
    return parts


def _names(records: Sequence[Mapping[str, Any]], split: str) -> list[str]:
    """The metrics of a split, in their order."""
    found = (metrics_of(record) for record in records if record["split"] == split)
    return list(dict.fromkeys(name for metrics in found for name in metrics))


def _panels(records: Sequence[Mapping[str, Any]], names: Iterable[str]) -> Markup:
    return tag("div", *(curves.figure(name, _lines(records, name)) for name in names), class_="panels")


def _lines(records: Sequence[Mapping[str, Any]], name: str) -> list[Line]:
    found = {split: points_of(records, split, name) for split in (_TRAIN, VALIDATION)}
    return [Line(split, points, split) for split, points in found.items() if points]


def _time(run: RunData) -> Markup | None:
    """How the time is split, up to the last record that says so; None for runs of older versions."""
    timed = [record for record in run.metrics if all(number(record.get(name)) is not None for name in TIMES)]
    if not timed:
        return None
    record = timed[-1]
    parts = {part: float(record[f"{part}_s"]) for part in PARTS}
    rest = max(float(record["elapsed_s"]) - sum(parts.values()), 0.0)
    parts = {"step": rest, **parts}
    whole = sum(parts.values()) or 1.0
    shares = {part: seconds / whole for part, seconds in parts.items()}
    bar = tag(
        "div",
        *(
            tag("span", class_=f"part {part}", style=f"width:{share:.2%}", title=_NAMES_OF_PARTS[part])
            for part, share in shares.items()
        ),
        class_="bar",
        aria_hidden="true",
    )
    rows = [
        (
            tag("span", tag("i", class_=f"part {part}"), _NAMES_OF_PARTS[part]),
            format_seconds(parts[part]),
            f"{share:.1%}",
        )
        for part, share in shares.items()
    ]
    remark = f"Up to the record of step {record['step']:,}. Batches are made while a step is computed."
    times = page.table("Time by part", ("part", "time", "share"), rows)
    return tag("div", bar, tag("div", times, class_="times"), page.note(remark))


def _samples(folder: Path) -> list[Markup]:
    """The newest samples, the first of them open."""
    parts = []
    for step, text in samples_in(folder, _SAMPLES):
        cut = len(text) > _LONGEST_SAMPLE
        text = text[:_LONGEST_SAMPLE] + ("\n..." if cut else "")
        summary = tag("summary", f"step {step:,}")
        parts.append(tag("details", summary, tag("pre", text), open=not parts, class_="sample"))
    return parts
