"""`lstmx.step`: one step as `scan` takes it, resets, initial states, and states that may be donated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import variants
from flax import linen as nn
from flax import nnx
from native_oracle import compiled

import lstmx

STEPS, BATCH = 4, 3
LEARNT = functools.partial(lstmx.LSTM, learn_initial_state=True)
NETWORKS = {
    "lstm": lstmx.LSTM(4),
    "learnt": LEARNT(4),
    "gru": lstmx.GRU(4, learn_initial_state=True, num_heads=2),
    "slstm": lstmx.SLSTM(4),
    "mingru": lstmx.MinGRU(4, learn_initial_state=True),
    "regularized": lstmx.Regularized(LEARNT(4), hidden_zoneout=0.2),
    "stack": lstmx.Stack((LEARNT(4), lstmx.Mogrifier(LEARNT(4)), lstmx.GRU(4)), connections="dense"),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def case_of(network, seed=0, dtype=np.float32):
    return oracles.random_case(network, np.random.default_rng(seed), STEPS, (BATCH,), 3, dtype)


def over_time(network, params, state, xs, resets=None):
    """`step` after `step`: the final state and all outputs."""
    ys = []
    for t, x in enumerate(xs):
        options = {} if resets is None else {"resets": resets[t]}
        state, y = lstmx.step(network, params, state, x, **options)
        ys.append(y)
    return state, jnp.stack(ys)


@networks
@pytest.mark.parametrize("given", ["state", None])
def test_steps_with_resets_are_a_scan(name, given):
    network = NETWORKS[name]
    params, xs, state = case_of(network)
    state = state if given else None
    resets = np.random.default_rng(1).random((STEPS, BATCH)) < 0.4
    expected = lstmx.scan(network, params, xs, state, resets=resets)
    assert oracles.relative_error(over_time(network, params, state, xs, resets), expected) <= 1e-6
    plain = lstmx.scan(network, params, xs, state)
    assert oracles.relative_error(over_time(network, params, state, xs), plain) <= 1e-6
    assert oracles.relative_error(expected, plain) > 1e-3


def moved_start(network, params):
    """The parameters, with an initial state that is not the zeros that `init` gives."""
    leaves = jax.tree.leaves_with_path(params)
    moved = [leaf + 1 if ".initial" in jax.tree_util.keystr(path) else leaf for path, leaf in leaves]
    assert any(".initial" in jax.tree_util.keystr(path) for path, _ in leaves)
    return jax.tree.unflatten(jax.tree.structure(params), moved)


@pytest.mark.parametrize("name", ["learnt", "gru", "mingru", "regularized", "stack"])
def test_the_learnt_start_is_the_same_everywhere(name):
    network = NETWORKS[name]
    params = moved_start(network, network.init(jax.random.key(0), 3))
    x = np.ones((BATCH, 3), np.float32)
    _, expected = lstmx.scan(network, params, x[None])
    layer = lstmx.nnx.Layer(network, 3, params=params)
    starts = None, lstmx.networks.start(network, params, (BATCH,)), layer.initial_state((BATCH,))
    for state in starts:
        assert oracles.relative_error(lstmx.step(network, params, state, x)[1], expected[0]) <= 1e-6
    assert oracles.relative_error(layer.step(None, x)[1], expected[0]) <= 1e-6
    assert oracles.relative_error(layer(x[:, None], deterministic=True)[1], expected.swapaxes(0, 1)) <= 1e-6
    variables = lstmx.linen.variables(params)
    of_linen = lstmx.linen.Layer(network).apply(variables, x[:, None], deterministic=True)[1]
    assert oracles.relative_error(of_linen, expected.swapaxes(0, 1)) <= 1e-6
    zeros = lstmx.step(network, params, network.initial_state((BATCH,)), x)[1]
    assert oracles.relative_error(zeros, expected[0]) > 1e-3
    with pytest.raises(ValueError, match=r"flax\.linen\.RNN does not support a learned initial state"):
        lstmx.linen.Cell(network).initialize_carry(jax.random.key(0), (BATCH, 3))


def test_a_layer_steps_with_resets():
    layer = lstmx.nnx.GRU(3, 4, num_layers=2, rngs=nnx.Rngs(0))
    xs = np.ones((BATCH, 2, 3), np.float32)
    resets = np.array([[False, True], [False, False], [True, False]])
    _, expected = layer(xs, resets=resets)
    state, _ = layer.step(None, xs[:, 0], resets=resets[:, 0])
    _, y = layer.step(state, xs[:, 1], resets=resets[:, 1], implementation="reference")
    assert oracles.relative_error(y, expected[:, 1]) <= 1e-6


def test_flax_cells_have_forward_mode_by_name():
    cell, xs = lstmx.LSTM(4), jnp.ones((BATCH, 5, 3))
    module = lstmx.nnx.Cell(cell, 3, implementation="reference", rngs=nnx.Rngs(0))
    carry = module.initialize_carry((BATCH, 3))
    assert np.any(jax.jvp(lambda x: module(carry, x)[1], (xs[:, 0],), (xs[:, 0],))[1] != 0)
    of_linen = nn.RNN(lstmx.linen.Cell(cell, implementation="reference"))
    variables = of_linen.init(jax.random.key(0), xs)
    assert np.any(jax.jvp(lambda xs: of_linen.apply(variables, xs), (xs,), (xs,))[1] != 0)


def test_resets_of_a_step_are_checked():
    cell = lstmx.GRU(4)
    params, xs, state = case_of(cell)
    with pytest.raises(ValueError, match=r"resets must be \[\*batch\] = \(3,\), got \(4, 3\)"):
        lstmx.step(cell, params, state, xs[0], resets=np.zeros((4, 3), bool))
    with pytest.raises(TypeError, match="resets must be boolean, got float32"):
        lstmx.step(cell, params, state, xs[0], resets=np.zeros(3, np.float32))


def lowered(function, *case):
    return jax.jit(function).lower(*case).as_text()


@compiled
@pytest.mark.parametrize("make", [lstmx.LSTM, lstmx.GRU, lstmx.Elman])
def test_a_step_runs_the_kernel(make):
    cell = make(9)
    params, xs, state = case_of(cell)
    step = functools.partial(lstmx.step, cell)
    assert lstmx.which_implementation(cell, xs=xs[:1]) == "native"
    assert "lstmx_" in lowered(step, params, state, xs[0])
    assert "lstmx_" not in lowered(functools.partial(step, implementation="reference"), params, state, xs[0])
    got = jax.jit(step)(params, state, xs[0])
    for name in ("reference", "fused"):
        assert oracles.relative_error(got, step(params, state, xs[0], implementation=name)) <= 1e-6
    stack = lstmx.Stack((cell, cell))
    params, xs, state = case_of(stack)
    assert lowered(functools.partial(lstmx.step, stack), params, state, xs[0]).count("@lstmx_") == 2


def test_an_implementation_of_a_step_is_refused_as_in_scan():
    cell = lstmx.SLSTM(4)
    params, xs, state = case_of(cell)
    with pytest.raises(NotImplementedError, match=r'"native" has kernels only for .*these can run it:'):
        lstmx.step(cell, params, state, xs[0], implementation="native")
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        lstmx.step(cell, params, state, xs[0], implementation="fast")


@pytest.mark.parametrize("name", ["gru", "stack"])
def test_transformations_of_a_step(name):
    network = NETWORKS[name]
    params, xs, state = case_of(network)

    def step(state, x):
        return lstmx.step(network, params, state, x, implementation="reference")

    tangent = jax.jvp(step, (state, xs[0]), (state, xs[0]))[1]
    moved = [jax.tree.map(lambda leaf, d=d: leaf * (1 + d), (state, xs[0])) for d in (1e-3, -1e-3)]
    slope = jax.tree.map(lambda a, b: (a - b) / 2e-3, *(step(*case) for case in moved))
    assert oracles.relative_error(tangent, slope) <= 1e-2

    def default(state, x):
        return lstmx.step(network, params, state, x)

    def loss(function, state, x):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(state, x)))

    assert oracles.relative_error(jax.vmap(default)(state, xs[0]), default(state, xs[0])) <= 1e-6
    got, expected = (jax.grad(functools.partial(loss, f), (0, 1))(state, xs[0]) for f in (default, step))
    assert oracles.relative_error(got, expected) <= 1e-5


def test_a_step_that_no_kernel_runs_has_every_derivative():
    cell = lstmx.SLSTM(4)
    params, xs, state = case_of(cell)
    state = state._replace(n=np.abs(state.n) + 1)
    tangent = jax.jvp(lambda x: lstmx.step(cell, params, state, x), (xs[0],), (xs[0],))[1]
    assert np.any(tangent[1] != 0)
    assert lstmx.which_implementation(cell, xs=xs[:1]) == "reference"


@compiled
def test_forward_mode_through_the_kernel_names_the_way_out():
    cell = lstmx.LSTM(4)
    params, xs, state = case_of(cell)
    with pytest.raises(NotImplementedError, match=r'"native" .*implementation="reference"'):
        jax.jvp(lambda x: lstmx.step(cell, params, state, x), (xs[0],), (xs[0],))


def donating(network):
    """A jitted step that takes over the state that it is given."""
    return jax.jit(functools.partial(lstmx.step, network), donate_argnums=1)


def assert_donated(network, params, state, xs):
    """Three steps give what three steps without donation give, and leave the parameters where they are."""
    expected = jax.tree.map(jnp.copy, state)
    step, step_without = donating(network), jax.jit(functools.partial(lstmx.step, network))
    for x in xs[:3]:
        before = jax.tree.leaves(state)
        state, y = step(params, state, x)
        assert all(leaf.is_deleted() for leaf in before)
        expected, y_expected = step_without(params, expected, x)
        assert oracles.relative_error((state, y), (expected, y_expected)) == 0
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, y)))


@pytest.mark.parametrize("name", variants.cross_section(variants.EVERY))
def test_states_may_be_donated(name):
    network = variants.EVERY[name](4)
    params = network.init(jax.random.key(0), 3)
    _, xs, _ = variants.random_case(network, np.random.default_rng(0), steps=3, dtype=np.float32)
    assert_donated(network, params, network.initial_state((4,)), xs)


@pytest.mark.parametrize("batch", [(), (BATCH,)])
@pytest.mark.parametrize("name", ["learnt", "stack", "regularized"])
def test_learnt_states_may_be_donated(name, batch):
    network = NETWORKS[name]
    params = network.init(jax.random.key(0), 3)
    assert_donated(network, params, lstmx.networks.start(network, params, batch), np.ones((3, *batch, 3)))


def buffers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


BIDIRECTIONAL = lstmx.networks.stacked(LEARNT(4), 2, bidirectional=True)
SMALL = {
    **{name: make(4) for name, make in variants.EVERY.items()},
    "stack": NETWORKS["stack"],
    "bidirectional": BIDIRECTIONAL,
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_every_leaf_has_its_own_buffer(name, batch):
    network = SMALL[name]
    params = network.init(jax.random.key(0), 3)
    states = network.initial_state(batch), lstmx.networks.start(network, params, batch)
    found = buffers((params, *states))
    assert len(set(found)) == len(found)
