"""How layers and directions are connected, against the same built by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import variants

import lstmx
from lstmx import networks

LENGTHS = np.array([6, 0, 2])


def case_of(net, steps=6, features=3):
    return variants.random_case_of_network(net, np.random.default_rng(0), steps, (3,), features)


@pytest.mark.usefixtures("double")
def test_residual_connections():
    cell = lstmx.LSTM(4, param_dtype="float64")
    net = lstmx.Stack((cell, lstmx.GRU(4, param_dtype="float64"), cell), connections="residual")
    params, xs, state = case_of(net)
    final, ys = lstmx.scan(net, params, xs, state, lengths=LENGTHS)
    inputs, finals = xs, []
    for k, layer in enumerate(net.layers):
        own, outputs = lstmx.scan(layer, params[k], inputs, state[k], lengths=LENGTHS)
        inputs = outputs if k == 0 else inputs + outputs
        finals.append(own)
    assert oracles.relative_error((final, ys), (tuple(finals), inputs)) <= 1e-12


@pytest.mark.usefixtures("double")
def test_dense_connections():
    net = lstmx.Stack((lstmx.LSTM(4), lstmx.Bidirectional(lstmx.GRU(2)), lstmx.Elman(5)), connections="dense")
    params = net.init(jax.random.key(0), 3)
    assert net.output_size == 4 + 4 + 5
    assert [p.input["kernel"].shape[0] for p in (params[0], params[1].forward, params[2])] == [3, 7, 11]
    xs = np.random.default_rng(0).normal(size=(6, 3, 3)).astype(np.float32)
    _, ys = lstmx.scan(net, params, xs, lengths=LENGTHS)
    seen, outputs = xs, []
    for layer, p in zip(net.layers, params, strict=True):
        outputs.append(lstmx.scan(layer, p, seen, lengths=LENGTHS)[1])
        seen = np.concatenate([seen, outputs[-1]], axis=-1)
    assert oracles.relative_error(ys, np.concatenate(outputs, axis=-1)) <= 1e-6


@pytest.mark.parametrize("connections", ["residual", "dense"])
def test_steps_are_the_scan(connections):
    net = lstmx.Stack((lstmx.LSTM(4), lstmx.GRU(4)), connections=connections)
    params = net.init(jax.random.key(0), 3)
    xs = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    final, ys = lstmx.scan(net, params, xs)
    state = net.initial_state((2,))
    for x, expected in zip(xs, ys, strict=True):
        state, y = lstmx.step(net, params, state, x)
        np.testing.assert_allclose(y, expected, atol=1e-6)
    assert oracles.relative_error(state, final) <= 1e-6


def test_dropout_spares_the_residual_path():
    net = lstmx.Stack((lstmx.LSTM(64),) * 2, 0.5, "residual")
    params = net.init(jax.random.key(0), 3)
    params = (params[0], jax.tree.map(jnp.zeros_like, params[1]))  # the upper layer gives zeros
    xs = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    _, ys = lstmx.scan(net, params, xs, key=jax.random.key(1))
    np.testing.assert_allclose(ys, lstmx.scan(net.layers[0], params[0], xs)[1], rtol=1e-6)


MERGES = {
    "concat": lambda a, b: np.concatenate([a, b], axis=-1),
    "sum": np.add,
    "mul": np.multiply,
    "average": lambda a, b: (a + b) / 2,
    None: lambda a, b: networks.BothDirections(a, b),
}


@pytest.mark.parametrize("merge", MERGES)
def test_merges(merge):
    net = lstmx.Bidirectional(lstmx.LSTM(4), lstmx.GRU(4), merge=merge)
    params = net.init(jax.random.key(0), 3)
    xs = np.random.default_rng(0).normal(size=(6, 3, 3)).astype(np.float32)
    state, ys = lstmx.scan(net, params, xs, lengths=LENGTHS)
    forward = lstmx.scan(net.forward, params.forward, xs, lengths=LENGTHS)
    backward = lstmx.scan(net.backward, params.backward, xs, lengths=LENGTHS, reverse=True)
    expected = MERGES[merge](np.asarray(forward[1]), np.asarray(backward[1]))
    assert oracles.relative_error((state, ys), ((forward[0], backward[0]), expected)) <= 1e-6
    if merge is not None:
        assert ys.shape[-1] == net.output_size
        assert lstmx.scan(lstmx.Stack((net, lstmx.Elman(2))), (params, lstmx.Elman(2).init(
            jax.random.key(1), net.output_size)), xs)[1].shape == (6, 3, 2)  # fmt: skip


@pytest.mark.parametrize("merge", ["concat", None])
def test_both_directions_are_batch_major_in_flax(merge):
    from flax import nnx

    net = lstmx.Bidirectional(lstmx.GRU(4), merge=merge)
    layer = lstmx.nnx.Layer(net, 3, rngs=nnx.Rngs(0))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    _, ys = layer(xs)
    _, expected = lstmx.scan(net, layer.parameters(), jnp.moveaxis(xs, 1, 0))
    assert oracles.relative_error(ys, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), expected)) <= 1e-6


def learnt(param_dtype="float64"):
    cell = functools.partial(lstmx.GRU, learn_initial_state=True, param_dtype=param_dtype)
    return lstmx.Stack((lstmx.Bidirectional(cell(2)), lstmx.Regularized(cell(3), hidden_zoneout=0.1)))


@pytest.mark.usefixtures("double")
def test_initial_states_are_learnt():
    net = learnt()
    params, xs, _ = case_of(net)
    start = networks.start(net, params, (3,))
    assert np.asarray(start[0].backward).std() > 0
    np.testing.assert_array_equal(start[1], np.broadcast_to(params[1].initial, (3, 3)))
    resets = np.random.default_rng(1).random((6, 3)) < 0.4

    def outputs(params, **options):
        return lstmx.scan(net, params, xs, resets=resets, lengths=LENGTHS, **options)

    assert oracles.relative_error(outputs(params), outputs(params, initial_state=start)) <= 1e-12

    def slope(implementation):
        loss = lambda params: jnp.sum(jnp.sin(outputs(params, implementation=implementation)[1]))  # noqa: E731
        return jax.grad(loss)(params)

    got, expected = slope("fused"), slope("reference")
    assert oracles.relative_error(got, expected) <= 1e-12
    assert float(jnp.abs(got[1].initial).min()) > 0


def test_learnt_initial_states_in_flax():
    from flax import linen, nnx

    net = learnt("float32")
    layer = lstmx.nnx.Layer(net, 3, rngs=nnx.Rngs(0))
    layer.params["1"]["initial"][...] = jnp.arange(3.0)
    np.testing.assert_array_equal(layer.initial_state((2,))[1], [[0, 1, 2]] * 2)
    cell = lstmx.nnx.Cell(lstmx.GRU(3, learn_initial_state=True), 3, rngs=nnx.Rngs(0))
    cell.params["initial"][...] = jnp.arange(3.0)
    np.testing.assert_array_equal(cell.initialize_carry((2, 3)), [[0, 1, 2]] * 2)
    expected, _ = cell(cell.initialize_carry((2, 3)), jnp.ones((2, 3)))
    np.testing.assert_array_equal(cell(None, jnp.ones((2, 3)))[0], expected)
    own = lstmx.linen.Cell(cell.cell)
    np.testing.assert_array_equal(
        own.apply(lstmx.linen.variables(cell.parameters()), None, jnp.ones((2, 3)))[0], expected
    )
    rnn = linen.RNN(own)
    with pytest.raises(ValueError, match=r"learn_initial_state=True: flax\.linen\.RNN does not"):
        rnn.init(jax.random.key(0), jnp.ones((2, 5, 3)))


CELL = lstmx.LSTM(4)
WRONG = {
    "connections": (lambda: lstmx.Stack((CELL,), connections="skip"), "connections must be .* got 'skip'"),
    "residual sizes": (
        lambda: lstmx.Stack((CELL, lstmx.LSTM(5)), connections="residual"),
        r"residual connections need layers of one output size, got \[4, 5\]",
    ),
    "merge": (lambda: lstmx.Bidirectional(CELL, merge="max"), "merge must be None or one of .*, got 'max'"),
    "merged sizes": (
        lambda: lstmx.Bidirectional(CELL, lstmx.GRU(5), merge="sum"), "outputs of one size, got 4 and 5",
    ),
    "pair in a stack": (lambda: lstmx.Stack((lstmx.Bidirectional(CELL, merge=None),)), "gives two outputs"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_which_implementation_of_a_network():
    minimal = lstmx.Stack((lstmx.MinGRU(4), lstmx.Regularized(lstmx.MinLSTM(4), input_dropout=0.1)))
    assert lstmx.which_implementation(minimal) == "associative"
    mixed = lstmx.Stack((lstmx.Bidirectional(lstmx.MinGRU(4)), lstmx.MGU(4)))
    assert lstmx.which_implementation(mixed) == ("associative", "fused")
    assert lstmx.which_implementation(mixed, "reference") == "reference"
    with pytest.raises(NotImplementedError, match="MGU has none"):
        lstmx.which_implementation(mixed, "associative")
