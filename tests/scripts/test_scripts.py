"""The commands that the README shows, on a tiny configuration, as a person would run them."""

import json
import math
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import children_seconds

import experiments
from lstmx.training import checkpoint as checkpoints
from lstmx.training import cli, make_optimizer, read_metrics
from lstmx.training.state import abstract_state

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--preset", "tiny", "--loop.no-tensorboard"]


def script(name, *arguments, check=True):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text("".join(np.random.default_rng(0).choice(list("aaab \n"), 3000)))
    return path


@pytest.fixture(scope="module")
def run(text):
    """A finished run."""
    folder = text.parent / "run"
    done = script("train.py", "char_lm", "--workdir", folder, *TINY, "--data.path", text)
    assert "finished 20 steps" in done.stdout
    return folder


def test_a_run_is_a_folder(run):
    for name in ("config.json", "metrics.jsonl", "checkpoints", "samples", "assets"):
        assert (run / name).exists()
    record = json.loads((run / "config.json").read_text())
    assert record["experiment"] == "char_lm"
    assert record["config"]["model"]["hidden_size"] == 16
    assert record["versions"]["jax"] == jax.__version__
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl") if r["split"] == "train"] == [
        5,
        10,
        15,
        20,
    ]


def test_the_same_command_again_says_that_it_is_finished(run, text):
    done = script("train.py", "char_lm", "--workdir", run, *TINY, "--data.path", text, "--json")
    assert done.stdout.startswith("already finished")
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 20


def test_evaluate(run):
    done = script("evaluate.py", run, "--split", "test", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["split"] == "test"
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert f"\n  loss                {result['loss']:.4f}\n" in done.stdout
    best = min(r["loss"] for r in read_metrics(run / "metrics.jsonl") if r["split"] == "validation")
    again = script("evaluate.py", run, "--json")
    assert json.loads(again.stdout.splitlines()[-1])["loss"] == pytest.approx(best)


@pytest.mark.full
def test_a_run_without_validation_is_evaluated_on_test(text, tmp_path):
    folder = tmp_path / "run"
    options = ["--data.path", text, "--data.splits", "80", "0", "20"]
    done = script("train.py", "char_lm", "--workdir", folder, *TINY, *options)
    assert "validation loss" not in done.stdout
    assert json.loads(script("evaluate.py", folder, "--json").stdout.splitlines()[-1])["split"] == "test"


def test_generate(run, text):
    arguments = [
        run,
        "--prompt",
        "ab",
        "--length",
        "60",
        "--temperature",
        "0.8",
        "--top-k",
        "4",
        "--seed",
        "0",
    ]
    moved = text.rename(text.with_suffix(".moved"))  # a run generates without its text
    try:
        one = script("generate.py", *arguments).stdout
        assert one.startswith("ab")
        assert len(one) == 2 + 60 + 1
        assert script("generate.py", *arguments).stdout == one
        assert script("generate.py", *arguments[:-1], "1").stdout != one
    finally:
        moved.rename(text)


ERRORS = {
    "prompt": (["generate.py", "RUN", "--prompt", "abX"], "--prompt 'abX' cannot be continued: 1 of 3"),
    "no prompt": (["generate.py", "RUN", "--prompt", ""], "at least one character"),
    "split": (
        ["evaluate.py", "RUN", "--split", "tset"],
        "no split tset: this run has train, validation, test",
    ),
    "step": (["evaluate.py", "RUN", "--checkpoint", "7"], "no checkpoint of step 7"),
    "checkpoint": (["evaluate.py", "RUN", "--checkpoint", "worst"], "best, latest or the number of a step"),
    "no run": (["evaluate.py", "RUN/none"], "there is no such folder"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments_are_one_clean_line(run, case):
    (name, *arguments), message = ERRORS[case]
    done = script(name, *(a.replace("RUN", str(run)) for a in arguments), check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_text_that_has_changed_is_noticed(run, text):
    before = text.read_text()
    text.write_text(before.replace("b", "a", 5))
    try:
        done = script("evaluate.py", run, check=False)
    finally:
        text.write_text(before)
    assert done.returncode == 2
    assert "texts.json differ" in done.stderr


def train(*arguments, capsys):
    """The command line in this process: its exit code and what it said on stderr."""
    try:
        code = cli.main(experiments.load, [], ["char_lm", *map(str, arguments)])
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


def test_bad_texts_are_named(tmp_path, capsys):
    empty, binary, short = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "short.txt"
    empty.write_text("")
    binary.write_bytes(b"caf\xe9 au lait")
    short.write_text("too short")
    for path, message in {
        empty: "empty.txt",
        binary: "not UTF-8",
        short: "batch_size",
        tmp_path / "missing.txt": "missing.txt",
    }.items():
        code, error = train(
            "--workdir",
            tmp_path / path.stem,
            *TINY,
            "--data.path",
            path,
            "--data.data-dir",
            tmp_path,
            capsys=capsys,
        )
        assert code == 2
        assert error.startswith("error: ")
        assert message in error


def test_help_and_wrong_options_answer_at_once():
    for arguments, expected in {
        ("--help",): "--model.hidden-size",
        ("--model.hiden-size", "3"): "did you mean --model.hidden-size?",
        ("--model.hidden-size", "many"): "--model.hidden-size",
        ("--optimizer.learning-rate", "-1"): "learning_rate must be positive",
        ("--model.cell", "lstn"): "--model.cell",
    }.items():
        start = children_seconds()
        done = script("train.py", "char_lm", *arguments, check=False)
        assert children_seconds() - start < 3
        assert done.returncode == (0 if arguments == ("--help",) else 2)
        assert expected in done.stdout + done.stderr


@pytest.mark.full
def test_killed_several_times_it_ends_with_the_same_bits(tmp_path, text):
    options = [
        *TINY,
        "--data.path",
        text,
        "--steps",
        "60",
        "--loop.checkpoint-every",
        "4",
        "--loop.log-every",
        "1",
    ]
    options += ["--loop.eval-every", "30", "--model.dropout-rate", "0.2"]
    script("train.py", "char_lm", "--workdir", tmp_path / "whole", *options)
    chance, folder, reached = random.Random(0), tmp_path / "killed", 0
    for _ in range(3):
        reached += chance.randint(5, 18)
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), "char_lm", "--workdir", str(folder)]
        process = subprocess.Popen(
            [*command, *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while max((r["step"] for r in read_metrics(folder / "metrics.jsonl")), default=0) < reached:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    resumed = script("train.py", "char_lm", "--workdir", folder, *options)
    assert re.search(r"resuming at step \d+", resumed.stdout)

    def bits(folder):
        module, config = experiments.reopen(folder)
        task = module.make_task(config)
        target = checkpoints.state_items(
            abstract_state(task, make_optimizer(config.optimizer, config.steps)[0])
        )
        items = checkpoints.restore(folder, 60, target).items
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(items)]

    assert bits(folder) == bits(tmp_path / "whole")


def test_a_closed_pipe_ends_a_script_quietly():
    """As `| head` closes it, early or before what is left in the buffer is written."""
    code = (
        "import sys\nfrom lstmx.training import cli\nwith cli.clean_errors():\n"
        "    sys.stdin.read()\n    print('x' * int(sys.argv[1]))"
    )
    for size in ("1", "1000000"):
        command = [sys.executable, "-c", code, size]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, **pipes, cwd=ROOT) as process:
            process.stdout.close()
            process.stdin.close()
            assert process.stderr.read() == b""
        assert process.returncode == 128 + 13
