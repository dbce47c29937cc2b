"""Populations: each member is what its own training would have been."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments
from experiments import char_lm
from lstmx.sweeps import Spec, Study, SweepError, entries, parse_space, train_trial
from lstmx.sweeps.engines.members import Members
from lstmx.sweeps.engines.population import train_population
from lstmx.training import StopRequest, config_to_dict, read_metrics, replace_fields, restore_params
from lstmx.training.timing import TIMES

TOY = str(Path(__file__).parents[1] / "training" / "toy_experiment.py")
toy = experiments.load(TOY)


def sweep(folder, module, experiment, base, texts, trials, values=()):
    study = Study(folder, Spec(experiment, config_to_dict(base), texts), parse_space(base, texts))
    for each in values:
        study.enqueue(each)
    return study, [study.next(trials) for _ in range(trials)]


def both(tmp_path, module, experiment, base, texts, values):
    """The same trials as a population and one by one."""
    found = []
    for name in ("together", "alone"):
        study, claims = sweep(tmp_path / name, module, experiment, base, texts, len(values), values)
        if name == "together":
            assert train_population(study, claims, module, experiment, base, StopRequest())
        else:
            for claim in claims:
                train_trial(study, claim, module, experiment, base, StopRequest())
        found.append(study)
    return found


def error(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-3)) for x, y in pairs)


def assert_equal_runs(together, alone, module, tolerance):
    for number in range(len(entries(alone))):
        runs = [study.path(number) for study in (together, alone)]
        params = []
        for run in runs:
            reopened, config = experiments.reopen(run)
            params.append(restore_params(run, reopened.make_task(config), "latest").items["params"])
        assert error(*params) <= tolerance
        logs = [read_metrics(run / "metrics.jsonl") for run in runs]
        assert [(r["step"], r["split"]) for r in logs[0]] == [(r["step"], r["split"]) for r in logs[1]]
        for mine, other in zip(*logs, strict=True):
            timing = {*TIMES, "units_per_s"}
            assert set(mine) - timing == set(other) - timing
            for name in set(mine) - timing - {"split"}:
                assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
        results = [json.loads((run / "result.json").read_text()) for run in runs]
        assert results[0]["best"]["step"] == results[1]["best"]["step"]


def test_members_equal_their_own_trainings(tmp_path):
    base = char_lm.PRESETS["tiny"]
    base = replace_fields(base, {"steps": 100, "loop.eval_every": 50, "model.dropout_rate": 0.1})
    texts = {
        "seed": "0:9",
        "optimizer.learning_rate": "log:1e-3:1e-1",
        "optimizer.weight_decay": "0:0.1",
        "optimizer.clip_norm": "0.1:2",
        "model.dropout_rate": "0.1:0.5",
    }
    rows = [(0, 1e-2, 0.0, 1.0, 0.1), (0, 3e-3, 0.05, 0.1, 0.3), (3, 1e-2, 0.1, 2.0, 0.5)]
    values = [dict(zip(texts, row, strict=True)) for row in rows]
    together, alone = both(tmp_path, char_lm, "char_lm", base, texts, values)
    assert_equal_runs(together, alone, char_lm, 1e-5)


def test_members_of_one_seed_share_their_batches():
    configs = [replace_fields(toy.Config(), {"optimizer.learning_rate": rate}) for rate in (0.1, 0.2)]
    members = Members(toy, configs)
    assert members.batch(3)["data"]["x"].shape == (8, 4)
    configs.append(replace_fields(toy.Config(), {"seed": 1}))
    assert Members(toy, configs).batch(3)["data"]["x"].shape == (3, 8, 4)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_member_that_diverges_is_frozen_and_reported(tmp_path):
    base = toy.Config(steps=30)
    texts = {"optimizer.learning_rate": "1e-3:1e38"}
    study, claims = sweep(
        tmp_path / "sweep", toy, TOY, base, texts, 3,
        [{"optimizer.learning_rate": rate} for rate in (0.05, 1e30, 0.01)],
    )  # fmt: skip
    assert train_population(study, claims, toy, TOY, base, StopRequest())
    board = entries(study)
    assert [(entry.trial, entry.state) for entry in board] == [
        (0, "complete"),
        (2, "complete"),
        (1, "failed"),
    ]
    assert board[-1].error.startswith("its loss was no longer finite at step")
    alone, claims = sweep(tmp_path / "alone", toy, TOY, base, texts, 1, [{"optimizer.learning_rate": 0.05}])
    train_trial(alone, claims[0], toy, TOY, base, StopRequest())
    assert board[0].loss == pytest.approx(entries(alone)[0].loss, rel=1e-5)


def test_a_stopped_population_continues_with_the_same_numbers(tmp_path):
    base, texts = toy.Config(steps=24), {"optimizer.learning_rate": "1e-3:0.1"}
    rows = [{"optimizer.learning_rate": rate} for rate in (0.02, 0.05)]
    whole, claims = sweep(tmp_path / "whole", toy, TOY, base, texts, 2, rows)
    assert train_population(whole, claims, toy, TOY, base, StopRequest())
    parts, claims = sweep(tmp_path / "parts", toy, TOY, base, texts, 2, rows)
    stop = StopRequest(reason="test")
    assert not train_population(parts, claims, toy, TOY, base, stop)
    claims = [parts.next(2) for _ in range(2)]
    assert train_population(parts, claims, toy, TOY, base, StopRequest())
    assert_equal_runs(parts, whole, toy, 0.0)
    assert [entry.loss for entry in entries(parts)] == [entry.loss for entry in entries(whole)]


def test_what_cannot_be_one_program_is_refused():
    with pytest.raises(SweepError, match=r"in numbers alone .*, not in features: train them one by one"):
        Members(toy, [toy.Config(), toy.Config(features=5)])
    base = char_lm.PRESETS["tiny"]
    with pytest.raises(SweepError, match=r"model.dropout_rate is 0 for some members"):
        Members(char_lm, [base, replace_fields(base, {"model.dropout_rate": 0.5})])
    averaging = replace_fields(toy.Config(), {"optimizer.average_patience": 2})
    with pytest.raises(SweepError, match="a population does not average parameters"):
        Members(toy, [averaging, averaging])
