"""A population: several trials trained at once by one compiled step, each a run like any other in the end."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import jax

from lstmx.sweeps.engines.members import Members
from lstmx.sweeps.study import Claim, Study
from lstmx.training import checkpoint
from lstmx.training.config import replace_fields
from lstmx.training.digest import saved_steps
from lstmx.training.files import write_atomically
from lstmx.training.loop import train_from
from lstmx.training.metrics import MetricsLog, best_validation
from lstmx.training.optimizer import make_schedule
from lstmx.training.result import Result
from lstmx.training.run import Run, claim_run, keep_assets
from lstmx.training.signals import StopRequest, stop_on_signals
from lstmx.training.state import TrainState, abstract_state, make_keys
from lstmx.training.stores import FolderStore
from lstmx.training.task import VALIDATION, assets_of
from lstmx.training.timing import TIMES, Stopwatch


def train_population(
    study: Study,
    claims: Sequence[Claim],
    module: ModuleType,
    experiment: str,
    base: Any,
    stop: StopRequest,
    quiet: bool = True,
) -> bool:
    """Trains trials at once, and records their results in the study.

    Args:
        study: the study, of one seed for each trial.
        claims: the trials.
        module: the experiment.
        experiment: its name or path, for the records of the runs.
        base: the config that the space's values are put into.
        stop: once true, training ends with a checkpoint of each member.
        quiet: print nothing.

    Returns:
        Whether they are finished; False if they were stopped on request.

    Raises:
        SweepError: they differ in more than numbers.
    """
    configs = [replace_fields(base, claim.values) for claim in claims]
    members = Members(module, configs)
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(claim_run(study.path(claim.number), experiment, config))
            for claim, config in zip(claims, configs, strict=True)
        ]
        state, start = _restored(members, runs)
        store = _open(stack, members, runs, study, claims, start)
        result = train_from(
            state,
            members,
            store,
            steps=base.steps,
            optimizer=members.optimizer(),
            keys=make_keys(base.seed),
            loop=base.loop,
            stop=stop,
            quiet=quiet,
        )
        jax.clear_caches()
        if result.status != "finished":
            for claim in claims:
                study.pause(claim)
            return False
        # Failures first: five of them in a row at the end would stop the sweep.
        for k, claim in sorted(enumerate(claims), key=lambda pair: pair[0] not in store.diverged):
            _finish(study, claim, runs[k], store, k, result)
    return True


def work(study: Study, trials: int, size: int, module: ModuleType, experiment: str, base: Any) -> StopRequest:
    """Trains trials, `size` at once, until none is left or a signal comes; arguments as of `workers.work`."""
    with stop_on_signals() as stop:
        while not stop:
            claims: list[Claim] = []
            while len(claims) < size and (claim := study.next(trials)):
                claims.append(claim)
            if not claims:
                break
            print(f"trials {', '.join(str(claim.number) for claim in claims)} at once", flush=True)
            if not train_population(study, claims, module, experiment, base, stop):
                break
    return stop


def _restored(members: Members, runs: Sequence[Run]) -> tuple[TrainState, int]:
    """The members' states at the last step of which all have a checkpoint, or new ones."""
    common = set.intersection(*(set(saved_steps(run.folder)) for run in runs))
    for step in sorted(common, reverse=True):
        states = []
        for k, run in enumerate(runs):
            optimizer, _ = members.solo_optimizer(k)
            target = checkpoint.state_items(abstract_state(members.tasks[k], optimizer))
            try:
                states.append(checkpoint.items_state(checkpoint.restore(run.folder, step, target).items))
            except checkpoint.CheckpointError:
                break
        else:
            return members.stacked(states), step
    return members.init_state(), 0


def _open(
    stack: contextlib.ExitStack,
    members: Members,
    runs: Sequence[Run],
    study: Study,
    claims: Sequence[Claim],
    start: int,
) -> "MembersStore":
    stores, schedules = [], []
    for run, task, config in zip(runs, members.tasks, members.configs, strict=True):
        (run.folder / "result.json").unlink(missing_ok=True)
        run.write_record()
        keep_assets(run.folder, assets_of(task))
        log = stack.enter_context(
            MetricsLog(run.folder, resumed_step=start, tensorboard=config.loop.tensorboard)
        )
        saver = stack.enter_context(
            checkpoint.Saver(
                run.folder,
                # A kill between two members leaves them at different steps.
                keep_latest=max(2, config.loop.keep_latest),
                keep_best=config.loop.keep_best,
                resumed_step=start or None,
            )
        )
        stores.append(FolderStore(run, log, saver))
        schedules.append(make_schedule(config.optimizer, config.steps))

    def report(k: int, record: Mapping[str, Any]) -> None:
        study.report(claims[k], record["step"], record["loss"])

    return MembersStore(members, stores, schedules, report)


@dataclass
class MembersStore:
    """The run folders of the members as one store of the training loop.

    Attributes:
        members: the task.
        stores: the members' own.
        schedules: their learning rates by step.
        report: called with a member's number and each of its validation records.
        records: the population's own records, of this process.
        diverged: the step at which each member that has diverged did so.
    """

    members: Members
    stores: Sequence[FolderStore]
    schedules: Sequence[Callable[[int], Any]]
    report: Callable[[int, Mapping[str, Any]], None]
    records: list[dict[str, Any]] = field(default_factory=list)
    diverged: dict[int, int] = field(default_factory=dict)

    def __post_init__(self):
        # The loop counts the time of earlier processes from the records.
        before = Stopwatch([record for store in self.stores for record in store.records])
        self.records.append({"step": 0, "split": "earlier", **before.record()})

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes each member's part to its log."""
        self.records.append(dict(record))
        common = {name: value for name, value in record.items() if name in ("step", "split", *TIMES)}
        for k, store in enumerate(self.stores):
            own = {name.removesuffix(f"/{k}"): v for name, v in record.items() if name.endswith(f"/{k}")}
            if own.pop("alive", 1.0) == 0.0:
                self.diverged.setdefault(k, record["step"])
            if k in self.diverged:
                continue
            task = self.members.tasks[k]
            if record["split"] == VALIDATION:
                store.write({**common, **own})
                self.report(k, {**common, **own})
            else:
                rate = {"learning_rate": float(self.schedules[k](record["step"] - 1))}
                store.write({**common, **own, **rate, **task.display({**own, **rate})})

    def save(self, state: TrainState, validation_loss: float | None) -> None:
        """Saves each member that has not diverged."""
        for k, alive in enumerate(jax.device_get(state.carry["alive"])):
            if not alive:
                self.diverged.setdefault(k, int(state.step))
                continue
            own = [
                r for r in self.stores[k].records if r["split"] == VALIDATION and r["step"] == int(state.step)
            ]
            loss = own[-1]["loss"] if validation_loss is not None and own else None
            self.stores[k].save(self.members.member(state, k), loss)

    def save_sample(self, step: int, text: str) -> None:
        """Does nothing: a population has no samples."""

    def advice(self) -> str:
        """What follows the message of a loss that is not finite."""
        return ": all members have diverged"


def _finish(study: Study, claim: Claim, run: Run, store: MembersStore, k: int, result: Result) -> None:
    if k in store.diverged:
        study.fail(claim, f"its loss was no longer finite at step {store.diverged[k]} or shortly before")
        return
    records = store.stores[k].records
    last = {record["split"]: record for record in records}
    best = best_validation(records)
    if best is None:
        study.fail(claim, "no validation loss that is finite: the task needs a validation split")
        return
    summary = {
        **result.summary(),
        "train": last.get("train"),
        "validation": last.get(VALIDATION),
        "best": best,
    }
    write_atomically(run.folder / "result.json", json.dumps(summary, indent=2) + "\n")
    study.finish(claim, best["loss"], steps=result.step, seconds=round(result.seconds / len(store.stores), 3))
