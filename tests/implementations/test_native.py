"""The C++ kernels, in float32, against the reference in float64."""

import functools
import itertools
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lstmx
from lstmx.implementations import choice, native
from lstmx.implementations.native import library

compiled = pytest.mark.skipif(
    library.refusal() is not None, reason=f'implementation "native" {library.refusal()}'
)
ROOT = Path(__file__).resolve().parents[2]
CELLS = {
    "lstm": lstmx.LSTM,
    "lstm-no-bias": functools.partial(lstmx.LSTM, use_bias=False),
    "gru": lstmx.GRU,
    "gru-no-bias": functools.partial(lstmx.GRU, use_bias=False),
}
both = pytest.mark.parametrize("name", ["lstm", "gru"])
EVERY = (0, 1, 2)

LENGTHS = np.array([7, 0, 3, 1])
MASK = np.random.default_rng(0).random((7, 4)) < 0.6
RESETS = np.random.default_rng(1).random((7, 4)) < 0.3
OPTIONS = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": MASK},
    "resets": {"resets": RESETS},
    "mask and resets": {"mask": MASK, "resets": RESETS},
    "reverse": {"reverse": True},
    "reverse, lengths and resets": {"lengths": LENGTHS, "resets": RESETS, "reverse": True},
    "states": {"return_states": True, "mask": MASK, "resets": RESETS},
    "states, reverse": {"return_states": True, "reverse": True},
    "remat of 3 steps": {"remat": 3, "mask": MASK, "resets": RESETS},
    "remat of the root": {"remat": "sqrt", "lengths": LENGTHS, "reverse": True},
}

# Tiny loops: most of the time is the compiler's, and these two options save four fifths of it.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def loss_of(cell, **options):
    """A loss that depends on every result, and the results."""

    def loss(params, xs, state):
        results = lstmx.scan(cell, params, xs, state, **options)
        # Shifted, so that the cotangent of a zero is not zero.
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(results)), results

    return loss


def gradients(cell, case, **options):
    """Of the loss by parameters, xs and initial state, and the results."""
    compute = jax.grad(loss_of(cell, **options), argnums=EVERY, has_aux=True)
    return jax.jit(compute, compiler_options=QUICK)(*case)


def exact(cell, case, transformed=gradients, **options):
    """What a function of a cell and a case must give: the reference, in float64."""
    with jax.enable_x64(True):
        case = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), case)
        return transformed(cell, case, implementation="reference", **options)


def case_of(cell, steps=7, batch=(4,), features=5, seed=0):
    return oracles.random_case(cell, np.random.default_rng(seed), steps, batch, features, np.float32)


def error(tree, expected):
    """The largest error by the largest value of the leaf; a small one's, by a tenth of the largest."""
    leaves, others = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(t)] for t in (tree, expected))
    largest = max(np.max(np.abs(leaf), initial=0) for leaf in others)
    errors = []
    for a, b in zip(leaves, others, strict=True):
        assert a.shape == b.shape
        assert np.all(np.isfinite(a))
        errors.append(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 0.1 * largest))
    return max(errors)


def assert_exact(cell, case, **options):
    got, expected = gradients(cell, case, implementation="native", **options), exact(cell, case, **options)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
    # Gradients and values apart, as they are of different magnitudes.
    assert error(got[0], expected[0]) <= 2e-6
    assert error(got[1], expected[1]) <= 2e-6


@compiled
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *itertools.product(["lstm", "gru"], OPTIONS),
        ("lstm-no-bias", "plain"),
        ("gru-no-bias", "mask and resets"),
    ],
)
def test_values_and_gradients_are_those_of_float64(name, options):
    cell = CELLS[name](9)
    assert_exact(cell, case_of(cell), **OPTIONS[options])


@compiled
@both
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
        return jax.grad(lambda p: loss_of(cell, resets=resets, **options)(p, case[1], None)[0])(case[0])

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


@compiled
@both
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
@both
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
@both
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


def squares(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


def stacked(tree):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2, -leaf]), tree)


TRANSFORMS = {
    "vmap over xs": lambda loss, p, xs, s: jax.vmap(loss, (None, 0, None))(p, stacked(xs), s),
    "vmap over parameters": lambda loss, p, xs, s: jax.vmap(loss, (0, None, None))(stacked(p), xs, s),
    "vmap over all": lambda loss, *case: jax.vmap(loss)(*stacked(case)),
    "vmap of vmap": lambda loss, p, xs, s: jax.vmap(jax.vmap(loss, (None, 0, None)), (0, None, None))(
        stacked(p), stacked(xs), s
    ),
    "vmap of grad over xs": lambda loss, p, xs, s: jax.vmap(jax.grad(loss, EVERY), (None, 0, None))(
        p, stacked(xs), s
    ),
    "vmap of grad over parameters": lambda loss, p, xs, s: jax.vmap(jax.grad(loss, EVERY), (0, None, None))(
        stacked(p), xs, s
    ),
    "vmap of grad over all": lambda loss, *case: jax.vmap(jax.grad(loss, EVERY))(*stacked(case)),
    "grad of vmap": lambda loss, *case: jax.grad(
        lambda p, xs, s: squares(jax.vmap(loss, (None, 0, None))(p, stacked(xs), s)), EVERY
    )(*case),
    "grad of vmap over parameters": lambda loss, *case: jax.grad(
        lambda p, xs, s: squares(jax.vmap(loss, (0, None, 0))(stacked(p), xs, stacked(s))), EVERY
    )(*case),
    "grad of grad": lambda loss, *case: jax.grad(lambda *c: squares(jax.grad(loss, EVERY)(*c)), EVERY)(*case),
    "forward over reverse": lambda loss, *case: jax.jvp(jax.grad(loss, EVERY), case, case)[1],
    "checkpoint": lambda loss, *case: jax.grad(jax.checkpoint(loss), EVERY)(*case),
}


@compiled
@both
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformations(name, transform):
    options = {"lengths": np.array([3, 0, 2, 1]), "resets": RESETS[:3], "return_states": name == "gru"}

    def transformed(cell, case, **more):
        function = functools.partial(
            TRANSFORMS[transform], lambda *case: loss_of(cell, **options, **more)(*case)[0]
        )
        return jax.jit(function, compiler_options=QUICK)(*case)

    cell = CELLS[name](3)
    case = case_of(cell, 3, (4,), 2)
    got = transformed(cell, case, implementation="native")
    assert error(got, exact(cell, case, transformed)) <= 4e-6


@compiled
@both
def test_vmap_over_lengths_is_the_longer_batch(name):
    cell, lengths = CELLS[name](3), np.array([4, 0, 1, 3, 2, 4])
    params, xs, _ = case_of(cell, 4, (6,))

    def run(lengths, xs):
        return lstmx.scan(cell, params, xs, lengths=lengths, implementation="native")[1]

    got = jax.vmap(run, (0, 1), 1)(lengths.reshape(2, 3), xs.reshape(4, 2, 3, 5))
    assert np.array_equal(got.reshape(4, 6, 3), run(lengths, xs))


@compiled
@both
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit])
def test_forward_mode_names_the_way_out(name, jit):
    cell = CELLS[name](3)
    params, xs, state = case_of(cell, 3)
    run = jit(lambda xs: lstmx.scan(cell, params, xs, state, implementation="native"))
    with pytest.raises(NotImplementedError, match=r'"native" .*forward-mode.*implementation="reference"'):
        jax.jvp(run, (xs,), (xs,))


@compiled
def test_one_compilation():
    cell = lstmx.LSTM(3)
    case = case_of(cell)
    traced = []

    @jax.jit
    def run(*case):
        traced.append(case)
        return jax.grad(lambda *c: loss_of(cell, implementation="native")(*c)[0], EVERY)(*case)

    first = run(*case)
    second = run(*jax.tree.map(np.copy, case))
    assert len(traced) == run._cache_size() == 1
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


@compiled
@both
def test_the_same_bits_every_time(name):
    cell = CELLS[name](20)
    case = jax.tree.map(lambda leaf: leaf / 2, case_of(cell, 40, (15,), 12))
    grad = jax.grad(loss_of(cell, implementation="native"), argnums=EVERY, has_aux=True)
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


@compiled
@both
@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (0, 0)])
def test_nothing_to_do(name, steps, batch):
    cell = CELLS[name](3)
    case = case_of(cell, steps, (batch,))
    got = gradients(cell, case, implementation="native", return_states=True)
    expected = gradients(cell, case, implementation="reference", return_states=True)
    assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(expected)))


SHARDED = """
import sys
sys.path.append("tests")
import jax, jax.numpy as jnp, numpy as np, lstmx, oracles
from jax.sharding import NamedSharding, PartitionSpec as P
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
put = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))
for make in (lstmx.LSTM, lstmx.GRU):
    cell = make(9)
    params, xs, state = oracles.random_case(cell, np.random.default_rng(0), 7, (4,), 5, np.float32)
    lengths, resets = np.array([7, 0, 3, 1]), np.random.default_rng(1).random((7, 4)) < 0.3

    def loss(params, xs, state, lengths, resets, implementation="native"):
        results = lstmx.scan(
            cell, params, xs, state, lengths=lengths, resets=resets, implementation=implementation
        )
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(results)), results

    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    case = (params, xs, state, lengths, resets)
    placed = put(params), put(xs, None, "data"), *(put(leaf, "data") for leaf in (state, lengths))
    placed = *placed, put(resets, None, "data")
    compiled = jax.jit(grad).lower(*placed).compile()
    got, expected = compiled(*placed), grad(*case, implementation="reference")
    assert got[0][1].sharding.spec == P(None, "data"), got[0][1].sharding
    assert got[1][1].sharding.spec == P(None, "data"), got[1][1].sharding
    assert oracles.relative_error(got, expected) <= 1e-5
    text = compiled.as_text()
    assert "lstmx_" in text
    for word in ("all-gather", "all-to-all", "collective-permute"):
        assert word not in text, word
    print(text.count(" all-reduce("))
"""


@compiled
def test_a_batch_over_devices():
    command = [sys.executable, "-W", "error", "-c", SHARDED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    # The gradients of all parameters are summed in one operation.
    assert (done.stdout.split(), done.returncode) == (["1", "1"], 0), done.stderr


REFUSED = {
    "runs on CPUs, and the platform is gpu": choice.Job(lstmx.LSTM(4), platform="gpu"),
    "for LSTM and GRU alone, got Elman": choice.Job(lstmx.Elman(4)),
    "for the plain cells, without options": choice.Job(lstmx.LSTM(4, peephole=True)),
    "or heads": choice.Job(lstmx.GRU(4, num_heads=2)),
    "in float32, got bfloat16": choice.Job(lstmx.LSTM(4, dtype=jnp.bfloat16)),
    "in float32, got float64": choice.Job(lstmx.GRU(4, dtype="float64")),
    'no remat="gates"': choice.Job(lstmx.LSTM(4, dtype="float32"), remat="gates"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason):
    assert reason in native.refusal(REFUSED[reason])
    with pytest.raises(NotImplementedError, match=r'implementation "native" .*these can do it: .*fused'):
        choice.choose(REFUSED[reason], "native")
    assert choice.choose(REFUSED[reason]) == "fused"


@compiled
@both
def test_the_default_on_a_cpu(name):
    assert lstmx.which_implementation(CELLS[name](4)) == "native"
    assert lstmx.which_implementation(CELLS[name](4), remat=4) == "native"
    assert lstmx.which_implementation(CELLS[name](4), remat="gates") == "fused"


@compiled
@pytest.mark.parametrize("cell", [lstmx.LSTM(5), lstmx.GRU(5)])
def test_an_export_holds_no_kernel(cell):
    params, xs, state = case_of(cell)
    leaves, tree = jax.tree.flatten((params, state))

    @jax.jit
    def step(leaves, xs):
        def loss(leaves, xs):
            params, state = jax.tree.unflatten(tree, leaves)
            ys = lstmx.scan(cell, params, xs, state, lengths=jnp.array([7, 0, 3, 1]))[1]
            return jnp.sum(jnp.sin(ys))

        return jax.value_and_grad(loss, argnums=(0, 1))(leaves, xs)

    assert lstmx.which_implementation(cell, xs=xs) == "native"
    assert "lstmx_" in step.lower(leaves, xs).compile().as_text()
    exported = jax.export.export(step)(leaves, xs)
    assert "lstmx_" not in str(exported.mlir_module())
    again = jax.export.deserialize(exported.serialize()).call(leaves, xs)
    assert error(again, step(leaves, xs)) <= 1e-5
    for_tpu = jax.export.export(step, platforms=["tpu"])(leaves, xs)
    assert for_tpu.platforms == ("tpu",)
