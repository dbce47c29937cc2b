"""What a person reads when a command warns or fails."""

import _thread
import ast
import logging
import re
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from lstmx.training import terminal
from lstmx.training.progress import format_table

ROOT = Path(__file__).parents[2]


def test_warnings_are_one_plain_line(capsys):
    with warnings.catch_warnings(record=True) as caught, terminal.clean_errors():
        warnings.simplefilter("always")
        logging.getLogger("lstmx.training.checkpoint").warning("checkpoint %s skipped", 40)
        logging.getLogger("absl").error("a page of orbax", exc_info=True)
        warnings.warn("3 lines have no label", stacklevel=1)
        warnings.warn("of interest to programmers", DeprecationWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["of interest to programmers"]
    assert capsys.readouterr().err == "warning: checkpoint 40 skipped\nwarning: 3 lines have no label\n"
    assert logging.getLogger("lstmx").propagate


def test_errors_are_one_line_and_tracebacks_on_request(capsys):
    with pytest.raises(SystemExit, match="2"), terminal.clean_errors():
        raise ValueError("steps must be at least 1")
    assert capsys.readouterr().err == "error: steps must be at least 1\n"
    with pytest.raises(ValueError, match="at least 1"), terminal.clean_errors(debug=True):
        raise ValueError("steps must be at least 1")


def test_threads_of_other_libraries_print_nothing(capsys):
    before = sys.stderr
    with terminal.clean_errors():
        print("own", file=sys.stderr)
        # A thread that Python has not started, as those of C++ libraries.
        _thread.start_new_thread(print, ("foreign",), {"file": sys.stderr})
        time.sleep(0.2)
        thread = threading.Thread(target=print, args=("own thread",), kwargs={"file": sys.stderr})
        thread.start()
        thread.join()
    assert sys.stderr is before
    assert capsys.readouterr().err == "own\nown thread\n"


@pytest.mark.parametrize("debug", [False, True])
def test_a_full_disk_is_said_in_two_lines(tmp_path, debug):
    """A limit on the size of files is met by orbax' threads as a full disk is."""
    toy = ROOT / "tests" / "training" / "toy_experiment.py"
    command = [
        sys.executable,
        ROOT / "scripts" / "train.py",
        toy,
        "--workdir",
        tmp_path,
        "--features",
        "20000",
    ]
    command += ["--steps", "5", *(["--debug"] if debug else [])]
    # In blocks of 512 bytes or 1,024; a checkpoint has 720,000 bytes.
    limited = ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 1
    if debug:
        assert "Traceback" in done.stderr
        assert "OCDBT" in done.stderr
    else:
        assert done.stderr == "error: could not save step 5: File too large\nthere is none before it\n"


def test_only_the_command_line_speaks_of_its_options():
    """Literals that begin with dashes are arguments of other programs."""
    for path in sorted((ROOT / "lstmx").rglob("*.py")):
        if path.name != "cli.py":
            literals = (node.value for node in ast.walk(ast.parse(path.read_text())) if is_text(node))
            assert [text for text in literals if re.search(r"(?<=[ (`])--[a-z]", text)] == [], path


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_numbers_stand_one_below_the_other():
    rows = {"mse": {"": 57543043.7872}, "smape": {"": 0.0224}, "windows": {"": 12}, "bad": {"": float("nan")}}
    lines = format_table(rows).splitlines()
    assert lines == [
        "mse      57,543,044",
        "smape             0.022400",
        "windows          12",
        "bad             nan",
    ]
