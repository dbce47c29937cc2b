"""What a training returns."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lstmx.training.state import TrainState
from lstmx.training.task import PyTree


@dataclass(frozen=True)
class Result:
    """How a training ended.

    Attributes:
        status: "finished" or "interrupted".
        step: steps done.
        steps: steps requested.
        seconds: time spent, in all processes of the run.
        train: the last record of the training loss, or None.
        validation: the last record of the validation split, or None.
        best: the validation record of the lowest loss, or None.
        signal: number of the signal that interrupted it, or None.
        state: the state reached.
    """

    status: str
    step: int
    steps: int
    seconds: float
    train: Mapping[str, Any] | None
    validation: Mapping[str, Any] | None
    best: Mapping[str, Any] | None
    signal: int | None
    state: TrainState

    def summary(self) -> dict[str, Any]:
        """All but the state, as JSON can hold it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "state"}


def read_result(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None if it is not finished, or its summary is lost."""
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


class Trained(NamedTuple):
    """What `train_in_memory` returns.

    Attributes:
        result: how the training ended.
        latest: the last parameters, or their average if the optimizer averages.
        best: those of the lowest validation loss; None if there is no finite one.
    """

    result: Result
    latest: PyTree
    best: PyTree | None
