"""Studies: who has which trial, and what is left after a kill."""

import csv
import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest

import experiments
from lstmx.sweeps import Spec, Study, SweepError, entries, leaderboard, parse_space, train_trial
from lstmx.training import StopRequest, config_to_dict, open_run, read_metrics

TOY = str(Path(__file__).parents[1] / "training" / "toy_experiment.py")
toy = experiments.load(TOY)
BASE = toy.Config(steps=12)
TEXTS = {"optimizer.learning_rate": "log:1e-3:1e-1", "features": "3,4"}


def study_in(folder, texts=TEXTS, base=BASE, seeds=1, **options):
    spec = Spec(TOY, config_to_dict(base), texts, seeds)
    return Study(folder, spec, parse_space(base, texts), **options)


def train_all(study, trials, base=BASE):
    while claim := study.next(trials):
        train_trial(study, claim, toy, TOY, base, StopRequest())
    return entries(study)


def test_trials_are_runs_and_the_best_loss_leads(tmp_path):
    study = study_in(tmp_path / "sweep")
    board = train_all(study, 4)
    assert [entry.rank for entry in board] == [1, 2, 3, 4]
    assert sorted(entry.trial for entry in board) == [0, 1, 2, 3]
    assert [entry.loss for entry in board] == sorted(entry.loss for entry in board)
    for entry in board:
        folder = study.path(entry.trial)
        best = json.loads((folder / "result.json").read_text())["best"]
        assert (entry.loss, entry.steps) == (best["loss"], 12)
        config = open_run(folder).config
        assert config["optimizer"]["learning_rate"] == entry.values["optimizer.learning_rate"]
        assert config["features"] == entry.values["features"]
    assert study.is_complete(4)
    assert not study.is_complete(5)
    leaderboard.write(study, "python train.py")
    rows = list(csv.DictReader((tmp_path / "sweep" / "leaderboard.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [entry.loss for entry in board]
    assert [row["features"] for row in rows] == [str(entry.values["features"]) for entry in board]


def test_a_sweep_chooses_the_same_configs_in_one_go_and_in_two(tmp_path):
    whole = train_all(study_in(tmp_path / "whole"), 3)
    train_all(study_in(tmp_path / "parts"), 1)
    parts = train_all(study_in(tmp_path / "parts"), 3)
    timeless = [[entry._replace(seconds=None) for entry in board] for board in (whole, parts)]
    assert timeless[0] == timeless[1]


def test_the_mean_of_seeds_ranks(tmp_path):
    study = study_in(tmp_path / "sweep", seeds=3)
    best = train_all(study, 2)[0]
    folders = [study.path(best.trial) / f"seed-{k}" for k in range(3)]
    losses = [json.loads((folder / "result.json").read_text())["best"]["loss"] for folder in folders]
    assert best.loss == pytest.approx(sum(losses) / 3)
    assert best.spread == pytest.approx((sum((x - best.loss) ** 2 for x in losses) / 2) ** 0.5)
    assert [open_run(folder).config["seed"] for folder in folders] == [0, 1, 2]
    assert best.steps == 36


def test_enqueued_configs_come_first_and_once(tmp_path):
    study = study_in(tmp_path / "sweep")
    first = {"optimizer.learning_rate": 0.05, "features": 3}
    study.enqueue(first)
    study.enqueue(first)
    train_all(study, 2)
    study = study_in(tmp_path / "sweep")
    study.enqueue(first)
    board = train_all(study, 3)
    assert [entry.trial for entry in board if dict(entry.values) == first] == [0]
    assert len(board) == 3


def test_a_grid_is_tried_once_each(tmp_path):
    texts = {"features": "3,4", "optimizer.learning_rate": "0.01:0.05:0.02"}
    board = train_all(study_in(tmp_path / "sweep", texts, sampler="grid"), 16)
    rates = sorted(
        (entry.values["features"], round(entry.values["optimizer.learning_rate"], 6)) for entry in board
    )
    assert rates == [(n, rate) for n in (3, 4) for rate in (0.01, 0.03, 0.05)]
    with pytest.raises(SweepError, match=r"a grid needs lists or LOW:HIGH:STEP, and optimizer.learning_rate"):
        study_in(tmp_path / "other", sampler="grid")


@pytest.mark.parametrize("sampler", ["random", "cmaes"])
def test_other_samplers(tmp_path, sampler):
    texts = {"optimizer.learning_rate": "log:1e-3:1e-1", "optimizer.b1": "0.5:0.95"}
    assert len(train_all(study_in(tmp_path / "sweep", texts, sampler=sampler), 3)) == 3


def test_pruned_trials_end_early_and_rank_behind(tmp_path):
    base = toy.Config(steps=40)
    texts = {"optimizer.learning_rate": "1e-9,0.05"}
    study = study_in(tmp_path / "sweep", texts, base, pruner="median")
    # The median pruner lets the first five trials finish.
    for rate in (0.05, 0.05, 0.05, 0.05, 0.05, 1e-9):
        study.optuna.enqueue_trial({"optimizer.learning_rate": rate})
    board = train_all(study, 6, base)
    assert [entry.state for entry in board] == ["complete"] * 5 + ["pruned"]
    assert (board[-1].trial, board[-1].rank) == (5, None)
    assert board[-1].steps < 40
    assert board[-1].loss > board[0].loss


def test_failures_are_recorded_and_five_in_a_row_stop_the_sweep(tmp_path):
    texts = {"nan_at": "0,3"}
    study = study_in(tmp_path / "sweep", texts)
    for value in (3, 3, 3, 3, 0, 3, 3, 3, 3, 3, 3):
        study.optuna.enqueue_trial({"nan_at": value})
    with pytest.raises(SweepError, match=r"the last 5 trials failed, .* the last one: not finite at step 3"):
        train_all(study, 20)
    board = entries(study)
    assert [entry.state for entry in board] == ["complete"] + ["failed"] * 9
    assert all(entry.error.startswith("not finite at step 3") for entry in board[1:])


def test_a_trial_without_validation_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(toy.Toy, "splits", ("train",))
    study = study_in(tmp_path / "sweep")
    train_trial(study, study.next(1), toy, TOY, BASE, StopRequest())
    assert entries(study)[0].error.startswith(
        "no validation loss that is finite: the task needs a validation"
    )


def test_any_error_of_a_task_is_that_of_its_trial(tmp_path, monkeypatch):
    def broken(self, step):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(toy.Toy, "batch", broken)
    study = study_in(tmp_path / "sweep")
    assert train_trial(study, study.next(1), toy, TOY, BASE, StopRequest())
    assert [(entry.state, entry.error) for entry in entries(study)] == [
        ("failed", "RuntimeError: out of memory")
    ]


def _claim_and_hang(folder):
    base = toy.Config(steps=40, pause=0.02)
    study = study_in(folder, base=base)
    train_trial(study, study.next(3), toy, TOY, base, StopRequest())


def test_the_trial_of_a_killed_process_is_taken_up_where_it_was(tmp_path):
    folder, base = tmp_path / "sweep", toy.Config(steps=40, pause=0.02)
    process = multiprocessing.get_context("spawn").Process(target=_claim_and_hang, args=(folder,))
    process.start()
    log = folder / "trials" / "0000" / "metrics.jsonl"
    while max((record["step"] for record in read_metrics(log)), default=0) < 12:
        assert process.is_alive()
        time.sleep(0.01)
    study = study_in(folder, base=base)
    other = study.next(3)
    assert other.number == 1  # the first is in the hands of a living process
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    claim = study.next(3)
    assert claim.number == 0
    other.lease.close()
    train_trial(study, claim, toy, TOY, base, StopRequest())
    assert [entry.trial for entry in entries(study) if entry.state == "complete"] == [0]
    assert len({record["step"] for record in read_metrics(log) if record["split"] == "train"}) == 40
    result = json.loads((folder / "trials" / "0000" / "result.json").read_text())
    assert result["status"] == "finished"
    # The processor that trained it was interrupted only once: what was done before the kill was kept.
    steps = [record["step"] for record in read_metrics(log) if record["split"] == "validation"]
    assert steps == [10, 20, 30, 40]


def test_a_trial_whose_process_dies_again_and_again_fails(tmp_path):
    study = study_in(tmp_path / "sweep")
    study.next(2).lease.close()
    for _ in range(2):
        claim = study.next(2)
        assert claim.number == 0
        claim.lease.close()
    other = study.next(2)
    assert other.number == 1
    other.lease.close()
    failed = [entry for entry in entries(study) if entry.state == "failed"]
    assert [entry.error for entry in failed] == ["its process ended 3 times without a result; out of memory?"]


def test_a_stopped_trial_is_continued(tmp_path):
    study, stop = study_in(tmp_path / "sweep"), StopRequest()
    stop.signal = signal.SIGTERM
    for _ in range(4):  # however often: it does not count as a death
        claim = study.next(1)
        assert not train_trial(study, claim, toy, TOY, BASE, stop)
    assert train_trial(study, study.next(1), toy, TOY, BASE, StopRequest())
    assert entries(study)[0].state == "complete"


def test_a_torn_journal_is_mended_and_a_damaged_one_refused(tmp_path):
    study = study_in(tmp_path / "sweep")
    train_all(study, 2)
    journal = tmp_path / "sweep" / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 5, "wor')
    assert len(train_all(study_in(tmp_path / "sweep"), 3)) == 3
    assert len(entries(study_in(tmp_path / "sweep"))) == 3
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"{nonsense\n", *lines[2:]]))
    with pytest.raises(SweepError, match=r"journal.log is damaged .* the runs in .*trials are whole"):
        study_in(tmp_path / "sweep")


def test_a_folder_of_another_sweep_or_of_something_else_is_refused(tmp_path):
    study_in(tmp_path / "sweep")
    with pytest.raises(SweepError, match=r"another one:\n  space.features: 3,4 in the sweep, 3,5 requested"):
        study_in(tmp_path / "sweep", {**TEXTS, "features": "3,5"})
    with pytest.raises(SweepError, match=r"base.steps: 12 in the sweep, 13 requested"):
        study_in(tmp_path / "sweep", base=toy.Config(steps=13))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(SweepError, match=r"not empty and not a sweep \(no sweep.json, but notes.txt\)"):
        study_in(tmp_path / "other")
    with pytest.raises(SweepError, match="is a file: a sweep needs a folder"):
        study_in(tmp_path / "other" / "notes.txt")
    (tmp_path / "sweep" / "sweep.json").write_text("{")
    with pytest.raises(SweepError, match=r"sweep.json is damaged"):
        study_in(tmp_path / "sweep")


def test_a_database_in_place_of_the_journal(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    board = train_all(study_in(tmp_path / "sweep", storage=url), 2)
    assert len(board) == len(entries(study_in(tmp_path / "sweep", storage=url))) == 2
    assert not (tmp_path / "sweep" / "journal.log").exists()


def test_a_database_that_is_not_there(tmp_path):
    with pytest.raises(
        SweepError, match=r"the database of the sweep cannot be used \(sqlite:////no/such"
    ) as error:
        study_in(tmp_path / "sweep", storage="sqlite:////no/such/folder/study.db")
    assert "\n" not in str(error.value)
    with pytest.raises(SweepError, match=re.escape("(postgresql://...@127.0.0.1:9/lstmx)")):
        study_in(tmp_path / "other", storage="postgresql://me:secret@127.0.0.1:9/lstmx")
