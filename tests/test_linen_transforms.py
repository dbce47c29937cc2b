"""The layers of Linen are classes: lifted transforms, subclasses, and marks for sharding on parameters."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

import lstmx

KEY = jax.random.key(0)
XS = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
LAYERS = {"LSTM": lstmx.LSTM, "GRU": lstmx.GRU, "Elman": lstmx.Elman}


@pytest.mark.parametrize("name", LAYERS)
def test_fields_are_those_of_the_cell(name):
    layer = getattr(lstmx.linen, name)(4)
    fields = {field.name: field.default for field in dataclasses.fields(layer)}
    assert isinstance(layer, getattr(lstmx.linen, name))
    assert isinstance(layer, lstmx.linen.Layer)
    assert all(fields[field.name] == field.default for field in dataclasses.fields(LAYERS[name]))
    assert layer.network == lstmx.networks.stacked(LAYERS[name](4))
    assert layer.hidden_size == 4


def test_options_are_refused_when_the_layer_is_made():
    with pytest.raises(TypeError, match="unexpected keyword argument 'peepholes'"):
        lstmx.linen.LSTM(4, peepholes=True)
    with pytest.raises(ValueError, match="num_heads must divide hidden_size"):
        lstmx.linen.LSTM(4, num_heads=3)
    with pytest.raises((TypeError, ValueError)):
        lstmx.linen.LSTM(4, 2)  # num_layers and all others only by name


def test_remat_and_jit():
    plain = lstmx.linen.LSTM(4)
    variables = plain.init(KEY, XS)

    def gradient(layer):
        return jax.grad(lambda v: jnp.sum(layer.apply(v, XS)[1] ** 2))(variables)

    expected = gradient(plain)
    for transform in (nn.remat, nn.jit):
        got = gradient(transform(lstmx.linen.LSTM)(4))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_an_ensemble():
    ensemble = nn.vmap(
        lstmx.linen.GRU, in_axes=None, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=3
    )(4, reset_after=False)
    (state, ys), variables = ensemble.init_with_output(KEY, XS)
    assert (state[0].shape, ys.shape) == ((3, 3, 4), (3, 3, 6, 4))
    for member in range(3):
        own = jax.tree.map(lambda leaf: leaf[member], variables)  # noqa: B023
        _, expected = lstmx.linen.GRU(4, reset_after=False).apply(own, XS)
        np.testing.assert_allclose(ys[member], expected, atol=1e-6)
    assert not np.allclose(ys[0], ys[1])


class Residual(lstmx.linen.LSTM):
    """A layer of a deep network: a subclass with a field of its own."""

    scale: float = 1.0

    def __call__(self, xs, _):
        state, ys = super().__call__(xs)
        return xs + self.scale * ys, state


def test_layers_by_scan_of_a_subclass():
    deep = nn.scan(Residual, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(4, scale=0.5)
    (ys, states), variables = deep.init_with_output(KEY, XS, None)
    assert jax.tree.leaves(states)[0].shape == (3, 3, 4)
    expected = XS
    for k in range(3):
        own = jax.tree.map(lambda leaf: leaf[k], variables)  # noqa: B023
        expected, _ = Residual(4, scale=0.5).apply(own, expected, None)
    np.testing.assert_allclose(ys, expected, atol=1e-6)


def test_partition_specs():
    options = {
        "kernel_init": nn.with_partitioning(jax.nn.initializers.lecun_normal(), (None, "model")),
        "recurrent_init": nn.with_logical_partitioning(jax.nn.initializers.orthogonal(), ("hidden", "gates")),
        "bias_init": nn.with_partitioning(jax.nn.initializers.zeros, ("model",)),
    }
    layer = lstmx.linen.LSTM(4, bidirectional=True, peephole=True, **options)
    variables = layer.init(KEY, XS)
    marked = {
        "input": {"kernel": PartitionSpec(None, "model"), "bias": PartitionSpec("model")},
        "recurrent": {"kernel": PartitionSpec("hidden", "gates")},
        "update": {"peephole": dict.fromkeys("ifo", PartitionSpec())},
    }
    expected = {"params": {"cell": {"0": {"forward": marked, "backward": marked}}}}
    assert nn.get_partition_spec(variables) == expected
    plain = nn.meta.unbox(variables)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(
        jnp.shape, lstmx.linen.LSTM(4, bidirectional=True, peephole=True).init(KEY, XS)
    )
    np.testing.assert_array_equal(layer.apply(variables, XS)[1], layer.apply(plain, XS)[1])
    # A lifted transform adds its axis to the marks.
    axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "axis_size": 2}
    ensemble = nn.vmap(lstmx.linen.LSTM, in_axes=None, metadata_params={nn.PARTITION_NAME: "member"}, **axes)
    specs = nn.get_partition_spec(ensemble(4, **options).init(KEY, XS))
    assert specs["params"]["cell"]["0"]["input"]["kernel"] == PartitionSpec("member", None, "model")


def test_logical_axes_become_shardings_of_a_mesh():
    init = nn.with_logical_partitioning(jax.nn.initializers.lecun_normal(), ("input", "gates"))
    layer = lstmx.linen.GRU(4, kernel_init=init)
    specs = nn.get_partition_spec(jax.eval_shape(lambda key: layer.init(key, XS), KEY))
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    shardings = nn.logical_to_mesh_sharding(specs, mesh, [("gates", "model"), ("input", None)])
    assert shardings["params"]["cell"]["0"]["input"]["kernel"].spec == PartitionSpec(None, "model")


def test_modules_are_copied_by_their_fields():
    layer = lstmx.linen.LSTM(4, peephole=True)
    assert pickle.loads(pickle.dumps(layer)) == copy.deepcopy(layer) == layer
    assert layer.clone(hidden_size=5) == lstmx.linen.LSTM(5, peephole=True)
    assert hash(layer) == hash(lstmx.linen.LSTM(4, peephole=True))


def test_metadata_of_nnx_is_refused():
    from flax import nnx

    init = nnx.with_partitioning(jax.nn.initializers.zeros, (None, "model"))
    with pytest.raises(TypeError, match=r"parameters of Linen are marked by flax\.linen\.with_partitioning"):
        lstmx.linen.LSTM(4, kernel_init=init).init(KEY, XS)
