"""Which implementation runs what, and the reasons it gives."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import lstmx
from lstmx.implementations import choice

ROOT = Path(__file__).resolve().parents[2]


def test_a_name_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"None or one of \['associative', .*'reference'\], got 'fast'"):
        lstmx.which_implementation(lstmx.LSTM(4), "fast")


def test_a_refusal_names_the_reason_and_the_alternatives():
    with pytest.raises(NotImplementedError, match=r"LSTM has none; these can run it: .*fused"):
        lstmx.which_implementation(lstmx.LSTM(4), "associative")


@pytest.mark.parametrize("name", choice.IMPLEMENTATIONS)
def test_scan_takes_what_which_implementation_says(name):
    cell, xs = lstmx.MinGRU(4), jnp.ones((5, 2, 3))
    params = cell.init(jax.random.key(0), 3)
    if choice.refusal(choice.Job(cell, xs), name) is None:
        assert lstmx.which_implementation(cell, name, xs=xs) == name
        assert lstmx.scan(cell, params, xs, implementation=name)[1].shape == (5, 2, 4)
        return
    with pytest.raises(NotImplementedError, match=name):
        lstmx.which_implementation(cell, name, xs=xs)
    with pytest.raises(NotImplementedError, match=name):
        lstmx.scan(cell, params, xs, implementation=name)


def test_the_shape_alone_is_enough():
    shape = jax.ShapeDtypeStruct((5, 2, 3), jnp.float32)
    assert lstmx.which_implementation(lstmx.MinLSTM(4), xs=shape) == "associative"


def test_what_scan_is_given_besides_counts(monkeypatch):
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    cell = lstmx.LSTM(4, dtype="float32")
    assert lstmx.which_implementation(cell, "cudnn") == "cudnn"
    with pytest.raises(NotImplementedError, match=r'"cudnn" cannot reset states'):
        lstmx.which_implementation(cell, "cudnn", options=("resets",))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cudnn_is_experimental_and_not_the_default(dtype, monkeypatch):
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    assert lstmx.which_implementation(lstmx.LSTM(4, dtype=dtype)) == "fused"
    name = "cudnn"
    cells, readme = ((ROOT / path).read_text(encoding="utf-8") for path in ("docs/cells.md", "README.md"))
    texts = (
        choice.IMPLEMENTATIONS[name].__doc__,
        re.search(rf'"{name}".*?\n      \w', lstmx.scan.__doc__, re.DOTALL)[0],
        re.search(rf'^\| `"{name}"`.*$', cells, re.MULTILINE)[0],
        re.search(r"^\| `implementation=`.*$", readme, re.MULTILINE)[0],
    )
    assert all("experimental" in text.lower() for text in texts)


@pytest.mark.parametrize(
    ("units", "rows", "options", "expected"),
    [
        (256, 256, (), "pallas"),
        (256, 1024, (), "fused"),  # more clusters than fit at once
        (64, 1024, (), "pallas"),
        (64, 2048, (), "fused"),
        (320, 8, (), "fused"),
        (64, 8, ("lengths",), "fused"),
        (64, 8, ("return_states",), "fused"),
    ],
)
def test_what_a_hopper_gpu_runs_by_default(units, rows, options, expected, monkeypatch):
    class Hopper:
        compute_capability, core_count = "9.0", 132

    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Hopper])
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    xs = jax.ShapeDtypeStruct((9, rows, 8), "bfloat16")
    cell = lstmx.LSTM(units, dtype="bfloat16")
    assert lstmx.which_implementation(cell, xs=xs, options=options) == expected
    assert lstmx.which_implementation(cell, "pallas", xs=xs, options=options) == "pallas"
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert lstmx.which_implementation(cell, xs=xs, options=options) == "fused"


def test_loops_are_unrolled_on_a_gpu(monkeypatch):
    cell, xs = lstmx.LSTM(4), jnp.ones((20, 2, 3))
    params = cell.init(jax.random.key(0), 3)

    def unrolled(**options):
        run = lambda params: lstmx.scan(cell, params, xs, implementation="reference", **options)  # noqa: E731
        return re.findall(r"unroll=(\d+)", str(jax.make_jaxpr(run)(params)))

    assert unrolled() == ["1"]
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    assert unrolled() == ["8"]
    assert unrolled(unroll=2) == ["2"]


def test_one_step_has_no_loop_to_speed_up():
    one = jax.ShapeDtypeStruct((1, 2, 3), jnp.float32)
    for cell in (lstmx.SLSTM(4), lstmx.MinGRU(4), lstmx.LSTM(4, peephole=True)):
        assert lstmx.which_implementation(cell, xs=one) == "reference"
