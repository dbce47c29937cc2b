"""What every cell checks of its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmx

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
