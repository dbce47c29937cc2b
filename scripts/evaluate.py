"""Evaluates a run: evaluate.py RUN [--split test] [--checkpoint best|latest|STEP] [--json]."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

import experiments
from lstmx.training import cli


def evaluate(
    run: tyro.conf.Positional[Path], split: str = "validation", checkpoint: str = "best", json: bool = False
) -> None:
    """Prints the metrics of a run on one of its splits.

    Args:
        run: the run folder.
        split: train, validation or test.
        checkpoint: best (of the validation loss), latest, or a step.
        json: end with one line of JSON.
    """
    with cli.clean_errors():
        module, config, _ = cli.reopen(run, experiments.load)
        task = module.make_task(config)
        metrics = task.evaluate(cli.restore(run, task, checkpoint), split)
    for name, value in metrics.items():
        print(f"{split} {name}: {value:.4f}")
    if json:
        print(_json_line({"workdir": str(run), "split": split, **metrics}))


def _json_line(record: dict) -> str:
    return json.dumps(record)


if __name__ == "__main__":
    tyro.cli(evaluate)
