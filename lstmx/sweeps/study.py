"""A study: which configs were tried, by whom, and what came out.

The study is Optuna's, and all processes of a sweep ask it for trials. A trial belongs to the process that
holds its lease, a lock on a file in `leases/`. The system drops the lock when the process ends, however it
ends, so a trial that Optuna believes to be running and whose lease is free was abandoned: the next process
that asks for work takes it up, and its run resumes from its last checkpoint.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from lstmx.sweeps.journal import SweepError, locked, open_storage, optuna
from lstmx.sweeps.sampling import (
    distributions_of,
    make_pruner,
    make_sampler,
    next_point,
    require_samplable,
    require_success,
    stored,
    values_of,
)
from lstmx.sweeps.space import Space
from lstmx.training.config import config_differences
from lstmx.training.files import lock_file, write_atomically

# A trial whose process died that often is not taken up again: it may exhaust the memory each time.
_MOST_DEATHS = 3


class Spec(NamedTuple):
    """What makes two sweeps the same; stored as sweep.json.

    Attributes:
        experiment: name of the experiment, or path of its file.
        base: the config that each trial starts from, as a dict.
        space: the space as texts by field.
        seeds: trainings of each config.
    """

    experiment: str
    base: Mapping[str, Any]
    space: Mapping[str, Any]
    seeds: int = 1


@dataclass(frozen=True)
class Claim:
    """A trial that this process has to train.

    Attributes:
        number: its number.
        values: the values of the space's fields.
        trial: Optuna's trial.
        lease: the locked file.
    """

    number: int
    values: dict[str, Any]
    trial: Any
    lease: IO


class Study:
    """The study of a sweep's folder.

    Args:
        folder: the sweep's folder; made if there is none.
        spec: what is swept.
        space: the space of the spec, parsed.
        storage: URL of a database; None for a journal in the folder.
        sampler: how configs are chosen: one of `lstmx.sweeps.SAMPLERS`.
        pruner: which trials are ended early: one of `lstmx.sweeps.PRUNERS`.

    Raises:
        SweepError: the folder holds something else or another sweep, or the storage cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        spec: Spec,
        space: Space,
        *,
        storage: str | None = None,
        sampler: str = "tpe",
        pruner: str = "none",
    ):
        self.folder, self.spec, self.space = folder, spec, space
        self._sampler = sampler
        require_samplable(sampler, space)
        _keep_spec(folder, spec)
        (folder / "leases").mkdir(exist_ok=True)
        package = optuna()
        self._study = package.create_study(
            storage=open_storage(folder, storage),
            study_name=_name(folder) if storage else "sweep",
            direction="minimize",
            pruner=make_pruner(pruner),
            load_if_exists=True,
        )

    @property
    def trials(self) -> list[Any]:
        """Optuna's records of all trials, in order."""
        return self._study.get_trials(deepcopy=False)

    @property
    def optuna(self) -> Any:
        """Optuna's study."""
        return self._study

    def path(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / "trials" / f"{number:04}"

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the space's fields, of a trial's parameters as Optuna stores them."""
        return values_of(self.space, params)

    def enqueue(self, values: Mapping[str, Any]) -> None:
        """Tries a config before all others, unless it was tried or enqueued already."""
        point = {name: stored(value) for name, value in values.items()}
        with locked(self.folder / "asking.lock"):
            self._study.enqueue_trial(point, skip_if_exists=True)

    def next(self, trials: int) -> Claim | None:
        """A trial to train: an abandoned one if there is one, otherwise a new one.

        Args:
            trials: how many the sweep has.

        Returns:
            The trial, or None if each is finished or in the hands of another process.

        Raises:
            SweepError: the last five trials failed.
        """
        with locked(self.folder / "asking.lock"):
            require_success(self.trials, "sweep")
            for record in self.trials:
                if record.state.name == "RUNNING" and (lease := self._lease(record.number)):
                    claim = self._take_up(record, lease)
                    if claim is not None:
                        return claim
            begun = [record for record in self.trials if record.state.name != "WAITING"]
            if len(begun) >= trials:
                return None
            if self._sampler == "grid":
                if (point := next_point(self.space, self.trials)) is None:
                    return None
                self._study.enqueue_trial(point)
            else:
                self._study.sampler = make_sampler(self._sampler, len(begun))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial = self._study.ask(distributions_of(self.space))
            lease = self._lease(trial.number)
            if lease is None:
                raise SweepError(f"the lease of trial {trial.number} is held by another process")
            return Claim(trial.number, self.values(trial.params), trial, lease)

    def report(self, claim: Claim, step: int, loss: float) -> bool:
        """Records a validation loss of a trial that is not finished; returns whether to end it."""
        # A resumed trial repeats the evaluations after its last checkpoint.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            claim.trial.report(loss, step)
        return claim.trial.should_prune()

    def finish(self, claim: Claim, loss: float, *, pruned: bool = False, **facts: Any) -> None:
        """Records the result of a trial, and gives its lease back.

        Args:
            claim: the trial.
            loss: its lowest validation loss, or the mean of those of its seeds.
            pruned: whether it was ended early.
            facts: further values for the leaderboard.
        """
        state = optuna().trial.TrialState
        for name, value in facts.items():
            claim.trial.set_user_attr(name, value)
        if pruned:
            # Optuna takes the last reported loss of a pruned trial.
            self._study.tell(claim.number, state=state.PRUNED, skip_if_finished=True)
        else:
            self._study.tell(claim.number, loss, skip_if_finished=True)
        claim.lease.close()

    def fail(self, claim: Claim, error: str) -> None:
        """Records why a trial failed, and gives its lease back."""
        claim.trial.set_user_attr("error", error)
        self._study.tell(claim.number, state=optuna().trial.TrialState.FAIL, skip_if_finished=True)
        claim.lease.close()

    def is_complete(self, trials: int) -> bool:
        """Whether all trials are finished."""
        if any(record.state.name == "RUNNING" for record in self.trials):
            return False
        finished = sum(record.state.is_finished() for record in self.trials)
        return finished >= trials or (self._sampler == "grid" and next_point(self.space, self.trials) is None)

    def _lease(self, number: int) -> IO | None:
        """The lease of a trial, None if another process holds it."""
        file = (self.folder / "leases" / f"{number:04}").open("a")
        try:
            lock_file(file)
        except OSError:
            file.close()
            return None
        return file

    def _take_up(self, record: Any, lease: IO) -> Claim | None:
        package = optuna()
        trial = package.trial.Trial(self._study, record._trial_id)
        claim = Claim(record.number, {}, trial, lease)
        if set(record.params) != set(self.space):
            # Its process was killed before all values were drawn. They cannot be drawn again.
            self.fail(claim, "its process ended before the trial began")
            return None
        deaths = record.user_attrs.get("deaths", 0) + 1
        trial.set_user_attr("deaths", deaths)
        if deaths >= _MOST_DEATHS:
            self.fail(claim, f"its process ended {deaths} times without a result; out of memory?")
            return None
        return Claim(record.number, self.values(record.params), trial, lease)

    def pause(self, claim: Claim) -> None:
        """Gives a trial back that was stopped on request: whoever continues the sweep takes it up."""
        claim.trial.set_user_attr("deaths", claim.trial.user_attrs.get("deaths", 0) - 1)
        claim.lease.close()


def read_spec(folder: Path) -> Spec | None:
    """The spec of a sweep's folder; None if it is not one.

    Raises:
        SweepError: sweep.json is damaged.
    """
    path = folder / "sweep.json"
    try:
        return Spec(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise SweepError(f"{path} is damaged ({error}): restore it or choose another folder") from error


def _keep_spec(folder: Path, spec: Spec) -> None:
    """Writes sweep.json, or compares the sweep with it."""
    if folder.exists() and not folder.is_dir():
        raise SweepError(f"{folder} is a file: a sweep needs a folder")
    wanted = json.loads(json.dumps(spec._asdict()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "asking.lock"):
            old = read_spec(folder)
            if old is None:
                others = sorted(path.name for path in folder.iterdir() if path.name != "asking.lock")
                if others:
                    raise SweepError(
                        f"{folder} is not empty and not a sweep (no sweep.json, but "
                        f"{', '.join(others[:3])}): choose another folder"
                    )
                write_atomically(folder / "sweep.json", json.dumps(wanted, indent=2) + "\n")
                return
    except OSError as error:
        raise SweepError(f"cannot write in {folder}: {error.strerror or error}") from error
    changed = config_differences(old._asdict(), wanted)
    if changed:
        lines = [
            f"  {name}: {before} in the sweep, {after} requested" for name, (before, after) in changed.items()
        ]
        message = "\n".join([f"the sweep in {folder} is another one:", *lines])
        raise SweepError(message + "\nask for the same to continue it, or choose another folder")


def _name(folder: Path) -> str:
    """The name of the study in a database that may hold several."""
    return str(folder.resolve())
