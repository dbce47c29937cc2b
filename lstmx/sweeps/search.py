"""A search in memory, for what is not a run in a folder: a loop asks for values and tells their losses."""

import math
import warnings
from typing import Any, NamedTuple

from lstmx.sweeps.journal import optuna
from lstmx.sweeps.sampling import (
    distributions_of,
    make_pruner,
    make_sampler,
    next_point,
    require_samplable,
    require_success,
    values_of,
)
from lstmx.sweeps.space import Space


class Asked(NamedTuple):
    """A trial to try.

    Attributes:
        number: its number, from 0.
        values: the values of the space's fields.
        trial: Optuna's trial.
    """

    number: int
    values: dict[str, Any]
    trial: Any


class Search:
    """Trials one after the other, which depend on the seed and on the results only.

    Args:
        space: the space, as from `lstmx.sweeps.parse_space`.
        sampler: how values are chosen: one of `lstmx.sweeps.SAMPLERS`.
        pruner: which trials are ended early: one of `lstmx.sweeps.PRUNERS`.
        seed: seed of the sampler, in [0, 2**32).

    Raises:
        SweepError: Optuna is not installed, there is no such pruner, or the space has no grid.

    Example:
        >>> from lstmx.sweeps import Choice
        >>> search = Search({"width": Choice((1, 2, 3))}, sampler="grid")
        >>> while (asked := search.ask()) is not None:
        ...     search.finish(asked, (asked.values["width"] - 2.2) ** 2)
        >>> search.best.values
        {'width': 2}
    """

    def __init__(self, space: Space, *, sampler: str = "tpe", pruner: str = "none", seed: int = 0):
        package = optuna()
        require_samplable(sampler, space)
        self.space, self._grid = space, sampler == "grid"
        self._study = package.create_study(
            # Hyperband draws by the name, which is random by default.
            study_name="search",
            direction="minimize",
            sampler=None if self._grid else make_sampler(sampler, seed),
            pruner=make_pruner(pruner),
        )
        self._states = package.trial.TrialState
        self._best: tuple[float, Asked] | None = None

    @property
    def best(self) -> Asked | None:
        """The trial with the lowest loss, the first of equals; None if none is complete."""
        return None if self._best is None else self._best[1]

    def ask(self) -> Asked | None:
        """The next trial; None if all points of the grid were tried.

        Raises:
            SweepError: the last five trials failed.
        """
        records = self._study.get_trials(deepcopy=False)
        require_success(records, "search")
        if self._grid:
            if (point := next_point(self.space, records)) is None:
                return None
            self._study.enqueue_trial(point)
        with warnings.catch_warnings():
            # Of choices that are lists.
            warnings.simplefilter("ignore")
            trial = self._study.ask(distributions_of(self.space))
        return Asked(trial.number, values_of(self.space, trial.params), trial)

    def report(self, asked: Asked, step: int, loss: float) -> bool:
        """Records what a trial has reached so far; returns whether to end it.

        Args:
            asked: the trial.
            step: how far it is; losses of different trials are compared at the same step.
            loss: the loss, finite.
        """
        asked.trial.report(loss, step)
        return asked.trial.should_prune()

    def finish(self, asked: Asked, loss: float) -> None:
        """Records the loss of a trial, which must be finite."""
        if not math.isfinite(loss):
            raise ValueError(f"loss must be finite, got {loss}")
        self._study.tell(asked.trial, loss)
        if self._best is None or loss < self._best[0]:
            self._best = loss, asked

    def prune(self, asked: Asked) -> None:
        """Records that a trial was ended early."""
        self._study.tell(asked.trial, state=self._states.PRUNED)

    def fail(self, asked: Asked, error: str) -> None:
        """Records why a trial failed."""
        asked.trial.set_user_attr("error", error)
        self._study.tell(asked.trial, state=self._states.FAIL)
