"""More steps for a run, and runs that start from the weights of another."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments
from lstmx.training import (
    CheckpointError,
    cli,
    make_optimizer,
    open_run,
    read_assets,
    read_metrics,
    restore_params,
)
from lstmx.training import checkpoint as checkpoints
from lstmx.training.config import config_from_dict
from lstmx.training.state import abstract_state

ROOT = Path(__file__).parents[2]
TOY = str(ROOT / "tests" / "training" / "toy_experiment.py")
toy = experiments.load(TOY)


def call(*argv):
    """The exit code of the command line in this process."""
    try:
        return cli.main(experiments.load, [], list(map(str, argv)))
    except SystemExit as end:
        return end.code


def bits(folder):
    config = config_from_dict(toy.Config, open_run(folder).config)
    task = toy.Toy(config)
    optimizer, _ = make_optimizer(config.optimizer, config.steps)
    target = checkpoints.state_items(abstract_state(task, optimizer))
    return toy.fingerprint(checkpoints.restore(folder, config.steps, target).items)


def test_a_prolonged_run_has_the_bits_of_one_asked_for_more(tmp_path, capsys):
    short, whole = tmp_path / "short", tmp_path / "whole"
    assert call(TOY, "--workdir", short, "--steps", 7, "--optimizer.warmup-steps", 3) == 0
    assert call(TOY, "--workdir", short, "--steps", 14, "--optimizer.warmup-steps", 3, "--json") == 0
    printed = capsys.readouterr().out
    assert "resuming at step 7" in printed
    assert json.loads(printed.splitlines()[-1])["steps"] == 14
    assert call(TOY, "--workdir", whole, "--steps", 14, "--optimizer.warmup-steps", 3) == 0
    assert bits(short) == bits(whole)
    assert open_run(short).config["steps"] == 14
    assert call(TOY, "--workdir", short, "--steps", 14, "--optimizer.warmup-steps", 3) == 0
    assert "already finished" in capsys.readouterr().out
    assert call(TOY, "--workdir", short, "--steps", 7, "--optimizer.warmup-steps", 3) == 2
    assert "steps: 14 in the run, 7 requested" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--optimizer.schedule", "cosine"], "its schedule, cosine, ends at step 5"),
        (["--optimizer.schedule", "linear"], "its schedule, linear, ends at step 5"),
        (["--optimizer.average-patience", "2"], "its average of parameters has counted the evaluation at"),
    ],
)
def test_more_steps_are_refused_where_the_bits_would_differ(tmp_path, capsys, options, reason):
    assert call(TOY, "--workdir", tmp_path, "--steps", 5, *options) == 0
    before = (tmp_path / "config.json").read_bytes()
    assert call(TOY, "--workdir", tmp_path, "--steps", 10, *options) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "--init-from" in error
    assert (tmp_path / "config.json").read_bytes() == before


def test_weights_of_another_run(tmp_path, capsys):
    source, folder = tmp_path / "source", tmp_path / "run"
    assert call(TOY, "--workdir", source, "--steps", 10) == 0
    command = [
        TOY,
        "--workdir",
        folder,
        "--steps",
        5,
        "--init-from",
        source,
        "--optimizer.schedule",
        "linear",
    ]
    assert call(*command) == 0
    task = toy.Toy(toy.Config())
    old, new = restore_params(source, task), restore_params(folder, task)
    assert new.validation_loss < old.validation_loss
    first, fresh = (read_metrics(run / "metrics.jsonl")[0]["loss"] for run in (folder, source))
    assert first < 0.8 * fresh
    assert open_run(folder).init_from == str(source)
    capsys.readouterr()
    for other, message in {
        (): "started from the weights of",
        ("--init-from", folder): "cannot start from its own weights",
        ("--init-from", tmp_path / "none"): "there is no such folder",
    }.items():
        assert call(*command[:5], *other, *command[7:]) == 2
        assert message in capsys.readouterr().err
    assert call(*command[:2], tmp_path / "other", *command[3:7], "--features", 5) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot start from {source}: checkpoint 10")
    assert "linear.kernel: float32[4,3] in the checkpoint, float32[5,3] in the model" in error


@pytest.mark.full
def test_killed_before_its_first_checkpoint_it_starts_from_the_same_weights(tmp_path, monkeypatch):
    source, folder = tmp_path / "source", tmp_path / "run"
    assert call(TOY, "--workdir", source, "--steps", 5) == 0
    command = [TOY, "--steps", 5, "--init-from", source]
    assert call(*command, "--workdir", tmp_path / "whole") == 0
    batch = toy.Toy.batch

    def dying(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(toy.Toy, "batch", dying)
    with pytest.raises(KeyboardInterrupt):
        cli.main(lambda name: toy, [], list(map(str, [*command, "--workdir", folder])))
    monkeypatch.undo()
    assert checkpoints.saved_steps(folder) == [0]
    (source / "checkpoints").rename(tmp_path / "gone")
    assert call(*command, "--workdir", folder) == 0
    assert bits(folder) == bits(tmp_path / "whole")


@pytest.mark.full
def test_a_text_is_trained_on_after_another_with_its_vocabulary(tmp_path, capsys):
    chance = np.random.default_rng(0)
    texts = {"first": "abc \n", "second": "ba", "other": "abX"}
    for name, characters in texts.items():
        (tmp_path / f"{name}.txt").write_text("".join(chance.choice(list(characters), 2000)))
    tiny = [
        "--preset",
        "tiny",
        "--loop.no-tensorboard",
        "--loop.no-sample",
        "--data.data-dir",
        tmp_path / "data",
    ]

    def train(name, *options):
        path = ["--workdir", tmp_path / name, "--data.path", tmp_path / f"{name}.txt"]
        return call("char_lm", *path, *tiny, *options)

    assert train("first", "--steps", 2) == 0
    assert train("second", "--steps", 2, "--init-from", tmp_path / "first") == 0
    kept = [read_assets(tmp_path / name)["vocabulary.json"] for name in ("first", "second")]
    assert kept[0] == kept[1]
    module, config = experiments.reopen(tmp_path / "second")
    task = cli.make_run_task(module, config, tmp_path / "second")
    assert len(task.vocabulary) == 5
    assert jax.tree.leaves(restore_params(tmp_path / "second", task).items["params"])
    with pytest.raises(CheckpointError, match="of another model"):
        restore_params(tmp_path / "second", module.make_task(config))
    capsys.readouterr()
    assert train("other", "--steps", 2, "--init-from", tmp_path / "first") == 2
    assert "characters are not in the vocabulary: 'X' at " in capsys.readouterr().err
    assert not (tmp_path / "other" / "config.json").exists()
