"""The Flax Linen skin, against lstmx.scan with the same parameters."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn

import lstmx
from lstmx.nested import layout_of, unnest

KEY = jax.random.key(0)
LENGTHS = np.array([6, 1, 4])
KEEP = np.arange(6) < LENGTHS[:, None]
XS = np.random.default_rng(0).normal(size=(3, 6, 5)).astype(np.float32)


def time_major(x):
    return np.moveaxis(np.asarray(x), 1, 0)


def params_of(network, nested):
    """The parameters of a network out of Flax's dictionaries."""
    return unnest(nested, layout_of(jax.eval_shape(lambda: network.init(KEY, 5))))


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("name", oracles.CELLS)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("reverse", [False, True])
def test_cell_in_the_rnn_of_flax(name, lengths, reverse):
    cell = oracles.make(name)
    rnn = nn.RNN(lstmx.linen.Cell(cell), return_carry=True, reverse=reverse, keep_order=reverse)
    (carry, ys), variables = rnn.init_with_output(KEY, XS, seq_lengths=lengths)
    params = params_of(cell, variables["params"]["cell"]["cell"])
    expected = lstmx.scan(cell, params, time_major(XS), lengths=lengths, reverse=reverse)
    ys = ys if lengths is None else np.where(KEEP[..., None], ys, 0)
    assert oracles.relative_error((carry, time_major(ys)), expected) <= 1e-6


def test_cells_in_the_bidirectional_of_flax():
    cell = lstmx.GRU(4)
    both = nn.Bidirectional(nn.RNN(lstmx.linen.Cell(cell)), nn.RNN(lstmx.linen.Cell(cell)), return_carry=True)
    (carry, ys), variables = both.init_with_output(KEY, XS, seq_lengths=LENGTHS)
    params = [
        params_of(cell, variables["params"][f"{side}_rnn"]["cell"]["cell"])
        for side in ("forward", "backward")
    ]
    expected = lstmx.scan(lstmx.Bidirectional(cell), params, time_major(XS), lengths=LENGTHS)
    assert oracles.relative_error((carry, time_major(ys * KEEP[..., None])), expected) <= 1e-6


def test_cell_with_parameters_narrower_than_its_inputs():
    cell = lstmx.LSTM(4, param_dtype="bfloat16")
    assert nn.RNN(lstmx.linen.Cell(cell)).init_with_output(KEY, XS)[0].dtype == "float32"


LAYERS = {"lstm": lstmx.linen.LSTM, "gru": lstmx.linen.GRU, "elman": lstmx.linen.Elman}
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
    layer = LAYERS[name](4)
    state = jax.tree.map(lambda leaf: leaf + 0.5, layer.network.initial_state((3,)))
    (got, ys), variables = layer.init_with_output(KEY, XS, state, **OPTIONS[options])
    flags = {k: time_major(v) if k in ("mask", "resets") else v for k, v in OPTIONS[options].items()}
    params = params_of(layer.network, variables["params"]["cell"])
    expected = lstmx.scan(layer.network, params, time_major(XS), state, **flags)
    assert oracles.relative_error((got, time_major(ys)), expected) <= 1e-6


def test_layers_and_directions_under_jit():
    layer = lstmx.linen.LSTM(4, num_layers=2, bidirectional=True, forget_bias=2.0, name="encoder")
    assert layer.network == lstmx.networks.stacked(lstmx.LSTM(4, forget_bias=2.0), 2, bidirectional=True)
    variables = layer.init(KEY, XS)
    state, ys = jax.jit(lambda v: layer.apply(v, XS, lengths=LENGTHS, remat="gates"))(variables)
    params = params_of(layer.network, variables["params"]["cell"])
    expected = lstmx.scan(layer.network, params, time_major(XS), lengths=LENGTHS)
    assert oracles.relative_error((state, time_major(ys)), expected) <= 1e-6


def test_any_network_is_a_layer():
    network = lstmx.Stack((lstmx.Bidirectional(lstmx.GRU(3)), lstmx.LSTM(4)))
    (_, ys), variables = lstmx.linen.Layer(network).init_with_output(KEY, XS)
    params = params_of(network, variables["params"]["cell"])
    assert oracles.relative_error(time_major(ys), lstmx.scan(network, params, time_major(XS))[1]) <= 1e-6


def test_rank_is_named():
    with pytest.raises(ValueError, match=r"xs must be \[\*batch, time, features\], got shape \(5,\)"):
        lstmx.linen.LSTM(4).init(KEY, np.ones(5))


def test_dropout():
    layer = lstmx.linen.GRU(4, num_layers=2, dropout_rate=0.5)
    variables = layer.init(KEY, XS, deterministic=True)

    def run(seed, deterministic=False):
        return layer.apply(
            variables, XS, deterministic=deterministic, rngs={"dropout": jax.random.key(seed)}
        )[1]

    clean = layer.apply(variables, XS, deterministic=True)[1]
    assert np.array_equal(run(1, deterministic=True), clean)
    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))
    assert not np.array_equal(run(1), clean)
    with pytest.raises(Exception, match="dropout"):
        layer.apply(variables, XS, deterministic=False)


def test_dropout_is_switched_as_in_linen():
    """By the field or in the call, once, and not silently off: as flax.linen.Dropout."""
    options = {"num_layers": 2, "dropout_rate": 0.5}
    layer = lstmx.linen.GRU(4, **options)
    variables = layer.init(KEY, XS, deterministic=True)
    clean = layer.apply(variables, XS, deterministic=True)[1]
    assert np.array_equal(lstmx.linen.GRU(4, **options, deterministic=True).apply(variables, XS)[1], clean)
    noisy = lstmx.linen.GRU(4, **options, deterministic=False)
    assert not np.array_equal(noisy.apply(variables, XS, rngs={"dropout": KEY})[1], clean)
    for module, given in ((layer, {}), (noisy, {"deterministic": True})):
        with pytest.raises(ValueError, match="deterministic"):
            module.apply(variables, XS, **given)


def test_variables_are_plain_dictionaries():
    layer = lstmx.linen.LSTM(4, bidirectional=True)
    variables = layer.init(KEY, XS)
    lstm = {"input": {"bias": (16,), "kernel": (5, 16)}, "recurrent": {"kernel": (4, 16)}}
    expected = {"params": {"cell": {"0": {"forward": lstm, "backward": lstm}}}}
    assert jax.tree.map(jnp.shape, variables) == expected
    stored = flax.serialization.msgpack_restore(flax.serialization.to_bytes(variables))
    template = jax.tree.map(jnp.zeros_like, variables)
    restored = flax.serialization.from_state_dict(template, stored)
    assert oracles.relative_error(restored, variables) == 0
    assert np.array_equal(layer.apply(restored, XS)[1], layer.apply(variables, XS)[1])


class Model(nn.Module):
    """Two layers with a head."""

    @nn.compact
    def __call__(self, xs):
        _, ys = lstmx.linen.LSTM(4, num_layers=2, name="encoder")(xs)
        _, ys = lstmx.linen.Elman(3, bidirectional=True)(ys)
        return nn.Dense(1)(ys)


def test_carry_init():
    rnn = nn.RNN(lstmx.linen.Cell(lstmx.GRU(4), carry_init=jax.nn.initializers.ones))
    ys, variables = rnn.init_with_output(KEY, XS)
    params = params_of(lstmx.GRU(4), variables["params"]["cell"]["cell"])
    _, expected = lstmx.scan(lstmx.GRU(4), params, time_major(XS), jnp.ones((3, 4)))
    assert oracles.relative_error(time_major(ys), expected) <= 1e-6
    drawn = lstmx.linen.Cell(lstmx.LSTM(4), carry_init=jax.nn.initializers.normal())
    state = drawn.initialize_carry(KEY, (3, 5))
    assert not np.array_equal(state.c, state.h)


def test_gradient_reaches_every_parameter():
    model = Model()
    variables = model.init(KEY, XS)
    assert set(variables["params"]) == {"encoder", "Layer_0", "Dense_0"}
    gradient = jax.jit(jax.grad(lambda v: jnp.mean(model.apply(v, XS) ** 2)))(variables)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradient))
    assert jax.tree.structure(gradient) == jax.tree.structure(variables)
