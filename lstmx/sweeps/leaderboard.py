"""The results of a sweep: a table, leaderboard.csv, pictures, and the best config as a command."""

import csv
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lstmx.sweeps.study import Study
from lstmx.training.files import write_atomically
from lstmx.training.metrics import is_finite
from lstmx.training.progress import format_number, format_seconds

_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


class Entry(NamedTuple):
    """A trial.

    Attributes:
        rank: place by loss among the complete trials, from 1; None for the others.
        trial: its number.
        state: `"complete"`, `"pruned"`, `"failed"` or `"running"`.
        loss: lowest validation loss, or the mean of those of its seeds; None without one.
        spread: standard deviation over the seeds, None with one seed.
        steps: updates made, of all its seeds.
        seconds: time taken, of all its seeds.
        values: the values of the space's fields.
        error: why it failed, or "".
    """

    rank: int | None
    trial: int
    state: str
    loss: float | None
    spread: float | None
    steps: int | None
    seconds: float | None
    values: Mapping[str, Any]
    error: str


def entries(study: Study) -> list[Entry]:
    """The trials that have begun: complete ones by loss, then pruned, failed and running ones."""
    found = [_entry(study, record) for record in study.trials if record.state.name in _STATES]
    order = list(_STATES.values())

    def key(entry: Entry) -> tuple:
        loss = entry.loss if entry.loss is not None else float("inf")
        return order.index(entry.state), loss, entry.trial

    complete = 0
    ranked = []
    for entry in sorted(found, key=key):
        complete += entry.state == "complete"
        ranked.append(entry._replace(rank=complete if entry.state == "complete" else None))
    return ranked


def _entry(study: Study, record: Any) -> Entry:
    facts, losses = record.user_attrs, [v for v in record.intermediate_values.values() if is_finite(v)]
    loss = record.value if record.state.name == "COMPLETE" else min(losses, default=None)
    return Entry(
        None,
        record.number,
        _STATES[record.state.name],
        loss,
        facts.get("spread"),
        facts.get("steps"),
        facts.get("seconds"),
        study.values(record.params),
        facts.get("error", "") if record.state.name == "FAIL" else "",
    )


def as_csv(board: Sequence[Entry], fields: Sequence[str]) -> str:
    """The entries as text of a CSV file; `fields` are those of the space."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "trial", "state", "loss", "spread", "steps", "seconds", *fields, "error"])
    for entry in board:
        values = [entry.values.get(field) for field in fields]
        writer.writerow([*entry[:7], *values, entry.error])
    return text.getvalue()


def as_table(board: Sequence[Entry], most: int = 20) -> Any:
    """The first entries as a table for a terminal (rich)."""
    from rich.table import Table
    from rich.text import Text

    fields = list(dict.fromkeys(field for entry in board for field in entry.values))
    names = _short(fields)
    spread = any(entry.spread is not None for entry in board)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "trial", "loss", *(("±",) if spread else ()), *names, "time", ""):
        table.add_column(name, justify="left" if name in ("", *names) else "right", no_wrap=True)
    for entry in board[:most]:
        cells = [
            "" if entry.rank is None else str(entry.rank),
            str(entry.trial),
            _number(entry.loss),
            *((_number(entry.spread),) if spread else ()),
            *(shown(entry.values.get(field)) for field in fields),
            "" if entry.seconds is None else format_seconds(entry.seconds),
            entry.error.splitlines()[0] if entry.error else "" if entry.rank else entry.state,
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _short(fields: Sequence[str]) -> list[str]:
    """The last parts of dotted names, where they are unambiguous."""
    last = [field.rpartition(".")[2] for field in fields]
    return [name if last.count(name) == 1 else field for name, field in zip(last, fields, strict=True)]


def _number(value: float | None) -> str:
    return "" if value is None else format_number(value)


def shown(value: Any) -> str:
    """A value of a field, with four significant digits if it is a float.

    Example:
        >>> shown(0.00123456), shown("gru"), shown(None)
        ('0.001235', 'gru', '')
    """
    if isinstance(value, float):
        return format_number(value).rstrip("0").rstrip(".") if abs(value) < 1e4 else format_number(value)
    return "" if value is None else str(value)


def command_of(values: Mapping[str, Any], start: Sequence[str]) -> list[str]:
    """The command that trains a config.

    Args:
        values: the values of the space's fields.
        start: the command up to them: script, experiment, options of the base config.

    Example:
        >>> command_of({"model.dropout_rate": 0.25, "model.tied": True}, ["train.py", "char_lm"])
        ['train.py', 'char_lm', '--model.dropout-rate', '0.25', '--model.tied']
    """
    command = list(start)
    for name, value in values.items():
        group, dot, field = name.rpartition(".")
        flag = f"--{group}{dot}".replace("_", "-")
        option = field.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"{flag}{option}" if value else f"{flag}no-{option}")
            continue
        words = value if isinstance(value, list | tuple) else [value]
        command += [f"{flag}{option}", *map(str, words)]
    return command


def write(study: Study, command: str) -> list[Entry]:
    """Writes leaderboard.csv, and best.txt with the best config as a command.

    Args:
        study: the study.
        command: the command of the best config, "" if there is none yet.

    Returns:
        The entries.
    """
    board = entries(study)
    write_atomically(study.folder / "leaderboard.csv", as_csv(board, list(study.space)))
    if command:
        write_atomically(study.folder / "best.txt", command + "\n")
    return board


def draw(study: Study) -> list[Path]:
    """Draws Optuna's pictures, if matplotlib is installed: history, importance and parallel coordinates.

    There are none before two trials are complete; importance needs scikit-learn.
    """
    if sum(record.state.name == "COMPLETE" for record in study.trials) < 2:
        return []

    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
        from optuna.visualization import matplotlib as pictures
    except ImportError:
        return []
    folder, paths = study.folder / "pictures", []
    folder.mkdir(exist_ok=True)
    plots: dict[str, Any] = {
        "history": pictures.plot_optimization_history,
        "importance": pictures.plot_param_importances,
        "parallel": pictures.plot_parallel_coordinate,
    }
    for name, plot in plots.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                plot(study.optuna, target_name="validation loss")
            # Too few trials, or values that are all equal: Optuna raises many types.
            except Exception:
                pyplot.close("all")
                continue
            pyplot.gcf().set_size_inches(10, 5)
            pyplot.savefig(folder / f"{name}.png", dpi=100, bbox_inches="tight")
            pyplot.close("all")
        paths.append(folder / f"{name}.png")
    return paths


def summary(board: Sequence[Entry]) -> dict[str, Any]:
    """Counts by state and the best entry, as JSON can hold them."""
    counts = {state: sum(entry.state == state for entry in board) for state in _STATES.values()}
    best = board[0] if board and board[0].rank == 1 else None
    return json.loads(json.dumps({**counts, "best": None if best is None else best._asdict()}))
