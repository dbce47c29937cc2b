"""The tests themselves: what they need, and that .ci/run leaves none of them out."""

import ast
import configparser
import functools
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import variants

ROOT = Path(__file__).resolve().parent.parent
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
NAMES = {part.removesuffix(".py") for path in TESTS for part in path.parts}
LOCAL = {"lstmx", "experiments", "scripts", *NAMES}


@functools.cache
def declared():
    """The distributions that the README's test command installs by name, in lower case."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"] + config["options.extras_require"]["test"]
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines.split() if re.match(r"[a-zA-Z]", line)}


def at_the_head(tree):
    """The nodes of a module that run when it is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_the_head(node)


def imports_at_the_head(source):
    for node in at_the_head(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


installed = functools.cache(importlib.metadata.packages_distributions)


def is_there(name):
    """Whether a package can be imported wherever the tests run."""
    if name in LOCAL or name in sys.stdlib_module_names:
        return True
    return not declared().isdisjoint(owner.lower() for owner in installed().get(name, ()))


def foreign(source):
    """The packages that a module of tests imports at its head, and that the test command does not install."""
    return [name for name in imports_at_the_head(source) if not is_there(name)]


def skips_unmarked(source):
    """Whether a module is skipped as a whole for want of a package without the mark `conformance`."""
    tree = ast.parse(source)
    calls = [node for node in at_the_head(tree) if isinstance(node, ast.Call)]
    wanted = [call.args[0].value for call in calls if ast.unparse(call.func) == "pytest.importorskip"]
    marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    marked = any(text.startswith("pytestmark") and "conformance" in text for text in marks)
    return not marked and not all(is_there(name.split(".")[0]) for name in wanted)


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_modules_import_only_what_the_test_command_installs(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert foreign(source) == []
    assert not (path.name.startswith("test_") and skips_unmarked(source))


def test_foreign_imports_are_seen():
    assert foreign("import jax\nimport torch.nn\ndef f():\n    import keras\n") == ["torch"]
    assert foreign("try:\n    from onnx import helper\nexcept ImportError:\n    pass\n") == ["onnx"]
    assert foreign("import numpy, pytest, sklearn, losses\nfrom lstmx import scan\n") == []
    assert skips_unmarked("keras = pytest.importorskip('keras')\n")
    assert not skips_unmarked("pytestmark = pytest.mark.conformance\nkeras = pytest.importorskip('keras')\n")


SAMPLE = """
import pytest

@pytest.mark.conformance
def test_marked():
    pytest.importorskip("no_such_system")

def test_unmarked():
    pytest.importorskip("no_such_system")

def test_skipped_for_another_reason():
    pytest.skip("no data")

@pytest.mark.full
def test_of_the_full_product():
    pass

@pytest.mark.cross_section(3)
@pytest.mark.parametrize("a", [1, 2])
@pytest.mark.parametrize("b", [1, 2])
def test_of_a_product(a, b):
    assert (a, b) in [(1, 1), (2, 2)]
"""


def outcomes(folder, *arguments):
    """The counts of a run of SAMPLE under this repository's conftest and options."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    counts = re.findall(r"(\d+) (passed|failed|skipped|deselected)", done.stdout.splitlines()[-1])
    return {name: int(count) for count, name in counts}, done.stdout


def test_a_test_that_needs_a_system_is_marked(tmp_path):
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    (tmp_path / "lstmx").mkdir()
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "test_sample.py").write_text(SAMPLE)
    counts, text = outcomes(tmp_path)
    assert counts == {"passed": 2, "failed": 1, "skipped": 2, "deselected": 3}, text
    assert "not marked `conformance`" in text
    counts, text = outcomes(tmp_path, "--require-systems", "-m", "full or conformance")
    assert counts == {"failed": 3, "passed": 1, "deselected": 4}, text
    assert "no_such_system" in text


def test_ci_runs_the_test_command_and_what_it_leaves_out():
    run = (ROOT / ".ci" / "run").read_text()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["tool:pytest"]["addopts"].endswith('-m "not full"')
    first, second = run.index(".ci/test-command"), run.index("-m 'full or conformance'")
    assert first < run.index("[test,conformance]") < second < run.index("-m 'optimized and not full'")


def test_the_cross_section_has_every_family():
    families = {type(make(4)) for make in variants.EVERY.values()}
    assert variants.EVERY.keys() >= variants.CROSS_SECTION
    assert {type(variants.EVERY[name](4)) for name in variants.CROSS_SECTION} == families
