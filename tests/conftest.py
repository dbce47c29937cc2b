"""What all tests share: the import path, and double precision on request."""

import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
# The repository, for `experiments`; and this folder, for the table of cells and the oracles.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# Data sets are prepared in a folder of the tests' own, by their subprocesses too.
_DATA = tempfile.TemporaryDirectory(prefix="lstmx-tests-")
os.environ["TFDS_DATA_DIR"] = _DATA.name

# The tests' loops are tiny, and most of their time is the compiler's, of which these flags save a third, in
# the commands that they run too. `XLA_FLAGS= pytest` compiles as users do.
_QUICK = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):
    _QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_QUICK))

# A new shape is a new compilation: the time of an example says nothing.
hypothesis.settings.register_profile("lstmx", deadline=None, print_blob=True)
hypothesis.settings.load_profile("lstmx")


@pytest.fixture
def double():
    """Double precision for the test."""
    with jax.enable_x64(True):
        yield
