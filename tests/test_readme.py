"""The README is true: its commands, and those of the other pages, are accepted, and its code runs."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import tyro

import experiments
import lstmx
from lstmx.sweeps import cli as sweeps_cli
from lstmx.training import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *(ROOT / "docs").glob("*.md")]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)\n```", README, re.DOTALL | re.MULTILINE)


def test_the_checks_run_its_test_command():
    command = subprocess.run(
        [ROOT / ".ci" / "test-command"], capture_output=True, text=True, check=True
    ).stdout
    assert command.strip() in blocks("bash")
    assert "pytest" in command
    assert ".ci/test-command" in (ROOT / ".ci" / "run").read_text()


COMMAND = re.compile(r"(?:^|(?<=[`&;] )|(?<=[` ]))(?:python )?scripts/(\w+)\.py\b([^`#&;\n]*)", re.MULTILINE)


def commands_in(text):
    """Every command that a document prints, as the name of a script and its arguments."""
    text = text.replace("\\\n", " ")
    # A span of code may go over the end of a line.
    text = re.sub(r"`[^`\n]+\n[^`\n]+`", lambda span: span[0].replace("\n", " "), text)
    return [(name, *shlex.split(arguments)) for name, arguments in COMMAND.findall(text)]


COMMANDS = sorted({command for page in PAGES for command in commands_in(page.read_text(encoding="utf-8"))})


def parse(name, *arguments):
    """Reads the arguments of a script as it does, without running it.

    Raises:
      SystemExit: if it would refuse them.
    """
    if name == "benchmark":
        return commands.load(name, "_parser")().parse_args(arguments)
    if name == "sweep":
        return sweeps_cli.parse(experiments.load, (), arguments)
    if name != "train":
        function = commands.load(name)
        return tyro.cli(functools.wraps(function)(lambda **values: values), args=arguments)
    if not arguments or arguments[0].endswith(".py"):  # prose, or an experiment of the reader's own
        return None
    return cli.parse(experiments.load(arguments[0]), arguments[0], arguments[1:])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_printed_commands_are_accepted(command):
    path = ROOT / "scripts" / f"{command[0]}.py"
    assert os.access(path, os.X_OK)
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")
    if command[1:] or command[0] == "benchmark":
        parse(*command)


def test_commands_of_all_kinds_are_found():
    assert len(COMMANDS) > 40
    assert {command[0] for command in COMMANDS} == {path.stem for path in (ROOT / "scripts").glob("*.py")}
    shell, prose = (
        "python3 -m venv .venv && scripts/a.py x --y\n",
        "`scripts/b.py RUN\n--z`; `python scripts/c.py`\n",
    )
    assert commands_in(shell + prose) == [("a", "x", "--y"), ("b", "RUN", "--z"), ("c",)]


@pytest.mark.parametrize(
    "command",
    [
        ("train", "char_lm", "--no-such-option"),
        ("generate", "RUN", "--lenght", "5"),
        ("benchmark", "--part", "x"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_seen(command, capsys):
    with pytest.raises(SystemExit):
        parse(*command)


def test_the_first_commands_run_as_printed(tmp_path):
    """With a smaller network, and a run folder of the test's own."""
    shell = blocks("bash")
    install, train = shell[0].rsplit(" && ", 1)
    assert install.endswith("pip install -q -e .")
    # As after `. .venv/bin/activate`.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in (f"{train} --preset tiny", shell[1].replace("500", "5")):
        command = command.replace("runs/first", str(tmp_path / "first"))
        done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not re.search("Warning|Traceback", done.stderr), done.stderr
    assert done.stdout.startswith("The statement")


def test_all_pages_are_listed():
    links = set(re.findall(r"\]\(([^)#]+)\)", README.split("## Documentation\n")[1].split("\n## ")[0]))
    assert links >= {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert all((ROOT / link).is_file() for link in re.findall(r"\]\(([^)#]+)", README))


@pytest.mark.full
def test_its_code_runs(tmp_path, monkeypatch):
    model, functional, forecasting = blocks("python")
    names = {"lstmx": lstmx, "jax": jax}
    exec(model, names)
    tagger = names["Tagger"](names["nnx"].Rngs(0))
    assert tagger(jnp.ones((2, 7, 64)), jnp.array([7, 3])).shape == (2, 7, 10)
    names |= {"xs": jnp.ones((7, 2, 64)), "x": jnp.ones((2, 64)), "lengths": jnp.array([7, 3])}
    exec(functional, names)
    assert names["ys"].shape == (7, 2, 128)
    assert names["y"].shape == (2, 128)
    df = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=99), "y": np.arange(99.0)})
    monkeypatch.chdir(tmp_path)
    names["df"] = df
    exec(forecasting, names)
    assert names["forecasts"].columns.tolist()[2:] == ["lstmx", "lstmx-lo-80", "lstmx-hi-80"]
    assert len(names["forecasts"]) == 14
    assert len(names["tested"]) == 28
    loaded = names["LSTMForecaster"].load("forecaster")
    pd.testing.assert_frame_equal(loaded.predict(df), names["forecaster"].predict())
