"""Stores for the loop's records, checkpoints and samples: a run folder, or memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lstmx.training import checkpoint
from lstmx.training.averaging import exchange_average
from lstmx.training.digest import saved_steps
from lstmx.training.files import write_atomically
from lstmx.training.metrics import MetricsLog, best_validation
from lstmx.training.run import Run
from lstmx.training.state import TrainState
from lstmx.training.task import PyTree


class Store(Protocol):
    """A place for the results of the loop."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records of the run so far, in order."""
        ...

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record with at least step and split."""
        ...

    def save(self, state: TrainState, validation_loss: float | None) -> None:
        """Saves the state; the loss is None if the validation split was not evaluated at this step."""
        ...

    def save_sample(self, step: int, text: str) -> None:
        """Saves a sample of the model."""
        ...

    def advice(self) -> str:
        """What is saved after a non-finite loss: a line that follows the message."""
        ...


@dataclass(frozen=True)
class FolderStore:
    """A run folder: `metrics.jsonl`, checkpoints and samples."""

    run: Run
    log: MetricsLog
    saver: checkpoint.Saver

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of the log."""
        return self.log.records

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends to the log."""
        self.log.write(record)

    def save(self, state: TrainState, validation_loss: float | None) -> None:
        """Writes a checkpoint."""
        # Records first: a checkpoint whose records are missing would never get them back.
        self.log.sync()
        self.saver.save(state, validation_loss=validation_loss, record=vars(self.run.record))

    def save_sample(self, step: int, text: str) -> None:
        """Writes a text file."""
        folder = self.run.folder / "samples"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{step}.txt", text + "\n")

    def advice(self) -> str:
        """Names the last checkpoint."""
        saved = saved_steps(self.run.folder)
        last = f"the last checkpoint is that of step {saved[-1]}" if saved else "there is no checkpoint yet"
        return f"\nnothing of it was saved; {last}. The same run would fail at the same step again"


@dataclass
class MemoryStore:
    """Records and the best parameters, in memory.

    Attributes:
        records: all records.
        best: the parameters with the lowest finite validation loss, the later of equals; None without.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    best: PyTree | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends to the records."""
        self.records.append(dict(record))

    def save(self, state: TrainState, validation_loss: float | None) -> None:
        """Copies the parameters, or their average, if they are the best."""
        if validation_loss is None:
            return
        best = best_validation(self.records)
        if best is not None and best["step"] == int(state.step):
            params, _ = exchange_average(state.params, state.opt_state)
            # The next step takes over the buffers of the state.
            self.best = jax.tree.map(jnp.copy, params)

    def save_sample(self, step: int, text: str) -> None:
        """Does nothing: samples are only shown."""

    def advice(self) -> str:
        """No lines: the caller knows its options."""
        return ""
