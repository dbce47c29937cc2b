"""scan and step, against a Python loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lstmx

cells = pytest.mark.parametrize("name", oracles.CELLS)
implementations = pytest.mark.parametrize("implementation", ["reference", "fused"])


def draw_flags(rng, shape, probability):
    return rng.random(shape) < probability


def keep_of(lengths, steps):
    return np.arange(steps)[:, None] < np.asarray(lengths)


@pytest.mark.optimized
@pytest.mark.cross_section(5)
@cells
@implementations
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gaps", [None, "lengths", "mask"])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.usefixtures("double")
def test_values_of_the_loop(name, implementation, reverse, gaps, resets):
    rng = np.random.default_rng(0)
    cell = oracles.make(name, param_dtype="float64")
    params, xs, state = oracles.random_case(cell, rng, steps=7, batch=(4,))
    options, keep = {}, None
    if gaps == "lengths":
        options["lengths"] = np.array([7, 0, 3, 1])
        keep = keep_of(options["lengths"], 7)
    elif gaps == "mask":
        options["mask"] = keep = draw_flags(rng, (7, 4), 0.6)
    if resets:
        options["resets"] = draw_flags(rng, (7, 4), 0.3)
    expected = oracles.run(name, params, xs, state, keep, options.get("resets"), reverse)
    got = lstmx.scan(cell, params, xs, state, implementation=implementation, reverse=reverse, **options)
    assert oracles.relative_error(got, expected) <= 1e-12


@cells
@settings(max_examples=25)
@given(data=st.data())
def test_any_shape_length_mask_and_reset(name, data):
    steps = data.draw(st.sampled_from([1, 2, 5, 9]), "steps")
    batch = data.draw(st.sampled_from([1, 3]), "batch")
    features = data.draw(st.sampled_from([1, 3]), "features")
    size = data.draw(st.sampled_from([1, 4]), "size")
    seed = data.draw(st.integers(0, 2**16), "seed")
    flags = st.lists(st.booleans(), min_size=steps * batch, max_size=steps * batch)
    options, keep = {}, None
    gaps = data.draw(st.sampled_from(["none", "lengths", "mask"]), "gaps")
    if gaps == "lengths":
        lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch), "lengths")
        options["lengths"] = np.array(lengths)
        keep = keep_of(lengths, steps)
    elif gaps == "mask":
        options["mask"] = keep = np.array(data.draw(flags, "mask")).reshape(steps, batch)
    if data.draw(st.booleans(), "has resets"):
        options["resets"] = np.array(data.draw(flags, "resets")).reshape(steps, batch)
    options["reverse"] = data.draw(st.booleans(), "reverse")
    options["implementation"] = data.draw(st.sampled_from(["reference", "fused"]), "implementation")
    with jax.enable_x64(True):
        cell = oracles.make(name, size, param_dtype="float64")
        case = oracles.random_case(cell, np.random.default_rng(seed), steps, (batch,), features)
        expected = oracles.run(name, *case, keep, options.get("resets"), options["reverse"])
        assert oracles.relative_error(lstmx.scan(cell, *case, **options), expected) <= 1e-12


@cells
@implementations
def test_single_precision(name, implementation):
    cell = oracles.make(name, 32)
    params, xs, state = oracles.random_case(
        cell, np.random.default_rng(1), steps=50, features=8, dtype=np.float32
    )
    params = jax.tree.map(lambda leaf: leaf / 3, params)
    expected = oracles.run(name, params, xs, state)
    got = lstmx.scan(cell, params, xs, state, implementation=implementation)
    assert got[1].dtype == jnp.float32
    assert oracles.relative_error(got, expected) <= 1e-5


@pytest.mark.cross_section(5)
@cells
@implementations
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.usefixtures("double")
def test_any_number_of_batch_axes(name, implementation, batch):
    cell = oracles.make(name, param_dtype="float64")
    rng = np.random.default_rng(2)
    params, xs, state = oracles.random_case(cell, rng, steps=5, batch=batch)
    lengths = rng.integers(0, 6, batch)
    final, ys = lstmx.scan(cell, params, xs, state, lengths=lengths, implementation=implementation)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, 4), state)
    expected = oracles.run(name, params, xs.reshape(5, -1, 5), flat, keep_of(lengths.reshape(-1), 5))
    assert ys.shape == (5, *batch, 4)
    got = jax.tree.map(lambda leaf: leaf.reshape(-1, 4), final), ys.reshape(5, -1, 4)
    assert oracles.relative_error(got, expected) <= 1e-12


@cells
@implementations
def test_step_is_scan_of_one(name, implementation):
    cell = oracles.make(name)
    params, xs, state = oracles.random_case(cell, np.random.default_rng(3), dtype=np.float32)
    final, ys = lstmx.scan(cell, params, xs, state, implementation=implementation)
    for t, x in enumerate(xs):
        state, y = lstmx.step(cell, params, state, x)
        assert oracles.relative_error(y, ys[t]) <= 1e-6
    assert oracles.relative_error(state, final) <= 1e-6


@pytest.mark.cross_section(3)
@cells
@implementations
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_padding_reaches_neither_values_nor_gradients(name, implementation, poison):
    cell = oracles.make(name)
    params, xs, state = oracles.random_case(cell, np.random.default_rng(4), steps=6, dtype=np.float32)
    lengths = np.array([6, 0, 2])
    padding = ~keep_of(lengths, 6)
    clean, poisoned = np.where(padding[..., None], 0, xs), np.where(padding[..., None], poison, xs)

    def loss(params, xs, state):
        # The padded outputs are multiplied by what is not zero: only their being constant helps.
        final, ys = lstmx.scan(cell, params, xs, state, lengths=lengths, implementation=implementation)
        return jnp.sum(jnp.cos(ys)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(final)), (final, ys)

    compute = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, (final, ys)), gradients = compute(params, poisoned, state)
    (_, _), expected = compute(params, clean, state)
    assert np.all(np.asarray(ys)[padding] == 0)
    assert np.all(np.asarray(gradients[1])[padding] == 0)
    assert np.any(np.asarray(gradients[1])[~padding] != 0)
    assert oracles.relative_error(gradients, expected) == 0
    for leaf, initial in zip(jax.tree.leaves(final), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(leaf[1], initial[1])


@cells
def test_reverse_reads_each_row_from_its_own_end(name):
    cell = oracles.make(name)
    params, xs, _ = oracles.random_case(cell, np.random.default_rng(5), steps=6, batch=(2,), dtype=np.float32)
    _, ys = lstmx.scan(cell, params, xs, lengths=np.array([6, 4]), reverse=True)
    _, alone = lstmx.scan(cell, params, xs[:4, 1:][::-1])
    assert oracles.relative_error(ys[:4, 1:], alone[::-1]) <= 1e-6


def test_resets_end_the_gradient_too():
    cell = lstmx.LSTM(3)
    params = cell.init(jax.random.key(0), 2)
    resets = np.zeros((6, 1), bool)
    resets[3] = True

    def last(xs):
        return jnp.sum(lstmx.scan(cell, params, xs, resets=resets)[1][-1])

    gradient = np.asarray(jax.grad(last)(jnp.ones((6, 1, 2))))
    assert np.all(gradient[:3] == 0)
    assert np.all(gradient[3:] != 0)


@pytest.mark.parametrize("unroll", [2, 7, 100])
@implementations
def test_unroll_changes_nothing(unroll, implementation):
    cell = lstmx.GRU(4)
    params, xs, state = oracles.random_case(cell, np.random.default_rng(6), dtype=np.float32)
    run = lambda unroll: lstmx.scan(  # noqa: E731
        cell, params, xs, state, unroll=unroll, implementation=implementation
    )
    assert oracles.relative_error(run(unroll), run(1)) <= 1e-6


def test_an_equal_cell_does_not_compile_again():
    traces = []

    run = jax.jit(
        lambda cell, params, xs: (traces.append(cell), lstmx.scan(cell, params, xs))[1], static_argnums=0
    )
    for dtype in ("float32", jnp.float32, np.dtype(np.float32)):
        cell = lstmx.LSTM(4, param_dtype=dtype)
        run(cell, cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3)))
    assert len(traces) == 1
    run(lstmx.LSTM(4, forget_bias=2.0), cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3)))
    assert len(traces) == 2


def test_lengths_may_be_traced():
    cell = lstmx.LSTM(4)
    params = cell.init(jax.random.key(0), 3)
    xs = jnp.asarray(np.random.default_rng(7).normal(size=(5, 2, 3)), jnp.float32)
    lengths = jnp.array([5, 2])
    traced = jax.jit(lambda n: lstmx.scan(cell, params, xs, lengths=n))(lengths)
    assert oracles.relative_error(traced, lstmx.scan(cell, params, xs, lengths=lengths)) <= 1e-6


def test_a_plain_tuple_is_a_state():
    cell = lstmx.LSTM(4)
    params, xs, state = oracles.random_case(cell, np.random.default_rng(8), dtype=np.float32)
    plain = lstmx.scan(cell, params, xs, (state.c, state.h))
    assert isinstance(plain[0], lstmx.LSTMState)
    assert oracles.relative_error(plain, lstmx.scan(cell, params, xs, state)) == 0


@pytest.mark.parametrize("make", [np.array, jnp.array, list])
def test_lengths_of_any_kind_under_jit(make):
    cell = lstmx.LSTM(4)
    params = cell.init(jax.random.key(0), 3)
    lengths = make([1, 2])
    got = jax.jit(lambda xs: lstmx.scan(cell, params, xs, lengths=lengths))(XS)
    assert oracles.relative_error(got, lstmx.scan(cell, params, XS, lengths=np.array([1, 2]))) <= 1e-6


XS = np.ones((5, 2, 3), np.float32)
ERRORS = {
    "rank": ({"xs": np.ones(3)}, ValueError, r"xs must be \[time, \*batch, features\], got shape \(3,\)"),
    "features": ({"xs": np.ones((5, 2, 4))}, ValueError, "xs has 4 features, the parameters are for 3"),
    "complex": ({"xs": XS + 1j}, TypeError, "xs must hold real numbers, got complex64"),
    "length shape": ({"lengths": np.array([1, 2, 3])}, ValueError, r"batch shape \(2,\), got \(3,\)"),
    "length type": ({"lengths": np.array([1.0, 2.0])}, TypeError, "lengths must be integers, got float32"),
    "length range": ({"lengths": np.array([6, 1])}, ValueError, r"lie in 0\.\.5 .* got 1\.\.6"),
    "negative length": ({"lengths": np.array([-1, 1])}, ValueError, r"lie in 0\.\.5 .* got -1\.\.1"),
    "both": (
        {"lengths": np.array([1, 2]), "mask": np.ones((5, 2), bool)}, ValueError, "lengths or mask, not both",
    ),
    "mask shape": ({"mask": np.ones((2, 5), bool)}, ValueError, r"mask must be .*\(5, 2\), got \(2, 5\)"),
    "mask type": ({"mask": np.ones((5, 2))}, TypeError, "mask must be boolean, got float32"),
    "reset shape": ({"resets": np.ones(5, bool)}, ValueError, r"resets must be .*\(5, 2\), got \(5,\)"),
    "state shape": (
        {"initial_state": lstmx.LSTMState(np.ones((2, 4)), np.ones((1, 4)))},
        ValueError, r"state's \.h must have shape \(2, 4\), got \(1, 4\)",
    ),
    "state kind": ({"initial_state": np.ones((2, 4))}, ValueError, "must be a LSTMState"),
    "implementation": ({"implementation": "fast"}, ValueError, "one of .*fused.*reference.*got 'fast'"),
    "remat": ({"remat": "all"}, ValueError, "remat must be None, .*\"sqrt\" or a number of steps, got 'all'"),
    "unroll": ({"unroll": 0}, ValueError, "unroll must be an integer of at least 1, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_named(case):
    arguments, error, message = ERRORS[case]
    cell = lstmx.LSTM(4)
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises(error, match=message):
        lstmx.scan(cell, params, **{"xs": XS, **arguments})


def test_bad_input_to_step_is_named():
    cell = lstmx.LSTM(4)
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"x has 2 features, the parameters are for 3"):
        lstmx.step(cell, params, cell.initial_state((1,)), np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"must have shape \(5, 4\), got \(1, 4\)"):
        lstmx.step(cell, params, cell.initial_state((1,)), np.ones((5, 3)))
