"""The protocol between the training loop and a model with its data."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

PyTree = Any
VALIDATION = "validation"


@runtime_checkable
class Task(Protocol):
    """A model, its data and its loss, as pure functions of plain pytrees.

    The loop uses nothing else, so anything that has these methods can be trained: a language model, a
    forecaster, a linear regression in ten lines.

    What else a task may offer is described by `HasAssets`, `HasPictures` and `HasReport`.

    Attributes:
        unit: name of one unit of data, in the plural, for the throughput: "characters", "sequences".
        units_per_step: number of units in a training batch.
        splits: the splits that `evaluate` accepts. The loss on "validation" decides which checkpoint is best;
            without that split none is.
    """

    # Properties, so that the fields of a frozen dataclass satisfy the protocol.
    @property
    def unit(self) -> str:
        """What one unit of data is."""
        ...

    @property
    def units_per_step(self) -> int:
        """The units of one batch."""
        ...

    @property
    def splits(self) -> Sequence[str]:
        """The splits that `evaluate` knows."""
        ...

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Makes the parameters and the recurrent state that is carried from batch to batch.

        It is also traced by `jax.eval_shape`, to get the shapes in a checkpoint without computing anything.

        Args:
            key: a typed PRNG key.

        Returns:
            (params, carry): pytrees of arrays; carry is `()` if there is no state.
        """
        ...

    def loss(
        self, params: PyTree, carry: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
        """The loss of one batch: pure, traced once by `jax.jit`.

        Args:
            params: the parameters, as made by `init` or updated since.
            carry: recurrent state after the previous batch; shapes and dtypes must not change.
            batch: a batch, as returned by `batch`.
            key: a key used only in this step.

        Returns:
            (loss, (carry, metrics)): loss a scalar, metrics a dict of scalars.
        """
        ...

    def batch(self, step: int) -> PyTree:
        """The training batch of a step, counted from 0: numpy arrays, a pure function of the step.

        Because it is pure, the position in the data is the step, and a checkpoint needs no iterator.
        """
        ...

    def evaluate(self, params: PyTree, split: str) -> dict[str, float]:
        """The metrics of a whole split, "loss" among them."""
        ...

    def display(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The numbers to show for a training step, such as {"bits per character": 1.9}."""
        ...

    def sample(self, params: PyTree, key: jax.Array) -> str | None:
        """A sample of what the model has learned, as text, or None."""
        ...

    def describe(self) -> str:
        """One short paragraph: the data, its sizes, the model, its number of parameters."""
        ...


@runtime_checkable
class HasAssets(Protocol):
    """A task with texts that a run folder stores.

    For example the vocabulary, which is needed to use the model without the data, or digests by which changed
    data are noticed.
    """

    def assets(self) -> dict[str, str]:
        """The texts by file name."""
        ...


@runtime_checkable
class HasPictures(Protocol):
    """A task that draws pictures when the training has finished."""

    def draw(self, params: PyTree, folder: Path) -> Iterable[Path]:
        """Writes pictures into the run folder, and returns their paths."""
        ...


@runtime_checkable
class HasReport(Protocol):
    """A task with more to say about an evaluation than its metrics."""

    def report(self, params: PyTree, split: str, folder: Path) -> tuple[str, dict[str, Any]]:
        """Draws pictures into the run folder, and returns a text and the same as values for JSON."""
        ...


def assets_of(task: Task) -> dict[str, str]:
    """The assets of a task, none if it has none.

    Example:
        >>> assets_of(object())
        {}
    """
    return task.assets() if isinstance(task, HasAssets) else {}
