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

# A new shape is a new compilation: the time of an example says nothing.
hypothesis.settings.register_profile("lstmx", deadline=None, print_blob=True)
hypothesis.settings.load_profile("lstmx")


@pytest.fixture
def double():
    """Double precision for the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules whose programs run once or twice: flax and optax must have been imported before."""
    import flax.nnx  # noqa: F401
    import optax  # noqa: F401
    import quick

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick.jit)
        yield
