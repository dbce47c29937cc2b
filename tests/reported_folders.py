"""Folders for the tests of scripts/report.py: a trained run of the toy, and a sweep that is made up."""

import base64
import csv
import json
from pathlib import Path

import commands

import experiments
from lstmx.training import cli

ROOT = Path(__file__).parents[1]
TOY = str(ROOT / "tests" / "training" / "toy_experiment.py")
HOSTILE = "</pre><script>alert(1)</script>"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
report = commands.load("report")


def page_of(folder, output):
    report(folder, output)
    return output.read_text(encoding="utf-8")


def train_toy(folder):
    """Makes a finished run of the toy, with other features than its default."""
    assert cli.main(experiments.load, [], [TOY, "--workdir", str(folder), "--features", "5"]) == 0


def write_record(folder, **changes):
    record = {"experiment": "toy", "config": {"steps": 20}, "versions": {"python": "3.12.0"}, "git": None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**record, **changes}))


def write_metrics(folder, losses, every=10):
    records = [
        {"step": every * (k + 1), "split": "validation", "loss": loss} for k, loss in enumerate(losses)
    ]
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines))


LOSSES = {7: [3.0, 1.5, 1.25], 2: [3.5, 2.0, 1.75], 10: [4.0, None]}


def make_sweep(folder):
    """A sweep of four trials: two complete, one pruned with a loss that is not finite, one that failed."""
    for number, losses in LOSSES.items():
        write_record(folder / "trials" / f"{number:04}")
        write_metrics(folder / "trials" / f"{number:04}", losses)
    space = {"optimizer.learning_rate": "0.001 to 0.1, logarithmic", "features": "2 to 8"}
    settings = {"experiment": TOY, "base": {"steps": 30, "optimizer": {"learning_rate": 0.05}}}
    (folder / "sweep.json").write_text(json.dumps({**settings, "space": space, "seeds": 1}))
    rows = [
        ("1", "7", "complete", "1.25", "", "30", "75.5", "0.012345678", "8", ""),
        ("2", "2", "complete", "1.75", "", "30", "8.25", "0.05", "2", ""),
        ("", "10", "pruned", "", "", "20", "6.0", "0.1", "4", ""),
        ("", "3", "failed", "", "", "", "", "0.09", "10", f"not finite at step 3 {HOSTILE}"),
    ]
    write_leaderboard(folder, space, rows)
    command = "python scripts/train.py toy --features 8 --optimizer.learning-rate 0.01"
    (folder / "best.txt").write_text(command + "\n")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "importance.png").write_bytes(PIXEL)


def write_leaderboard(folder, space, rows):
    names = ("rank", "trial", "state", "loss", "spread", "steps", "seconds", *space, "error")
    with (folder / "leaderboard.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
