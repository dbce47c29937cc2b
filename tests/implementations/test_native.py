"""The C++ kernels, in float32, against the reference in float64."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from losses import EVERY, LENGTHS, MASK, OPTIONS, RESETS, loss_and_results_of, loss_of
from native_oracle import CELLS, assert_exact, both, case_of, compiled, each, error, exact, gradients

import lstmx
from lstmx.implementations import choice, native

MORE_OPTIONS = {
    **OPTIONS,
    "states": {"return_states": True, "mask": MASK, "resets": RESETS},
    "states, reverse": {"return_states": True, "reverse": True},
    "remat of 3 steps": {"remat": 3, "mask": MASK, "resets": RESETS},
    "remat of the root": {"remat": "sqrt", "lengths": LENGTHS, "reverse": True},
}


@pytest.mark.optimized
@pytest.mark.cross_section(4)
@compiled
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *itertools.product(["lstm", "gru", "elman", "elman-relu"], MORE_OPTIONS),
        ("lstm-no-bias", "plain"),
        ("gru-no-bias", "mask and resets"),
        ("elman-no-bias", "lengths"),
    ],
)
def test_values_and_gradients_are_those_of_float64(name, options):
    cell = CELLS[name](9)
    assert_exact(cell, case_of(cell), **MORE_OPTIONS[options])


@pytest.mark.cross_section(4)
@compiled
@each
@pytest.mark.parametrize("batch", [(), (2, 3), (2, 1, 2)])
def test_any_batch_axes(name, batch):
    cell = CELLS[name](3)
    mask = np.random.default_rng(2).random((5, *batch)) < 0.6
    assert_exact(cell, case_of(cell, 5, batch), mask=mask, return_states=True)


@compiled
@both
@pytest.mark.parametrize("resets", [None, RESETS])
def test_learnt_initial_state(name, resets):
    cell = CELLS[name](3, learn_initial_state=True)
    params, xs, _ = case_of(cell)

    def by_params(cell, case, **options):
        return jax.grad(lambda p: loss_of(cell, resets=resets, **options)(p, case[1], None))(case[0])

    got = by_params(cell, (params, xs), implementation="native")
    assert all(np.any(leaf) for leaf in jax.tree.leaves(got.initial))
    assert error(got, exact(cell, (params, xs), by_params)) <= 2e-6


# T, B, D, H: what the kernels treat apart.
LARGE = {
    "several threads": (12, 40, 24, 50),
    "several blocks of time": (45, 33, 3, 20),
    "one row, input map ahead of the loop": (700, 1, 6, 18),
    "few rows, two parts of the map": (200, 3, 20, 33),
    "weights as they are given": (1, 2, 40, 70),
    "many chunks of rows": (3, 300, 4, 8),
}


@pytest.mark.cross_section(5)
@compiled
@each
@pytest.mark.parametrize("sizes", LARGE)
def test_sizes_that_are_treated_apart(name, sizes):
    steps, batch, features, units = LARGE[sizes]
    cell = CELLS[name](units)
    case = case_of(cell, steps, (batch,), features)
    # Contractive: rounding errors do not grow with time.
    case = jax.tree.map(lambda leaf: leaf * np.float32(2 / np.sqrt(units)), case)
    rng = np.random.default_rng(3)
    mask, resets = rng.random((steps, batch)) < 0.8, rng.random((steps, batch)) < 0.05
    assert_exact(cell, case, mask=mask, resets=resets)


@pytest.mark.full
@compiled
@settings(max_examples=5, derandomize=True)
@given(
    name=st.sampled_from(list(CELLS)),
    steps=st.sampled_from([1, 2, 9, 30]),
    batch=st.sampled_from([1, 3, 10]),
    features=st.sampled_from([1, 4, 17]),
    units=st.sampled_from([1, 2, 15, 16, 37]),
    flags=st.sampled_from(["none", "lengths", "mask", "resets", "both"]),
    reverse=st.booleans(),
)
@example("lstm", 1, 1, 1, 1, "none", False)
@example("gru", 1, 3, 1, 37, "both", True)
@example("lstm", 9, 3, 4, 37, "both", False)
@example("gru", 9, 1, 4, 1, "lengths", False)
@example("elman", 1, 3, 1, 37, "mask", False)
@example("elman-relu", 9, 1, 17, 1, "resets", True)
def test_any_shape(name, steps, batch, features, units, flags, reverse):
    cell, rng = CELLS[name](units), np.random.default_rng(steps + batch + units)
    options = {"reverse": reverse}
    if flags == "lengths":
        options["lengths"] = rng.integers(0, steps + 1, batch)
    if flags in ("mask", "both"):
        options["mask"] = rng.random((steps, batch)) < 0.6
    if flags in ("resets", "both"):
        options["resets"] = rng.random((steps, batch)) < 0.3
    case = case_of(cell, steps, (batch,), features)
    assert_exact(cell, jax.tree.map(lambda leaf: leaf / np.float32(2), case), **options)


@compiled
@both
def test_half_precision_parameters_computed_in_single(name):
    cell = CELLS[name](9, param_dtype="bfloat16", dtype="float32")
    case = case_of(cell)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), case[0])
    (d_params, *others), results = gradients(cell, (params, *case[1:]), implementation="native")
    assert {leaf.dtype for leaf in jax.tree.leaves(d_params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves((others, results))} == {jnp.dtype("float32")}
    (e_params, *expected), values = exact(CELLS[name](9, dtype="float64"), (params, *case[1:]))
    assert error((others, results), (expected, values)) <= 2e-6
    assert error(d_params, e_params) <= 2**-8


@compiled
@each
def test_gates_saturate(name):
    cell = CELLS[name](9)
    params, xs, state = case_of(cell)
    for scale in (1e2, 1e4, 1e20):
        case = params, np.float32(scale) * np.sign(xs), state
        got, expected = (
            lstmx.scan(cell, *case, implementation="native"),
            exact(cell, case, lambda cell, case, **options: lstmx.scan(cell, *case, **options)),
        )
        assert error(got, expected) <= 1e-6 * max(1, min(scale, 100) / 10)


@compiled
@pytest.mark.parametrize("name", ["lstm", "gru", "elman"])  # the slope of relu at NaN is 0
@pytest.mark.parametrize("batch", [4, 33])
def test_nan_stays_where_it_is(name, batch):
    cell = CELLS[name](9)
    params, xs, state = case_of(cell, 7, (batch,))
    mask = np.random.default_rng(4).random((7, batch)) < 0.6
    mask[3, 2] = True

    def run(xs):
        return gradients(cell, (params, xs, state), implementation="native", mask=mask)

    clean = run(xs)
    padded = run(np.where(mask[..., None], xs, np.float32(np.nan)))
    assert all(map(np.array_equal, jax.tree.leaves(padded), jax.tree.leaves(clean)))

    xs[3, 2, 0] = np.nan
    (_, d_xs, d_state), (final, ys) = run(xs)
    others = np.arange(batch) != 2
    assert np.isnan(ys[3:, 2][mask[3:, 2]]).all()
    assert all(np.isnan(leaf[2]).all() for leaf in jax.tree.leaves((final, d_state)))
    (_, d_xs_clean, d_state_clean), (final_clean, ys_clean) = clean
    assert np.array_equal(ys[:3], ys_clean[:3])
    for got, want in ((ys, ys_clean), (d_xs, d_xs_clean)):
        assert np.array_equal(got[:, others], want[:, others])
    for got, want in zip(
        *map(jax.tree.leaves, ((final, d_state), (final_clean, d_state_clean))), strict=True
    ):
        assert np.array_equal(got[others], want[others])


@compiled
def test_one_compilation():
    cell = lstmx.LSTM(3)
    case = case_of(cell)
    traced = []

    @jax.jit
    def run(*case):
        traced.append(case)
        return jax.grad(loss_of(cell, implementation="native"), EVERY)(*case)

    first = run(*case)
    second = run(*jax.tree.map(np.copy, case))
    assert len(traced) == run._cache_size() == 1
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


@compiled
@both
def test_the_same_bits_every_time(name):
    cell = CELLS[name](20)
    case = jax.tree.map(lambda leaf: leaf / 2, case_of(cell, 40, (15,), 12))
    grad = jax.grad(loss_and_results_of(cell, implementation="native"), argnums=EVERY, has_aux=True)
    run = jax.jit(lambda *case: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grad(*case))]))
    expected, stop = np.asarray(run(*case)).tobytes(), threading.Event()

    def load():
        matrix = np.ones((200, 200), np.float32)
        while not stop.is_set():
            matrix @ matrix
            stop.wait(1e-4)

    busy = threading.Thread(target=load)
    busy.start()
    try:
        assert {np.asarray(run(*case)).tobytes() for _ in range(1000)} == {expected}
    finally:
        stop.set()
        busy.join()


@pytest.mark.cross_section(4)
@compiled
@each
@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (0, 0)])
def test_nothing_to_do(name, steps, batch):
    cell = CELLS[name](3)
    case = case_of(cell, steps, (batch,))
    got = gradients(cell, case, implementation="native", return_states=True)
    expected = gradients(cell, case, implementation="reference", return_states=True)
    assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(expected)))


REFUSED = {
    "runs on CPUs, and the platform is gpu": choice.Job(lstmx.LSTM(4), platform="gpu"),
    "only for LSTM, GRU and Elman, got SLSTM": choice.Job(lstmx.SLSTM(4)),
    "options or heads, got Elman": choice.Job(lstmx.Elman(4, "sigmoid")),
    "only for cells without options or heads": choice.Job(lstmx.LSTM(4, peephole=True)),
    "or heads": choice.Job(lstmx.GRU(4, num_heads=2)),
    "in float32, got bfloat16": choice.Job(lstmx.LSTM(4, dtype=jnp.bfloat16)),
    "in float32, got float64": choice.Job(lstmx.GRU(4, dtype="float64")),
    'does not support remat="gates"': choice.Job(lstmx.LSTM(4, dtype="float32"), remat="gates"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason):
    assert reason in native.refusal(REFUSED[reason])
    with pytest.raises(NotImplementedError, match=r'implementation "native" .*these can run it: .*fused'):
        choice.choose(REFUSED[reason], "native")
    assert choice.choose(REFUSED[reason]) == "fused"


@compiled
@each
def test_the_default_on_a_cpu(name):
    assert lstmx.which_implementation(CELLS[name](4)) == "native"
    assert lstmx.which_implementation(CELLS[name](4), remat=4) == "native"
    assert lstmx.which_implementation(CELLS[name](4), remat="gates") == "fused"
