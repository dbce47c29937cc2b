"""Which implementation runs what, and the reasons it gives."""

import jax
import jax.numpy as jnp
import pytest

import lstmx
from lstmx.implementations import choice


def test_a_name_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"None or one of \['associative', .*'reference'\], got 'fast'"):
        lstmx.which_implementation(lstmx.LSTM(4), "fast")


def test_a_refusal_names_the_reason_and_the_alternatives():
    with pytest.raises(NotImplementedError, match=r"LSTM has none; these can do it: .*fused"):
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
    with pytest.raises(NotImplementedError, match=r'"cudnn" cannot make states fresh'):
        lstmx.which_implementation(cell, "cudnn", options=("resets",))
