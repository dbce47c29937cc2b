"""minGRU and minLSTM: their coefficients. How they run in parallel is tested with the associative scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmx
from lstmx.cells.minimal import MinGRU, MinLSTM, positive

cells = pytest.mark.parametrize("cell_type", [MinGRU, MinLSTM])


@cells
def test_coefficients_stay_in_range_and_differentiable_at_any_size(cell_type):
    cell = cell_type(1, candidate_activation="identity")
    sizes = np.float32([-1e30, -1e3, -100, -20, 0, 20, 100, 1e3, 1e30])
    count = 2 if cell_type is MinGRU else 3
    z = np.stack(np.meshgrid(*[sizes] * (count - 1), np.float32(1.5)), axis=-1)
    a, b = cell.coefficients((), z)
    assert jnp.all((a >= 0) & (a <= 1))
    # With a candidate of 1.5 for the whole, b is 1.5 (1 - a).
    np.testing.assert_allclose(b, 1.5 * (1 - a), atol=3e-7)
    slopes = jax.grad(lambda z: jnp.sum(jnp.stack(cell.coefficients((), z))))(z)
    assert jnp.all(jnp.isfinite(slopes))


@cells
def test_gates_say_how_much_is_kept(cell_type):
    cell = cell_type(1)
    keeps = {MinGRU: [-30.0, 0.0], MinLSTM: [-30.0, 30.0, 0.0]}[cell_type]
    admits = {MinGRU: [30.0, 2.0], MinLSTM: [30.0, -30.0, 2.0]}[cell_type]
    held, renewed = (cell.update((), jnp.full(1, 7.0), jnp.array(z), None) for z in (keeps, admits))
    np.testing.assert_allclose([held[0], renewed[0]], [7.0, 2.5], rtol=1e-5)


@pytest.mark.usefixtures("double")
def test_positive_is_increasing_continuous_and_positive():
    x = np.linspace(-20, 20, 4001)
    y = np.asarray(positive(x))
    assert np.all(y > 0)
    assert np.all(np.diff(y) > 0)
    assert np.abs(np.diff(y)).max() <= 0.011
    np.testing.assert_array_equal(positive(jnp.array([0.0, 3.0])), [0.5, 3.5])
    slopes = jax.vmap(jax.grad(positive))(jnp.array([-1e4, -1.0, 1.0, 1e4]))
    sigma = 1 / (1 + np.e)
    np.testing.assert_allclose(slopes, [0, sigma * (1 - sigma), 1, 1], rtol=1e-12)


@pytest.mark.parametrize("use_bias", [True, False])
@cells
def test_parameters(cell_type, use_bias):
    gates = 2 if cell_type is MinGRU else 3
    cell = cell_type(64, use_bias=use_bias)
    params = cell.init(jax.random.key(0), 48)
    bias = {"bias": (64 * gates,)} if use_bias else {}
    assert jax.tree.map(jnp.shape, params) == lstmx.Params({"kernel": (48, 64 * gates), **bias}, {})
    assert not use_bias or not np.any(params.input["bias"])
    # 6,144 draws at least: the standard error of the variance is 1.8 %.
    assert abs(np.float64(params.input["kernel"]).var() * 48 - 1) < 0.08


def test_forget_bias_is_that_of_the_second_gate():
    params = MinLSTM(4, forget_bias=3).init(jax.random.key(0), 2)
    np.testing.assert_array_equal(params.input["bias"], [0] * 4 + [3] * 4 + [0] * 4)


@cells
def test_bad_options_are_named(cell_type):
    message = r"candidate_activation must be one of \['identity', 'positive'\], got 'tanh'"
    with pytest.raises(ValueError, match=message):
        cell_type(4, candidate_activation="tanh")
