"""The page of a sweep."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lstmx.training import VALIDATION
from lstmx.training.progress import format_number, format_seconds
from lstmx.training.terminal import count_of
from scripts.reporting import curves, page
from scripts.reporting.curves import Line
from scripts.reporting.markup import Markup, join, tag
from scripts.reporting.reading import SweepData, Trial, number, pictures_in
from scripts.reporting.run_page import points_of

_STATES = ("complete", "pruned", "failed", "running")
_PARTS_OF_SETTINGS = ("experiment", "base", "space")


def sweep_page(sweep: SweepData) -> str:
    """The page of a sweep as the text of an HTML file."""
    experiment = Path(str(sweep.settings.get("experiment", "unknown"))).stem
    name, best = sweep.folder.resolve().name, sweep.best
    states = Counter(trial.row["state"] for trial in sweep.trials)
    # Whether further trials are to come is known to nobody but the process that starts them.
    status = "running" if states["running"] else None
    explanation = ", ".join(f"{count} {state}" for state, count in states.items()) or "no trial yet"
    pictures = page.gallery(pictures_in(sweep.folder / "pictures"))
    return page.document(
        f"{experiment}: sweep {name}",
        page.header(experiment, f"sweep {name}", status, explanation),
        page.tiles(_facts(sweep)) if sweep.trials else None,
        page.section("Best config", _command(sweep.command)) if sweep.command else None,
        page.section("Validation loss of all trials", *_curves(sweep)),
        page.section("Leaderboard", *_leaderboard(sweep)),
        page.section("Space", _space(sweep)),
        page.section("Pictures", pictures) if pictures else None,
        *_background(sweep, best),
    )


def _facts(sweep: SweepData) -> list[tuple[str, str, str]]:
    facts, best = [], sweep.best
    if best is not None and best.loss is not None:
        facts.append(("best validation loss", format_number(best.loss), f"trial {best.name}"))
        spread = number(best.row.get("spread"))
        if spread is not None:
            facts.append(("spread of its seeds", format_number(spread), ""))
    seeds = sweep.settings.get("seeds", 1)
    several = isinstance(seeds, int) and seeds > 1
    facts.append(("trials", f"{len(sweep.trials):,}", f"of {seeds} seeds each" if several else ""))
    seconds = [number(trial.row["seconds"]) or 0.0 for trial in sweep.trials]
    facts.append(("time of all trials", format_seconds(sum(seconds)), ""))
    return facts


def _command(command: str) -> Markup:
    return tag(
        "div",
        tag("pre", command, id="command"),
        tag("button", "Copy", type="button", data_copy="command", hidden=True),
        class_="command",
    )


def _curves(sweep: SweepData) -> list[Markup]:
    best = sweep.best
    # The best is drawn last, over the others.
    trials = sorted(sweep.trials, key=lambda trial: trial is best)
    lines = [line for trial in trials for line in _lines(trial, trial is best)]
    if not any(line.points for line in lines):
        return [page.note("No trial has been evaluated yet.")]
    others = [line for line in lines if line.style == "trial"][:1]
    names = [line._replace(name=f"trial {best.name}, the best") for line in lines if line.style != "trial"]
    names = names[:1] + [line._replace(name="other trials") for line in others]
    return [curves.figure("validation loss", lines, large=True, names=names)]


def _lines(trial: Trial, is_best: bool) -> list[Line]:
    return [
        Line(f"trial {trial.name}", points, "trial best" if is_best else "trial", trial.name, is_best)
        for run in trial.runs
        if (points := points_of(run.metrics, VALIDATION, "loss"))
    ]


def _leaderboard(sweep: SweepData) -> list[Markup]:
    if not sweep.trials:
        return [page.note("No trial has been recorded yet.")]
    # Columns that are empty in all rows (the spread of a single seed, errors) say nothing.
    columns = [name for name in sweep.columns if any(trial.row[name] for trial in sweep.trials)]
    heads = [
        tag(
            "th",
            tag("button", _heading(name), type="button"),
            scope="col",
            data_column=name,
            class_="number" if _is_numeric(sweep, name) else None,
            aria_sort="ascending" if name == "rank" else None,
        )
        for name in columns
    ]
    rows = [
        tag(
            "tr",
            *(_cell(name, trial.name if name == "trial" else trial.row[name]) for name in columns),
            class_="best" if trial is sweep.best else None,
            data_trial=trial.name,
        )
        for trial in sweep.trials
    ]
    board = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="sortable")
    return [
        page.note("A click on a heading sorts by it; pointing at a row shows its curve above."),
        page.scrolling("Leaderboard", board),
        *_errors(sweep),
    ]


def _errors(sweep: SweepData) -> list[Markup]:
    """The errors in full, of which the leaderboard shows the beginnings."""
    errors = [(trial.name, trial.row["error"]) for trial in sweep.trials if trial.row.get("error")]
    if not errors:
        return []
    summary = tag("summary", f"Errors of {count_of(len(errors), 'trial')}")
    return [tag("details", summary, page.table("Errors", (), errors))]


def _heading(column: str) -> Markup:
    """A dotted field in two lines, for it is longer than its values."""
    part, dot, field = column.rpartition(".")
    return join(tag("small", part + dot) if part else None, field)


def _is_numeric(sweep: SweepData, column: str) -> bool:
    return column != "trial" and all(number(t.row[column]) is not None for t in sweep.trials if t.row[column])


def _cell(column: str, text: str) -> Markup:
    if column == "state":
        return tag("td", tag("span", text, class_=f"badge {text if text in _STATES else ''}"))
    value = number(text)
    if column == "error":
        return tag("td", tag("div", text, title=text), class_="error")
    if value is None or column == "trial":
        return tag("td", text)
    label = _label(column, text, value)
    return tag("td", label, class_="number", data_value=repr(value), title=text if text != label else None)


def _label(column: str, text: str, value: float) -> str:
    """A number of the leaderboard as it is shown, which its title has in full."""
    if column == "seconds":
        return format_seconds(value)
    if text.lstrip("+-").isdecimal():
        return f"{int(text):,}" if column == "steps" else text
    return format_number(value, 5) if column in ("loss", "spread") else f"{value:.4g}"


def _space(sweep: SweepData) -> Markup:
    base = sweep.settings.get("base")
    rows = []
    for field, text in sweep.settings["space"].items():
        best = sweep.best.row.get(field, "") if sweep.best else ""
        value = number(best)
        before = _base_value(base, field) if isinstance(base, Mapping) else ""
        rows.append((field, text, before, best if value is None else _label(field, best, value)))
    return page.table("Space", ("field", "searched", "base config", "best trial"), rows)


def _base_value(base: Mapping[str, Any], field: str) -> str:
    value: Any = base
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return ""
        value = value[name]
    return page.shown(value)


def _background(sweep: SweepData, best: Trial | None) -> list[Markup]:
    """What the sweep was started with, and the environment of its best trial."""
    parts = []
    others = {
        name: value
        for name, value in sweep.settings.items()
        if name not in _PARTS_OF_SETTINGS and not isinstance(value, Mapping | list)
    }
    if others:
        rows = [(name, page.shown(value)) for name, value in others.items()]
        parts.append(page.section("Settings", page.table("Settings", (), rows)))
    base = sweep.settings.get("base")
    if isinstance(base, Mapping) and base:
        cards = page.config_cards(str(sweep.settings.get("experiment", "")), base)
        parts.append(page.section("Base config", tag("details", tag("summary", "Show"), cards)))
    if best is not None and best.runs:
        title = f"Environment of the best trial, {best.name}"
        parts.append(page.section(title, page.environment(best.runs[0].record)))
    elif sweep.trials:
        parts.append(page.note(f"Of {count_of(len(sweep.trials), 'trial')}, none is the best yet."))
    return parts
