"""The packed weights of jax.experimental.rnn, against its reference in float64."""

import conversions
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.experimental import rnn

import lstmx
from lstmx.convert.cudnn import from_blob, to_blob
from lstmx.networks import stacked

SIZES = [(1, False), (3, False), (1, True), (2, True)]


def blob_of(num_layers, bidirectional, seed=0):
    size = rnn.get_num_params_in_lstm(3, 4, num_layers, bidirectional)
    return jnp.asarray(np.random.default_rng(seed).normal(size=size) / 2)


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("lengths", [[5, 5], [5, 2]])
@pytest.mark.parametrize(("num_layers", "bidirectional"), SIZES)
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_the_reference(num_layers, bidirectional, lengths):
    blob = blob_of(num_layers, bidirectional)
    net, _ = from_blob(blob, 3, 4, num_layers, bidirectional)
    _, xs, _ = oracles.random_case(net, np.random.default_rng(1), steps=5, batch=(2,), features=3)
    h, c = np.random.default_rng(2).normal(size=(2, num_layers * (1 + bidirectional), 2, 4))
    lengths = np.array(lengths, np.int32)

    def theirs(blob, xs, h, c):
        weights = rnn.unpack_lstm_weights(blob, 3, 4, num_layers, bidirectional)
        sizes = (3, 4, num_layers, 0.0, bidirectional)
        ys, h, c = rnn.lstm_ref(xs.swapaxes(0, 1), h, c, *weights, lengths, *sizes)
        return ys.swapaxes(0, 1), h, c

    def ours(blob, xs, h, c):
        net, params = from_blob(blob, 3, 4, num_layers, bidirectional)
        state = jax.tree.structure(net.initial_state((2,))).unflatten(
            [leaf for pair in zip(c, h, strict=True) for leaf in pair]
        )
        final, ys = lstmx.scan(net, params, xs, state, lengths=lengths)
        leaves = jax.tree.leaves(final)
        return ys, jnp.stack(leaves[1::2]), jnp.stack(leaves[::2])

    def graded(run):
        def loss(*args):
            values = run(*args)
            return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in values), values

        compute = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
        return jax.jit(compute)(blob, xs, h, c)

    assert oracles.relative_error(graded(ours), graded(theirs)) <= 1e-12


@pytest.mark.parametrize(("num_layers", "bidirectional"), SIZES)
def test_export_and_import_keep_every_bit(num_layers, bidirectional):
    net = stacked(lstmx.LSTM(4), num_layers, bidirectional)
    params = conversions.random_params(net)
    blob = to_blob(net, params)
    found = from_blob(blob, 3, 4, num_layers, bidirectional)
    assert found[0] == net
    conversions.assert_same_bits(found[1], params)
    # The reference's own unpacking: second biases are zero.
    _, recurrent, _, second = rnn.unpack_lstm_weights(blob, 3, 4, num_layers, bidirectional)
    last = params[-1].backward if bidirectional else params[-1]
    np.testing.assert_array_equal(recurrent[len(recurrent) - 1], last.recurrent["kernel"].T)
    assert not np.any(list(second.values()))


@pytest.mark.parametrize(("num_layers", "bidirectional"), SIZES)
def test_import_and_export_add_the_biases_up(num_layers, bidirectional):
    blob = np.asarray(rnn.init_lstm_weight(jax.random.key(0), 3, 4, num_layers, bidirectional))
    found = np.asarray(to_blob(*from_blob(blob, 3, 4, num_layers, bidirectional)))
    layers = num_layers * (1 + bidirectional)
    biases = blob[-layers * 32 :].reshape(layers, 2, 16)
    np.testing.assert_array_equal(found[: -layers * 32], blob[: -layers * 32])
    summed = np.stack([biases.sum(axis=1), np.zeros((layers, 16), np.float32)], axis=1)
    np.testing.assert_array_equal(found[-layers * 32 :], summed.ravel())


def test_under_jit():
    net = stacked(lstmx.LSTM(4), 2, bidirectional=True)
    params = conversions.random_params(net)
    blob = jax.jit(lambda params: to_blob(net, params))(params)
    conversions.assert_same_bits(blob, to_blob(net, params))
    found = jax.jit(lambda blob: from_blob(blob, 3, 4, 2, True)[1])(blob)
    conversions.assert_same_bits(found, params)


def test_a_cell_by_itself():
    cell, params = lstmx.LSTM(4), conversions.random_params(lstmx.LSTM(4))
    conversions.assert_same_bits(to_blob(cell, params), to_blob(stacked(cell), (params,)))


@pytest.mark.parametrize("shape", [(143,), (12, 12), ()])
def test_the_length_is_checked(shape):
    message = (
        r"weights must have shape \(144,\) for input_size=3, hidden_size=4, num_layers=1, "
        rf"bidirectional=False, got \({', '.join(map(str, shape))},?\)"
    )
    with pytest.raises(ValueError, match=message):
        from_blob(np.zeros(shape), 3, 4)


INEXPRESSIBLE = {
    "bias": (lstmx.LSTM(4, use_bias=False), "jax.experimental.rnn cannot express use_bias=False of LSTM"),
    "projection": (lstmx.LSTM(4, projection_size=2), "cannot express projection_size=2 of LSTM"),
    "merge": (lstmx.Bidirectional(lstmx.LSTM(4), merge="mul"), "cannot express merge='mul' of Bidirectional"),
    "unlike": (lstmx.Stack((lstmx.LSTM(4), lstmx.LSTM(5))), "has equal layers only"),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_the_blob_cannot_express(name):
    net, message = INEXPRESSIBLE[name]
    params = conversions.random_params(net)
    with pytest.raises(ValueError, match=message):
        to_blob(net, params)


def test_a_cell_that_it_has_not():
    with pytest.raises(TypeError, match=r"jax.experimental.rnn can express LSTM, not GRU"):
        to_blob(lstmx.GRU(4), conversions.random_params(lstmx.GRU(4)))
