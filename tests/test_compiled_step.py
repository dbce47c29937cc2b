"""compile_step: the numbers of `step`, whatever runs it; and clear refusals."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from variants import EVERY

import lstmx
from lstmx.implementations import choice, native
from lstmx.implementations.native import library

NATIVE = {
    "lstm": lstmx.LSTM(70),
    "lstm without bias": lstmx.LSTM(16, use_bias=False),
    "gru": lstmx.GRU(33),
    "elman": lstmx.Elman(20),
    "relu": lstmx.Elman(20, "relu"),
    "weight drop": lstmx.Regularized(lstmx.LSTM(8), weight_drop=0.5),
    "learned start": lstmx.LSTM(8, learn_initial_state=True),
    "one layer": lstmx.networks.stacked(lstmx.LSTM(8), 1),
    "stack": lstmx.Stack((lstmx.LSTM(17), lstmx.GRU(9), lstmx.Elman(64))),
}
OTHERS = {
    "sLSTM": lstmx.SLSTM(8),
    "peepholes": lstmx.LSTM(8, peephole=True),
    "minimal": lstmx.MinGRU(8),
    "bfloat16": lstmx.LSTM(8, dtype="bfloat16"),
    "zoneout": lstmx.Regularized(lstmx.LSTM(8), hidden_zoneout=0.3),
    "residual": lstmx.networks.stacked(lstmx.LSTM(5), 2, connections="residual"),
    "dense": lstmx.networks.stacked(lstmx.LSTM(5), 2, connections="dense"),
    "stack of stacks": lstmx.Stack((lstmx.networks.stacked(lstmx.LSTM(5), 2), lstmx.GRU(4))),
}


def drawn(network, features=5):
    """Parameters that are nowhere zero."""
    params = network.init(jax.random.key(0), features)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape) / 5, leaf.dtype), params)


def is_native(step):
    return isinstance(step._run, native.Stepper)


def compare(network, params, batch_shape, features=5, steps=4):
    """A stream's outputs and states against those of `lstmx.step`; returns the compiled step."""
    compiled = lstmx.compile_step(network, params, batch_shape)
    state, expected = compiled.initial_state(), None
    rng = np.random.default_rng(1)
    for _ in range(steps):
        x = rng.normal(size=(*batch_shape, features)).astype(np.float32)
        before = jax.tree.map(np.array, state)
        after, y = compiled(state, x)
        jax.tree.map(np.testing.assert_array_equal, state, before)  # not changed
        state = after
        expected, z = lstmx.step(network, params, expected, x, implementation="reference")
        assert y.shape == z.shape
        assert y.dtype == z.dtype
        tolerance = 2e-2 if z.dtype == jnp.bfloat16 else 2e-6
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), ((y, state), (z, expected)))
        assert oracles.relative_error(*wide) <= tolerance
        assert jax.tree.structure(state) == jax.tree.structure(expected)
        types = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (state, expected)]
        assert types[0] == types[1]
    return compiled


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("batch_shape", [(1,), (), (3,), (2, 20)], ids=str)
@pytest.mark.parametrize("name", NATIVE)
def test_plain_layers_on_a_cpu(name, batch_shape):
    compiled = compare(NATIVE[name], drawn(NATIVE[name]), batch_shape)
    assert is_native(compiled) == (library.refusal() is None)


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks(name):
    assert not is_native(compare(OTHERS[name], drawn(OTHERS[name]), (2,)))


@pytest.mark.full
@pytest.mark.parametrize("name", EVERY)
def test_every_cell(name):
    cell = EVERY[name](8)
    features = 2 * 8 if isinstance(cell, lstmx.IndRNN) else 5
    if cell.num_feature_axes > 1:
        pytest.skip("images have their own test")
    compare(cell, drawn(cell, features), (2,), features, steps=2)


def test_an_image():
    cell = lstmx.ConvLSTM(3, spatial_shape=(4, 4))
    params = cell.init(jax.random.key(0), 2)
    step = lstmx.compile_step(cell, params, (2,))
    assert step.input_shape == (2, 4, 4, 2)
    _, y = step(step.initial_state(), np.ones(step.input_shape, np.float32))
    assert y.shape == (2, 4, 4, 3)


def test_without_the_kernels(monkeypatch):
    monkeypatch.setattr(choice, "_PREFERRED_FOR_ONE_STEP", ("reference",))
    assert not is_native(compare(lstmx.LSTM(8), drawn(lstmx.LSTM(8)), (2,)))


def test_double_precision(double):
    cell = lstmx.LSTM(8, param_dtype="float64")
    params = drawn(cell)
    step = lstmx.compile_step(cell, params)
    assert step.dtype == np.float64
    _, y = step(step.initial_state(), np.ones((1, 5)))
    _, z = lstmx.step(cell, params, None, jnp.ones((1, 5)))
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, z, rtol=1e-12)


def test_parameters_are_copied():
    cell = lstmx.LSTM(8)
    params = jax.tree.map(np.array, drawn(cell))
    step = lstmx.compile_step(cell, params)
    x = np.ones((1, 5), np.float32)
    before = step(step.initial_state(), x)[1]
    params.recurrent["kernel"][:] = 9
    params.input["kernel"][:] = 9
    np.testing.assert_array_equal(step(step.initial_state(), x)[1], before)


def test_a_state_can_be_kept_and_used_again():
    network = NATIVE["stack"]
    step = lstmx.compile_step(network, drawn(network))
    x = np.ones((1, 5), np.float32)
    state, _ = step(step.initial_state(), x)
    first = step(state, x)
    step(first[0], 2 * x)
    first[1][:] = 7  # the caller's own
    again = step(state, x)
    jax.tree.map(np.testing.assert_array_equal, again[0], first[0])
    assert not np.any(again[1] == 7)


def test_inputs_of_any_layout_and_of_jax():
    cell = lstmx.GRU(6)
    step = lstmx.compile_step(cell, drawn(cell), (3,))
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32).T
    assert not x.flags.c_contiguous
    state = jax.tree.map(jnp.asarray, step.initial_state())
    results = [step(state, given)[1] for given in (x, np.ascontiguousarray(x), jnp.asarray(x))]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_from_several_threads():
    cell = lstmx.LSTM(32)
    step = lstmx.compile_step(cell, drawn(cell), (2,))

    def stream(seed):
        rng, state = np.random.default_rng(seed), step.initial_state()
        for _ in range(200):
            state, y = step(state, rng.normal(size=(2, 5)).astype(np.float32))
        return y

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(stream, range(4)))
    for seed, y in enumerate(together):
        np.testing.assert_array_equal(y, stream(seed))


CELL = lstmx.LSTM(4)


@pytest.mark.parametrize("cell", [CELL, lstmx.SLSTM(4)], ids=["native", "XLA"])
def test_another_shape_type_or_state_is_refused(cell):
    step = lstmx.compile_step(cell, drawn(cell), (2,))
    state, x = step.initial_state(), np.ones((2, 5), np.float32)
    for wrong in (x[:1], x[0], np.ones((2, 6), np.float32)):
        with pytest.raises(ValueError, match=r"compiled for, \[2, 5\] in float32, got \["):
            step(state, wrong)
    for kind in (np.float64, np.int32):
        with pytest.raises(ValueError, match=rf"\[2, 5\] in float32, got \[2, 5\] in {np.dtype(kind)}"):
            step(state, x.astype(kind))
    with pytest.raises(TypeError, match="x must be an array, got a list"):
        step(state, [[1.0] * 5] * 2)
    others = {
        "of a GRU": lstmx.GRU(4).initial_state((2,)),
        "of other rows": cell.initial_state((1,)),
        "of other sizes": lstmx.LSTM(5).initial_state((2,)),
        "of a stack": (state,),
        "none": None,
        "of another type": jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), state),
    }
    for other in others.values():
        with pytest.raises(
            ValueError, match=r"state must be one that this step returned.*float32\[2, 4\].*, got "
        ):
            step(other, x)
    step(state, x)


def test_what_has_no_step_is_refused():
    for network in (lstmx.Bidirectional(CELL), lstmx.networks.stacked(CELL, 2, bidirectional=True)):
        with pytest.raises(TypeError, match="a bidirectional network cannot be stepped"):
            lstmx.compile_step(network, network.init(jax.random.key(0), 3))


@pytest.mark.parametrize("shape", [0, (0,), (-1,), (1.5,), (True,), [2], None])
def test_a_wrong_batch_shape_is_refused(shape):
    with pytest.raises(ValueError, match="batch_shape must be a tuple of positive integers, got "):
        lstmx.compile_step(CELL, drawn(CELL), shape)


def test_parameters_of_another_network_are_refused():
    with pytest.raises(TypeError, match=r"must be lstmx.Params"):
        lstmx.compile_step(CELL, {"kernel": np.ones(3)})
    with pytest.raises(TypeError, match="params must be a tuple"):
        lstmx.compile_step(NATIVE["stack"], drawn(CELL)._asdict())
    with pytest.raises(ValueError, match="one entry for each of 3 layers, got 1"):
        lstmx.compile_step(NATIVE["stack"], (drawn(CELL),))
    with pytest.raises((TypeError, ValueError)):
        lstmx.compile_step(lstmx.LSTM(5), drawn(CELL))
