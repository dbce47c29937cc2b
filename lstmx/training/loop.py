"""The training loop: one compiled step, and what happens between two of them."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lstmx.training import checkpoint
from lstmx.training.averaging import exchange_average, observe_validation
from lstmx.training.files import write_atomically
from lstmx.training.loop_config import LoopConfig, checked_steps
from lstmx.training.metrics import MetricsLog, best_validation, is_finite
from lstmx.training.optimizer import OptimizerConfig, make_optimizer
from lstmx.training.progress import (
    Progress,
    Throughput,
    format_number,
    format_numbers,
    format_seconds,
    show_progress,
)
from lstmx.training.result import Result, Trained
from lstmx.training.run import Run, claim_run, keep_assets, make_record
from lstmx.training.signals import StopRequest
from lstmx.training.state import Keys, TrainState, abstract_state, init_state, make_keys, make_step
from lstmx.training.stores import FolderStore, MemoryStore, Store
from lstmx.training.task import VALIDATION, HasPictures, PyTree, Task, assets_of
from lstmx.training.timing import Stopwatch

if TYPE_CHECKING:
    import optax


# Called with each record of the log: step, split and metrics.
Observer = Callable[[Mapping[str, Any]], None]


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is no longer finite; the message says at which step."""


@dataclass(frozen=True)
class _Settings:
    """What is recorded of a training that has no other config."""

    steps: int
    seed: int
    optimizer: OptimizerConfig | str
    loop: LoopConfig


@dataclass(frozen=True)
class _Session:
    """What stays the same during one process of a run."""

    task: Task
    store: Store
    steps: int
    loop: LoopConfig
    sample_key: jax.Array
    progress: Progress
    stopwatch: Stopwatch
    observers: Sequence[Observer]
    throughput: Throughput = field(default_factory=Throughput)

    def record(self, values: Mapping[str, Any]) -> None:
        """Writes a record and shows it to the observers."""
        self.store.write(values)
        for observe in self.observers:
            observe(values)


def train(
    task: Task,
    workdir: str | Path,
    *,
    steps: int,
    seed: int = 0,
    optimizer: "OptimizerConfig | optax.GradientTransformation" = OptimizerConfig(),  # noqa: B008, it is frozen
    loop: LoopConfig = LoopConfig(),  # noqa: B008, so is this
    experiment: str = "python",
    params: PyTree | None = None,
    stop: StopRequest | None = None,
    observers: Sequence[Observer] = (),
    quiet: bool = False,
) -> Result:
    """Trains a task in a run folder, or resumes the training found there.

    Killed at any point and called again with the same arguments, it ends with the same bits as if it had not
    been. Signals keep their handlers: a KeyboardInterrupt reaches the caller.

    Args:
        task: model, data and loss.
        workdir: the run folder.
        steps: number of updates; that of an existing run may be raised if its schedule is constant.
        seed: seed of all randomness.
        optimizer: a config, or any optax transformation (its settings are not recorded: keep them the same).
        loop: evaluation, checkpoints and log.
        experiment: name recorded in config.json.
        params: the parameters a new run starts from, like those of `task.init`; its own if None. They are
            saved at once, as the checkpoint of step 0; a run that has a checkpoint resumes from that.
        stop: once true, training ends after the step in progress, with a checkpoint; see
            `lstmx.training.stop_on_signals`.
        observers: called with each record of the log once it is written. What they raise ends the training;
            the run can be resumed.
        quiet: print nothing.

    Returns:
        The result, with the final state.

    Raises:
        RunError: the folder cannot be used: in use, of another config, not writable, not a run.
        CheckpointError: a checkpoint could not be written, or all that exist are damaged.
        NonFiniteError: the loss or the gradient is not finite.
        ValueError: the parameters are of another model.
    """
    steps = checked_steps(steps)
    settings = optimizer if isinstance(optimizer, OptimizerConfig) else "optax"
    with claim_run(workdir, experiment, _Settings(steps, seed, settings, loop)) as run:
        return train_in(
            run,
            task,
            steps=steps,
            seed=seed,
            optimizer=optimizer,
            loop=loop,
            params=params,
            stop=stop,
            observers=observers,
            quiet=quiet,
        )


def train_in(
    run: Run,
    task: Task,
    *,
    steps: int,
    seed: int,
    optimizer: "OptimizerConfig | optax.GradientTransformation",
    loop: LoopConfig,
    params: PyTree | None = None,
    stop: StopRequest | None = None,
    observers: Sequence[Observer] = (),
    quiet: bool = False,
) -> Result:
    """`train` in a run folder that is already claimed; arguments and errors as there."""
    steps = checked_steps(steps)
    optimizer, schedule = _prepared(optimizer, steps)
    keys = make_keys(seed)

    target = checkpoint.state_items(abstract_state(task, optimizer))
    restored = checkpoint.restore_latest(run.folder, target)
    if restored is None:
        state = init_state(task, optimizer, keys.init, params)
    else:
        state = checkpoint.items_state(restored.items)
    start = int(state.step)
    if run.is_new or run.is_prolonged:
        (run.folder / "result.json").unlink(missing_ok=True)
        run.write_record()
    keep_assets(run.folder, assets_of(task))

    with (
        MetricsLog(run.folder, resumed_step=start, tensorboard=loop.tensorboard) as log,
        checkpoint.Saver(
            run.folder,
            keep_latest=loop.keep_latest,
            keep_best=loop.keep_best,
            resumed_step=None if restored is None else start,
        ) as saver,
        show_progress(steps, start, quiet) as progress,
    ):
        store, stopwatch = FolderStore(run, log, saver), Stopwatch(log.records)
        session = _Session(task, store, steps, loop, keys.sample, progress, stopwatch, observers)
        _introduce(session, seed, f", in {run.folder}")
        _introduce_run(session, run, start)
        if restored is None and params is not None:
            with session.stopwatch.measure("checkpoint"):
                session.store.save(state, None)
        state = _advance(session, state, make_step(task.loss, optimizer, schedule), keys.step, stop)
        result = _result(session, state, stop)
        if result.status == "finished":
            write_atomically(run.folder / "result.json", json.dumps(result.summary(), indent=2) + "\n")
            if isinstance(task, HasPictures):
                params, _ = exchange_average(state.params, state.opt_state)
                for path in task.draw(params, run.folder):
                    progress.say(f"picture: {path}")
    return result


def train_in_memory(
    task: Task,
    *,
    steps: int,
    seed: int = 0,
    optimizer: "OptimizerConfig | optax.GradientTransformation" = OptimizerConfig(),  # noqa: B008, it is frozen
    loop: LoopConfig = LoopConfig(),  # noqa: B008, so is this
    params: PyTree | None = None,
    stop: StopRequest | None = None,
    observers: Sequence[Observer] = (),
    quiet: bool = False,
) -> Trained:
    """Trains a task as `train` does, to the same bits, without a run folder: nothing touches the disk.

    Args:
        task: model, data and loss.
        steps: number of updates.
        seed: seed of all randomness.
        optimizer: a config, or any optax transformation.
        loop: evaluations and records; what it says of checkpoints has no effect.
        params: the parameters to start from, of the shapes and dtypes of `task.init`; its own if None.
        stop: once true, training ends after the step in progress.
        observers: called with each record of the log. What they raise ends the training.
        quiet: print nothing.

    Returns:
        The result, with the last and the best parameters.

    Raises:
        NonFiniteError: the loss or the gradient is not finite.
        ValueError: steps is below 1, or the parameters are of another model.
    """
    steps = checked_steps(steps)
    optimizer, schedule = _prepared(optimizer, steps)
    keys, store = make_keys(seed), MemoryStore()
    state = init_state(task, optimizer, keys.init, params)
    with show_progress(steps, 0, quiet) as progress:
        stopwatch = Stopwatch(store.records)
        session = _Session(task, store, steps, loop, keys.sample, progress, stopwatch, observers)
        _introduce(session, seed)
        state = _advance(session, state, make_step(task.loss, optimizer, schedule), keys.step, stop)
    latest, _ = exchange_average(state.params, state.opt_state)
    return Trained(_result(session, state, stop), latest, store.best)


def train_from(
    state: TrainState,
    task: Task,
    store: Store,
    *,
    steps: int,
    optimizer: "optax.GradientTransformation",
    keys: Keys,
    loop: LoopConfig,
    stop: StopRequest | None = None,
    observers: Sequence[Observer] = (),
    quiet: bool = False,
) -> Result:
    """The loop itself, from a given state on, into a store of the caller's own; arguments as of `train`.

    Args:
        state: where to begin; its buffers are taken over.
        task: model, data and loss.
        store: where records and states go.
        steps: the step to end at.
        optimizer: the optax transformation whose state it is.
        keys: the randomness of steps and samples.
        loop: evaluations and records.
        stop: once true, training ends after the step in progress.
        observers: called with each record.
        quiet: print nothing.

    Returns:
        The result, with the final state.

    Raises:
        NonFiniteError: the loss or the gradient is not finite.
    """
    with show_progress(steps, int(state.step), quiet) as progress:
        stopwatch = Stopwatch(store.records)
        session = _Session(task, store, steps, loop, keys.sample, progress, stopwatch, observers)
        state = _advance(session, state, make_step(task.loss, optimizer), keys.step, stop)
    return _result(session, state, stop)


def _prepared(optimizer, steps: int):
    """The optax transformation and its schedule, None if it is not known."""
    return make_optimizer(optimizer, steps) if isinstance(optimizer, OptimizerConfig) else (optimizer, None)


def _introduce(session: _Session, seed: int, place: str = "") -> None:
    say, task = session.progress.say, session.task
    device = jax.devices()[0]
    say(task.describe())
    say(
        f"{session.steps:,} steps of {task.units_per_step:,} {task.unit} on {device.device_kind} "
        f"({device.platform}), seed {seed}{place}"
    )


def _introduce_run(session: _Session, run: Run, start: int) -> None:
    say = session.progress.say
    if start:
        say(f"resuming at step {start}")
    elif not run.is_new:
        say("starting again from step 0: no checkpoint was completed")
    old, new = run.record.versions, make_record("", {}).versions
    for name in old:
        if not run.is_new and old[name] != new.get(name):
            say(
                f"note: the run was started with {name} {old[name]}, this is {new.get(name)}: bits may differ"
            )


def _advance(
    session: _Session, state: TrainState, train_step, key: jax.Array, stop: StopRequest | None = None
) -> TrainState:
    step, steps, loop, stopwatch = int(state.step), session.steps, session.loop, session.stopwatch
    began, first, pending = time.perf_counter(), step, None
    compiled, announced = set(), False
    while step < steps:
        asked = time.perf_counter()
        batch = session.task.batch(step)
        called = time.perf_counter()
        stopwatch.add("data", called - asked)
        state, metrics = train_step(state, batch, key)
        if (shapes := _shapes(batch)) not in compiled:
            compiled.add(shapes)
            compiling = time.perf_counter() - called
            stopwatch.add("compile", compiling)
            session.throughput.exclude(compiling)
        step += 1
        # The device computes this step while the host looks at the one before and prepares the next batch.
        if pending is not None:
            _check_and_log(session, *pending)
        pending = (step, metrics)
        if step == first + 1:
            jax.block_until_ready(metrics)
            seconds = format_seconds(time.perf_counter() - began)
            session.progress.say(f"first step, compilation included: {seconds}")
            _check_and_log(session, *pending)
            pending = None
            session.throughput.restart()
        if not announced and session.throughput.is_settled and step < steps:
            announced = True
            seconds = format_seconds((steps - step) / session.throughput.steps_per_second)
            session.progress.say(
                f"about {seconds} for the remaining {steps - step:,} steps, without evaluations"
            )
        stopping = bool(stop)
        evaluates = step == steps or _is_due(step, loop.eval_every)
        if evaluates or stopping or _is_due(step, loop.checkpoint_every):
            # Nothing is saved or evaluated before its own loss is known to be finite.
            if pending is not None:
                _check_and_log(session, *pending)
                pending = None
            with stopwatch.measure("evaluation"):
                loss = _evaluate(session, state, step) if evaluates else None
            if loss is not None:
                state = state._replace(opt_state=observe_validation(state.opt_state, loss))
            with stopwatch.measure("checkpoint"):
                session.store.save(state, loss)
            session.throughput.restart()
        if stopping:
            break
    return state


def _shapes(batch) -> tuple:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in leaves)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_and_log(session: _Session, step: int, metrics: Mapping[str, jax.Array]) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
        raise NonFiniteError(_explain(session, step, values))
    session.throughput.tick()
    # Only what depends on the step decides, so that a resumed run logs what an uninterrupted one would.
    logs = step == session.steps or step % session.loop.log_every == 0
    if not logs and not session.progress.every_step:
        return
    shown = session.task.display(values)
    rate = session.throughput.steps_per_second
    units = rate * session.task.units_per_step
    if logs:
        timing = session.stopwatch.record() | ({"units_per_s": round(units, 1)} if rate else {})
        session.record({"step": step, "split": "train", **values, **shown, **timing})
    left = (session.steps - step) / rate if rate else math.inf
    speed = f"{units:,.0f} {session.task.unit}/s" if rate else ""
    session.progress.update(step, shown or {"loss": values["loss"]}, speed, left)


def _explain(session: _Session, step: int, values: Mapping[str, float]) -> str:
    rate = values.get("learning_rate")
    known = "" if rate is None else f", learning rate {rate:.4g}"
    return (
        f"not finite at step {step}: loss {format_number(values['loss'])}, "
        f"grad norm {format_number(values['grad_norm'])}{known}"
        f"{session.store.advice()}"
    )


def _evaluate(session: _Session, state: TrainState, step: int) -> float | None:
    params, _ = exchange_average(state.params, state.opt_state)
    loss = None
    if VALIDATION in session.task.splits:
        metrics = {name: float(value) for name, value in session.task.evaluate(params, VALIDATION).items()}
        loss = metrics["loss"]
        best = best_validation(session.store.records)
        if not is_finite(loss):
            verdict = "not finite: never the best"
        elif best is None or loss <= best["loss"]:
            verdict = "best so far"
        else:
            verdict = f"best {format_number(best['loss'])} at step {best['step']}"
        session.record({"step": step, "split": VALIDATION, **metrics, **session.stopwatch.record()})
        session.progress.say(f"step {step}: validation {format_numbers(metrics)}  ({verdict})")
    if session.loop.sample:
        text = session.task.sample(params, jax.random.fold_in(session.sample_key, step))
        if text is not None:
            session.store.save_sample(step, text)
            session.progress.say("\n".join("  | " + line for line in text.splitlines()))
    return loss


def _result(session: _Session, state: TrainState, stop: StopRequest | None = None) -> Result:
    records, step = session.store.records, int(state.step)
    last = {record["split"]: record for record in records}
    finished = step == session.steps
    return Result(
        status="finished" if finished else "interrupted",
        step=step,
        steps=session.steps,
        seconds=round(session.stopwatch.elapsed, 3),
        train=last.get("train"),
        validation=last.get(VALIDATION),
        best=best_validation(records),
        signal=None if finished or stop is None else stop.signal,
        state=state,
    )
