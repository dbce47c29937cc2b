"""What every cell checks of its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmx
from lstmx.cells import activations, base

cell_types = pytest.mark.parametrize("cell_type", [lstmx.LSTM, lstmx.GRU, lstmx.Elman])

ERRORS = {
    "no units": ({"hidden_size": 0}, ValueError, "hidden_size must be at least 1, got 0"),
    "negative": ({"hidden_size": -1}, ValueError, "hidden_size must be at least 1, got -1"),
    "bool": ({"hidden_size": True}, TypeError, "hidden_size must be an integer, got True"),
    "fraction": ({"hidden_size": 2.5}, TypeError, r"hidden_size must be an integer, got 2\.5"),
    "dtype": ({"dtype": "int32"}, TypeError, "dtype must be a floating type, got int32"),
    "param_dtype": ({"param_dtype": int}, TypeError, "param_dtype must be a floating type, got int"),
    "complex": ({"dtype": "complex64"}, TypeError, "dtype must be a floating type, got complex64"),
}


@cell_types
@pytest.mark.parametrize("case", ERRORS)
def test_bad_fields_are_named(cell_type, case):
    options, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        cell_type(**{"hidden_size": 4, **options})


@cell_types
def test_bad_input_size_is_named(cell_type):
    with pytest.raises(ValueError, match="input_size must be at least 1, got 0"):
        cell_type(4).init(jax.random.key(0), 0)


@cell_types
def test_equal_cells_hash_alike_however_their_types_are_written(cell_type):
    a, b = cell_type(4, dtype="bfloat16"), cell_type(np.int64(4), dtype=jnp.bfloat16)
    assert a == b
    assert hash(a) == hash(b)
    assert a != cell_type(4)


@cell_types
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_parameters_are_of_param_dtype(cell_type, dtype):
    params = cell_type(8, param_dtype=dtype).init(jax.random.key(0), 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params))


@cell_types
def test_another_key_draws_other_kernels(cell_type):
    first, second = (cell_type(8).init(jax.random.key(k), 8) for k in range(2))
    for part in ("input", "recurrent"):
        assert not np.array_equal(getattr(first, part)["kernel"], getattr(second, part)["kernel"])
    assert not np.array_equal(first.input["kernel"], first.recurrent["kernel"])


@cell_types
def test_fields_cannot_be_set(cell_type):
    with pytest.raises(AttributeError, match="cannot assign"):
        cell_type(4).hidden_size = 5


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 3, 1)])
def test_one_feature(shape):
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(1, 4)).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    y, pullback = jax.vjp(base.dot, kernel, x)
    np.testing.assert_allclose(y, x * kernel[0], rtol=1e-6)
    dy = rng.normal(size=y.shape).astype(np.float32)
    d_kernel, dx = pullback(dy)
    np.testing.assert_allclose(d_kernel[0], np.sum((x * dy).reshape(-1, 4), 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, np.sum(dy * kernel[0], -1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_one_feature_stays_a_matmul():
    # XLA makes an elementwise product of a contraction over one element.
    text = jax.jit(base.dot).lower(jnp.ones((1, 4)), jnp.ones((3, 1))).as_text()
    assert "dot_general" in text
    assert "tensor<3x2xf32>, tensor<2x4xf32>" in text


def test_sigmoid_of_tanh():
    x = np.concatenate([np.linspace(-20, 20, 1001), [-1e30, 1e30, -np.inf, np.inf]]).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(activations.sigmoid_of_tanh(x), expected, atol=1.2e-7)
    assert np.isnan(activations.sigmoid_of_tanh(np.float32(np.nan)))
