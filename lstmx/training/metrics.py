"""The metrics of a run: one JSON object per line."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lstmx.training.files import write_atomically
from lstmx.training.task import VALIDATION


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads the records of a metrics.jsonl, even while it is being written.

    Args:
        path: the file.

    Returns:
        Its records in order; none if there is no file. An incomplete last line, left by a kill, is skipped.

    Raises:
        ValueError: a line before the last is not JSON.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "metrics.jsonl")
        ...     _ = file.write_text('{"step": 1}' + chr(10) + '{"st')
        ...     read_metrics(file)
        [{'step': 1}]
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    # What follows the last line feed is empty, or was never finished.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {line[:80]!r}") from error
    return records


def best_validation(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The validation record of the lowest finite loss, the later of equals; None if there is none.

    Example:
        >>> best_validation([{"step": 1, "split": "validation", "loss": 2.0}, {"step": 1, "split": "train"}])
        {'step': 1, 'split': 'validation', 'loss': 2.0}
    """
    finite = [r for r in records if r["split"] == VALIDATION and is_finite(r.get("loss"))]
    return min(reversed(finite), key=lambda record: record["loss"], default=None)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number.

    Example:
        >>> is_finite(1.5), is_finite(float("nan")), is_finite(None)
        (True, False, False)
    """
    return isinstance(value, int | float) and math.isfinite(value)


class MetricsLog:
    """Appends records to metrics.jsonl and, on request, to TensorBoard event files.

    Attributes:
        records: all records of the run so far, including those of earlier processes.
    """

    def __init__(self, folder: Path, *, resumed_step: int, tensorboard: bool):
        """Opens the log and removes records written after the checkpoint that the run resumes from.

        Args:
            folder: the run folder.
            resumed_step: records of later steps are removed: they will be written again.
            tensorboard: whether to write event files, where tensorboardX is installed.
        """
        path = folder / "metrics.jsonl"
        self.records = [record for record in read_metrics(path) if record["step"] <= resumed_step]
        write_atomically(path, "".join(_line(record) for record in self.records))
        self._file = path.open("a", encoding="utf-8")
        self._events = _open_events(folder / "tensorboard", resumed_step) if tensorboard else None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record with at least step and split; values that are not finite become null."""
        self.records.append(json.loads(_line(record)))
        self._file.write(_line(record))
        self._file.flush()
        if self._events is not None:
            for name, value in self.records[-1].items():
                if name != "step" and is_finite(value):
                    self._events.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def sync(self) -> None:
        """Makes all records durable, before a checkpoint of their step is."""
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()


def _line(record: Mapping[str, Any]) -> str:
    # JSON knows neither NaN nor infinity, and readers in other languages refuse them.
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(clean, allow_nan=False) + "\n"


def _open_events(folder: Path, resumed_step: int) -> Any:
    try:
        import tensorboardX
    except ImportError:  # the extra `tensorboard` is not installed
        return None
    return tensorboardX.SummaryWriter(str(folder), purge_step=resumed_step + 1)
