"""Checkpoints that are complete or refused: orbax for the arrays, digests for what orbax does not check.

A checkpoint of step 300 is the folder `checkpoints/300`, written by orbax, and `digests/300.json` with the
SHA-256 of each of its files. The digest says which state the folder is in:

    saving     being written: after a kill this is an incomplete checkpoint, which was not counted yet
    complete   all files are there and must match their digests
    deleting   superseded and being deleted

so that at each instant at least one complete checkpoint exists once there was one. This is the only module
that imports orbax, and it does so when called: the import takes a second.
"""

import datetime
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lstmx.training.averaging import exchange_average
from lstmx.training.digest import (
    digest_path,
    find_problem,
    hash_files,
    is_torn,
    read_digest,
    saved_steps,
    write_digest,
)
from lstmx.training.files import sync_folder
from lstmx.training.metrics import is_finite
from lstmx.training.run import open_run
from lstmx.training.state import TrainState, array_types, on_default_device
from lstmx.training.task import PyTree, Task

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read; the message lists what was tried."""


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
        step: its step.
        items: those requested of "params" and "training" (opt_state, carry, step).
        validation_loss: the loss it was saved with, or None.
    """

    step: int
    items: dict[str, PyTree]
    validation_loss: float | None


def state_items(state: TrainState) -> dict[str, PyTree]:
    """A state as the items of a checkpoint: parameters (or their average) apart, for evaluation."""
    params, opt_state = exchange_average(state.params, state.opt_state)
    return {"params": params, "training": {"step": state.step, "opt_state": opt_state, "carry": state.carry}}


def items_state(items: Mapping[str, PyTree]) -> TrainState:
    """The inverse of `state_items`."""
    params, opt_state = exchange_average(items["params"], items["training"]["opt_state"])
    return TrainState(params=params, **{**items["training"], "opt_state": opt_state})


def restore(run: Path, step: int, target: Mapping[str, PyTree]) -> Restored:
    """Restores one checkpoint, or raises: it never falls back to another one.

    Args:
        run: the run folder.
        step: the checkpoint.
        target: the items to restore as pytrees of `jax.ShapeDtypeStruct`.

    Returns:
        Arrays of exactly the shapes and dtypes of the target.

    Raises:
        CheckpointError: there is none of this step, it is damaged, or it does not fit the target.
    """
    steps = saved_steps(run)
    if step not in steps:
        raise CheckpointError(f"no checkpoint of step {step} in {run}, only of {_list(steps)}")
    problem = find_problem(run, step)
    if problem:
        raise CheckpointError(f"checkpoint {step} in {run} cannot be used: {problem}")
    try:
        return _read(run, step, target)
    except CheckpointError:
        raise
    # orbax and tensorstore report what they cannot read in half a dozen types, bare Exception among them.
    except Exception as error:
        raise CheckpointError(f"checkpoint {step} in {run} cannot be read: {error}") from error


def restore_latest(run: Path, target: Mapping[str, PyTree]) -> Restored | None:
    """Restores the newest complete checkpoint, with a warning about each newer one that is not.

    Args:
        run: the run folder.
        target: as in `restore`.

    Returns:
        The checkpoint; None if the run never completed one.

    Raises:
        CheckpointError: there are checkpoints and all are damaged, or the newest complete one does not fit.
    """
    return _first_whole(run, saved_steps(run)[::-1], target)


def restore_best(run: Path, target: Mapping[str, PyTree]) -> Restored | None:
    """Restores the checkpoint of the lowest validation loss, or, with a warning, the next best one.

    Args:
        run: the run folder.
        target: as in `restore`.

    Returns:
        The checkpoint; None if none has a finite validation loss.

    Raises:
        CheckpointError: as in `restore_latest`.
    """
    losses = {step: validation_loss(run, step) for step in saved_steps(run)}
    ranked = sorted((step for step in losses if losses[step] is not None), key=lambda s: (losses[s], -s))
    return _first_whole(run, ranked, target)


def _first_whole(run: Path, steps: list[int], target: Mapping[str, PyTree]) -> Restored | None:
    problems = {}
    for step in steps:
        problem = find_problem(run, step)
        if problem is None:
            try:
                return _read(run, step, target)
            except CheckpointError:  # it is whole and does not fit: nor would the others
                raise
            # As in `restore`. Files that match their digests and cannot be read: written by another orbax.
            except Exception as error:
                problem = f"orbax cannot read it: {error}"
        _log.warning("checkpoint %s skipped: %s", step, problem)
        problems[step] = problem
    if any(not is_torn(run, step) for step in problems):
        listed = "\n".join(f"  {step}: {problem}" for step, problem in problems.items())
        raise CheckpointError(
            f"no checkpoint in {run} can be used:\n{listed}\n"
            "restore the folder from a copy, or start a new run in another folder"
        )
    return None


def _read(run: Path, step: int, target: Mapping[str, PyTree]) -> Restored:
    import orbax.checkpoint as ocp

    meta = _read_meta(run, step)
    # orbax casts to the dtype of the target without a word, so compare before.
    wanted = array_types(dict(target))
    saved = {name: kind for name, kind in meta["arrays"].items() if name.split(".")[0] in target}
    differing = [
        f"  {name}: {saved.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} in the model"
        for name in [*saved, *(name for name in wanted if name not in saved)]
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        raise CheckpointError("\n".join([f"checkpoint {step} in {run} is of another model:", *differing]))
    items = {}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        for name, tree in target.items():
            path = (run / "checkpoints" / str(step) / name).absolute()
            items[name] = reader.restore(path, args=ocp.args.StandardRestore(tree))
    return Restored(step, items, meta["validation_loss"])


class _Info(NamedTuple):
    """A checkpoint as orbax' preservation policies see it."""

    step: int
    time: datetime.datetime
    metrics: float | None


class Saver:
    """Writes the checkpoints of a run and deletes those that are neither among the latest nor the best.

    Only the process that has claimed the run may open one.
    """

    def __init__(self, run: Path, *, keep_latest: int, keep_best: int, resumed_step: int | None):
        """Opens the folder and removes incomplete and damaged checkpoints.

        Args:
            run: the run folder.
            keep_latest: how many of the newest checkpoints to keep, at least 1.
            keep_best: how many of those with the lowest validation loss to keep.
            resumed_step: step of the checkpoint that the run resumes from; newer ones, which are damaged, are
                moved to `damaged`. None: the run starts from the beginning.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        self._run = run
        self._context = checkpoint_managers.PreservationContext()
        # keep_checkpoints_without_metrics=False: without a finite validation loss it is never the best.
        self._policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep_latest),
                checkpoint_managers.BestN(
                    get_metric_fn=lambda loss: -loss, n=keep_best, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        (run / "digests").mkdir(exist_ok=True)
        _clear_away(run, resumed_step)
        # Saves are synchronous: states are small (tens of milliseconds), and when `save` returns the
        # checkpoint is on the disk and errors have been raised. The manager itself preserves all: it would
        # delete old steps before the digest of the new one exists, and a kill in between could leave none.
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            preservation_policy=checkpoint_managers.LatestN(None),
        )
        self._manager = ocp.CheckpointManager((run / "checkpoints").absolute(), options=options)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    def save(self, state: TrainState, *, validation_loss: float | None, record: Mapping[str, Any]) -> None:
        """Writes a checkpoint; when it returns, the checkpoint is complete and on the disk.

        Args:
            state: what to save.
            validation_loss: loss on the validation split at this step; None if it was not evaluated.
            record: the run's record, stored with it.

        Raises:
            CheckpointError: it could not be written, because the disk is full for instance. The checkpoints
                before it are untouched.
        """
        import orbax.checkpoint as ocp

        step, items = int(state.step), state_items(state)
        meta = {
            "step": step,
            "validation_loss": validation_loss if is_finite(validation_loss) else None,
            "arrays": array_types(items),
            **record,
        }
        try:
            write_digest(self._run, step, "saving", {})
            arrays = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            saved = self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arrays))
            if not saved:  # orbax answers False, and no more, for a step not above the latest
                raise CheckpointError(
                    f"orbax refused to save step {step} after {self._manager.latest_step()}"
                )
            folder = self._run / "checkpoints" / str(step)
            sync_folder(folder.parent)
            write_digest(self._run, step, "complete", hash_files(folder))
        # A full disk comes as ValueError, OSError or bare Exception, depending on who notices it.
        except Exception as error:
            whole = [s for s in saved_steps(self._run) if s != step and not is_torn(self._run, s)]
            kept = (
                f"the last good checkpoint is that of step {whole[-1]}"
                if whole
                else "there is none before it"
            )
            raise CheckpointError(f"could not save step {step}: {_reason(error)}\n{kept}") from error
        self._delete_superseded()

    def _delete_superseded(self) -> None:
        steps = saved_steps(self._run)
        # The policies want times and use none.
        now = datetime.datetime.now(datetime.UTC)
        infos = [_Info(step=s, time=now, metrics=validation_loss(self._run, s)) for s in steps]
        for step, kept in zip(steps, self._policy.should_preserve(infos, context=self._context), strict=True):
            if not kept:
                write_digest(self._run, step, "deleting", {})
                self._manager.delete(step)
                digest_path(self._run, step).unlink()


def restore_params(run: str | Path, task: Task, which: str | int = "best") -> Restored:
    """Restores the parameters of a run, for evaluation, generation or export.

    Args:
        run: the run folder.
        task: the task of its config, which determines the shapes.
        which: "best" (by validation loss; the latest, with a warning, if none has one), "latest", or a step.

    Returns:
        The checkpoint, the parameters in `items["params"]`.

    Raises:
        RunError: no such folder, or not a run.
        CheckpointError: no checkpoint, or none that can be used.
    """
    run = Path(run)
    open_run(run)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    target = {"params": on_default_device(params)}
    if which not in ("best", "latest"):
        if not str(which).isdigit():
            raise ValueError(f"a checkpoint is best, latest or the number of a step, got {which!r}")
        return restore(run, int(which), target)
    restored = restore_best(run, target) if which == "best" else None
    if restored is None:
        restored = restore_latest(run, target)
        if restored is not None and which == "best":
            _log.warning(
                "no checkpoint in %s has a validation loss: taking the latest, %s", run, restored.step
            )
    if restored is None:
        raise CheckpointError(f"no checkpoint in {run} yet: train it first")
    return restored


def validation_loss(run: Path, step: int) -> float | None:
    """The finite validation loss a checkpoint was saved with; None without, or if it cannot be read."""
    try:
        loss = _read_meta(run, step)["validation_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return loss if is_finite(loss) else None


def _clear_away(run: Path, resumed_step: int | None) -> None:
    steps = saved_steps(run)
    for step in steps:
        digest = read_digest(run, step)
        if digest is not None and digest["status"] != "complete":
            shutil.rmtree(run / "checkpoints" / str(step))
        elif resumed_step is None or step > resumed_step:
            # Kept for inspection, and out of the way of a new checkpoint of the same step.
            target = run / "damaged" / str(step)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (run / "checkpoints" / str(step)).rename(target)
    remaining = {f"{step}.json" for step in saved_steps(run)}
    for path in (run / "digests").iterdir():
        if path.name not in remaining:
            path.unlink()


def _read_meta(run: Path, step: int) -> dict[str, Any]:
    # The file that orbax' JsonSave writes; read without orbax, as it is read often and at the start.
    return json.loads((run / "checkpoints" / str(step) / "meta" / "metadata").read_text(encoding="utf-8"))


def _reason(error: Exception) -> str:
    """What went wrong with a file; tensorstore hides it behind a page of paths."""
    code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    return os.strerror(int(code[1])) if code else str(error)


def _list(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "no step at all"
