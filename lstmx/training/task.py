"""What the training loop asks of a model and its data, and nothing more."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax

PyTree = Any
VALIDATION = "validation"


@runtime_checkable
class Task(Protocol):
    """A model, its data and its loss, as pure functions of plain pytrees.

    The loop knows nothing else, so anything that offers these names can be trained: a language model, a
    forecaster, a linear regression in ten lines.

    A task may also have `assets() -> dict[str, str]`, texts by file name that the run keeps in its folder:
    what is needed to use the model without the data, and digests by which changed data are noticed. And it
    may have `draw(params, folder) -> Iterable[Path]`, called once the training has finished: it writes
    pictures into the run folder and says which.

    Attributes:
        unit: what one unit of data is, in the plural, for the throughput: "characters", "sequences".
        units_per_step: how many units one training batch holds.
        splits: the splits that `evaluate` knows. The loss on "validation" decides which checkpoint is best;
            without that split there is no best.
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
        """Makes the parameters and the recurrent state that is kept across batches.

        It is also traced by `jax.eval_shape`, to know the shapes in a checkpoint without computing anything.

        Args:
            key: a typed PRNG key.

        Returns:
            (params, carry): pytrees of arrays; carry is `()` if nothing is kept.
        """
        ...

    def loss(
        self, params: PyTree, carry: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
        """The loss of one batch: pure, traced once by `jax.jit`.

        Args:
            params: what `init` made, or a later value of it.
            carry: recurrent state of the batch before; same shapes and dtypes in and out.
            batch: what `batch` made.
            key: a key of this step alone.

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
        """The numbers a person wants to see of one training step, such as {"bits per character": 1.9}."""
        ...

    def sample(self, params: PyTree, key: jax.Array) -> str | None:
        """A sample of what the model has learned, as text, or None."""
        ...

    def describe(self) -> str:
        """One short paragraph: the data, its sizes, the model, its number of parameters."""
        ...
