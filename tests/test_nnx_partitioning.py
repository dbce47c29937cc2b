"""Marks for sharding on the parameters of the NNX layers, as their initializers give them."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.nn import initializers
from jax.sharding import PartitionSpec

import lstmx

XS = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
KERNEL = nnx.with_partitioning(initializers.lecun_normal(), (None, "model"))
RECURRENT = nnx.with_partitioning(initializers.orthogonal(), ("data", "model"))
BIAS = nnx.with_partitioning(initializers.zeros, ("model",))


def specs_of(module):
    return {
        "/".join(map(str, path)): param.get_value()
        for path, param in nnx.to_flat_state(nnx.get_partition_spec(nnx.state(module, nnx.Param)))
    }


@pytest.fixture(autouse=True)
def _marks_alone():
    """Marks of axes of a mesh that is not there."""
    with nnx.use_eager_sharding(False):
        yield


def test_layers_have_the_marks_of_their_initializers():
    inits = {"kernel_init": KERNEL, "recurrent_init": RECURRENT, "bias_init": BIAS}
    layer = lstmx.nnx.LSTM(
        3, 4, num_layers=2, bidirectional=True, learn_initial_state=True, rngs=nnx.Rngs(0), **inits
    )
    own = {
        "input/kernel": PartitionSpec(None, "model"),
        "recurrent/kernel": PartitionSpec("data", "model"),
        "input/bias": PartitionSpec("model"),
        "initial/c": PartitionSpec(),
        "initial/h": PartitionSpec(),
    }
    sides = [f"params/{k}/{side}" for k in range(2) for side in ("forward", "backward")]
    assert specs_of(layer) == {f"{side}/{name}": spec for side in sides for name, spec in own.items()}
    _, ys = layer(XS)
    plain = {
        "kernel_init": initializers.lecun_normal(),
        "recurrent_init": initializers.orthogonal(),
        "bias_init": initializers.zeros,
    }
    same = lstmx.nnx.LSTM(
        3, 4, num_layers=2, bidirectional=True, learn_initial_state=True, rngs=nnx.Rngs(0), **plain
    )
    np.testing.assert_array_equal(ys, same(XS)[1])


def test_an_abstract_model_knows_its_shardings():
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    make = lambda: lstmx.nnx.GRU(3, 4, kernel_init=KERNEL, rngs=nnx.Rngs(0))  # noqa: E731
    with nnx.use_eager_sharding(True):
        _, state = nnx.get_abstract_model(make, mesh)
    kernel = state["params"]["0"]["input"]["kernel"].get_value()
    assert kernel.sharding.spec == PartitionSpec(None, "model")


# Cells that make their parameters in other ways: by halves, in update, in a wrapper.
OTHERS = {
    "gru": (lstmx.GRU(4, reset_after=False, recurrent_init=RECURRENT), "update/kernel"),
    "mgu": (lstmx.MGU(4, reset="before", recurrent_init=RECURRENT), "update/kernel"),
    "regularized": (lstmx.Regularized(lstmx.GRU(4, recurrent_init=RECURRENT)), "recurrent/kernel"),
    "mogrifier": (lstmx.Mogrifier(lstmx.LSTM(4, recurrent_init=RECURRENT)), "update/cell/recurrent/kernel"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_marks_of_other_cells(name):
    cell, path = OTHERS[name]
    layer = lstmx.nnx.Layer(cell, 3, rngs=nnx.Rngs(0))
    assert specs_of(layer)[f"params/{path}"] == PartitionSpec("data", "model")


def test_a_mesh_shards_parameters_when_they_are_made():
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), nnx.use_eager_sharding(True):
        cell = lstmx.nnx.Cell(lstmx.GRU(4, kernel_init=KERNEL, bias_init=BIAS), 3, rngs=nnx.Rngs(0))
        kernel = cell.params["input"]["kernel"][...]
        assert kernel.sharding.spec == PartitionSpec(None, "model")
        assert nnx.RNN(cell)(XS).shape == (2, 5, 4)


def test_functions_of_cells_get_plain_arrays():
    marked = lstmx.LSTM(4, kernel_init=KERNEL, bias_init=nn.with_partitioning(initializers.zeros, ("model",)))
    params = marked.init(jax.random.key(0), 3)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_metadata_of_linen_is_refused():
    init = nn.with_partitioning(initializers.zeros, (None, "model"))
    with pytest.raises(TypeError, match=r"parameters of NNX are marked by flax\.nnx\.with_partitioning"):
        lstmx.nnx.LSTM(3, 4, kernel_init=init, rngs=nnx.Rngs(0))
