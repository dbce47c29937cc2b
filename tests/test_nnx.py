"""The Flax NNX skin, against lstmx.scan with the same parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from flax import nnx

import lstmx
from lstmx.nested import layout_of, unnest

cells = pytest.mark.parametrize("name", oracles.CELLS)
LENGTHS = np.array([6, 1, 4])
KEEP = np.arange(6) < LENGTHS[:, None]


def inputs(steps=6, features=5):
    return np.random.default_rng(0).normal(size=(3, steps, features)).astype(np.float32)


def time_major(x):
    return np.moveaxis(np.asarray(x), 1, 0)


def params_of(module, network, features=5):
    """The parameters of a network out of its module's variables."""
    layout = layout_of(jax.eval_shape(lambda: network.init(jax.random.key(0), features)))
    return unnest(nnx.to_pure_dict(nnx.state(module, nnx.Param))["params"], layout)


def cell_and_module(name, seed=0):
    cell = oracles.make(name)
    return cell, lstmx.nnx.Cell(cell, 5, rngs=nnx.Rngs(seed))


@pytest.mark.cross_section(3)
@cells
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("reverse", [False, True])
def test_cell_in_the_rnn_of_flax(name, lengths, reverse):
    cell, module = cell_and_module(name)
    rnn = nnx.RNN(module, return_carry=True, reverse=reverse, keep_order=reverse)
    carry, ys = rnn(inputs(), seq_lengths=lengths)
    final, expected = lstmx.scan(
        cell, params_of(module, cell), time_major(inputs()), lengths=lengths, reverse=reverse
    )
    # Flax leaves what it likes in the padding.
    ys = ys if lengths is None else np.where(KEEP[..., None], ys, 0)
    assert oracles.relative_error((carry, time_major(ys)), (final, expected)) <= 1e-6


def test_initial_carry_of_the_rnn_of_flax():
    cell, module = cell_and_module("lstm")
    carry = lstmx.LSTMState(*np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32))
    final, ys = nnx.RNN(module, time_major=True, return_carry=True)(time_major(inputs()), initial_carry=carry)
    assert (
        oracles.relative_error(
            (final, ys), lstmx.scan(cell, params_of(module, cell), time_major(inputs()), carry)
        )
        <= 1e-6
    )


def test_carry_init_draws_each_array_as_in_flax():
    _, module = cell_and_module("lstm")
    normal = jax.nn.initializers.normal(1.0)
    of_flax = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))
    got, expected = (
        m.initialize_carry((3, 5), nnx.Rngs(carry=7), carry_init=normal) for m in (module, of_flax)
    )
    assert np.array_equal(got.c, expected[0])
    assert np.array_equal(got.h, expected[1])
    stream = module.initialize_carry((3, 5), nnx.Rngs(carry=7).carry, normal)
    assert np.array_equal(got.c, stream.c)
    with pytest.raises(ValueError, match="carry_init needs rngs"):
        module.initialize_carry((3, 5), carry_init=normal)


def test_carry_init_of_the_constructor():
    ones = jax.nn.initializers.ones
    cell = lstmx.GRU(4)
    module = lstmx.nnx.Cell(cell, 5, carry_init=ones, rngs=nnx.Rngs(0))
    _, expected = lstmx.scan(cell, module.parameters(), time_major(inputs()), jnp.ones((3, 4)))
    assert oracles.relative_error(time_major(nnx.RNN(module)(inputs())), expected) <= 1e-6
    assert not np.any(module.initialize_carry((3, 5), nnx.Rngs(0), jax.nn.initializers.zeros))
    with pytest.raises(ValueError, match="carry_init has no effect with learn_initial_state=True"):
        lstmx.nnx.Cell(lstmx.GRU(4, learn_initial_state=True), 5, carry_init=ones, rngs=nnx.Rngs(0))


@cells
def test_cells_in_the_bidirectional_of_flax(name):
    cell, forward = cell_and_module(name)
    _, backward = cell_and_module(name, seed=1)
    both = nnx.Bidirectional(nnx.RNN(forward), nnx.RNN(backward), return_carry=True)
    carry, ys = both(inputs(), seq_lengths=LENGTHS)
    net, params = lstmx.Bidirectional(cell), (params_of(forward, cell), params_of(backward, cell))
    final, expected = lstmx.scan(net, params, time_major(inputs()), lengths=LENGTHS)
    assert oracles.relative_error((carry, time_major(ys * KEEP[..., None])), (final, expected)) <= 1e-6


def test_cell_in_half_precision():
    cell = lstmx.LSTM(4, dtype="bfloat16")
    module = lstmx.nnx.Cell(cell, 5, rngs=nnx.Rngs(0))
    carry, ys = nnx.RNN(module, return_carry=True)(inputs())
    assert (ys.dtype, carry.c.dtype, carry.h.dtype) == ("bfloat16", "float32", "bfloat16")
    assert params_of(module, cell).input["kernel"].dtype == "float32"
    expected = lstmx.scan(lstmx.LSTM(4), params_of(module, cell), time_major(inputs()))
    assert oracles.relative_error((carry, time_major(ys)), expected) <= 0.03


def test_cell_with_parameters_narrower_than_its_inputs():
    cell = lstmx.LSTM(4, param_dtype="bfloat16")
    assert nnx.RNN(lstmx.nnx.Cell(cell, 5, rngs=nnx.Rngs(0)))(inputs()).dtype == "float32"


LAYERS = {"lstm": lstmx.nnx.LSTM, "gru": lstmx.nnx.GRU, "elman": lstmx.nnx.Elman}
OPTIONS = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": np.random.default_rng(2).random((3, 6)) < 0.6},
    "resets, reverse": {"resets": np.random.default_rng(3).random((3, 6)) < 0.4, "reverse": True},
}


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", OPTIONS)
def test_layer_is_scan(name, options):
    layer = LAYERS[name](5, 4, rngs=nnx.Rngs(0))
    state = jax.tree.map(lambda leaf: leaf + 0.5, layer.initial_state((3,)))
    got, ys = layer(inputs(), state, **OPTIONS[options])
    flags = {k: time_major(v) if k in ("mask", "resets") else v for k, v in OPTIONS[options].items()}
    expected = lstmx.scan(
        layer.network, params_of(layer, layer.network), time_major(inputs()), state, **flags
    )
    assert oracles.relative_error((got, time_major(ys)), expected) <= 1e-6


def test_layers_and_directions():
    layer = lstmx.nnx.GRU(5, 4, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    assert layer.network == lstmx.networks.stacked(lstmx.GRU(4), 2, bidirectional=True)
    state, ys = layer(inputs(), lengths=LENGTHS, implementation="reference", remat="gates")
    assert ys.shape == (3, 6, 8)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(3, 4)] * 4
    expected = lstmx.scan(
        layer.network, params_of(layer, layer.network), time_major(inputs()), lengths=LENGTHS
    )
    assert oracles.relative_error((state, time_major(ys)), expected) <= 1e-6


def test_cell_options_reach_the_cell():
    layer = lstmx.nnx.LSTM(5, 4, forget_bias=2.0, dtype="bfloat16", rngs=nnx.Rngs(0))
    assert layer.network.layers == (lstmx.LSTM(4, forget_bias=2.0, dtype="bfloat16"),)


def test_any_number_of_batch_axes():
    layer = lstmx.nnx.LSTM(5, 4, rngs=nnx.Rngs(0))
    _, expected = layer(inputs(), lengths=LENGTHS)
    _, alone = layer(inputs()[0])
    _, nested = layer(inputs()[None], lengths=LENGTHS[None])
    assert oracles.relative_error((alone, nested), (expected[0], expected[None])) <= 1e-6
    with pytest.raises(ValueError, match=r"xs must be \[\*batch, time, features\], got shape \(5,\)"):
        layer(np.ones(5))


def test_step_is_the_layer_one_step_at_a_time():
    layer = lstmx.nnx.LSTM(5, 4, num_layers=2, dropout_rate=0.5, rngs=nnx.Rngs(0))
    final, ys = layer(inputs(), deterministic=True)
    state = layer.initial_state((3,))
    for t in range(6):
        state, y = layer.step(state, inputs()[:, t])
        assert oracles.relative_error(y, ys[:, t]) <= 1e-6
    assert oracles.relative_error(state, final) <= 1e-6


def dropping(rngs):
    return lstmx.nnx.LSTM(5, 4, num_layers=2, dropout_rate=0.5, rngs=rngs)


def same(a, b):
    return bool(np.array_equal(a[1], b[1]))


def test_train_and_eval():
    layer, xs = dropping(nnx.Rngs(0)), inputs()
    expected = lstmx.scan(layer.network, params_of(layer, layer.network), time_major(xs))
    assert not same(layer(xs), layer(xs))  # the stream moves on
    assert oracles.relative_error(layer(xs, deterministic=True)[0], expected[0]) <= 1e-6
    layer.eval()
    assert same(layer(xs), layer(xs, deterministic=True))
    assert not same(layer(xs), layer(xs, deterministic=False))
    layer.train()
    assert not same(layer(xs), layer(xs, deterministic=True))


def test_options_without_effect_are_refused():
    for options in ({"dropout_rate": 0.5}, {"connections": "residual"}):
        for make in (lstmx.linen.GRU, lambda size, **own: lstmx.nnx.GRU(5, size, rngs=nnx.Rngs(0), **own)):
            with pytest.raises(ValueError, match="has no effect with num_layers=1"):
                make(4, **options)


def test_dropout_of_the_streams():
    xs, seed = inputs(), {"params": 0, "dropout": 1}
    first, second = dropping(nnx.Rngs(**seed)), dropping(nnx.Rngs(**seed))
    assert same(first(xs), second(xs))
    # Streams given to the call are used, and the layer's own stays where it is.
    assert same(first(xs, rngs=nnx.Rngs(dropout=5)), second(xs, rngs=nnx.Rngs(dropout=5).dropout))
    assert not same(first(xs, rngs=nnx.Rngs(dropout=5)), second(xs, rngs=nnx.Rngs(dropout=6)))
    assert same(first(xs), second(xs))


def test_dropout_without_a_stream():
    layer, xs = dropping(nnx.Rngs(params=0)), inputs()
    with pytest.raises(ValueError, match="dropout needs rngs"):
        layer(xs)
    assert layer(xs, rngs=nnx.Rngs(dropout=5))[1].shape == (3, 6, 4)
    with pytest.raises(TypeError, match=r"rngs must be nnx\.Rngs .*; from a key: nnx\.Rngs\(dropout=key\)"):
        layer(xs, rngs=jax.random.key(0))
    assert same(layer(xs, deterministic=True), layer(xs, deterministic=True))


def paths(module):
    return sorted("/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param)))


def test_parameter_paths():
    _, module = cell_and_module("lstm")
    names = ["input/bias", "input/kernel", "recurrent/kernel"]
    assert paths(module) == [f"params/{name}" for name in names]
    layer = lstmx.nnx.LSTM(5, 4, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    sides = [f"{k}/{side}" for k in range(2) for side in ("backward", "forward")]
    assert paths(layer) == [f"params/{side}/{name}" for side in sides for name in names]


def test_a_layer_without_dropout_has_parameters_alone():
    layer = lstmx.nnx.LSTM(5, 4, rngs=nnx.Rngs(0))
    assert len(nnx.to_flat_state(nnx.state(layer))) == len(paths(layer)) == 3


class Tagger(nnx.Module):
    """Two layers with a head."""

    def __init__(self, rngs):
        self.rnn = lstmx.nnx.GRU(5, 8, num_layers=2, bidirectional=True, dropout_rate=0.1, rngs=rngs)
        self.head = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, xs):
        return self.head(self.rnn(xs)[1])[..., 0]


def test_split_jit_and_gradient():
    model = Tagger(nnx.Rngs(0))
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.mean(nnx.merge(graph, p, rest)(inputs()) ** 2))(params)

    flat = nnx.to_flat_state(gradient(params))
    assert len(flat) == 2 * 2 * 4 + 2
    assert all(np.any(np.asarray(leaf[...]) != 0) for _, leaf in flat)
    np.testing.assert_allclose(nnx.merge(graph, params, rest)(inputs()), model(inputs()))


def test_training_reduces_the_loss():
    model = Tagger(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    xs = inputs()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Param)))

    @nnx.jit
    def train(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(xs) - xs.sum(-1)) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(train(model, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, after)))


def test_a_layer_of_given_parameters():
    net = lstmx.Bidirectional(lstmx.LSTM(4))
    params = net.init(jax.random.key(3), 3)
    layer = lstmx.nnx.Layer(net, 3, params=params)
    xs = jnp.ones((2, 5, 3))
    _, expected = lstmx.scan(net, params, jnp.moveaxis(xs, 1, 0))
    np.testing.assert_allclose(layer(xs)[1], jnp.moveaxis(expected, 0, 1), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"params: forward/input/kernel must have shape \(2, 16\), got \(3, 16\)"
    ):
        lstmx.nnx.Layer(net, 2, params=params)
    with pytest.raises(ValueError, match="params: input/bias is missing"):
        lstmx.nnx.Layer(net.forward, 3, params=params)
    peephole = lstmx.LSTM(4, peephole=True).init(jax.random.key(3), 3)
    with pytest.raises(ValueError, match=r"params: update/peephole/., of shape .* is not a parameter"):
        lstmx.nnx.Layer(net.forward, 3, params=peephole)
    with pytest.raises(ValueError, match="give rngs, to draw the parameters, or params"):
        lstmx.nnx.Layer(net, 3)
