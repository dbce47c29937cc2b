"""Scans that `jax.export` traces with symbolic sizes, exported for three platforms and called on this one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import variants

import lstmx

# One of each family, and those whose steps are made in other ways than the plain cell's.
CELLS = (
    "lstm",
    "lstm-ba-projection",
    "lstm-coupled-peephole",
    "lstm-learnt-start",
    "gru",
    "gru-reset-before-heads",
    "elman",
    "mogrifier",
    "mgu",
    "indrnn",
    "mingru",
    "minlstm",
    "slstm",
    "conv-lstm-2d",
)
SHAPES = {"time and batch": "t, b", "time": "t, 3", "batch": "5, b"}
STEPS, BATCH = 5, 3


def exported(function, shape, params, xs, options):
    """The results of a function that was exported with a symbolic shape of time and batch, as flat leaves."""
    steps, batch = jax.export.symbolic_shape(shape)
    # Of the arrays among the options, only lengths begin with the batch.
    leading = {leaf.shape: (steps, batch, *leaf.shape[2:]) for leaf in (xs, np.empty((STEPS, BATCH)))}
    leading[(BATCH,)] = (batch,)

    def sequence(leaf):
        return jax.ShapeDtypeStruct(leading[leaf.shape], leaf.dtype)

    leaves, tree = jax.tree.flatten((params, xs, options))

    @jax.jit
    def flat(leaves):
        return jax.tree.leaves(function(*tree.unflatten(leaves)))

    shapes = jax.tree.leaves((params, jax.tree.map(sequence, (xs, options))))
    export = jax.export.export(flat, platforms=["cpu", "cuda", "tpu"])(shapes)
    assert export.platforms == ("cpu", "cuda", "tpu")
    return jax.export.deserialize(export.serialize()).call(leaves)


def case_of(network, features=2):
    """Random parameters and inputs."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return (rng.normal(size=leaf.shape) / 2).astype(np.float32)

    params = jax.eval_shape(lambda: network.init(jax.random.key(0), features))
    xs = (STEPS, BATCH, *(network.input_shape(params) if hasattr(network, "input_shape") else (features,)))
    return jax.tree.map(draw, params), draw(np.empty(xs))


def assert_exported(network, shape, *, gradients=False, given=(), **options):
    """The export with symbolic sizes gives what the function itself gives.

    Args:
      network: the cell or network.
      shape: of time and batch.
      gradients: whether to export those too.
      given: options that are arguments of the export.
      **options: of `lstmx.scan`.
    """
    params, xs = case_of(network)
    fixed = {name: value for name, value in options.items() if name not in given}

    def results(params, xs, options):
        return lstmx.scan(network, params, xs, **options, **fixed)

    def loss(params, xs, options):
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(results(params, xs, options)))

    function = jax.grad(loss, argnums=(0, 1)) if gradients else results
    case = params, xs, {name: jnp.asarray(options[name]) for name in given}
    expected = jax.tree.leaves(jax.jit(function)(*case))
    got = exported(function, shape, *case)
    assert oracles.relative_error(got, expected) <= 1e-5


def cell_of(name):
    return variants.VARIANTS[name][0](8)


@pytest.mark.parametrize("name", CELLS)
def test_every_family(name):
    assert_exported(cell_of(name), SHAPES["time and batch"])


@pytest.mark.parametrize("name", ["lstm", "gru-reset-before-heads", "mingru", "slstm"])
def test_gradients(name):
    assert_exported(cell_of(name), SHAPES["time and batch"], gradients=True)


RNG = np.random.default_rng(1)
LENGTHS = np.array([5, 0, 2])
OPTIONS = {
    "lengths": {"lengths": LENGTHS},
    "mask and resets": {"mask": RNG.random((5, 3)) < 0.6, "resets": RNG.random((5, 3)) < 0.3},
    "segments": {"segment_ids": np.array([[1, 1, 0], [1, 2, 1], [2, 2, 1], [0, 2, 2], [2, 0, 2]])},
}


# Of the plain run; the marker adds the others.
SOME = {("time and batch", "lengths"), ("time", "mask and resets"), ("batch", "segments")}
options_and_shapes = pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param(*case, marks=() if case in SOME else pytest.mark.full)
        for case in itertools.product(SHAPES, OPTIONS)
    ],
)


@options_and_shapes
def test_options(shape, options):
    given = OPTIONS[options]
    assert_exported(lstmx.LSTM(7), SHAPES[shape], given=tuple(given), **given)
    assert_exported(lstmx.GRU(7), SHAPES[shape], given=tuple(given), reverse=True, gradients=True, **given)


REMAT = {
    "gates": {"remat": "gates"},
    "chunks": {"remat": 2},
    "root": {"remat": "sqrt"},
    "states": {"return_states": True},
    "values of gates": {"return_states": "gates"},
    "unrolled": {"unroll": 2},
    "reference": {"implementation": "reference"},
}


@pytest.mark.parametrize("options", REMAT)
def test_ways_to_run(options):
    assert_exported(lstmx.LSTM(7), SHAPES["time and batch"], gradients=True, **REMAT[options])


NETWORKS = {
    "stack": lstmx.Stack((lstmx.LSTM(7), lstmx.MinGRU(7), lstmx.SLSTM(7)), connections="residual"),
    "dense": lstmx.Stack((lstmx.GRU(7), lstmx.Elman(4)), connections="dense"),
    "bidirectional": lstmx.networks.stacked(lstmx.GRU(7), 2, bidirectional=True),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", ["lengths", "mask and resets"])
def test_networks(network, options):
    given = OPTIONS[options]
    assert_exported(NETWORKS[network], SHAPES["time and batch"], given=tuple(given), **given)


@pytest.mark.parametrize("rates", [{"recurrent_dropout": 0.3, "input_dropout": 0.2}, {"hidden_zoneout": 0.3}])
def test_noise(rates):
    network = lstmx.Stack((lstmx.Regularized(lstmx.LSTM(7), **rates), lstmx.GRU(3)), dropout_rate=0.2)
    assert_exported(network, SHAPES["time and batch"], key=jax.random.key(0))


@pytest.mark.parametrize("network", [lstmx.LSTM(7), lstmx.Stack((lstmx.GRU(7), lstmx.SLSTM(7)))])
def test_a_step_of_any_number_of_rows(network):
    params, xs = case_of(network)
    leaves, tree = jax.tree.flatten((params, network.initial_state((BATCH,)), xs[0], np.ones(BATCH, bool)))
    (batch,) = jax.export.symbolic_shape("b")
    count = len(jax.tree.leaves(params))
    shapes = [
        jax.ShapeDtypeStruct(leaf.shape if k < count else (batch, *leaf.shape[1:]), leaf.dtype)
        for k, leaf in enumerate(leaves)
    ]

    @jax.jit
    def step(leaves):
        params, state, x, resets = tree.unflatten(leaves)
        return jax.tree.leaves(lstmx.step(network, params, state, x, resets=resets))

    exported = jax.export.export(step, platforms=["cpu", "tpu"])(shapes)
    assert oracles.relative_error(exported.call(leaves), step(leaves)) <= 1e-6


def test_an_implementation_that_needs_sizes_says_so():
    xs = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("t, b"), 3), np.float32)
    assert lstmx.which_implementation(lstmx.LSTM(4), xs=xs) == "fused"
    assert lstmx.which_implementation(lstmx.MinGRU(4), xs=xs) == "fused"
    for cell, name in ((lstmx.LSTM(4), "native"), (lstmx.MinGRU(4), "associative")):
        with pytest.raises(NotImplementedError, match=rf'"{name}" needs .*got xs of shape \(t, b, 3\)'):
            lstmx.which_implementation(cell, name, xs=xs)
