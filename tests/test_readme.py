"""What the README says is true: its commands exist and its code runs."""

import re
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import lstmx

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)\n```", README, re.DOTALL | re.MULTILINE)


def test_the_checks_run_its_test_command():
    command = subprocess.run(
        [ROOT / ".ci" / "test-command"], capture_output=True, text=True, check=True
    ).stdout
    assert command.strip() in blocks("bash")
    assert "pytest" in command
    assert ".ci/test-command" in (ROOT / ".ci" / "run").read_text()


def test_its_scripts_and_options_exist():
    for name in re.findall(r"scripts/(\w+\.py)", README):
        assert (ROOT / "scripts" / name).is_file()
    assert "preset shakespeare" in README


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
