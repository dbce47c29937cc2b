"""scripts/sweep.py as a person runs it: workers, kills, the leaderboard, and what it refuses."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import experiments
from lstmx.sweeps import cli
from lstmx.training import cli as training_cli
from lstmx.training import config_from_dict, open_run, read_metrics

ROOT = Path(__file__).parents[2]
TOY = str(ROOT / "tests" / "training" / "toy_experiment.py")
toy = experiments.load(TOY)
SPACE = ["--space", "optimizer.learning_rate=log:1e-3:1e-1", "optimizer.weight_decay=0,0.1"]


def command(folder, *options):
    script = str(ROOT / "scripts" / "sweep.py")
    return [sys.executable, script, TOY, "--workdir", str(folder), "--steps", "30", *SPACE, *options]


def call(*argv):
    """The exit code of the command line in this process."""
    try:
        return cli.main(experiments.load, ["alpha", "beta"], [TOY, *argv])
    except SystemExit as end:
        return end.code


def finished(folder):
    path = folder / "leaderboard.csv"
    rows = csv.DictReader(path.read_text().splitlines()) if path.exists() else []
    return [row for row in rows if row["state"] == "complete"]


def children(process):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def test_two_workers_that_are_killed_and_a_sweep_that_goes_on(tmp_path):
    folder = tmp_path / "sweep"
    whole = command(folder, "--trials", "5", "--workers", "2", "--pause", "0.02", "--json")
    process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while len(finished(folder)) < 1 and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    # A worker dies, and is replaced; then the whole sweep does.
    workers = children(process)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    while len(finished(folder)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run(whole, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["complete"], result["failed"], result["running"]) == (5, 0, 0)
    assert len(finished(folder)) == 5
    for number in range(5):
        log = read_metrics(folder / "trials" / f"{number:04}" / "metrics.jsonl")
        assert [r["step"] for r in log if r["split"] == "train"] == list(range(1, 31))
    # The command of the best config trains that config.
    best = (folder / "best.txt").read_text().strip()
    assert f"best: {best}" in done.stdout
    words = shlex.split(best)
    assert words[1].endswith("train.py")
    assert words[2] == TOY
    trial = folder / "trials" / f"{result['best']['trial']:04}"
    config = config_from_dict(toy.Config, open_run(trial).config)
    assert training_cli.parse(toy, TOY, words[3:]).config == config
    again = subprocess.run(whole, capture_output=True, text=True, timeout=100, check=False)
    assert json.loads(again.stdout.splitlines()[-1]) == result


def test_a_signal_saves_and_says_how_to_continue(tmp_path):
    whole = command(tmp_path / "sweep", "--trials", "2", "--pause", "0.2", "--loop.checkpoint-every", "1")
    process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = tmp_path / "sweep" / "trials" / "0000" / "metrics.jsonl"
    while max((record["step"] for record in read_metrics(log)), default=0) < 2:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    # As Ctrl-C, which background processes of a shell ignore.
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"stopped, all trials saved; continue with\n  python {shlex.join(whole[1:])}" in output
    checkpoints = tmp_path / "sweep" / "trials" / "0000" / "checkpoints"
    assert 2 <= max(int(path.name) for path in checkpoints.iterdir()) < 30


REFUSED = {
    ("--space", "optimizer.learning_rat=0:1"): "did you mean optimizer.learning_rate?",
    (): "the space is empty: give --space FIELD=VALUES",
    ("--space", "features=3,4", "--enqueue", "features=5"): "features=5 cannot be tried first",
    ("--space", "seed=0:9", "--seeds", "3"): "--seeds and a range of seed in the space contradict each other",
    ("--space", "features=3,4", "--init-from", "run"): "--init-from cannot be swept",
    ("--space", "features=3:4", "--optimizer.warmup-steps", "20"): "warmup_steps must be below steps",
    ("--space", "features=3,4", "--setps", "3"): "unknown option --setps; did you mean --steps?",
}


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_what_cannot_be_swept_is_refused_before_anything_is_written(options, tmp_path, capsys):
    assert call("--workdir", str(tmp_path / "sweep"), *options) == 2
    assert REFUSED[options] in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("option", ["--trials", "--seeds", "--workers"])
def test_counts_are_positive(option, capsys):
    assert call(option, "0") == 2
    assert f"argument {option}: must be a positive integer, got 0" in capsys.readouterr().err


def test_without_optuna(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert call("--workdir", str(tmp_path / "sweep"), "--space", "features=3,4") == 2
    assert "sweeps need Optuna: pip install 'lstmx[sweep]'" in capsys.readouterr().err


def test_five_failures_in_a_row_stop_the_sweep(tmp_path):
    failing = command(tmp_path / "sweep", "--trials", "9", "--nan-at", "2")
    done = subprocess.run(failing, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    assert (
        "error: the last 5 trials failed, so the sweep stops; the last one: not finite at step 2"
        in done.stderr
    )
    rows = list(csv.DictReader((tmp_path / "sweep" / "leaderboard.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["failed"] * 5
    assert all("not finite at step 2" in row["error"] for row in rows)
