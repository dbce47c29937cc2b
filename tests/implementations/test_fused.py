"""The hand-written reverse pass, against autodiff of the reference."""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import EVERY, OPTIONS, RESETS, loss_of

import lstmx
from lstmx.implementations import fused

cells = pytest.mark.parametrize("name", oracles.CELLS)
remats = pytest.mark.parametrize("remat", [None, "gates"])


def gradients(cell, case, jit=jax.jit, **options):
    """The loss, and its gradients with respect to parameters, xs and initial state."""
    compute = jax.value_and_grad(loss_of(cell, **options), argnums=(0, 1, 2))
    return jit(compute)(*case)


quick_gradients = functools.partial(gradients, jit=jax.jit)


@functools.cache
def double_case(name):
    """A cell with random parameters, inputs and state."""
    cell = oracles.make(name, param_dtype="float64")
    return cell, oracles.random_case(cell, np.random.default_rng(2), steps=7, batch=(4,))


@functools.cache
def expected_gradients(name, options):
    """Those of the reference, of `double_case` under one of OPTIONS."""
    return quick_gradients(*double_case(name), implementation="reference", **OPTIONS[options])


@pytest.mark.cross_section(5)
@cells
@pytest.mark.parametrize("options", OPTIONS)
@remats
@pytest.mark.usefixtures("double")
def test_gradients_are_those_of_the_reference(name, options, remat):
    got = quick_gradients(*double_case(name), implementation="fused", remat=remat, **OPTIONS[options])
    assert oracles.relative_error(got, expected_gradients(name, options)) <= 1e-12


@cells
def test_single_precision(name):
    cell = oracles.make(name, 24)
    case = oracles.random_case(cell, np.random.default_rng(3), 7, (4,), 16, np.float32)
    case = jax.tree.map(lambda leaf: leaf / 2, case)
    options = OPTIONS["mask and resets"]
    expected = gradients(cell, case, implementation="reference", **options)
    for remat in (None, "gates"):
        got = gradients(cell, case, implementation="fused", remat=remat, **options)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
        assert oracles.relative_error(got, expected) <= 1e-5


def test_no_steps():
    cell = lstmx.LSTM(3)
    params, xs, state = oracles.random_case(cell, np.random.default_rng(3), 0, (2,), dtype=np.float32)
    got = gradients(cell, (params, xs, state), implementation="fused")
    assert oracles.relative_error(got, gradients(cell, (params, xs, state), implementation="reference")) == 0


@pytest.mark.full
@settings(max_examples=15)
@given(data=st.data())
def test_any_shape_length_mask_and_reset(data):
    name = data.draw(st.sampled_from(list(oracles.CELLS)), "name")
    steps = data.draw(st.sampled_from([1, 2, 5]), "steps")
    batch = data.draw(st.sampled_from([(), (1,), (3,), (2, 2)]), "batch")
    features = data.draw(st.sampled_from([1, 3]), "features")
    size = data.draw(st.sampled_from([1, 4]), "size")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), "seed"))
    options = {
        "reverse": data.draw(st.booleans(), "reverse"),
        "unroll": data.draw(st.integers(1, 2), "unroll"),
    }
    gaps = data.draw(st.sampled_from(["none", "lengths", "mask"]), "gaps")
    if gaps == "lengths":
        options["lengths"] = rng.integers(0, steps + 1, batch)
    elif gaps == "mask":
        options["mask"] = rng.random((steps, *batch)) < 0.6
    if data.draw(st.booleans(), "has resets"):
        options["resets"] = rng.random((steps, *batch)) < 0.4
    remat = data.draw(st.sampled_from([None, "gates"]), "remat")
    with jax.enable_x64(True):
        cell = oracles.make(name, size, param_dtype="float64")
        case = oracles.random_case(cell, rng, steps, batch, features)
        got = quick_gradients(cell, case, implementation="fused", remat=remat, **options)
        expected = quick_gradients(cell, case, implementation="reference", **options)
        assert oracles.relative_error(got, expected) <= 1e-12


@pytest.fixture
def forced(monkeypatch):
    """Forces a choice of the implementation; gives the list of the times that it was asked."""
    driver = importlib.import_module("lstmx.scan")._scan

    def force(choice, value):
        asked = []
        monkeypatch.setattr(fused, choice, lambda *_: asked.append(choice) or value)
        driver.clear_cache()
        return asked

    yield force
    monkeypatch.undo()
    driver.clear_cache()


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.usefixtures("double")
def test_weight_gradients_added_up_in_the_loop(name, options, forced):
    asked = forced("_accumulates_in_loop", True)
    remat = "gates" if "resets" in options else None
    got = quick_gradients(*double_case(name), implementation="fused", remat=remat, **OPTIONS[options])
    assert asked
    assert oracles.relative_error(got, expected_gradients(name, options)) <= 1e-12


@pytest.mark.cross_section(5)
@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("chunk", [1, 3, 7])  # of seven steps: each alone; two chunks and a rest; all
@pytest.mark.parametrize("options", ["mask and resets", "reverse, lengths and resets"])
@remats
@pytest.mark.usefixtures("double")
def test_steps_mapped_at_once(name, chunk, options, remat, forced):
    asked = forced("_steps_mapped_at_once", chunk)
    got = quick_gradients(*double_case(name), implementation="fused", remat=remat, **OPTIONS[options])
    assert asked
    assert oracles.relative_error(got, expected_gradients(name, options)) <= 1e-12


@pytest.mark.parametrize("chunk", [3, 7])
@pytest.mark.usefixtures("double")
def test_noise_of_steps_mapped_at_once(chunk, forced):
    regularized = lstmx.Regularized(oracles.make("gru", param_dtype="float64"), hidden_zoneout=0.4)
    _, case = double_case("gru")
    options = {"key": jax.random.key(3), "resets": RESETS, "reverse": True}
    expected = quick_gradients(regularized, case, implementation="reference", **options)
    without = quick_gradients(regularized, case, implementation="reference", **{**options, "key": None})
    asked = forced("_steps_mapped_at_once", chunk)
    got = quick_gradients(regularized, case, implementation="fused", **options)
    assert asked
    assert oracles.relative_error(got, expected) <= 1e-12 < oracles.relative_error(got, without)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a choice made for CPUs")
@pytest.mark.parametrize(("size", "steps"), [(89, 1), (91, 4)])  # 4 H^2 of 4 bytes: 124 and 129 KiB
def test_large_kernels_are_read_once_for_several_steps(size, steps):
    cell = lstmx.LSTM(size, use_bias=False)
    params = cell.init(jax.random.key(0), size)
    assert fused._steps_mapped_at_once(cell, params, jnp.zeros((9, 2, size))) == steps
    state = cell.initial_state((2,))
    *_, found = forward_loop(cell, (params, jnp.zeros((9, 2, size)), state))
    assert [v.aval.shape for v in found] == ([(9, 2, size)] if steps == 1 else [(2, 4, 2, size)])


def test_all_steps_mapped_at_once_is_one_loop(forced):
    forced("_steps_mapped_at_once", 7)
    cell = oracles.make("lstm")
    case = oracles.random_case(cell, np.random.default_rng(5), dtype=np.float32)
    loop, written = forward_loop(cell, case)
    assert loop.params["length"] == 7
    assert [v.aval.shape for v in written] == [(7, 3, 4)]


def forward_loop(cell, case):
    """The loop of a run without gradients, and what it writes at every iteration."""
    scan = functools.partial(lstmx.scan, cell, implementation="fused")
    closed = jax.make_jaxpr(lambda params, xs, state: scan(params, xs, state)[1])(*case)
    (loop,) = [e for e in equations(closed.jaxpr) if e.primitive.name == "scan"]
    return loop, loop.outvars[loop.params["num_carry"] :]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a choice made for CPUs")
@pytest.mark.parametrize(("batch", "contracted"), [(1, "1"), (3, "0")])
def test_backward_steps_multiply_by_a_copy_that_is_transposed(batch, contracted):
    cell = lstmx.LSTM(8)
    case = oracles.random_case(cell, np.random.default_rng(5), batch=(batch,), dtype=np.float32)
    loss = loss_of(cell, implementation="fused")
    text = jax.jit(jax.grad(loss, argnums=EVERY)).lower(*case).compile().as_text()
    dots = re.findall(rf"= f32\[{batch},8\]\S* dot\(.*rhs_contracting_dims={{(\d)}}", text)
    assert dots == [contracted]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a choice made for CPUs")
def test_large_stacks_are_not_written():
    steps, batch, size = 520, 64, 64
    cell = lstmx.LSTM(size)
    case = oracles.random_case(cell, np.random.default_rng(4), steps, (batch,), 2, np.float32)
    case = jax.tree.map(lambda leaf: leaf / 4, case)
    for few in ((2 * steps, 63, 2), (500, batch, 2)):  # rows; bytes
        assert not fused._accumulates_in_loop(cell, case[0], jax.ShapeDtypeStruct(few, np.float32))
    assert stacks(cell, case) == [(steps, batch, 2)]  # the gradient of xs alone
    got = gradients(cell, case, implementation="fused")
    assert oracles.relative_error(got, gradients(cell, case, implementation="reference")) <= 1e-5


def equations(jaxpr):
    """All equations of a jaxpr, those of its loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def stacks(cell, case, backward=True, **options):
    """Shapes of what the backward (or forward) loop writes at every step."""
    loss = loss_of(cell, implementation="fused", **options)
    closed = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*case)
    loops = [e for e in equations(closed.jaxpr) if e.primitive.name == "scan"]
    assert [loop.params["reverse"] for loop in loops] == [False, True]
    loop = loops[backward]
    return [v.aval.shape for v in loop.outvars[loop.params["num_carry"] :]]


@remats
@pytest.mark.parametrize(
    ("name", "expected"), [("lstm", [(7, 3, 16)]), ("gru", [(7, 3, 12)] * 2), ("elman", [(7, 3, 4)])]
)
def test_equal_cotangents_are_written_once(name, expected, remat):
    cell = oracles.make(name)
    case = oracles.random_case(cell, np.random.default_rng(5), dtype=np.float32)
    assert stacks(cell, case, remat=remat) == expected


@pytest.mark.parametrize(("name", "leaves"), [("lstm", 2), ("gru", 1), ("elman", 1)])
def test_remat_keeps_the_states_alone(name, leaves):
    cell = oracles.make(name)
    case = oracles.random_case(cell, np.random.default_rng(5), dtype=np.float32)
    assert stacks(cell, case, backward=False, remat="gates") == [(7, 3, 4)] * leaves


@pytest.mark.parametrize(("name", "ratio"), [("lstm", 0.4), ("gru", 0.35)])
def test_remat_keeps_less(name, ratio):
    cell = oracles.make(name, 8)
    case = oracles.random_case(cell, np.random.default_rng(6), 200, (16,), 1, np.float32)

    def kept(remat):
        _, pullback = jax.vjp(loss_of(cell, implementation="fused", remat=remat), *case)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))

    assert 0 < kept("gates") < ratio * kept(None)


def square(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


def in_a_loop(loss, params, xs, state):
    """Gradient descent on the parameters and xs by `lax.scan`."""

    def descend(carry, _):
        value, slope = jax.value_and_grad(loss, argnums=(0, 1))(*carry, state)
        return jax.tree.map(lambda a, d: a - 0.01 * d, carry, slope), value

    return jax.lax.scan(descend, (params, xs), length=3)


TRANSFORMS = {
    "grad of grad": lambda loss, *case: jax.grad(
        lambda *case: square(jax.grad(loss, argnums=EVERY)(*case)), argnums=EVERY
    )(*case),
    "vmap of grad": lambda loss, params, xs, state: jax.vmap(
        jax.grad(loss, argnums=EVERY), in_axes=(None, 0, None)
    )(params, jnp.stack([xs, 2 * xs]), state),
    "vmap of grad, all batched": lambda loss, *case: jax.vmap(jax.grad(loss, argnums=EVERY), in_axes=-1)(
        *jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf], axis=-1), case)
    ),
    "grad of vmap": lambda loss, params, xs, state: jax.grad(
        lambda params, xs, state: jnp.sum(jax.vmap(loss, in_axes=(None, 0, None))(params, xs, state) ** 2),
        argnums=EVERY,
    )(params, jnp.stack([xs, 2 * xs]), state),
    "checkpoint": lambda loss, *case: jax.grad(jax.checkpoint(loss), argnums=EVERY)(*case),
    "in a loop": in_a_loop,
    "forward over reverse": lambda loss, *case: jax.jvp(jax.grad(loss, argnums=EVERY), case, case),
    "frozen inputs": lambda loss, params, xs, state: jax.grad(
        lambda kernel: loss(params._replace(recurrent={**params.recurrent, "kernel": kernel}), xs, state)
    )(params.recurrent["kernel"]),
}


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.usefixtures("double")
def test_transformations(name, transform):
    cell = oracles.make(name, 3, param_dtype="float64")
    case = oracles.random_case(cell, np.random.default_rng(7), steps=3, batch=(4,), features=2)
    options = {"lengths": np.array([3, 0, 2, 1]), "resets": RESETS[:3]}

    def result(**more):
        loss = loss_of(cell, **options, **more)
        return jax.jit(functools.partial(TRANSFORMS[transform], loss))(*case)

    got = result(implementation="fused", remat="gates" if name == "gru" else None)
    assert oracles.relative_error(got, result(implementation="reference")) <= 1e-12


def test_gradient_without_jit():
    cell = lstmx.LSTM(3)
    case = oracles.random_case(cell, np.random.default_rng(7), steps=3, dtype=np.float32)
    got = jax.grad(loss_of(cell, implementation="fused"), argnums=EVERY)(*case)
    assert oracles.relative_error(got, gradients(cell, case, implementation="reference")[1]) <= 1e-5


@pytest.mark.usefixtures("double")
def test_vmap_over_lengths_is_the_longer_batch():
    cell = lstmx.LSTM(3, param_dtype="float64")
    params, xs, state = oracles.random_case(cell, np.random.default_rng(8), steps=4, batch=(6,))
    lengths = np.array([4, 0, 1, 3, 2, 4])

    def d_xs(lengths, xs, state):
        loss = loss_of(cell, implementation="fused", lengths=lengths)
        return jax.grad(loss, argnums=1)(params, xs, state)

    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 3, 3), state)
    run = jax.jit(jax.vmap(d_xs, in_axes=(0, 1, 0), out_axes=1))
    got = run(lengths.reshape(2, 3), xs.reshape(4, 2, 3, 5), halves)
    expected = quick_gradients(cell, (params, xs, state), implementation="reference", lengths=lengths)[1][1]
    assert oracles.relative_error(got.reshape(4, 6, 5), expected) <= 1e-12


FORWARD = {
    "jvp": lambda loss, xs: jax.jvp(loss, (xs,), (xs,)),
    "jacfwd": lambda loss, xs: jax.jacfwd(loss)(xs),
    "jit of jvp": lambda loss, xs: jax.jit(lambda xs: jax.jvp(loss, (xs,), (xs,)))(xs),
    "jvp of jit": lambda loss, xs: jax.jvp(jax.jit(loss), (xs,), (xs,)),
    "linearize": lambda loss, xs: jax.linearize(loss, xs)[1](xs),
    "hessian": lambda loss, xs: jax.jacfwd(jax.jacfwd(loss))(xs),
}


@pytest.mark.parametrize("transform", FORWARD)
@remats
def test_forward_mode_names_the_way_out(transform, remat):
    cell = lstmx.LSTM(3)
    params, xs, state = oracles.random_case(cell, np.random.default_rng(9), dtype=np.float32)
    loss = loss_of(cell, implementation="fused", remat=remat)
    with pytest.raises(NotImplementedError, match=r'forward-mode.*implementation="reference"'):
        FORWARD[transform](lambda xs: loss(params, xs, state), xs)


@pytest.mark.cross_section(3)
@cells
@remats
@pytest.mark.usefixtures("double")
def test_forward_mode_of_the_reference(name, remat):
    cell, (params, xs, state) = double_case(name)
    of_case = loss_of(cell, implementation="reference", remat=remat, **OPTIONS["mask and resets"])
    loss = jax.jit(lambda xs: of_case(params, xs, state))
    direction, epsilon = np.random.default_rng(10).normal(size=xs.shape), 1e-6
    expected = (loss(xs + epsilon * direction) - loss(xs - epsilon * direction)) / (2 * epsilon)
    np.testing.assert_allclose(jax.jvp(loss, (xs,), (direction,))[1], expected, rtol=1e-7)
    np.testing.assert_allclose(jnp.vdot(jax.jacfwd(loss)(xs), direction), expected, rtol=1e-7)
