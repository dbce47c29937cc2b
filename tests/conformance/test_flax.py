"""Our cells inside of Flax's RNN and Bidirectional: what Flax's own tests ask of its cells, and more.

The expected values come from `lstmx.step`, row by row.
"""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn
from flax import nnx

import lstmx
from lstmx.nested import layout_of, nest

KEY = jax.random.key(0)
STEPS, FEATURES = 6, 5
LENGTHS = np.array([6, 1, 4])
# An LSTM whose c and h are not of one size, and a GRU whose candidate is a matmul of the update.
CELLS = {"lstm": lstmx.LSTM(4, peephole=True, projection_size=3), "gru": lstmx.GRU(4, reset_after=False)}


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def randomised(tree):
    leaves, structure = jax.tree.flatten(tree)
    drawn = [(draw(*leaf.shape, seed=k) / 2).astype(leaf.dtype) for k, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def random_params(cell, features=FEATURES):
    return randomised(jax.eval_shape(lambda: cell.init(KEY, features)))


def nnx_cell(cell, params, features=FEATURES):
    """A module of the cell with these parameters."""
    module = lstmx.nnx.Cell(cell, features, rngs=nnx.Rngs(0))
    nested = nest(params, layout_of(params))
    nnx.update(module, nnx.State({"params": nested}))
    return module


def linen_variables(params):
    """The variables of a cell's module with these parameters."""
    return {"cell": nest(params, layout_of(params))}


def compiled(function, *weights):
    """A function of weights and sequences, as one of sequences, compiled in every call."""

    def run(xs, **call):
        flags = {name: call.pop(name) for name in list(call) if isinstance(call[name], bool)}
        body = jax.jit(lambda w, x, arrays: function(*w, x, **arrays, **flags))
        return body(weights, xs, call)

    return run


def of_nnx(cell, params, features=FEATURES, **options):
    """The cell in `nnx.RNN`."""
    graph, state = nnx.split(nnx.RNN(nnx_cell(cell, params, features), **options))
    return compiled(lambda state, xs, **call: nnx.merge(graph, state)(xs, **call), state)


def of_linen(cell, params, features=FEATURES, **options):
    """The cell in `nn.RNN`."""
    del features
    rnn = nn.RNN(lstmx.linen.Cell(cell), **options)
    return compiled(rnn.apply, {"params": {"cell": linen_variables(params)}})


skins = pytest.mark.parametrize("skin", [of_nnx, of_linen], ids=["nnx", "linen"])
names = pytest.mark.parametrize("name", CELLS)
step = jax.jit(lstmx.step, static_argnums=0)


def by_steps(cell, params, xs, *, lengths=None, carry=None, backwards=False, in_order=True):
    """Final states and outputs of rows `[*batch, T, D]`; outputs past the end of a row are NaN.

    Args:
      in_order: whether outputs are in the order of the inputs, or in that in which they were made.
    """
    batch = xs.shape[:-2]
    carry = cell.initial_state(batch) if carry is None else carry
    lengths = np.full(batch, xs.shape[-2]) if lengths is None else lengths
    finals, ys = [], np.full((*xs.shape[:-1], cell.output(cell.initial_state()).size), np.nan)
    for row in np.ndindex(batch):
        state = jax.tree.map(operator.itemgetter(row), carry)
        order = range(lengths[row])[::-1] if backwards else range(lengths[row])
        for made, t in enumerate(order):
            state, y = step(cell, params, state, xs[(*row, t)])
            ys[(*row, t if in_order else made)] = y
        finals.append(state)
    return jax.tree.map(lambda *leaves: np.reshape(leaves, (*batch, -1)), *finals), ys


def equal(results, expected):
    """Whether results are the same where the expected ones exist."""
    hidden = jax.tree.map(np.isnan, expected)
    clean = [
        jax.tree.map(lambda leaf, hide: np.where(hide, 0, leaf), tree, hidden) for tree in (results, expected)
    ]
    return oracles.relative_error(*clean) <= 1e-6


def random_carry(cell, *batch):
    return randomised(cell.initial_state(batch))


@skins
@names
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_outputs_in_the_order_in_which_they_were_made(skin, name, lengths):
    cell, xs = CELLS[name], draw(3, STEPS, FEATURES)
    params = random_params(cell)
    rnn = skin(cell, params, reverse=True, return_carry=True)
    expected = by_steps(cell, params, xs, lengths=lengths, backwards=True, in_order=False)
    assert equal(rnn(xs, seq_lengths=lengths), expected)


@skins
@names
@pytest.mark.parametrize("backwards", [False, True])
def test_initial_carry_and_lengths(skin, name, backwards):
    cell, xs = CELLS[name], draw(3, STEPS, FEATURES)
    params = random_params(cell)
    rnn = skin(cell, params, reverse=backwards, keep_order=True, return_carry=True, unroll=2)
    carry = random_carry(cell, 3)
    expected = by_steps(cell, params, xs, lengths=LENGTHS, carry=carry, backwards=backwards)
    assert equal(rnn(xs, initial_carry=carry, seq_lengths=LENGTHS), expected)


@skins
@names
def test_time_major(skin, name):
    cell, xs = CELLS[name], draw(3, STEPS, FEATURES)
    params = random_params(cell)
    rnn = skin(cell, params, time_major=True)
    final, ys = by_steps(cell, params, xs, lengths=LENGTHS, backwards=True)
    results = rnn(
        np.moveaxis(xs, 1, 0), seq_lengths=LENGTHS, return_carry=True, reverse=True, keep_order=True
    )
    assert equal(results, (final, np.moveaxis(ys, 1, 0)))


@skins
@names
def test_several_batch_axes(skin, name):
    cell, xs = CELLS[name], draw(2, 3, STEPS, FEATURES)
    params = random_params(cell)
    rnn = skin(cell, params)
    carry = random_carry(cell, 2, 3)
    expected = by_steps(cell, params, xs, carry=carry)
    assert equal(rnn(xs, initial_carry=carry, return_carry=True), expected)
    lengths = np.stack([LENGTHS, LENGTHS[::-1]])
    # Flax selects no carries here: it knows one batch axis when there are lengths.
    _, expected = by_steps(cell, params, xs, lengths=lengths, backwards=True)
    assert equal(rnn(xs, seq_lengths=lengths, reverse=True, keep_order=True), expected)


@skins
def test_no_batch_axes_and_any_batch_size(skin):
    params = random_params(CELLS["lstm"])
    rnn = skin(CELLS["lstm"], params, return_carry=True)
    for batch in ((), (1,), (2,)):
        xs = draw(*batch, STEPS, FEATURES)
        assert equal(rnn(xs), by_steps(CELLS["lstm"], params, xs))


def bidirectional_of_nnx(cell, params, **options):
    rnns = (nnx.RNN(nnx_cell(cell, p)) for p in params)
    graph, state = nnx.split(nnx.Bidirectional(*rnns, **options))
    return compiled(lambda state, xs, **call: nnx.merge(graph, state)(xs, **call), state)


def bidirectional_of_linen(cell, params, **options):
    both = nn.Bidirectional(*(nn.RNN(lstmx.linen.Cell(cell)) for _ in params), **options)
    forward, backward = ({"cell": linen_variables(p)} for p in params)
    return compiled(both.apply, {"params": {"forward_rnn": forward, "backward_rnn": backward}})


@pytest.mark.parametrize("skin", [bidirectional_of_nnx, bidirectional_of_linen], ids=["nnx", "linen"])
@names
def test_bidirectional(skin, name):
    cell, xs = CELLS[name], draw(3, STEPS, FEATURES)
    params = random_params(cell), jax.tree.map(np.negative, random_params(cell))
    carries = random_carry(cell, 3), jax.tree.map(np.negative, random_carry(cell, 3))
    (forward, a), (backward, b) = (
        by_steps(cell, p, xs, lengths=LENGTHS, carry=carry, backwards=backwards)
        for p, carry, backwards in zip(params, carries, (False, True), strict=True)
    )
    both = skin(cell, params, merge_fn=lambda a, b: a * b, time_major=True)
    results = both(np.moveaxis(xs, 1, 0), initial_carry=carries, seq_lengths=LENGTHS, return_carry=True)
    assert equal(results, ((forward, backward), np.moveaxis(a * b, 1, 0)))


def test_one_linen_cell_for_both_directions():
    cell, xs = CELLS["gru"], draw(3, STEPS, FEATURES)
    params, shared = random_params(cell), lstmx.linen.Cell(cell)
    both = nn.Bidirectional(nn.RNN(shared), nn.RNN(shared))
    shapes = jax.eval_shape(lambda: both.init(KEY, xs))
    (owner,) = shapes["params"]
    variables = {"params": {owner: {"cell": linen_variables(params)}}}
    assert jax.tree.structure(variables) == jax.tree.structure(shapes)
    expected = [by_steps(cell, params, xs, backwards=backwards)[1] for backwards in (False, True)]
    assert equal(compiled(both.apply, variables)(xs), np.concatenate(expected, axis=-1))


def test_linen_cell_in_other_loops():
    cell, xs = CELLS["lstm"], draw(3, STEPS, FEATURES)
    module, carry, params = lstmx.linen.Cell(cell), random_carry(cell, 3), random_params(cell)
    fresh = module.initialize_carry(KEY, (3, FEATURES))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, carry)
    variables = {"params": linen_variables(params)}
    expected = by_steps(cell, params, xs, carry=carry)

    final, ys = jax.lax.scan(lambda c, x: module.apply(variables, c, x), carry, np.moveaxis(xs, 1, 0))
    assert equal((final, np.moveaxis(ys, 0, 1)), expected)
    axes = {"in_axes": 1, "out_axes": 1, "variable_broadcast": "params", "split_rngs": {"params": False}}
    assert equal(nn.scan(lstmx.linen.Cell, **axes)(cell).apply(variables, carry, xs), expected)


def test_nnx_cell_in_other_loops():
    cell, xs = CELLS["lstm"], draw(3, STEPS, FEATURES)
    carry, params = random_carry(cell, 3), random_params(cell)
    module = nnx_cell(cell, params)
    fresh = module.initialize_carry((3, FEATURES), nnx.Rngs(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, carry)
    expected = by_steps(cell, params, xs, carry=carry)

    loop = nnx.scan(lambda m, c, x: m(c, x), in_axes=(None, nnx.Carry, 1), out_axes=(nnx.Carry, 1))
    assert equal(loop(module, carry, xs), expected)
    rows = nnx.vmap(lambda m, c, x: nnx.RNN(m, return_carry=True)(x, initial_carry=c), in_axes=(None, 0, 0))
    assert equal(rows(module, carry, xs), expected)


class Dropping(lstmx.nnx.Cell):
    """A cell whose h is dropped by one mask for all steps: the recipe of Flax's tests."""

    def __init__(self, cell, in_features, *, rngs):
        super().__init__(cell, in_features, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rng_collection="recurrent_dropout", rngs=rngs)

    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return carry._replace(h=self.dropout(carry.h)), y


def test_recurrent_dropout():
    module = Dropping(lstmx.LSTM(4), FEATURES, rngs=nnx.Rngs(0, recurrent_dropout=1))
    rnn = nnx.RNN(module, return_carry=True, broadcast_rngs="recurrent_dropout")
    xs = draw(3, STEPS, FEATURES)
    carry, ys = rnn(xs)
    assert module.dropout.rngs.count[...] == 1
    kept = carry.h != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(carry.h, np.where(kept, 2 * ys[:, -1], 0), rtol=1e-6)
    # One mask for all steps: with it the whole is a loop over a cell without dropout.
    state = lstmx.LSTM(4).initial_state((3,))
    for t in range(STEPS):
        state, y = step(lstmx.LSTM(4), module.parameters(), state, xs[:, t])
        assert oracles.relative_error(y, ys[:, t]) <= 1e-6
        state = state._replace(h=np.where(kept, 2 * state.h, 0))
    assert not np.array_equal(rnn(xs)[0].h != 0, kept)


@skins
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(skin, dtype):
    cell = lstmx.LSTM(4, dtype=dtype, param_dtype=dtype)
    params, xs = random_params(cell), draw(3, STEPS, FEATURES)
    carry, ys = skin(cell, params, return_carry=True)(xs.astype(dtype))
    assert (ys.dtype, carry.h.dtype, carry.c.dtype) == (dtype, dtype, "float32")
    _, expected = by_steps(lstmx.LSTM(4), jax.tree.map(np.float32, params), xs)
    assert oracles.relative_error(ys, expected) <= 0.02


@skins
def test_spatial_axes(skin):
    cell, xs, lengths = lstmx.ConvLSTM(4, spatial_shape=(5, 3)), draw(2, STEPS, 5, 3, 2), [6, 2]
    params = random_params(cell, 2)
    carry, ys = skin(cell, params, 2, return_carry=True)(xs, seq_lengths=np.array(lengths))
    assert carry.c.shape == (2, 5, 3, 4)
    final, expected = lstmx.scan(cell, params, np.moveaxis(xs, 1, 0), lengths=lengths)
    kept = [ys[row, :n] for row, n in enumerate(lengths)]
    expected = [expected[:n, row] for row, n in enumerate(lengths)]
    assert oracles.relative_error((carry, kept), (final, expected)) <= 1e-6
