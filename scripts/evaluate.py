#!/usr/bin/env python3
"""Evaluates a run on one of its splits: evaluate.py RUN [--split test] [--json]."""

import json as json_format
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

import experiments
from lstmx.training import HasReport, assets_of, check_assets, cli, restore_params, terminal
from lstmx.training.progress import format_table


def evaluate(
    run: tyro.conf.Positional[Path],
    split: str | None = None,
    checkpoint: str = "best",
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
    debug: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Evaluates a run on one of its splits, and draws pictures into the run where the experiment has some.

    Args:
        run: the run folder.
        split: train, validation or test; validation if there is one, else test.
        checkpoint: best (by validation loss), latest, or the number of a step.
        json: end with one line of JSON.
        debug: show tracebacks of errors.
    """
    with terminal.clean_errors(debug):
        module, config = experiments.reopen(run)
        task = cli.make_run_task(module, config, run)
        check_assets(run, assets_of(task))
        if split is None:
            split = next((name for name in ("validation", "test") if name in task.splits), "train")
        restored = restore_params(run, task, checkpoint)
        metrics = task.evaluate(restored.items["params"], split)
        text, values = "", {}
        if isinstance(task, HasReport):
            text, values = task.report(restored.items["params"], split, run)
    print(f"{split}, checkpoint of step {restored.step}")
    print(format_table({f"  {name}": {"": value} for name, value in metrics.items()}))
    if text:
        print(text)
    if json:
        where = {"workdir": str(run), "step": restored.step, "split": split}
        print(json_format.dumps({**where, **metrics, **values}))


if __name__ == "__main__":
    tyro.cli(evaluate)
