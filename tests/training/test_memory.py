"""Training in memory: the bits of a run folder, and nothing else that a run folder brings."""

import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments
from lstmx.training import (
    LoopConfig,
    NonFiniteError,
    OptimizerConfig,
    restore_params,
    stop_on_signals,
    train,
    train_in_memory,
)
from lstmx.training import checkpoint as checkpoints
from lstmx.training.timing import TIMES

toy = experiments.load(str(Path(__file__).parent / "toy_experiment.py"))
OPTIONS = {
    "steps": 20,
    "seed": 3,
    "optimizer": OptimizerConfig("adamw", 0.05),
    "loop": LoopConfig(eval_every=5, checkpoint_every=0, log_every=5, tensorboard=False),
    "quiet": True,
}


class Interrupted(toy.Toy):
    """A person presses Ctrl-C while the batch of step 8 is made."""

    def batch(self, step):
        if step == 7:
            signal.raise_signal(signal.SIGINT)
        return super().batch(step)


def without_times(record):
    return {name: value for name, value in record.items() if name not in (*TIMES, "units_per_s")}


@pytest.mark.parametrize("average", [None, 10])
@pytest.mark.parametrize("losses", [[3.0, 2.0, 2.0, 4.0], [float("nan"), 2.0, float("inf"), 4.0]])
def test_in_memory_it_gives_the_bits_of_a_folder(tmp_path, losses, average):
    options = {**OPTIONS, "optimizer": OptimizerConfig("adamw", 0.05, average_horizon=average)}
    tasks = [toy.Toy(toy.Config()) for _ in range(2)]
    for task in tasks:
        task.validation_losses = [*losses]
    expected = train(tasks[0], tmp_path, **options)
    found = train_in_memory(tasks[1], **options)
    assert toy.fingerprint(found.result.state) == toy.fingerprint(expected.state)
    for which, params in (("latest", found.latest), ("best", found.best)):
        kept = restore_params(tmp_path, tasks[0], which).items["params"]
        assert toy.fingerprint(params) == toy.fingerprint(kept)
    assert toy.fingerprint(found.best) != toy.fingerprint(found.latest)
    assert without_times(found.result.best) == without_times(expected.best)
    assert without_times(found.result.train) == without_times(expected.train)


def test_without_a_finite_validation_loss_nothing_is_best():
    task = toy.Toy(toy.Config())
    task.validation_losses = [float("nan")] * 4
    assert train_in_memory(task, **OPTIONS).best is None


def test_in_memory_it_leaves_disk_processes_and_signals_alone(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("not in memory")

    for owner, name in (
        (os, "fsync"),
        (subprocess, "Popen"),
        (tempfile, "mkdtemp"),
        (tempfile, "mkstemp"),
        (tempfile, "TemporaryFile"),
        (signal, "signal"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train_in_memory(toy.Toy(toy.Config()), **OPTIONS))
    )
    thread.start()
    thread.join()
    assert results[0].result.status == "finished"


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_reaches_the_caller(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_in_memory(Interrupted(toy.Config()), **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(toy.Config()), tmp_path, **OPTIONS)
    # What was saved before is whole, and the run goes on from it.
    assert checkpoints.saved_steps(tmp_path) == [5]
    resumed = train(toy.Toy(toy.Config()), tmp_path, **OPTIONS)
    whole = train_in_memory(toy.Toy(toy.Config()), **OPTIONS)
    assert toy.fingerprint(resumed.state) == toy.fingerprint(whole.result.state)
    # Who asks for a stop instead gets one, as the command line does.
    with stop_on_signals() as stop:
        stopped = train(Interrupted(toy.Config()), tmp_path / "other", stop=stop, **OPTIONS)
    assert (stopped.status, stopped.step, stopped.signal) == ("interrupted", 8, signal.SIGINT)


def test_it_starts_from_given_parameters():
    task = toy.Toy(toy.Config())
    trained = train_in_memory(task, **OPTIONS).latest
    options = {**OPTIONS, "steps": 1, "optimizer": OptimizerConfig("sgd", 1e-30)}
    found = train_in_memory(task, params=jax.device_get(trained), **options).latest
    jax.tree.map(np.testing.assert_array_equal, found, trained)
    for wrong, message in (
        (
            {**trained, "linear": {"kernel": np.zeros((4, 2), np.float32)}},
            r"linear\.kernel is float32\[4,2\]",
        ),
        ({**trained, "more": np.zeros(2)}, r"more is float64\[2\], must be absent"),
        (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), trained), "is float64"),
    ):
        with pytest.raises(ValueError, match=message):
            train_in_memory(task, params=wrong, **options)


def test_steps_are_an_integer_of_python_or_numpy(tmp_path):
    result = train(toy.Toy(toy.Config()), tmp_path / "run", **{**OPTIONS, "steps": np.int64(3)})
    assert type(result.steps) is int
    for steps, message in (
        (True, "an integer, got True"),
        (3.0, r"an integer, got 3\.0"),
        (0, "at least 1, got 0"),
    ):
        options = {**OPTIONS, "steps": steps}
        with pytest.raises(ValueError, match=f"steps must be {message}"):
            train_in_memory(toy.Toy(toy.Config()), **options)
        with pytest.raises(ValueError, match=f"steps must be {message}"):
            train(toy.Toy(toy.Config()), tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


def test_in_memory_a_nan_is_said_without_options_of_a_command():
    with pytest.raises(NonFiniteError, match=r"^not finite at step 3: .*learning rate 0\.05$") as error:
        train_in_memory(toy.Toy(toy.Config(nan_at=3)), **OPTIONS)
    assert "--" not in str(error.value)
    assert "checkpoint" not in str(error.value)
