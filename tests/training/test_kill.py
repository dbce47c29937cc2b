"""Real processes, really killed: what counts is what the disk holds afterwards."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import experiments
from lstmx.training import checkpoint as checkpoints
from lstmx.training import cli, config_from_dict, make_optimizer, open_run, read_metrics
from lstmx.training.state import abstract_state
from lstmx.training.timing import TIMES

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy_experiment.py"
TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py"), str(TOY)]
OPTIONS = ["--steps", "60", "--pause", "0.005", "--loop.checkpoint-every", "5", "--loop.eval-every", "20"]
toy = experiments.load(str(TOY))


def start(folder, *options):
    command = [*TRAIN, "--workdir", str(folder), *OPTIONS, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def finish(capsys):
    """Runs the same command to its end, in this process for speed, and gives what it said."""

    def run(folder, *options):
        assert cli.main(experiments.load, [], [str(TOY), "--workdir", str(folder), *OPTIONS, *options]) == 0
        return "".join(capsys.readouterr())

    return run


def steps_logged(folder):
    return [r["step"] for r in read_metrics(folder / "metrics.jsonl") if r["split"] == "train"]


def wait_for_step(process, folder, step):
    while max(steps_logged(folder), default=0) < step:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)


def final_bits(folder):
    config = config_from_dict(toy.Config, open_run(folder).config)
    optimizer, _ = make_optimizer(config.optimizer, config.steps)
    target = checkpoints.state_items(abstract_state(toy.Toy(config), optimizer))
    restored = checkpoints.restore(folder, config.steps, target)
    return toy.fingerprint(restored.items["params"]), toy.fingerprint(restored.items["training"])


def timeless(folder):
    found = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in (*TIMES, "units_per_s")} for record in found]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill") / "whole"
    assert cli.main(experiments.load, [], [str(TOY), "--workdir", str(folder), *OPTIONS]) == 0
    return folder


def assert_same_run(folder, whole):
    assert final_bits(folder) == final_bits(whole)
    assert timeless(folder) == timeless(whole)
    assert steps_logged(folder) == list(range(1, 61))
    assert checkpoints.saved_steps(folder) == checkpoints.saved_steps(whole)
    assert not list((folder / "checkpoints").glob("*tmp*"))


def test_killed_at_random_moments_and_started_again_it_ends_with_the_same_bits(
    tmp_path, finish, uninterrupted
):
    chance = random.Random(0)
    folder, reached = tmp_path / "run", 0
    for _ in range(3):
        reached = min(reached + chance.randint(1, 25), 58)
        process = start(folder)
        wait_for_step(process, folder, reached)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    output = finish(folder)
    assert "resuming at step" in output
    assert_same_run(folder, uninterrupted)


# Where a process may die while it saves: name of the function, and before which of its calls.
MOMENTS = {
    "between commit and digest": ("checkpoint.hash_files", 2),
    "between commit and digest of the first": ("checkpoint.hash_files", 1),
    "while old ones are deleted": ("orbax.checkpoint.CheckpointManager.delete", 1),
}

DRIVER = """
import os, signal, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, {root!r})
import experiments, orbax.checkpoint
from lstmx.training import checkpoint, cli, loop
owner = {owner}
real, calls = owner.{name}, 0
def dying(*args):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
owner.{name} = dying
sys.exit(cli.main(experiments.load, []))
"""


@pytest.mark.cross_section(2)
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_saving(tmp_path, finish, uninterrupted, moment):
    where, call = MOMENTS[moment]
    owner, _, name = where.rpartition(".")
    driver = DRIVER.format(root=str(ROOT), owner=owner, name=name, call=call)
    command = [sys.executable, "-c", driver, *TRAIN[1:], "--workdir", str(tmp_path / "run"), *OPTIONS]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    output = finish(tmp_path / "run")
    if moment == "between commit and digest of the first":
        assert "starting again from step 0: no checkpoint was completed" in output
    if moment.startswith("between commit"):
        assert "skipped: it was not finished" in output
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.full
def test_killed_while_orbax_writes(tmp_path, finish):
    options = [
        "--features",
        "50000",
        "--steps",
        "12",
        "--loop.checkpoint-every",
        "3",
        "--loop.eval-every",
        "0",
    ]
    finish(tmp_path / "whole", *options)
    process = start(tmp_path / "run", *options)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run" / "checkpoints").glob("6.*tmp*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert list((tmp_path / "run" / "checkpoints").glob("6.*tmp*")), "it was killed too late to test anything"
    assert "resuming at step 3" in finish(tmp_path / "run", *options)
    assert final_bits(tmp_path / "run") == final_bits(tmp_path / "whole")


def test_a_signal_saves_and_tells_how_to_go_on(tmp_path, finish, uninterrupted):
    folder = tmp_path / "run"
    process = start(folder, "--json")
    wait_for_step(process, folder, 7)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    step = checkpoints.saved_steps(folder)[-1]
    assert f"stopped by SIGTERM after step {step} of 60, saved; resume with" in output
    assert f"--workdir {folder}" in output
    assert '"status": "interrupted"' in output.splitlines()[-1]
    assert f"resuming at step {step}" in finish(folder)
    assert_same_run(folder, uninterrupted)


def test_an_interrupt_from_the_keyboard_has_its_own_code(tmp_path, monkeypatch, capsys):
    batch = toy.Toy.batch

    def interrupted(self, step):
        if step == 6:
            signal.raise_signal(signal.SIGINT)
        return batch(self, step)

    monkeypatch.setattr(toy.Toy, "batch", interrupted)
    assert cli.main(lambda name: toy, [], ["toy", "--workdir", str(tmp_path)]) == 130
    assert "stopped by SIGINT after step 7 of 20, saved" in capsys.readouterr().out
    assert checkpoints.saved_steps(tmp_path)[-1] == 7


@pytest.mark.full
def test_a_second_signal_ends_it_at_once(tmp_path):
    process = start(tmp_path / "run", "--pause", "20", "--steps", "3")
    while not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1.0)  # until the handlers are in place and it waits for its first batch
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "stopped at once" in output
    assert time.monotonic() - began < 5


def test_two_processes_cannot_share_a_folder(tmp_path, capsys):
    process = start(tmp_path / "run", "--pause", "0.5")
    while not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    command = [str(TOY), "--workdir", str(tmp_path / "run"), *OPTIONS, "--pause", "0.5"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(experiments.load, [], command)
    process.kill()
    process.communicate()
    assert f"is in use by process {process.pid} on {os.uname().nodename}" in capsys.readouterr().err
