"""A run of the word language model, used as the README tells."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import word_lm
from lstmx.training import claim_run, config_to_dict, train_in

ROOT = Path(__file__).resolve().parents[2]


def script(name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(list("abcdef"), 8)) for _ in range(200)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    tiny = word_lm.PRESETS["tiny"]
    config = dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, path=folder / "text.txt", data_dir=folder / "data"),
        loop=dataclasses.replace(tiny.loop, eval_every=0, tensorboard=False, sample=False),
    )
    with claim_run(folder / "run", "word_lm", config_to_dict(config)) as claimed:
        options = {"optimizer": config.optimizer, "loop": config.loop, "quiet": True}
        train_in(claimed, word_lm.make_task(config), steps=20, seed=0, **options)
    return folder / "run"


@pytest.mark.full
def test_perplexity_as_it_is_and_as_it_adapts(run):
    done = script("perplexity.py", run, "--cache", "--cache-size", "50", "--dynamic", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {1 < result[kind]["perplexity"] < 9 for kind in ("plain", "cache", "dynamic")} == {True}
    assert len({result[kind]["loss"] for kind in ("plain", "cache", "dynamic")}) == 3
    assert "words, checkpoint of step 20" in done.stdout


@pytest.mark.full
def test_a_file_of_ones_own_and_words_without_the_text(run):
    text = run.parent / "text.txt"
    other = run.parent / "other.txt"
    other.write_text("a b c never\n" * 20)
    moved = text.rename(text.with_suffix(".moved"))
    try:
        done = script("perplexity.py", run, "--file", other, "--json")
        assert json.loads(done.stdout.splitlines()[-1])["plain"]["loss"] > 0
        done = script("generate.py", run, "--prompt", "a b", "--length", "30", "--top-p", "0.9")
    finally:
        moved.rename(text)
    assert done.stdout.startswith("a b")
    assert set(done.stdout.split()) <= set("abcdef")
    assert len(done.stdout.split()) + done.stdout[:-1].count("\n") == 2 + 30


def test_what_is_wrong_is_one_clean_line(run):
    done = script("perplexity.py", run, "--cache", "--cache-weight", "1.5")
    assert (done.returncode, done.stderr) == (2, "error: weight must lie in [0, 1), got 1.5\n")
