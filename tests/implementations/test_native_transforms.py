"""What JAX's transformations make of the C++ kernels' calls."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import EVERY, RESETS, loss_of
from native_oracle import CELLS, both, case_of, compiled, error, exact

import lstmx

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.cross_section(5)
@compiled
@both
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformations(name, transform):
    options = {"lengths": np.array([3, 0, 2, 1]), "resets": RESETS[:3], "return_states": name == "gru"}

    def transformed(cell, case, **more):
        function = functools.partial(TRANSFORMS[transform], loss_of(cell, **options, **more))
        return jax.jit(function)(*case)

    cell = CELLS[name](3)
    case = case_of(cell, 3, (4,), 2)
    got = transformed(cell, case, implementation="native")
    assert error(got, exact(cell, case, transformed)) <= 4e-6


@compiled
@both
def test_vmap_over_nothing(name):
    cell = CELLS[name](3)
    params, xs, state = case_of(cell)
    grad = jax.grad(loss_of(cell, implementation="native"), EVERY)
    got = jax.vmap(grad, (None, 0, None))(params, np.zeros((0, *xs.shape), np.float32), state)
    assert jax.tree.map(np.shape, got) == jax.tree.map(lambda leaf: (0, *leaf.shape), (params, xs, state))


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


def step_of(cell):
    """A jitted step of training, `(leaves, xs) -> (loss, gradients)`, and its arguments."""
    params, xs, state = case_of(cell)
    leaves, tree = jax.tree.flatten((params, state))

    @jax.jit
    def step(leaves, xs):
        def loss(leaves, xs):
            params, state = jax.tree.unflatten(tree, leaves)
            ys = lstmx.scan(cell, params, xs, state, lengths=jnp.array([7, 0, 3, 1]))[1]
            return jnp.sum(jnp.sin(ys))

        return jax.value_and_grad(loss, argnums=(0, 1))(leaves, xs)

    return step, leaves, xs


@compiled
@pytest.mark.parametrize("cell", [lstmx.LSTM(5), lstmx.GRU(5)])
def test_an_export_holds_no_kernel(cell):
    step, leaves, xs = step_of(cell)
    assert lstmx.which_implementation(cell, xs=xs) == "native"
    assert "lstmx_" in step.lower(leaves, xs).compile().as_text()
    exported = jax.export.export(step)(leaves, xs)
    assert "lstmx_" not in str(exported.mlir_module())
    assert error(exported.call(leaves, xs), step(leaves, xs)) <= 1e-5
    for_tpu = jax.export.export(step, platforms=["tpu"])(leaves, xs)
    assert for_tpu.platforms == ("tpu",)


@compiled
def test_a_serialized_export_is_read_again():
    step, leaves, xs = step_of(lstmx.LSTM(5))
    exported = jax.export.export(step)(leaves, xs)
    again = jax.export.deserialize(exported.serialize()).call(leaves, xs)
    assert error(again, step(leaves, xs)) <= 1e-5


@pytest.mark.parametrize("options", [{}, {"lengths": np.array([0, 3, 7])}], ids=["plain", "lengths"])
@pytest.mark.parametrize(
    "cell", [lstmx.LSTM(40), lstmx.GRU(37), lstmx.Elman(20)], ids=["lstm", "gru", "elman"]
)
def test_members_have_the_numbers_of_one(cell, options):
    """`vmap` over parameters, or a gradient for each element, gives the same bits as single calls."""

    def graded(params, xs):
        def loss(params, xs):
            state, ys = lstmx.scan(cell, params, xs, implementation="native", **options)
            # Linear, so that the cotangents are the same bits however XLA computes them.
            return jnp.sum(ys) + sum(map(jnp.sum, jax.tree.leaves(state))), (state, ys)

        gradients, results = jax.grad(loss, (0, 1), has_aux=True)(params, xs)
        return results, gradients

    params = [cell.init(jax.random.key(k), 5) for k in range(3)]
    xs = np.random.default_rng(0).normal(size=(3, 7, 3, 5)).astype(np.float32)
    one = jax.jit(graded)
    every = [[one(p, x) for x in xs] for p in params]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    cases = {
        (0, 0): lambda k: every[k][k],
        (0, None): lambda k: every[k][0],
        (None, 0): lambda k: every[0][k],
    }
    for axes, expected in cases.items():
        given = (together if axes[0] == 0 else params[0]), (xs if axes[1] == 0 else xs[0])
        found = jax.jit(jax.vmap(graded, axes))(*given)
        for k in range(3):
            jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a[k], b), found, expected(k))
    nested = jax.jit(jax.vmap(jax.vmap(graded, (None, 0)), (0, None)))(together, xs)
    swapped = jax.jit(jax.vmap(jax.vmap(graded, (0, None)), (None, 0)))(together, xs)
    for k in range(3):
        for j in range(3):
            jax.tree.map(lambda a, b, at=(k, j): np.testing.assert_array_equal(a[at], b), nested, every[k][j])
            jax.tree.map(
                lambda a, b, at=(j, k): np.testing.assert_array_equal(a[at], b), swapped, every[k][j]
            )


def test_an_export_of_members_holds_no_kernel():
    pytest.importorskip("flatbuffers")
    cell = lstmx.LSTM(4)
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[cell.init(jax.random.key(k), 3) for k in (0, 1)]
    )
    xs = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)

    def loss(params, xs):
        return jnp.sum(lstmx.scan(cell, params, xs, implementation="native")[1] ** 2)

    function = jax.jit(jax.vmap(jax.grad(loss), (0, None)))
    exported = jax.export.export(function)(params, xs)
    assert "lstmx_lstm" not in exported.mlir_module()
    found = exported.call(params, xs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, function(params, xs)
    )
