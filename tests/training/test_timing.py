"""Where the time of a run goes: each part is counted, once, over all processes of the run."""

import itertools
import signal
import time
from pathlib import Path

import pytest

import experiments
from lstmx.training import LoopConfig, OptimizerConfig, read_metrics, stop_on_signals, train, train_in_memory
from lstmx.training.timing import PARTS, TIMES, Stopwatch

toy = experiments.load(str(Path(__file__).parent / "toy_experiment.py"))
PAUSE = 0.02


class Slow(toy.Toy):
    """Each batch and each evaluation takes a known time at least."""

    def __init__(self, stop_at=None):
        super().__init__(toy.Config(pause=PAUSE))
        self.stop_at = stop_at

    def batch(self, step):
        if step + 1 == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        return super().batch(step)

    def evaluate(self, params, split):
        time.sleep(5 * PAUSE)
        return super().evaluate(params, split)


def run_slowly(folder, task, steps=12):
    loop = LoopConfig(eval_every=4, checkpoint_every=0, log_every=2, tensorboard=False)
    with stop_on_signals() as stop:
        options = {"steps": steps, "optimizer": OptimizerConfig("adamw", 0.05), "loop": loop, "quiet": True}
        train(task, folder, stop=stop, **options)
    return read_metrics(folder / "metrics.jsonl")


def check_sums(records):
    """Sums never decrease, count what is known to have passed, and their parts fit into the whole."""
    for before, after in itertools.pairwise(records):
        assert all(before[name] <= after[name] for name in TIMES)
    for record in records:
        evaluations = record["step"] // 4 - (record["split"] == "train" and record["step"] % 4 == 0)
        assert record["data_s"] >= record["step"] * PAUSE
        assert record["evaluation_s"] >= evaluations * 5 * PAUSE
        assert sum(record[f"{part}_s"] for part in PARTS) <= record["elapsed_s"] + 0.01
    assert records[-1]["compile_s"] > 0
    assert records[-1]["checkpoint_s"] > 0


def test_each_part_is_counted(tmp_path):
    records = run_slowly(tmp_path, Slow())
    assert [record["split"] for record in records].count("validation") == 3
    check_sums(records)
    # Nothing is counted twice: what is slept in one part is in no other.
    last = records[-1]
    assert last["elapsed_s"] - last["data_s"] >= 3 * 5 * PAUSE
    assert last["elapsed_s"] - last["evaluation_s"] >= 12 * PAUSE


def test_a_resumed_run_continues_its_sums(tmp_path):
    first = run_slowly(tmp_path, Slow(stop_at=7))
    assert first[-1]["step"] == 6
    records = run_slowly(tmp_path, Slow())
    assert records[: len(first)] == first
    # Of step 7, which was saved and not recorded, the time is lost, as it is in `elapsed_s`.
    for record in records:
        lost = 1 if record["step"] > 6 else 0
        assert record["data_s"] >= (record["step"] - lost) * PAUSE
        assert sum(record[f"{part}_s"] for part in PARTS) <= record["elapsed_s"] + 0.01
    for before, after in itertools.pairwise(records):
        assert all(before[name] <= after[name] for name in TIMES)
    # Each process compiles the step.
    assert records[-1]["compile_s"] > first[-1]["compile_s"]


def test_a_run_in_memory_is_timed_too():
    loop = LoopConfig(eval_every=4, log_every=2)
    trained = train_in_memory(toy.Toy(toy.Config(pause=PAUSE)), steps=8, loop=loop, quiet=True)
    assert trained.result.validation["data_s"] >= 8 * PAUSE


@pytest.mark.parametrize("records", [[], [{"step": 1}], [{"elapsed_s": None}]])
def test_records_without_times_begin_at_zero(records):
    stopwatch = Stopwatch(records)
    assert stopwatch.record().keys() == set(TIMES)
    assert stopwatch.record()["data_s"] == 0
    assert stopwatch.elapsed < 60


def test_a_part_counts_while_it_is_measured():
    stopwatch = Stopwatch()
    with stopwatch.measure("evaluation"):
        time.sleep(PAUSE)
        assert stopwatch.record()["evaluation_s"] >= PAUSE
    seconds = stopwatch.record()["evaluation_s"]
    time.sleep(PAUSE)
    assert stopwatch.record()["evaluation_s"] == seconds
