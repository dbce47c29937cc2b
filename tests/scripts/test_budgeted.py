"""The benchmark within a budget: what is wrong is found, whatever ends a part leaves the rest."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lstmx.implementations import choice, fused  # noqa: E402
from scripts import benchmark  # noqa: E402
from scripts.benchmarks import budgeted, budgeted_page, correctness, members, parallel, worker  # noqa: E402
from scripts.benchmarks.problems import Shape  # noqa: E402

GOOD = {"values": 1e-7, "gradients": 1e-7, "worst": "[0].h", "tolerance": 1e-4}


def comparison(**changes):
    return {
        "kind": "comparison",
        "part": "correctness",
        "label": "LSTM",
        "type": "float32",
        **GOOD,
        **changes,
    }


def row(table, **times):
    times = {name: [seconds] * 2 for name, seconds in times.items()}
    return {"kind": "row", "part": "layers", "table": table, "row": {"label": "1", "times": times}}


@pytest.mark.full
def test_an_implementation_passes_its_comparison_and_a_wrong_one_does_not(monkeypatch):
    case = correctness.cases(True)[1]
    found = correctness.compared(case, "fused", "float32")
    assert budgeted_page.fault(found) is None
    assert found["gradients"] < 1e-6

    class Wrong:
        @staticmethod
        def run(*args, **options):
            final, emitted = fused.run(*args, **options)
            return final, emitted * np.float32(1.001)

    monkeypatch.setitem(choice.IMPLEMENTATIONS, "fused", Wrong)
    jax.clear_caches()
    try:
        found = correctness.compared(case, "fused", "float32")
    finally:
        jax.clear_caches()
    assert found["values"] == pytest.approx(1e-3, rel=0.2)
    assert "tolerance 0.0001" in budgeted_page.fault(found)


def test_what_cannot_run_a_case_is_skipped():
    case = next(case for case in correctness.cases(False) if case.label == "sLSTM")
    assert correctness.compared(case, "native", "float32") is None


def test_not_a_number_is_a_fault():
    assert "nan" in budgeted_page.fault(comparison(gradients=float("nan")))


def test_every_part_has_its_share_and_what_is_left_goes_to_those_after_it(tmp_path):
    orders = []

    def work(order, path, seconds):
        orders.append((order, seconds))
        return None

    options = {"rounds": 2, "quick": True, "command": ["x"], "output": tmp_path / "page.md", "work": work}
    budgeted.run("cpu", 1000, **options)
    assert [order.part for order, _ in orders] == [part.name for part in budgeted.PARTS]
    assert set(worker._PARTS) == {order.part for order, _ in orders}
    assert orders[0][1] == pytest.approx(200, abs=1)
    # Nothing was used: the last part has everything.
    assert orders[-1][1] == pytest.approx(1000, abs=1)
    assert all(order.seconds < seconds for order, seconds in orders)


def test_a_part_that_is_ended_leaves_its_results_and_the_next_runs(tmp_path):
    def work(order, path, seconds):
        with path.open("a") as file:
            if order.part == "correctness":
                file.write(json.dumps(comparison(implementation="fused")) + "\n")
                file.write(json.dumps(comparison(implementation="cudnn", failed="Boom")) + "\n")
            elif order.part == "pallas":
                file.write('{"kind": "compari')  # killed in the middle of a line
                return "ended by SIGKILL"
            elif order.part == "layers":
                assert order.without == ("cudnn", "pallas")
                file.write(
                    json.dumps(row("training, float32", lstmx=0.002, fused=0.002, native=0.001)) + "\n"
                )
        return None

    output = tmp_path / "page.md"
    text = budgeted.run("cpu", 100, 2, True, ["x"], output, work)
    assert output.read_text() == text
    assert "| pallas | 0 | 0 | ended by SIGKILL |" in text
    assert "LSTM, cudnn, float32: Boom" in text
    assert "`cudnn` stays experimental: LSTM: Boom" in text
    assert "`pallas` stays experimental: ended by SIGKILL" in text
    assert "`native` 0.50 (1), `fused` 1.00 (1). Put `native` first here." in text


def test_a_part_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/sleep")
    order = budgeted.Order("layers", "cpu", 1, 2)
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, popen=subprocess.Popen, **options: popen(["sleep", "60"], **options),
    )
    assert budgeted._in_process(order, tmp_path / "results", 0.2) == "ended after 0 seconds"


@pytest.mark.full
def test_a_worker_does_its_part_and_writes_each_result(tmp_path):
    path = tmp_path / "results.jsonl"
    path.touch()
    order = budgeted.Order("streaming", "cpu", 60, 1, True, ("fused",))
    assert budgeted._in_process(order, path, 120) is None
    found = budgeted.read(path)
    assert found[0]["kind"] == "machine"
    (result,) = budgeted_page.rows(found)["streaming"]
    assert {"lstmx", "reference", "flax"} <= set(result.times)
    assert "fused" not in result.times


@pytest.mark.full
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_a_device_that_is_not_there_ends_the_benchmark(tmp_path):
    with pytest.raises(RuntimeError, match="jax finds no GPU on this machine"):
        budgeted.run("gpu", 100, 1, True, ["x"], tmp_path / "page.md")


def test_too_small_a_budget_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--budget", "30"])
    with pytest.raises(SystemExit):
        benchmark.main()
    least = budgeted.least_budget()
    assert (
        f"--budget must be at least {least} seconds, 10 for each of 7 parts, got 30"
        in capsys.readouterr().err
    )


def test_members_compute_what_one_computes():
    shape = Shape(2, 5, 3, 4)
    losses, (d_params, _) = members.run(shape, "float32")()
    function, params, xs = members._problem(shape, "float32", "reference")
    for k in (0, members.MEMBERS - 1):
        one = jax.tree.map(lambda leaf, k=k: leaf * (1 - 0.01 * k), (params, xs))
        loss, (grads, _) = function(*one)
        np.testing.assert_allclose(losses[k], loss, rtol=1e-5)
        np.testing.assert_allclose(
            d_params.recurrent["kernel"][k], grads.recurrent["kernel"], rtol=1e-4, atol=1e-7
        )
    assert len(members.run_solo(shape, "float32")()) == members.MEMBERS


def test_parallel_implementations_are_those_there_are():
    for cell in parallel.cells().values():
        assert choice.choose(choice.Job(cell)) in parallel.PARALLEL
    field = dataclasses.replace(benchmark.Field(), quick=True)
    labels = [label for label, _ in parallel.tables(field)]
    assert labels == ["MinGRU, training", "MinGRU, forward", "MinLSTM, training", "MinLSTM, forward"]
