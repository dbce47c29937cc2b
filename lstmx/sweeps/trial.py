"""The training of one trial: a run like any other in `trials/NUMBER`, or in there one for each seed."""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from lstmx.sweeps.study import Claim, Study
from lstmx.training.checkpoint import CheckpointError
from lstmx.training.config import replace_fields
from lstmx.training.loop import NonFiniteError, train_in
from lstmx.training.metrics import is_finite
from lstmx.training.result import Result, read_result
from lstmx.training.run import claim_run
from lstmx.training.signals import StopRequest
from lstmx.training.task import VALIDATION

PRUNED = "pruned"


def train_trial(
    study: Study, claim: Claim, module: ModuleType, experiment: str, base: Any, stop: StopRequest
) -> bool:
    """Trains a trial to its end, and records its result in the study.

    What fails in it is recorded too, and raises nothing.

    Args:
        study: the study.
        claim: the trial.
        module: the experiment: `make_task`.
        experiment: its name or path, for the record of the run.
        base: the config that the space's values are put into.
        stop: once true, training ends with a checkpoint.

    Returns:
        Whether it is finished; False if it was stopped on request.
    """
    folder, seeds = study.path(claim.number), study.spec.seeds
    losses: list[float] = []
    facts: dict[str, Any] = {"steps": 0, "seconds": 0.0}
    try:
        config = replace_fields(base, claim.values)
        for seed in range(seeds):
            pruned = StopRequest()
            reports = _reporter(study, claim, pruned) if seed == 0 else lambda record: None
            seeded = config if seeds == 1 else replace(config, seed=config.seed + seed)
            place = folder if seeds == 1 else folder / f"seed-{seed}"
            summary = run(module, experiment, seeded, place, reports, _Either(stop, pruned))
            if summary["status"] != "finished" and not pruned:
                study.pause(claim)
                return False
            facts = {
                "steps": facts["steps"] + summary["step"],
                "seconds": round(facts["seconds"] + summary["seconds"], 3),
            }
            losses.append(_loss(summary))
            if summary["status"] != "finished":
                study.finish(claim, losses[0], pruned=True, **facts)
                return True
    # Of any kind: from a config that a task refuses to a device without memory for the network.
    except Exception as error:
        known = isinstance(error, ArithmeticError | CheckpointError | ValueError | OSError) and str(error)
        study.fail(claim, str(error) if known else f"{type(error).__name__}: {error}")
        return True
    finally:
        # Programs of this trial's shapes would stay for as long as the process.
        jax.clear_caches()
    if seeds > 1:
        facts |= {"losses": losses, "spread": statistics.stdev(losses)}
    study.finish(claim, statistics.fmean(losses), **facts)
    return True


def run(
    module: ModuleType,
    experiment: str,
    config: Any,
    folder: Path,
    observe: Callable[[Mapping[str, Any]], None],
    stop: StopRequest,
) -> dict[str, Any]:
    """Trains a config in a run folder, or resumes it; returns the summary of its result.

    Args:
        module: the experiment.
        experiment: its name or path.
        config: the config.
        folder: the run folder.
        observe: called with each record of the log.
        stop: once true, training ends with a checkpoint.
    """
    with claim_run(folder, experiment, config) as claimed:
        finished = None if claimed.is_new or claimed.is_prolonged else read_result(folder)
        if finished is not None:
            return finished
        result: Result = train_in(
            claimed,
            module.make_task(config),
            steps=config.steps,
            seed=config.seed,
            optimizer=config.optimizer,
            loop=config.loop,
            stop=stop,
            observers=(observe,),
            quiet=True,
        )
        return json.loads(json.dumps(result.summary()))


def _loss(summary: Mapping[str, Any]) -> float:
    best = summary["best"]
    if best is None:
        raise ValueError(
            "no validation loss that is finite: the task needs a validation split, and the loop an evaluation"
        )
    return best["loss"]


def _reporter(study: Study, claim: Claim, pruned: StopRequest) -> Callable[[Mapping[str, Any]], None]:
    def observe(record: Mapping[str, Any]) -> None:
        if record["split"] != VALIDATION:
            return
        if not is_finite(record["loss"]):
            raise NonFiniteError(f"the validation loss is not finite at step {record['step']}")
        if study.report(claim, record["step"], record["loss"]):
            pruned.reason = PRUNED

    return observe


class _Either(StopRequest):
    """Stops if one of two requests does."""

    def __init__(self, first: StopRequest, second: StopRequest):
        super().__init__()
        self._both = first, second

    def __bool__(self) -> bool:
        return any(self._both)
