"""The benchmark measures what it says: one function for all, ratios of the same rounds, an honest page."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts import benchmark  # noqa: E402
from scripts.benchmarks import (  # noqa: E402
    breakdown,
    chart,
    layers,
    machine,
    memory,
    models,
    problems,
    ragged,
    report,
    rivals,
    scaling,
    tables,
    timing,
)
from scripts.benchmarks.problems import Shape  # noqa: E402
from scripts.benchmarks.tables import Row, Section  # noqa: E402
from scripts.benchmarks.timing import Ratio, Rival  # noqa: E402

pytestmark = pytest.mark.full

SHAPE = Shape(2, 5, 3, 4)
LENGTHS = np.array([2, 5], np.int32)
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def torch_rivals():
    pytest.importorskip("torch", reason="torch is a rival")
    from scripts.benchmarks import torch_rivals

    return torch_rivals


def onnx_rivals():
    for package in ("onnxruntime", "onnx"):
        pytest.importorskip(package, reason="onnxruntime is a rival")
    return rivals


def numpy_outputs(shape):
    """The LSTM's outputs `[T, B, H]` and final c, step by step in float64."""
    xs, kernel, recurrent, bias = (array.astype(np.float64) for array in problems.arrays(shape))
    h = c = np.zeros((shape.batch, shape.units))
    outputs = []
    for x in xs:
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=-1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        outputs.append(h)
    return np.stack(outputs), c


def jax_layers():
    """lstmx by implementation and Flax by unrolling, as functions of the mode."""
    yield "lstmx", lambda mode: rivals.lstmx_layer(SHAPE, mode, "float32")
    for name in rivals.implementations(SHAPE, "float32"):
        yield name, lambda mode, name=name: rivals.lstmx_layer(SHAPE, mode, "float32", implementation=name)
    for unroll in rivals.FLAX_UNROLLS["cpu"]:
        yield f"flax {unroll}", lambda mode, unroll=unroll: rivals.flax_layer(SHAPE, mode, "float32", unroll)


JAX_LAYERS = dict(jax_layers())


@pytest.mark.parametrize("name", JAX_LAYERS)
def test_layers_of_jax_compute_the_lstm(name):
    ys, c = numpy_outputs(SHAPE)
    state, outputs = JAX_LAYERS[name]("forward")()
    np.testing.assert_allclose(outputs, ys, **CLOSE)
    np.testing.assert_allclose(state[0], c, **CLOSE)
    loss, (d_params, d_xs) = JAX_LAYERS[name]("training")()
    np.testing.assert_allclose(loss, np.mean(ys**2), **CLOSE)
    assert d_xs.shape == (5, 2, 3)
    assert np.all(np.asarray(d_xs) != 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(d_params)) == 4 * 4 * (3 + 4 + 1)


@pytest.mark.conformance
def test_torch_computes_the_same_layer_and_gradients():
    torch_layer = torch_rivals().layer
    ys, c = numpy_outputs(SHAPE)
    outputs, (_, final) = torch_layer(SHAPE, "forward")()
    np.testing.assert_allclose(outputs, ys, **CLOSE)
    np.testing.assert_allclose(final[0], c, **CLOSE)
    loss, (d_params, d_xs) = JAX_LAYERS["lstmx"]("training")()
    value, (module, inputs) = torch_layer(SHAPE, "training")()
    np.testing.assert_allclose(value.item(), loss, **CLOSE)
    np.testing.assert_allclose(inputs.grad, d_xs, **CLOSE)
    np.testing.assert_allclose(module.weight_hh_l0.grad.T, d_params.recurrent["kernel"], **CLOSE)


@pytest.mark.conformance
def test_onnxruntime_computes_the_same_layer():
    y, h, _ = onnx_rivals().onnx_layer(SHAPE)()
    ys, _ = numpy_outputs(SHAPE)
    np.testing.assert_allclose(y[:, 0], ys, **CLOSE)
    np.testing.assert_allclose(h[0], ys[-1], **CLOSE)


STEP = Shape(2, 1, 3, 4)


def streams():
    """Runs of one step, by name, and how their outputs are found."""
    yield "scan", lambda: rivals.lstmx_step(STEP, "scan"), lambda y: y[0]
    yield "step", lambda: rivals.lstmx_step(STEP, "step"), lambda y: y
    yield "compile_step", lambda: rivals.compiled_step(STEP), lambda y: y
    yield "flax", lambda: rivals.flax_step(STEP), lambda y: y
    yield "torch LSTM", lambda: torch_rivals().step(STEP, "LSTM"), lambda state: state[0][0]
    yield "torch LSTMCell", lambda: torch_rivals().step(STEP, "LSTMCell"), lambda state: state[0]
    yield "onnxruntime", lambda: onnx_rivals().onnx_step(STEP), lambda y: y[0, 0]


STREAMS = [
    pytest.param(
        *case,
        id=name,
        marks=[] if name in ("scan", "step", "compile_step", "flax") else pytest.mark.conformance,
    )
    for name, *case in streams()
]


@pytest.mark.parametrize(("make", "output"), STREAMS)
def test_streams_carry_their_state(make, output):
    xs = problems.arrays(STEP).xs
    repeated = problems.Arrays(np.repeat(xs, 3, axis=0), *problems.arrays(STEP)[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "arrays", lambda shape: repeated)
        ys, _ = numpy_outputs(Shape(2, 3, 3, 4))
    run = make()
    for y in ys:
        np.testing.assert_allclose(np.asarray(output(run())), y, **CLOSE)


@pytest.mark.conformance
def test_ragged_rivals_have_the_same_loss():
    ys, _ = numpy_outputs(SHAPE)
    keep = np.arange(5)[:, None] < LENGTHS
    loss = np.sum(ys[keep] ** 2) / (LENGTHS.sum() * 4)
    np.testing.assert_allclose(ragged.lengths_run(SHAPE, LENGTHS)()[0], loss, **CLOSE)
    np.testing.assert_allclose(ragged.packed_run(SHAPE, LENGTHS)()[0], loss, **CLOSE)
    np.testing.assert_allclose(ragged.flax_run(SHAPE, LENGTHS)()[0][0], loss, **CLOSE)
    for packed in (True, False):
        value, _ = torch_rivals().ragged(SHAPE, LENGTHS.tolist(), packed)()
        np.testing.assert_allclose(value.item(), loss, **CLOSE)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_packing_keeps_every_sequence(lengths):
    lengths = np.array(lengths, np.int32)
    xs = np.random.default_rng(0).normal(size=(9, len(lengths), 2))
    inputs, ids = ragged.packed(xs, lengths)
    found = [
        inputs[ids[:, r] == number, r]
        for r in range(ids.shape[1])
        for number in range(1, ids[:, r].max() + 1)
    ]
    given_rows = [xs[:length, b] for b, length in enumerate(lengths)]
    assert sorted(row.tolist() for row in found) == sorted(row.tolist() for row in given_rows)
    assert np.all(inputs[ids == 0] == 0)


@pytest.mark.parametrize("fill", ragged.FILLS)
def test_lengths_fill_their_share(fill):
    lengths = problems.lengths(64, 200, fill)
    assert lengths.min() >= 1
    assert lengths.max() <= 200
    assert lengths.sum() / (64 * 200) == pytest.approx(fill, abs=0.005)


@pytest.mark.conformance
def test_the_paired_process_flushes_denormals_and_this_one_does_not():
    here = torch_rivals()
    from scripts.benchmarks.paired import PairedProcess

    with PairedProcess(flush=True) as paired:
        assert paired.flushes_denormals()
        first = paired.rival("layer", SHAPE, "training")
        second = paired.rival("step", STEP, "LSTMCell")
        assert min(first.time(2), second.time(2)) > 0
        assert first.time(20) > second.time(20)  # each its own: a training step is the longer
        with pytest.raises(RuntimeError, match="the paired process has ended, exit status 1"):
            paired.rival("no_such_function")
    assert not here.flushes_denormals()


def test_memory_is_at_least_what_a_layer_returns():
    shape = Shape(64, 128, 8, 256)
    # In a process of its own, since pages that were freed before are used again without growth.
    result = memory._measured_apart(shape, "forward", "reference", rivals.Field())
    outputs = 4 * 64 * 128 * 256
    assert outputs <= result["buffers"] < 3 * outputs
    assert 0.5 * outputs < result["growth"] < 5 * outputs


def test_the_arithmetic_of_limits():
    shape = Shape(2, 3, 5, 7)
    assert problems.flops(shape, "forward") == (8 * 3 * 2 * 7 * 5, 8 * 2 * 49)
    assert problems.flops(shape, "training") == (24 * 3 * 2 * 7 * 12 - 16 * 3 * 2 * 49, 8 * 2 * 49)
    # On a CPU all work at the peak; with a latency no step takes less.
    assert problems.limit(shape, "training", 1e9) == pytest.approx(24 * 3 * 2 * 7 * 12 / 1e9)
    hoisted, _ = problems.flops(shape, "forward")
    assert problems.limit(shape, "forward", 1e9, latency=1.0) == pytest.approx(hoisted / 1e9 + 3)


def test_rivals_take_turns():
    asked = []

    def fake(name, seconds):
        def time(runs):
            asked.append((name, runs))
            return seconds

        return Rival(time, 0.0)

    times = timing.interleaved({"a": fake("a", 1.0), "b": fake("b", 0.001)}, rounds=3, pause=0.0)
    assert times == {"a": [1.0] * 3, "b": [0.001] * 3}
    # After one look at each, a short one is run ten times, and each round begins one later.
    assert asked[:2] == [("a", 1), ("b", 1)]
    assert asked[2:] == [("a", 1), ("b", 10), ("b", 10), ("a", 1), ("a", 1), ("b", 10)]


def test_runs_are_timed_after_as_many_untimed_ones(monkeypatch):
    clock, done = iter([10.0, 16.0]), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.seconds(lambda: done.append(1), 3) == 2.0
    assert len(done) == 6


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=9))
def test_ratios_are_quartiles_over_the_rounds(rounds):
    own, other = zip(*rounds, strict=True)
    result = timing.ratio(own, other)
    quotients = np.divide(own, other)
    np.testing.assert_allclose(result, np.quantile(quotients, [0.5, 0.25, 0.75]))


# Rounds in which all slow down together.
ROWS = [
    Row("one", {"lstmx": [0.001, 0.010, 0.003], "native": [0.001, 0.010, 0.003],
                "torch": [0.002, 0.02, 0.006]}, limit=0.0015, note="native"),
    Row("two", {"lstmx": [0.2, 0.2, 0.2], "torch": [0.1, 0.1, 0.05], "flax": [1.0, 1.0, 1.0]}, limit=0.1),
]  # fmt: skip


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_of_times_and_ratios():
    head, _, one, two = tables.times_table("shape", ROWS).splitlines()
    assert cells(head) == ["shape", "limit", "lstmx", "native", "torch", "flax"]
    assert cells(one) == ["one", "1.5", "3 (native)", "3", "6", ""]
    assert cells(two) == ["two", "100", "200", "", "100", "1000"]
    head, _, one, two, mean = tables.ratios_table("shape", ROWS).splitlines()
    assert cells(head) == ["shape", "limit", "native", "torch", "flax"]
    assert cells(one) == ["one", "2.00", "1", "0.50 (0.50-0.50)", ""]
    assert cells(two) == ["two", "2.00", "", "2.00 (2.00-3.00)", "0.20 (0.20-0.20)"]
    assert cells(mean) == ["geometric mean", "2.00", "1.00 (of 1)", "1.00", "0.20 (of 1)"]


def test_there_is_no_table_of_ratios_to_nothing():
    assert "below 1" not in tables.comparison("shape", [Row("one", {"lstmx": [1.0]})])
    assert "below 1" in tables.comparison("shape", ROWS)
    assert tables.shown(Ratio(1.0, 0.9, 1.1)) == "1.00 (0.90-1.10)"


@pytest.mark.parametrize("logarithmic", [True, False])
def test_charts_show_their_points(logarithmic):
    lines = {"a & b": [(1, 10), (10, 100), (100, 1000)], "c": [(1, 5), (10, 70), (100, 300)]}
    svg = ElementTree.fromstring(chart.line_chart("t", "x", "y", lines, logarithmic=logarithmic))
    space = "{http://www.w3.org/2000/svg}"
    paths = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in svg.findall(f"{space}polyline")
    ]
    assert [len(path) for path in paths] == [3, 3]
    for path in paths:
        assert path[0][0] < path[1][0] < path[2][0] <= 450
        assert path[0][1] > path[1][1] > path[2][1] >= 40  # SVG's y points down
    (x0, _), (x1, _), (x2, _) = paths[0]
    assert (x1 - x0 == pytest.approx(x2 - x1, abs=0.2)) == logarithmic
    texts = [text.text for text in svg.findall(f"{space}text")]
    assert {"t", "x", "y", "a & b", "c"} <= set(texts)
    assert {"10", "100"} <= set(texts) if logarithmic else {"0", "50", "100"} <= set(texts)


def test_the_page_tells_of_what_took_part(tmp_path):
    field = rivals.Field(torch=True, only=("torch",))
    sections = [Section("Scaling", "text", {"page-t.svg": "<svg/>"})]
    text = report.page(["python", "a b"], "a machine", {}, field, 90.0, 0.004, sections)
    assert text.startswith("# Benchmarks\n")
    assert "    python 'a b'" in text
    assert "in 1.5 minutes: a machine." in text
    assert "## Scaling\n\ntext" in text
    assert "torch is" in text
    assert not any(word in text for word in ("Flax is", "onnxruntime runs", "flush", "limit"))
    assert "400 GFLOP/s in float32" in report.page([], "", {"float32": 4e11}, field, 1.0, None, [])
    assert "Other processes used 0.4% of the processors during the measurement.\n" in text
    assert "Do not trust" not in text
    assert "used 10.0% of the processors during the measurement. Do not trust" in report.page(
        [], "", {}, field, 1.0, 0.1, []
    )
    report.write(tmp_path / "new" / "page.md", text, sections)
    assert (tmp_path / "new" / "page-t.svg").read_text() == "<svg/>"


def test_the_work_of_others_is_noticed(monkeypatch):
    ticks = os.sysconf("SC_CLK_TCK")
    stat = "cpu  {} 0 {} 999 999 0 0 {} 5 0\ncpu0 7"
    monkeypatch.setattr(machine.time, "perf_counter", lambda: 10.0)
    before = machine.busy(stat.format(0, 0, 0))._replace(own=1.0)
    assert before.all == 0
    after = machine.busy(stat.format(3 * ticks, ticks, ticks))._replace(own=3.0, clock=15.0)
    assert after.all == 5.0  # waiting is no work; work that others' virtual machines stole is
    # 3 of 5 seconds on each of the processors were not our own.
    assert machine.others_share(before, after) == pytest.approx(3 / 5 / problems.threads())


def test_missing_rivals_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: None)
    with rivals.field("cpu", None, rounds=1) as field:
        assert list(rivals.layers(SHAPE, "forward", field))[-1] == "flax"
        assert not any("torch" in name or "onnx" in name for name in rivals.steps(STEP, field))
    said = capsys.readouterr().err
    assert "torch not installed: torch is left out" in said
    assert "onnxruntime and onnx not installed: onnxruntime is left out" in said


@pytest.mark.conformance
def test_only_those_asked_for_take_part():
    field = rivals.Field(torch=True, onnxruntime=True, only=("reference", "onnxruntime"))
    pytest.importorskip("torch", reason="torch is a rival")
    assert list(rivals.layers(SHAPE, "forward", field)) == ["lstmx", "reference", "onnxruntime"]
    assert list(rivals.layers(SHAPE, "training", field)) == ["lstmx", "reference"]
    own = ["lstmx", "reference", "lstmx.step", "lstmx.compile_step"]
    assert list(rivals.steps(STEP, field)) == [*own, "onnxruntime"]
    assert field.present == ("torch", "onnxruntime")


def test_nothing_but_jax_and_flax_is_needed_to_start():
    loaded = "set(sys.modules) & {'torch', 'onnx', 'onnxruntime', 'tensorflow_datasets', 'grain', 'tyro'}"
    code = f"import sys; sys.path.insert(0, '.'); import scripts.benchmark; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_command_prints_and_writes_the_page(tmp_path):
    page = tmp_path / "page.md"
    script = str(ROOT / "scripts" / "benchmark.py")
    arguments = ["--quick", "--rivals", "none", "--parts", "streaming", "--output", str(page)]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert done.stdout == text + "\n"
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Streaming"]
    assert "| B, T, D, H | lstmx | lstmx.step |" in text
    assert "threads, Linux, Python 3" in text or sys.platform != "linux"


def test_layers_in_a_given_type():
    for dtype, limit in (("float32", 1e6), ("bfloat16", 1e7)):
        field = rivals.Field(dtype=dtype, rounds=2, quick=True, only=("flax",))
        forward, training = layers.sections(problems.TINY[:1], field, peak=limit)
        assert (forward.title, training.title) == (f"Forward, {dtype}", f"Training, {dtype}")
        assert "| B, T, D, H | limit | lstmx | flax |" in training.text
        limit = problems.limit(SHAPE, "training", limit)
        assert f"| 2, 5, 3, 4 | {tables.milliseconds(limit)} |" in training.text


def test_memory_of_processes_apart():
    text = memory.section((SHAPE,), rivals.Field(quick=True, only=())).text
    assert '| B, T, D, H |  | outputs | lstmx | lstmx, remat="gates" |' in text
    assert "| 2, 5, 3, 4 | training | 0.0 | " in text


def test_ragged_scaling_and_models():
    field = rivals.Field(rounds=2, quick=True, only=())
    section = ragged.section(field, "page")
    assert set(section.plots) == {"page-ragged.svg"}
    assert "| sum of lengths | lstmx | lstmx, segment_ids |" in section.text
    section = scaling.section(field, "page")
    assert set(section.plots) == {"page-t.svg", "page-b.svg", "page-h.svg"}
    assert (
        "Time per step with T = 30 divided by that with T = 10 (1 means linear scaling): lstmx "
        in section.text
    )
    rows = [Row("", {"lstmx": [1.0]}), Row("", {"lstmx": [6.0]})]
    assert scaling.linearity((10, 30), rows).endswith("(1 means linear scaling): lstmx 2.00.")
    text = models.section(field, 1e11).text
    assert "char_lm: 1 x 16 units, B = 4, T = 16, V = 20, adamw" in text
    # Four gates read 8 features and 16 units; the output layer reads 16 units for 20 characters.
    assert f"V = 20, adamw | {tables.milliseconds(6 * 4 * 16 * (4 * 16 * 24 + 16 * 20) / 1e11)} |" in text
    text = breakdown.section(field, 1e11).text
    parts = ["embedding", "dropout masks", "recurrent layers", "output layer", "update", "all parts"]
    assert re.findall(r"^\| ([a-z ]+) \|", text, re.MULTILINE) == ["part", *parts, "the whole step"]


WRONG = {
    ("--shapes", "2,0,3,4"): "B,T,D,H or one of measured, published, got '2,0,3,4'",
    (
        "--parts",
        "layers,speed",
    ): "ragged, models, text_models, forecasters, members, got speed",
    ("--rivals", "keras"): "flax, jax, torch, onnxruntime, got keras",
    ("--rounds", "0"): "must be a positive integer, got 0",
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_arguments_are_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    # argparse breaks lines where they become long.
    assert WRONG[arguments] in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--device", "gpu"])
    with pytest.raises(
        SystemExit, match="--device gpu: jax finds no GPU on this machine, its platform is cpu"
    ):
        benchmark.main()
