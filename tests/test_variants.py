"""What holds of every cell, option and regularizer of the table in variants.py."""

import functools

import jax
import jax.numpy as jnp
import losses
import numpy as np
import oracles
import pytest
import variants
from flax import nnx

import lstmx
from lstmx.nested import layout_of, nest

pytestmark = pytest.mark.usefixtures("double")
# All of one variant together, since they share results.
every = pytest.mark.parametrize("name", variants.cross_section(variants.EVERY), scope="module")
HAVE_STEPS = [name for name, (_, step) in variants.VARIANTS.items() if step is not None]
# Of each variant two of the three ways to remember, under different options.
WAYS = {"mask and resets": (None, 3), "reverse, lengths and resets": ("gates",)}


def key_of(name):
    return jax.random.key(3) if name in variants.REGULARIZED else None


@pytest.mark.parametrize("name", variants.cross_section(HAVE_STEPS), scope="module")
@pytest.mark.parametrize("options", WAYS)
def test_reference_is_the_loop_over_rows(name, options):
    values, _ = variants.results(name, options, "reference")
    assert oracles.relative_error(values, variants.rows_of(name, options)) <= 1e-12


@pytest.mark.optimized
@every
@pytest.mark.parametrize("options", WAYS)
def test_fused_is_the_reference(name, options):
    expected = variants.results(name, options, "reference")
    for remat in WAYS[options]:
        got = variants.results(name, options, "fused", remat)
        assert oracles.relative_error(got, expected) <= 1e-12, remat


@every
def test_gradients_are_slopes(name):
    cell, case = variants.double_case(name)
    options = variants.OPTIONS["mask and resets"]
    loss = jax.jit(variants.loss_of(cell, implementation="reference", key=key_of(name), **options))
    rng, epsilon = np.random.default_rng(5), 1e-6
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), case)

    def at(distance):
        return loss(*jax.tree.map(lambda a, d: a + distance * d, case, direction))[0]

    _, gradients = variants.results(name, "mask and resets", "reference")
    products = jax.tree.map(lambda d, g: jnp.vdot(d, g), direction, tuple(gradients))
    np.testing.assert_allclose(
        (at(epsilon) - at(-epsilon)) / (2 * epsilon), sum(jax.tree.leaves(products)), rtol=2e-6, atol=1e-8
    )


@every
def test_step_is_scan(name):
    cell, (params, xs, state) = variants.double_case(name)
    expected = jax.jit(functools.partial(lstmx.scan, cell))(params, xs[:2], state)
    step = jax.jit(functools.partial(lstmx.step, cell))
    state, first = step(params, state, xs[0])
    state, second = step(params, state, xs[1])
    assert oracles.relative_error((state, np.stack([first, second])), expected) <= 1e-12


@every
def test_vmap_is_a_batch_axis(name):
    cell, (params, xs, state) = variants.double_case(name)
    options = {"resets": losses.RESETS, "lengths": losses.LENGTHS}

    def gradient(xs, state, **options):
        loss = variants.loss_of(cell, **options)
        return jax.grad(lambda *case: loss(*case)[0], argnums=(1, 2))(params, xs, state)

    def one(xs, state, resets, lengths):
        return gradient(xs, state, resets=resets, lengths=lengths)

    got = jax.jit(jax.vmap(one, in_axes=(1, 0, 1, 0), out_axes=(1, 0)))(xs, state, *options.values())
    expected = jax.jit(functools.partial(gradient, **options))(xs, state)
    assert oracles.relative_error(got, expected) <= 1e-12


@every
def test_equal_cells_share_their_compilation(name):
    _, (params, xs, state) = variants.double_case(name)
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(cell, *case):
        traces.append(cell)
        return lstmx.scan(cell, *case)[1].sum()

    for _ in range(2):
        run.eval_shape(variants.EVERY[name](4, param_dtype="float64"), params, xs, state)
    run.eval_shape(variants.EVERY[name](4, param_dtype=np.float64), params, xs, state)
    assert len(traces) == 1
    assert variants.EVERY[name](4) != variants.EVERY[name](8)
    assert repr(traces[0]).startswith(type(traces[0]).__name__)


@every
def test_bfloat16(name):
    options = {**variants.OPTIONS["mask and resets"], "key": key_of(name)}
    wide, narrow = variants.EVERY[name](16), variants.EVERY[name](16, dtype="bfloat16")
    case = variants.random_case(wide, np.random.default_rng(2), dtype=np.float32)
    params, xs = jax.tree.map(lambda leaf: leaf * np.float32(0.5), case[:2])

    def run(cell, params, xs):
        return lstmx.scan(cell, params, xs, **options)

    final, ys = jax.jit(functools.partial(run, narrow))(params, xs)
    assert ys.dtype == jnp.bfloat16
    types = jax.tree.map(lambda leaf: leaf.dtype, (final, narrow.initial_state()))
    assert types[0] == types[1]
    _, expected = jax.jit(functools.partial(run, wide))(params, xs)
    assert 0 < oracles.relative_error(ys, expected) <= 0.03

    def loss(params, xs):
        return jnp.sum(run(narrow, params, xs)[1].astype(jnp.float32))

    gradients = jax.eval_shape(jax.grad(loss, argnums=(0, 1)), params, xs)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {np.dtype("float32")}


def batch_major(leaf):
    return jnp.moveaxis(leaf, 0, 1)


@every
def test_flax_layers_are_the_scan(name):
    cell, (_, xs, state) = variants.double_case(name)
    graph, variables = nnx.split(lstmx.nnx.Layer(cell, 3, rngs=nnx.Rngs(0)))
    params = nnx.merge(graph, variables).parameters()
    nested = {"params": {"cell": nest(params, layout_of(params))}}

    def all_three(params, variables, nested, xs, state):
        final, ys = lstmx.scan(cell, params, xs, state, lengths=losses.LENGTHS)
        options = {"lengths": losses.LENGTHS, "deterministic": True}
        of_nnx = nnx.merge(graph, variables)(batch_major(xs), state, **options)
        of_linen = lstmx.linen.Layer(cell).apply(nested, batch_major(xs), state, **options)
        return (final, batch_major(ys)), of_nnx, of_linen

    expected, *got = jax.jit(all_three)(params, variables, nested, xs, state)
    assert oracles.relative_error(got, [expected] * 2) <= 1e-12


@every
def test_flax_loops_take_the_cell(name):
    cell, (_, xs, _) = variants.double_case(name)
    rnn = nnx.RNN(lstmx.nnx.Cell(cell, 3, rngs=nnx.Rngs(0)), return_carry=True)
    graph, variables = nnx.split(rnn)

    def both(params, variables, xs):
        final, ys = lstmx.scan(cell, params, xs)
        return (final, batch_major(ys)), nnx.merge(graph, variables)(batch_major(xs))

    expected, got = jax.jit(both)(rnn.cell.parameters(), variables, xs[:2])
    assert oracles.relative_error(got, expected) <= 1e-12
