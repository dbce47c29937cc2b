import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import children_seconds

import experiments
from lstmx.training import cli, open_run

ROOT = Path(__file__).parents[2]
TOY = str(ROOT / "tests" / "training" / "toy_experiment.py")
SCRIPT = [sys.executable, str(ROOT / "scripts" / "train.py")]


def call(*argv, monkeypatch=None):
    """The exit code of the command line in this process."""
    try:
        return cli.main(experiments.load, ["alpha", "beta"], list(argv))
    except SystemExit as end:
        return end.code


def test_from_start_to_json(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert call(TOY, "--workdir", folder, "--preset", "tiny", "--json") == 0
    output = capsys.readouterr().out
    assert "toy regression: 4 features, 15 parameters" in output
    assert "6 steps of 8 rows" in output
    assert "step 6: validation loss" in output
    assert "finished 6 steps in" in output
    assert f"next: python scripts/evaluate.py {folder}" in output
    # The metrics, and not the seconds that the record holds as well.
    assert re.search(r"^best validation: loss [\d.]+  root [\d.]+ at step 6$", output, re.MULTILINE)
    result = json.loads(output.splitlines()[-1])
    assert (result["status"], result["step"], result["workdir"]) == ("finished", 6, folder)
    assert result["best"]["loss"] == result["validation"]["loss"]

    assert call(TOY, "--workdir", folder, "--preset=tiny", "--json") == 0
    again = capsys.readouterr().out
    assert again.startswith("already finished")
    assert json.loads(again.splitlines()[-1]) == result
    assert experiments.load(open_run(folder).experiment).Config(**{"steps": 6}).steps == 6

    assert call(TOY, "--workdir", folder, "--features", "5", "--optimizer.b1", "0.5") == 2
    error = capsys.readouterr().err
    assert "steps: 6 in the run, 20 requested" in error
    assert "features: 4 in the run, 5 requested" in error
    assert "optimizer.b1: 0.9 in the run, 0.5 requested" in error


def test_each_config_has_a_folder_of_its_own(tmp_path, monkeypatch):
    module = experiments.load(TOY)

    def folder(*argv):
        return cli.parse(module, TOY, argv).workdir

    assert folder() == Path("runs/toy_experiment")
    assert folder("--preset", "tiny") == Path("runs/toy_experiment-tiny")
    assert folder("--features", "5") == folder("--features=5") != folder("--features", "6")
    assert str(folder("--features", "5")).startswith("runs/toy_experiment-")
    assert folder("--features", "4") == folder()
    assert folder("--workdir", "x", "--features", "5") == Path("x")


def test_flags_take_dashes_and_underscores():
    module = experiments.load(TOY)
    for flag in ("--optimizer.learning-rate", "--optimizer.learning_rate"):
        assert cli.parse(module, TOY, [flag, "0.25"]).config.optimizer.learning_rate == 0.25
    assert cli.parse(module, TOY, ["--preset", "tiny", "--seed", "3"]).config == module.Config(
        steps=6, seed=3
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimizer.lr", "1"], "unknown option --optimizer.lr; did you mean --optimizer.learning-rate?"),
        (["--setps", "1"], "unknown option --setps; did you mean --steps?"),
        (["--optimiser.learning-rate=1"], "did you mean --optimizer.learning-rate?"),
        (["--learning_rate", "1"], "unknown option --learning_rate; did you mean --optimizer.learning-rate?"),
        (["--zzz", "1"], "unknown option --zzz; --help lists them all"),
        (["--steps", "many"], "--steps: invalid literal for int() with base 10: 'many'"),
        (["--optimizer.learning-rate", "-1"], "learning_rate must be positive and finite, got -1.0"),
        (["--loop.log-every", "0"], "log_every must be at least 1, got 0"),
        (["--optimizer.name", "adamx"], "adamx"),
        (["--preset", "huge"], "invalid choice 'huge' for argument '--preset'"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--optimizer.warmup-steps", "30"], "warmup_steps must be below steps, got 30 of 20"),
        (["--data", "none.txt"], "data: no file at none.txt; get it with scripts/prepare.py"),
    ],
)
def test_a_mistake_is_one_clean_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(TOY, *argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_unknown_experiments(capsys, tmp_path):
    assert call("aplha") == 2
    assert "no experiment named aplha" in capsys.readouterr().err
    assert call(str(tmp_path / "none.py")) == 2
    assert "there is no such file" in capsys.readouterr().err
    (tmp_path / "empty.py").write_text("")
    assert call(str(tmp_path / "empty.py")) == 2
    assert "is not an experiment: it has no Config and no make_task" in capsys.readouterr().err
    assert call() == 2
    assert "experiments: alpha, beta" in capsys.readouterr().err


def test_experiments_by_name(tmp_path, monkeypatch):
    (tmp_path / "char_toy.py").write_text(Path(TOY).read_text())
    monkeypatch.setattr(experiments, "__path__", [str(tmp_path)])
    assert experiments.names() == ["char_toy"]
    assert experiments.load("char_toy").Config().steps == 20
    with pytest.raises(ValueError, match="no experiment named chartoy; did you mean char_toy"):
        experiments.load("chartoy")


def test_a_bug_keeps_its_traceback(tmp_path):
    source = (
        Path(TOY)
        .read_text()
        .replace("def display(self, metrics):", "def display(self, metrics):\n        1 / 0")
    )
    (tmp_path / "buggy.py").write_text(source)
    with pytest.raises(ZeroDivisionError):
        call(str(tmp_path / "buggy.py"), "--workdir", str(tmp_path / "run"))


def test_a_failed_setup_leaves_no_run_behind(tmp_path):
    folder = str(tmp_path / "run")
    assert call(TOY, "--workdir", folder, "--data", "none.txt", "--preset", "tiny") == 2
    assert call(TOY, "--workdir", folder, "--preset", "tiny") == 0


def test_a_nan_ends_with_code_1_and_advice(tmp_path, capsys):
    assert call(TOY, "--workdir", str(tmp_path), "--nan-at", "7") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: not finite at step 7: loss nan")
    assert "the last checkpoint is that of step 5" in error


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--help"], 0, "--optimizer.learning-rate FLOAT"),
        (["--optimizer.lr", "1"], 2, "did you mean --optimizer.learning-rate?"),
        (["--workdir", TOY], 2, "is a file: a run needs a folder"),
    ],
)
def test_the_script_answers_within_three_seconds(argv, code, text):
    began = children_seconds()
    answer = subprocess.run([*SCRIPT, TOY, *argv], capture_output=True, text=True, timeout=60)
    taken = children_seconds() - began
    assert answer.returncode == code
    assert text in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    assert taken < 3


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['train.py']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import experiments\n"
        "from lstmx.training import cli\n"
        f"try: cli.main(experiments.load, [], [{TOY!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'orbax', 'optax', 'flax', 'tensorflow_datasets', 'tensorboardX', 'grain'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.stdout.splitlines()[-1] == "heavy: []", answer.stderr
