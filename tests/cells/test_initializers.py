"""The initializers of every cell: what they draw, what is refused, and that no step depends on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

import lstmx
from lstmx.convert import tensors
from lstmx.scan import _scan

KEY = jax.random.key(0)
D, H = 3, 4


def constant(value):
    return initializers.constant(value)


def mogrifier(size, **options):
    return lstmx.Mogrifier(lstmx.LSTM(size), **options)


def conv_lstm(size, **options):
    return lstmx.ConvLSTM(size, (5,), **options)


# What makes a cell, and of each initializer the parameters that it draws; the rest it must not change.
DRAWN = {
    "lstm": (lstmx.LSTM, {"kernel_init": "input/kernel", "recurrent_init": "recurrent/kernel"}),
    "gru": (lstmx.GRU, {"kernel_init": "input/kernel", "recurrent_init": "recurrent/kernel"}),
    "elman": (lstmx.Elman, {"kernel_init": "input/kernel", "recurrent_init": "recurrent/kernel"}),
    "mgu": (lstmx.MGU, {"kernel_init": "input/kernel", "recurrent_init": "recurrent/kernel"}),
    "slstm": (lstmx.SLSTM, {"kernel_init": "input/kernel", "recurrent_init": "recurrent/kernel"}),
    "conv_lstm": (conv_lstm, {"kernel_init": "input/kernel", "recurrent_init": "recurrent/kernel"}),
    "indrnn": (lstmx.IndRNN, {"kernel_init": "input/kernel", "recurrent_init": "recurrent/scale"}),
    "min_gru": (lstmx.MinGRU, {"kernel_init": "input/kernel"}),
    "min_lstm": (lstmx.MinLSTM, {"kernel_init": "input/kernel"}),
    "mogrifier": (mogrifier, {"kernel_init": "update/rounds/0/kernel"}),
}
cells = pytest.mark.parametrize("name", DRAWN)


def test_every_cell_is_in_the_table():
    types = {value for value in vars(lstmx).values() if dataclasses.is_dataclass(value)}
    assert {type(make(H)) for make, _ in DRAWN.values()} == {t for t in types if hasattr(t, "recurrent_map")}


def named(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }


@cells
def test_each_draws_its_parameters_and_no_others(name):
    make, drawn = DRAWN[name]
    default = named(make(H).init(KEY, D))
    for field, path in {**drawn, "bias_init": "bias"}.items():
        got = named(make(H, **{field: constant(7.0)}).init(KEY, D))
        changed = {k for k in got if not np.array_equal(got[k], default[k])}
        assert changed
        assert all(k.endswith(path.split("/")[-1]) for k in changed)
        if field == "bias_init":
            zeros = {k: v for k, v in default.items() if k in changed}
            assert all(np.array_equal(got[k], zeros[k] + 7) for k in changed)
        else:
            assert path in changed
            assert set(np.unique(got[path])) == {7.0}


@cells
def test_defaults_by_name_are_the_defaults(name):
    make, drawn = DRAWN[name]
    own = {"bias_init": initializers.zeros}
    if "recurrent_init" in drawn and name not in ("indrnn", "slstm"):
        own["recurrent_init"] = initializers.orthogonal()
    if name == "slstm":
        own["recurrent_init"] = initializers.zeros
    for options in ({}, {"num_heads": 2}) if name in ("lstm", "gru", "elman", "slstm") else ({},):
        default, same = (named(make(H, **options, **more).init(KEY, D)) for more in ({}, own))
        assert all(np.array_equal(default[k], same[k]) for k in default)


@pytest.mark.full
def test_gates_are_drawn_apart():
    shapes = []

    def draw(key, shape, dtype):
        shapes.append(shape)
        return jax.random.normal(key, shape, dtype)

    params = lstmx.LSTM(H, kernel_init=draw, recurrent_init=draw, projection_size=2).init(KEY, D)
    assert shapes.count((D, H)) == shapes.count((2, H)) == 4
    assert shapes.count((H, 2)) == 1  # the projection
    gates = jnp.split(params.input["kernel"], 4, axis=1)
    assert len({float(gate[0, 0]) for gate in gates}) == 4
    glorot = lstmx.LSTM(300, kernel_init=initializers.glorot_normal()).init(KEY, 100)
    np.testing.assert_allclose(glorot.input["kernel"].std(), (2 / 400) ** 0.5, rtol=0.02)


def test_biases_and_the_forget_gate():
    bias = lambda **options: lstmx.LSTM(2, bias_init=constant(0.5), **options).init(KEY, D).input["bias"]  # noqa: E731
    assert bias().tolist() == [0.5, 0.5, 1.5, 1.5, 0.5, 0.5, 0.5, 0.5]
    assert bias(forget_bias=0.0).tolist() == [0.5] * 8
    chrono = bias(chrono=10.0)
    assert chrono[4:].tolist() == [0.5] * 4
    assert chrono[:2].tolist() == (-chrono[2:4]).tolist()
    assert np.array_equal(chrono[2:4], lstmx.LSTM(2, chrono=10.0).init(KEY, D).input["bias"][2:4])


@cells
def test_half_precision(name):
    make, _ = DRAWN[name]
    if name == "mogrifier":
        cell = lstmx.Mogrifier(lstmx.LSTM(H, param_dtype="bfloat16"), kernel_init=initializers.orthogonal())
    else:
        inits = {"kernel_init": initializers.orthogonal(), "bias_init": initializers.normal()}
        cell = make(H, param_dtype="bfloat16", **inits)
    assert {leaf.dtype for leaf in jax.tree.leaves(cell.init(KEY, D))} == {jnp.dtype("bfloat16")}


def test_equal_initializers_make_equal_cells():
    init = initializers.orthogonal()
    a, b = (lstmx.GRU(H, recurrent_init=init) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert a != lstmx.GRU(H)
    assert repr(a) == repr(lstmx.GRU(H))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_initializers_never_recompile_a_step(dtype):
    def run():
        # A new function each time, as jax.nn.initializers makes them.
        cell = lstmx.IndRNN(H, dtype=dtype, recurrent_init=initializers.normal())
        lstmx.scan(cell, cell.init(KEY, D), jnp.ones((3, 2, D)))
        return _scan._cache_size()

    assert run() == run()


def test_converters_ignore_initializers():
    cell = lstmx.LSTM(H, kernel_init=initializers.normal(), bias_init=initializers.normal())
    tensors.require_expressible(cell, "a target", {lstmx.LSTM: set()})


def test_an_lstm_with_initializers_keeps_its_fast_path():
    assert lstmx.LSTM(H, kernel_init=initializers.normal(), bias_init=initializers.normal()).is_plain


REFUSED = {
    "name": ({"kernel_init": "orthogonal"}, TypeError, "kernel_init must be a function .*got 'orthogonal'"),
    "no bias": (
        {"bias_init": initializers.zeros, "use_bias": False},
        ValueError,
        "bias_init has no effect with use_bias=False",
    ),
}


@pytest.mark.parametrize("cell_type", [lstmx.LSTM, lstmx.GRU, lstmx.MinGRU, mogrifier])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(cell_type, case):
    options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        cell_type(H, **options)


def test_unhashable_and_misshapen():
    class Unhashable:
        __hash__ = None

        def __call__(self, key, shape, dtype):
            return jnp.zeros(shape, dtype)

    with pytest.raises(TypeError, match="recurrent_init must be hashable"):
        lstmx.LSTM(H, recurrent_init=Unhashable())
    with pytest.raises(ValueError, match=r"kernel_init must return .*\(3, 4\), got \(4, 3\)"):
        lstmx.LSTM(H, kernel_init=lambda key, shape, dtype: jnp.zeros(shape[::-1])).init(KEY, D)
    with pytest.raises(ValueError, match=r"recurrent_range=\(0.0, 2.0\) has no effect with recurrent_init"):
        lstmx.IndRNN(H, recurrent_range=(0, 2), recurrent_init=initializers.zeros)
