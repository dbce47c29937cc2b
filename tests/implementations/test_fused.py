"""The hand-written reverse pass, against autodiff of the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lstmx
from lstmx.implementations import fused

cells = pytest.mark.parametrize("name", oracles.CELLS)
remats = pytest.mark.parametrize("remat", [None, "gates"])

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
}


def loss_of(cell, **options):
    """A loss that depends on every output and every leaf of the final state."""

    def loss(params, xs, state):
        # Shifted, so that the cotangent is nowhere zero, at outputs of zero neither.
        return sum(jnp.sum(jnp.sin(a + 1)) for a in jax.tree.leaves(lstmx.scan(cell, params, xs, state, **options)))

    return loss


def gradients(cell, case, **options):
    """Loss, and gradients of parameters, xs and initial state."""
    return jax.jit(jax.value_and_grad(loss_of(cell, **options), argnums=(0, 1, 2)))(*case)


@functools.cache
def case_of(name, dtype):
    """A cell, its random parameters, inputs and state, and what the reference makes of each of OPTIONS."""
    cell = oracles.make(name, param_dtype=dtype)
    case = oracles.random_case(cell, np.random.default_rng(2), steps=7, batch=(4,), dtype=dtype)
    return cell, case, functools.cache(
        lambda options: gradients(cell, case, implementation="reference", **OPTIONS[options])
    )


@cells
@pytest.mark.parametrize("options", OPTIONS)
@remats
@pytest.mark.usefixtures("double")
def test_gradients_are_those_of_the_reference(name, options, remat):
    cell, case, expected = case_of(name, "float64")
    got = gradients(cell, case, implementation="fused", remat=remat, **OPTIONS[options])
    assert oracles.relative_error(got, expected(options)) <= 1e-12


@cells
@pytest.mark.parametrize("options", ["plain", "mask and resets"])
@remats
def test_single_precision(name, options, remat):
    cell = oracles.make(name, 24)
    params, xs, state = oracles.random_case(cell, np.random.default_rng(3), 7, (4,), 16, np.float32)
    case = jax.tree.map(lambda leaf: leaf / 2, params), xs, state
    got = gradients(cell, case, implementation="fused", remat=remat, **OPTIONS[options])
    expected = gradients(cell, case, implementation="reference", **OPTIONS[options])
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
    assert oracles.relative_error(got, expected) <= 1e-5


@settings(max_examples=20)
@given(data=st.data())
def test_any_shape_length_mask_and_reset(data):
    name = data.draw(st.sampled_from(list(oracles.CELLS)), "name")
    steps = data.draw(st.sampled_from([1, 2, 5]), "steps")
    batch = data.draw(st.sampled_from([(), (1,), (3,), (2, 2)]), "batch")
    features = data.draw(st.sampled_from([1, 3]), "features")
    size = data.draw(st.sampled_from([1, 4]), "size")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), "seed"))
    gaps = data.draw(st.sampled_from(["none", "lengths", "mask"]), "gaps")
    options = {"lengths": {"lengths": rng.integers(0, steps + 1, batch)}, "none": {}}.get(
        gaps, {"mask": rng.random((steps, *batch)) < 0.6}
    )
    if data.draw(st.booleans(), "has resets"):
        options["resets"] = rng.random((steps, *batch)) < 0.4
    options["reverse"] = data.draw(st.booleans(), "reverse")
    options["unroll"] = data.draw(st.sampled_from([1, 2]), "unroll")
    remat = data.draw(st.sampled_from([None, "gates"]), "remat")
    with jax.enable_x64(True):
        cell = oracles.make(name, size, param_dtype="float64")
        case = oracles.random_case(cell, rng, steps, batch, features)
        got = gradients(cell, case, implementation="fused", remat=remat, **options)
        expected = gradients(cell, case, implementation="reference", **options)
        assert oracles.relative_error(got, expected) <= 1e-12


@pytest.fixture
def forced(monkeypatch):
    """Replaces a choice of the implementation; what was compiled with or without it is forgotten."""

    def force(choice, value):
        monkeypatch.setattr(fused, choice, lambda *_: value)
        jax.clear_caches()

    yield force
    monkeypatch.undo()
    jax.clear_caches()


@cells
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.usefixtures("double")
def test_weight_gradients_added_up_in_the_loop(name, options, forced):
    cell, case, expected = case_of(name, "float64")
    expected = expected(options)
    forced("_accumulates_in_loop", True)
    remat = "gates" if "resets" in options else None
    got = gradients(cell, case, implementation="fused", remat=remat, **OPTIONS[options])
    assert oracles.relative_error(got, expected) <= 1e-12


@cells
@pytest.mark.parametrize("options", ["plain", "mask and resets", "reverse, lengths and resets"])
@remats
@pytest.mark.usefixtures("double")
def test_input_map_before_the_loop(name, options, remat, forced):
    cell, case, expected = case_of(name, "float64")
    expected = expected(options)
    forced("_hoists_input_map", True)
    got = gradients(cell, case, implementation="fused", remat=remat, **OPTIONS[options])
    assert oracles.relative_error(got, expected) <= 1e-12


def test_large_stacks_are_not_written():
    steps, batch, size = 520, 64, 64
    cell = lstmx.LSTM(size)
    case = oracles.random_case(cell, np.random.default_rng(4), steps, (batch,), 2, np.float32)
    case = jax.tree.map(lambda leaf: leaf / 4, case)
    assert not fused._accumulates_in_loop(cell, case[0], case[1][:, :63])
    assert not fused._accumulates_in_loop(cell, case[0], case[1][:500])
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


EVERY = (0, 1, 2)
TRANSFORMS = {
    "grad of grad": lambda loss, *case: jax.grad(
        lambda *case: square(jax.grad(loss, argnums=EVERY)(*case)), argnums=EVERY
    )(*case),
    "grad without jit": lambda loss, *case: jax.grad(loss, argnums=EVERY)(*case),
    "vmap of grad": lambda loss, params, xs, state: jax.vmap(
        jax.grad(loss, argnums=EVERY), in_axes=(None, 0, None)
    )(params, np.stack([xs, 2 * xs]), state),
    "vmap of grad, all batched": lambda loss, *case: jax.vmap(jax.grad(loss, argnums=EVERY), in_axes=-1)(
        *jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf, -leaf], axis=-1), case)
    ),
    "grad of vmap": lambda loss, params, xs, state: jax.grad(
        lambda params, xs, state: jnp.sum(jax.vmap(loss, in_axes=(None, 0, None))(params, xs, state) ** 2),
        argnums=EVERY,
    )(params, np.stack([xs, 2 * xs]), state),
    "checkpoint": lambda loss, *case: jax.grad(jax.checkpoint(loss), argnums=EVERY)(*case),
    "in a loop": in_a_loop,
    "forward over reverse": lambda loss, *case: jax.jvp(jax.grad(loss, argnums=EVERY), case, case),
    "frozen inputs": lambda loss, params, xs, state: jax.grad(
        lambda kernel: loss(params._replace(recurrent={**params.recurrent, "kernel": kernel}), xs, state)
    )(params.recurrent["kernel"]),
}


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.usefixtures("double")
def test_transformations(name, transform):
    cell = oracles.make(name, 3, param_dtype="float64")
    case = oracles.random_case(cell, np.random.default_rng(7), steps=3, batch=(4,), features=2)
    options = {"lengths": np.array([3, 0, 2, 1]), "resets": RESETS[:3]}
    remat = "gates" if name == "gru" else None

    def result(implementation, **more):
        loss = loss_of(cell, implementation=implementation, **options, **more)
        compute = functools.partial(TRANSFORMS[transform], loss)
        return (compute if transform == "grad without jit" else jax.jit(compute))(*case)

    expected = result("reference")
    assert oracles.relative_error(result("fused", remat=remat), expected) <= 1e-12


@pytest.mark.usefixtures("double")
def test_vmap_over_lengths_is_the_longer_batch():
    cell = lstmx.LSTM(3, param_dtype="float64")
    params, xs, state = oracles.random_case(cell, np.random.default_rng(8), steps=4, batch=(6,))

    def compute(lengths, xs, state):
        loss = lambda *case: loss_of(cell, implementation="fused", lengths=lengths)(params, *case)  # noqa: E731
        return jax.grad(loss, argnums=(0, 1))(xs, state)

    lengths = np.array([4, 0, 1, 3, 2, 4])
    d_xs, d_state = jax.vmap(compute, in_axes=(0, 1, 0), out_axes=(1, 0))(
        lengths.reshape(2, 3), *jax.tree.map(lambda a: a, (xs.reshape(4, 2, 3, 5), jax.tree.map(
            lambda leaf: leaf.reshape(2, 3, 3), state)))
    )
    expected = compute(lengths, xs, state)
    flat = d_xs.reshape(4, 6, 5), jax.tree.map(lambda leaf: leaf.reshape(6, 3), d_state)
    assert oracles.relative_error(flat, expected) <= 1e-12


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
    with pytest.raises(NotImplementedError, match='forward-mode.*implementation="reference"'):
        FORWARD[transform](lambda xs: loss(params, xs, state), xs)


@cells
@remats
@pytest.mark.usefixtures("double")
def test_forward_mode_of_the_reference(name, remat):
    cell, (params, xs, state), _ = case_of(name, "float64")
    loss = loss_of(cell, implementation="reference", remat=remat, **OPTIONS["mask and resets"])
    loss = jax.jit(lambda xs: loss_of(cell, implementation="reference", remat=remat, mask=MASK)(params, xs, state))
    direction = np.random.default_rng(10).normal(size=xs.shape)
    epsilon = 1e-6
    expected = (loss(xs + epsilon * direction) - loss(xs - epsilon * direction)) / (2 * epsilon)
    value, slope = jax.jvp(loss, (xs,), (direction,))
    assert value == loss(xs)
    np.testing.assert_allclose(slope, expected, rtol=1e-7)
    np.testing.assert_allclose(jnp.vdot(jax.jacfwd(loss)(xs), direction), expected, rtol=1e-7)
