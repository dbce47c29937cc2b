"""The IndRNN, against an Elman cell with a diagonal recurrent kernel."""

import jax
import jax.numpy as jnp
import losses
import numpy as np
import oracles
import pytest
import variants

import lstmx
from lstmx.cells.indrnn import IndRNN


@pytest.mark.parametrize("activation", ["relu", "tanh", ("leaky_relu", 0.1)])
@pytest.mark.usefixtures("double")
def test_is_an_elman_cell_with_a_diagonal_kernel(activation):
    cell = IndRNN(4, activation, param_dtype="float64")
    case = variants.random_case(cell, np.random.default_rng(0))
    elman = lstmx.Elman(4, activation, param_dtype="float64")

    def diagonal(params, xs, state):
        params = params._replace(recurrent={"kernel": jnp.diag(params.recurrent["scale"])})
        return lstmx.scan(elman, params, xs, state, lengths=losses.LENGTHS)

    def independent(params, xs, state):
        return lstmx.scan(cell, params, xs, state, lengths=losses.LENGTHS)

    got, expected = (jax.jit(variants.with_gradients(f))(*case) for f in (independent, diagonal))
    assert oracles.relative_error(got, expected) <= 1e-12


@pytest.mark.usefixtures("double")
def test_gradient_through_time_is_a_power_of_the_weight():
    cell, steps = IndRNN(3, param_dtype="float64"), 50
    u = np.array([0.9, 1.0, 2 ** (1 / steps)])
    params = lstmx.Params({"kernel": np.ones((1, 3))}, {"scale": u})

    def last(h):
        return lstmx.scan(cell, params, np.ones((steps, 1)), h)[1][-1]

    slope = jax.jit(jax.jacrev(last))(np.ones(3))
    np.testing.assert_allclose(slope, np.diag(u**steps), rtol=1e-12)


@pytest.mark.parametrize("recurrent_range", [(0.0, 1.0), (0.98, 1.02), (-1.0, 1.0)])
def test_parameters(recurrent_range):
    params = IndRNN(400, recurrent_range=recurrent_range).init(jax.random.key(0), 3)
    shapes = lstmx.Params({"kernel": (3, 400), "bias": (400,)}, {"scale": (400,)})
    assert jax.tree.map(jnp.shape, params) == shapes
    low, high = recurrent_range
    place = (np.float64(params.recurrent["scale"]) - low) / (high - low)
    assert -1e-5 <= place.min() < 0.02
    assert 0.98 < place.max() <= 1 + 1e-5
    # 400 draws: the standard error of the mean is 0.014.
    assert abs(place.mean() - 0.5) < 0.06


def test_without_bias():
    assert set(IndRNN(4, use_bias=False).init(jax.random.key(0), 3).input) == {"kernel"}


ERRORS = {
    "activation": ({"activation": "gelo"}, "activation: an activation must be one of .*got 'gelo'"),
    "range": ({"recurrent_range": (1, 0)}, r"recurrent_range must be .*low <= high, got \(1\.0, 0\.0\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_options_are_named(case):
    options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        IndRNN(4, **options)
