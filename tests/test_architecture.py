"""Which modules may import which, how long files may be, and what `import lstmx` imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lstmx

ROOT = Path(lstmx.__file__).resolve().parent.parent
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in ("lstmx", "experiments", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)

# For each part of lstmx, the parts that it may import; "" is lstmx/__init__.py.
CORE = {"cells", "scan", "networks", "regularizers", "compiled_step"}
ARROWS = {
    "cells": {"cells"},
    "implementations": {"cells", "implementations"},
    "axes": set(),
    "scan": {"axes", "cells", "implementations"},
    "networks": {"cells", "implementations", "scan"},
    "regularizers": {"cells", "scan"},
    "compiled_step": {"cells", "implementations", "scan", "networks", "regularizers"},
    "convert": {"cells", "implementations", "scan", "networks", "nested", "convert"},
    "nested": {"cells"},
    "batch_major": {"axes", "cells", "scan"},
    "nnx": {*CORE, "batch_major", "nested"},
    "linen": {*CORE, "batch_major", "nested"},
    "models": {"", *CORE, "nested", "nnx", "linen", "models"},
    "data": {"data"},
    "training": {"training"},
    "sweeps": {"training", "sweeps"},
    "forecasting": {"", "data", "models", "training", "sweeps", "forecasting"},
    "": CORE,
}

# For each package, the folders and files that may import it. Tests may import everything.
HOMES = {
    "orbax": ("lstmx/training/checkpoint.py",),
    "tensorflow_datasets": ("lstmx/data/", "experiments/datasets/"),
    "grain": ("lstmx/data/",),
    "flax": (
        "lstmx/nnx.py",
        "lstmx/linen.py",
        "lstmx/models/",
        "lstmx/training/",
        "lstmx/forecasting/",
        "experiments/",
        "scripts/",
    ),
    "optuna": ("lstmx/sweeps/",),
    "pandas": ("lstmx/forecasting/", "experiments/datasets/", "scripts/"),
    # Converters use plain arrays; only the functions that read and write ONNX files import onnx.
    "onnx": ("lstmx/convert/onnx/models.py",),
    **dict.fromkeys(("torch", "keras", "haiku", "onnxruntime", "safetensors", "h5py"), ("scripts/",)),
    "experiments": ("experiments/", "scripts/"),
    "scripts": ("scripts/",),
}
LONGEST = 450


def imported(source):
    """The dotted names that source code imports, including imports in functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Relative imports would not be checked; there are none.
            assert node.level == 0, ast.unparse(node)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_of(name):
    """The part of lstmx that contains a dotted name, as a set of at most one."""
    package, *rest = name.split(".")
    if package != "lstmx":
        return set()
    return {rest[0] if rest and rest[0] in ARROWS else ""}


def violations(path, source):
    """The imports of a file that are not allowed."""
    part = "" if path.parts == ("lstmx", "__init__.py") else path.with_suffix("").parts[1]
    for name in imported(source):
        if path.parts[0] == "lstmx" and not parts_of(name) <= ARROWS[part]:
            yield name
        homes = HOMES.get(name.split(".")[0])
        if homes is not None and not path.as_posix().startswith(homes):
            yield name


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_follow_the_arrows(path):
    assert list(violations(path, (ROOT / path).read_text())) == []


WRONG = {
    "lstmx/cells/lstm.py": (
        "from lstmx import scan",
        "import lstmx.networks",
        "import flax.linen",
        "import lstmx",
    ),
    "lstmx/implementations/fused.py": ("from lstmx.scan import scan",),
    "lstmx/scan.py": ("from lstmx.networks import Stack", "import lstmx.nnx"),
    "lstmx/regularizers.py": ("from lstmx.networks import Stack", "from lstmx.implementations import fused"),
    "lstmx/convert/torch.py": ("import torch", "import lstmx", "from lstmx import nnx"),
    "lstmx/networks.py": ("from lstmx.convert import cudnn", "from flax import nnx"),
    "lstmx/nnx.py": ("from lstmx import linen", "from lstmx import models"),
    "lstmx/models/language_model.py": ("import lstmx.training.loop", "from experiments import char_lm"),
    "lstmx/data/batching.py": ("import lstmx", "from lstmx.training import Task", "import orbax.checkpoint"),
    "lstmx/training/loop.py": (
        "def f():\n    import lstmx.cells",
        "from lstmx import data",
        "import orbax.checkpoint",
    ),
    "lstmx/training/run.py": ("import scripts.train", "import tensorflow_datasets as tfds"),
    "lstmx/__init__.py": ("from lstmx import nnx",),
    "experiments/char_lm.py": ("import tensorflow_datasets", "from scripts import train"),
}


@pytest.mark.parametrize(("path", "source"), [(path, s) for path, sources in WRONG.items() for s in sources])
def test_wrong_imports_are_detected(path, source):
    assert len(list(violations(Path(path), source))) == 1


def test_every_part_has_its_arrows():
    paths = [path for path in (ROOT / "lstmx").iterdir() if path.is_dir() or path.suffix == ".py"]
    parts = {path.with_suffix("").name for path in paths if path.name[0] not in "_."}
    assert parts == set(ARROWS) - {""}


def test_files_are_short():
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")]
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in (*SOURCES, *tests)}
    assert len(lengths) > 50
    assert {path: n for path, n in lengths.items() if n > LONGEST} == {}


HEAVY = (
    "flax", "optax", "orbax", "tensorflow_datasets", "tensorflow", "grain", "torch", "rich", "tyro", "onnx",
    "keras", "haiku",
)  # fmt: skip

# Blocks every import of HEAVY, then uses the functional layer.
WITHOUT = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
import jax, jax.numpy as jnp, lstmx
net = lstmx.Stack((lstmx.LSTM(3), lstmx.Bidirectional(lstmx.GRU(2))))
params = net.init(jax.random.key(0), 4)
run = lambda p: lstmx.scan(net, p, jnp.ones((5, 2, 4)), lengths=jnp.array([5, 0]))[1].sum()
gradient = jax.grad(run)(params)
import lstmx.convert
print(sorted({{name.split(".")[0] for name in sys.modules}} & set({HEAVY!r})))
try:
    lstmx.nnx
except ModuleNotFoundError as error:
    print(error)
"""


def test_lstmx_requires_only_jax_and_numpy():
    command = [sys.executable, "-W", "error", "-c", WITHOUT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.splitlines(), done.returncode) == (["[]", "blocked: flax"], 0), done.stderr


# A protocol, containers and modules, which the examples of other names use.
WITHOUT_EXAMPLE = {"Cell", "Params", "LSTMState", "LSTMGatesState", "SLSTMState", "networks", "regularizers"}


@pytest.mark.parametrize("name", lstmx.__all__)
def test_public_names_are_documented(name):
    text = getattr(lstmx, name).__doc__
    # The docstring of a dataclass or named tuple without one is its signature.
    assert text
    assert not text.startswith(f"{name}(")
    assert (">>>" in text) != (name in WITHOUT_EXAMPLE)


def test_subpackages_are_imported_at_first_use():
    assert set(lstmx.__all__) <= set(dir(lstmx))
    assert {"nnx", "linen", "models", "data", "training"} <= set(dir(lstmx))
    with pytest.raises(AttributeError, match="module 'lstmx' has no attribute 'keras'"):
        lstmx.keras  # noqa: B018
