"""The benchmark measures what it says: the same function for all, and ratios of the same rounds."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"
SHAPE = (2, 5, 3, 4)


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rivals_compute_the_loss_and_all_gradients(benchmark):
    xs = np.ones((2, 5, 3), np.float32)
    for name in ("lstmx", "lstmx remat", "lstmx reference", "flax"):
        loss, (d_params, d_xs) = benchmark.RIVALS[name](SHAPE, xs)()
        assert np.isfinite(float(loss))
        assert d_xs.shape == xs.shape
        assert np.all(np.asarray(d_xs) != 0)
        sizes = sum(leaf.size for leaf in map(np.asarray, benchmark.jax.tree.leaves(d_params)))
        assert sizes == 4 * 4 * (3 + 4 + 1)


def test_ratios_are_medians_over_the_rounds(benchmark, monkeypatch):
    # Two rivals, and rounds in which both slow down together.
    seconds = iter([1.0, 2.0, 10.0, 20.0, 3.0, 9.0])
    monkeypatch.setattr(benchmark, "_seconds", lambda run: next(seconds))
    monkeypatch.setattr(benchmark, "RIVALS", {"lstmx": lambda *_: list, "other": lambda *_: list})
    result = benchmark.measure(SHAPE, ["lstmx", "other"], rounds=3)
    assert result["other"]["ratio"] == 2.0
    assert result["lstmx"]["median"] == 3000.0
    assert result["other"]["least"] == 2000.0


def test_the_command_prints_and_writes_the_table(tmp_path):
    page = tmp_path / "page.md"
    command = [sys.executable, SCRIPT, "--shapes", "2,5,3,4", "--rounds", "3", "--rivals", "flax"]
    done = subprocess.run([*command, "--output", page], capture_output=True, text=True, check=True)
    assert "| 2, 5, 3, 4 |" in done.stdout
    assert "| B, T, D, H | lstmx | flax |" in page.read_text()
    assert "threads, Python 3" in page.read_text()


def test_a_shape_that_is_none_is_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--shapes", "2,0,3,4"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "B,T,D,H, got '2,0,3,4'" in done.stderr
