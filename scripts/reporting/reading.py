"""What a run folder or a sweep folder holds, read without changing anything and checked as it is read."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lstmx.training import RunError, RunRecord, open_run, read_metrics
from lstmx.training.metrics import is_finite
from lstmx.training.result import read_result

PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}
COLUMNS = ("rank", "trial", "state", "loss", "steps", "seconds")


@dataclass(frozen=True)
class RunData:
    """A run.

    Attributes:
        folder: the run folder.
        record: what config.json holds.
        metrics: the records, each with an integer step and a split.
        result: the summary of a finished run; None for any other.
    """

    folder: Path
    record: RunRecord
    metrics: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None

    @property
    def status(self) -> str:
        """What is known of its end: finished, interrupted, or unfinished.

        The lock names its process as long as that trains, and still does after it was killed.
        """
        if self.result is not None:
            return "finished"
        lock = self.folder / "lock"
        return "interrupted" if lock.is_file() and not lock.read_bytes().strip() else "unfinished"

    @property
    def last(self) -> Mapping[str, Any] | None:
        """The last record, None before there is one."""
        return self.metrics[-1] if self.metrics else None


@dataclass(frozen=True)
class Trial:
    """A row of the leaderboard.

    Attributes:
        name: the folder's name below `trials`.
        row: the cells by name of the column.
        runs: its runs that can be read, one for each seed.
    """

    name: str
    row: Mapping[str, str]
    runs: Sequence[RunData]

    @property
    def loss(self) -> float | None:
        """Its loss, None if it has no finite one."""
        return number(self.row["loss"])


@dataclass(frozen=True)
class SweepData:
    """A sweep.

    Attributes:
        folder: the sweep folder.
        settings: what sweep.json holds.
        trials: the leaderboard, in its order.
        columns: the columns of the leaderboard.
        command: the command that trains the best config; None if there is none yet.
    """

    folder: Path
    settings: Mapping[str, Any]
    trials: Sequence[Trial]
    columns: Sequence[str]
    command: str | None

    @property
    def best(self) -> Trial | None:
        """The trial of rank 1; without ranks the complete one of the lowest loss."""
        ranked = [trial for trial in self.trials if number(trial.row["rank"]) == 1]
        complete = [t for t in self.trials if t.row["state"] == "complete" and t.loss is not None]
        return ranked[0] if ranked else min(complete, key=lambda trial: trial.loss, default=None)


def number(text: Any) -> float | None:
    """A value of JSON or CSV as a finite number, None if it is none.

    Example:
        >>> [number(value) for value in ("0.5", 3, "", None, "nan", True, 10**400)]
        [0.5, 3.0, None, None, None, None, None]
    """
    try:
        value = None if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if is_finite(value) else None


def read(folder: Path) -> RunData | SweepData:
    """Reads a run or a sweep.

    Args:
        folder: its folder.

    Raises:
        ValueError: it is neither, or one of its files is damaged; the message names the file.
    """
    if (folder / "sweep.json").exists():
        return read_sweep(folder)
    if folder.is_dir() and not (folder / "config.json").exists():
        raise RunError(f"{folder} is neither a run nor a sweep: it has no config.json and no sweep.json")
    return read_run(folder)


def read_run(folder: Path) -> RunData:
    """Reads a run; errors as in `read`."""
    record = open_run(folder)
    if not isinstance(record.config, Mapping) or not isinstance(record.versions, Mapping):
        raise RunError(f"{folder / 'config.json'} is damaged: config and versions must be objects")
    path = folder / "metrics.jsonl"
    metrics = read_metrics(path)
    for line, entry in enumerate(metrics, start=1):
        whole = isinstance(entry, Mapping) and isinstance(entry.get("step"), int)
        if not whole or not isinstance(entry.get("split"), str):
            raise ValueError(f"{path}, line {line} is damaged: a record has a step and a split")
    result = read_result(folder)
    return RunData(folder, record, metrics, result if isinstance(result, Mapping) else None)


def read_sweep(folder: Path) -> SweepData:
    """Reads a sweep; errors as in `read`."""
    path = folder / "sweep.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error!r})") from error
    if not isinstance(settings, Mapping) or not isinstance(settings.get("space"), Mapping):
        raise ValueError(f"{path} is damaged: it has no space")
    columns, rows = _read_leaderboard(folder / "leaderboard.csv")
    for row in rows:
        # A name with a path in it would lead out of the sweep.
        if row["trial"] in ("", "..") or Path(row["trial"]).name != row["trial"]:
            board = folder / "leaderboard.csv"
            raise ValueError(f"{board} is damaged: a trial cannot be named {row['trial']!r}")
    trials = [_read_trial(folder / "trials", row) for row in rows]
    command = folder / "best.txt"
    text = command.read_text(encoding="utf-8", errors="replace").strip() if command.is_file() else ""
    return SweepData(folder, settings, trials, columns, text or None)


def _read_leaderboard(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    if not path.exists():
        return [], []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = list(csv.reader(file))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error!r})") from error
    columns, rows = (table[0], table[1:]) if table else ([], [])
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"{path} is damaged: it has no column {missing[0]}")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise ValueError(f"{path} is damaged: row {line} has {len(row)} cells of {len(columns)}")
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]


def _read_trial(folder: Path, row: Mapping[str, str]) -> Trial:
    name = row["trial"]
    if name.isdecimal():
        name = f"{int(name):04}"
    home = folder / name
    runs = [home, *sorted(home.glob("seed-*"), key=_number_at_the_end)]
    # A trial that failed early, or has just been started, has no run yet.
    return Trial(name, row, [read_run(run) for run in runs if (run / "config.json").is_file()])


def _number_at_the_end(path: Path) -> tuple[int, str]:
    digits = path.name.rpartition("-")[2]
    return (int(digits) if digits.isdecimal() else 0, path.name)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder that a page can show, by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())


def samples_in(folder: Path, count: int) -> list[tuple[int, str]]:
    """The newest samples of a run, at most so many: (step, text)."""
    paths = [path for path in folder.glob("*.txt") if path.stem.isdecimal()] if folder.is_dir() else []
    newest = sorted(paths, key=lambda path: int(path.stem), reverse=True)[:count]
    return [(int(path.stem), path.read_text(encoding="utf-8", errors="replace")) for path in newest]
