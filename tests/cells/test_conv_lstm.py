"""The ConvLSTM, against Keras and Flax."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import variants
from flax import linen
from hypothesis import given, settings
from hypothesis import strategies as st

import lstmx
from lstmx.cells.conv_lstm import ConvLSTM

# Read when Keras is first imported.
os.environ.setdefault("KERAS_BACKEND", "jax")

GRIDS = {
    "1d, strides": ((7,), {"kernel_size": 4, "strides": 3}),
    "1d, dilation, valid": ((7,), {"kernel_size": 2, "dilation": 3, "padding": "valid"}),
    "2d, strides, valid": ((5, 4), {"kernel_size": (2, 3), "strides": (2, 1), "padding": "valid"}),
    "2d, no bias": ((4, 5), {"kernel_size": (3, 2), "use_bias": False}),
    "2d, activations": (
        (3, 3),
        {"gate_activation": "hard_sigmoid", "candidate_activation": "relu", "output_activation": "relu"},
    ),
    "3d": ((3, 2, 4), {"kernel_size": (2, 1, 3)}),
}


def keras_layer(keras, cell):
    kind = {1: keras.layers.ConvLSTM1D, 2: keras.layers.ConvLSTM2D, 3: keras.layers.ConvLSTM3D}
    return kind[len(cell.spatial_shape)](
        cell.hidden_size,
        cell.kernel_size,
        strides=cell.strides,
        padding=cell.padding,
        dilation_rate=cell.dilation,
        # The tanh of Keras rounds to float32.
        activation={"tanh": jnp.tanh}.get(cell.candidate_activation, cell.candidate_activation),
        recurrent_activation=cell.gate_activation,
        use_bias=cell.use_bias,
        return_sequences=True,
        return_state=True,
        dtype="float64",
    )


@pytest.mark.conformance
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_keras(grid):
    keras = pytest.importorskip("keras", reason="Keras is the oracle")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras is in use with another backend than JAX")
    spatial_shape, options = GRIDS[grid]
    cell = ConvLSTM(3, spatial_shape, param_dtype="float64", **options)
    params, xs, state = variants.random_case(cell, np.random.default_rng(0), 4, (2,), 2)
    layer = keras_layer(keras, cell)
    layer.build((2, 4, *spatial_shape, 2))

    def of_keras(params, xs, state):
        weights = [params.input["kernel"], params.recurrent["kernel"]]
        weights += [params.input["bias"]] if cell.use_bias else []
        assert [w.shape for w in weights] == [tuple(v.shape) for v in layer.trainable_variables]
        (ys, h, c), _ = layer.stateless_call(
            weights, layer.non_trainable_variables, jnp.swapaxes(xs, 0, 1), initial_state=[state.h, state.c]
        )
        return c, h, jnp.swapaxes(ys, 0, 1)

    def of_lstmx(params, xs, state):
        final, ys = lstmx.scan(cell, params, xs, state)
        return *final, ys

    got, expected = (jax.jit(variants.with_gradients(f))(params, xs, state) for f in (of_lstmx, of_keras))
    assert oracles.relative_error(got, expected) <= 1e-12


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.usefixtures("double")
def test_values_and_gradients_of_flax(use_bias):
    rng = np.random.default_rng(0)
    flax_cell = linen.ConvLSTMCell(3, (3, 2), use_bias=use_bias, param_dtype="float64")
    carry, xs = tuple(rng.normal(size=(2, 2, 4, 5, 3))), rng.normal(size=(4, 2, 4, 5, 2))
    variables = jax.eval_shape(flax_cell.init, jax.random.key(0), carry, xs[0])
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, variables)

    def of_flax(variables, carry, xs):
        return jax.lax.scan(lambda carry, x: flax_cell.apply(variables, carry, x), carry, xs)

    def in_order(leaf):
        """From Flax's order of gates, i g f o."""
        i, g, f, o = jnp.split(leaf, 4, axis=-1)
        return jnp.concatenate([i, f, g, o], axis=-1)

    def of_lstmx(variables, carry, xs):
        p = variables["params"]
        # Flax adds 1 to the forget gate in every step.
        bias = in_order(p["ih"]["bias"] + p["hh"]["bias"]) if use_bias else 0
        params = lstmx.Params(
            {"kernel": in_order(p["ih"]["kernel"]), "bias": bias + np.repeat([0.0, 1, 0, 0], 3)},
            {"kernel": in_order(p["hh"]["kernel"])},
        )
        cell = ConvLSTM(3, (4, 5), (3, 2), param_dtype="float64")
        return lstmx.scan(cell, params, xs, carry)

    got, expected = (jax.jit(variants.with_gradients(f))(variables, carry, xs) for f in (of_lstmx, of_flax))
    assert oracles.relative_error(got, expected) <= 1e-12


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
@pytest.mark.parametrize("steps", [3, 0])
@pytest.mark.usefixtures("double")
def test_any_batch_axes(batch, steps):
    cell = ConvLSTM(2, (4, 3), peephole=True, param_dtype="float64")
    case = variants.random_case(cell, np.random.default_rng(0), steps, (*batch, 1), 2)
    params, xs, state = case
    mask = np.random.default_rng(1).random((steps, *batch)) < 0.7

    def run(params, xs, state):
        return lstmx.scan(cell, params, xs, state, mask=mask)

    def by_hand(params, xs, state):
        rows = (-1, *xs.shape[len(batch) + 1 :])
        if 0 in xs.shape:
            return state, jnp.zeros((steps, *batch, 4, 3, 2))
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch) :]), state)
        final, ys = lstmx.scan(
            cell,
            params,
            xs.reshape(steps, *rows),
            flat,
            mask=mask.reshape(steps, -1),
            implementation="reference",
        )
        final = jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), final)
        return final, ys.reshape(steps, *batch, *ys.shape[2:])

    xs, state = xs.squeeze(len(batch) + 1), jax.tree.map(lambda leaf: leaf.squeeze(len(batch)), state)
    got, expected = (jax.jit(variants.with_gradients(f))(params, xs, state) for f in (run, by_hand))
    assert oracles.relative_error(got, expected) <= 1e-12


@settings(max_examples=60)
@given(data=st.data())
def test_states_have_the_shape_of_what_the_maps_give(data):
    axes = data.draw(st.integers(1, 3), "axes")
    sizes = lambda most: tuple(data.draw(st.lists(st.integers(1, most), min_size=axes, max_size=axes)))  # noqa: E731
    spatial_shape, kernel_size, strides, dilation = sizes(9), sizes(4), sizes(4), sizes(3)
    padding = data.draw(st.sampled_from(["same", "valid"]), "padding")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    options = {"strides": strides, "dilation": dilation, "padding": padding}
    if padding == "valid" and any(n < r for n, r in zip(spatial_shape, reach, strict=True)):
        with pytest.raises(ValueError, match="smaller than the kernel"):
            ConvLSTM(2, spatial_shape, kernel_size, **options)
        return
    cell = ConvLSTM(2, spatial_shape, kernel_size, **options)

    def maps():
        params = cell.init(jax.random.key(0), 3)
        x, state = jnp.zeros((5, *spatial_shape, 3)), cell.initial_state((5,))
        return cell.input_map(params.input, x), cell.recurrent_map(params.recurrent, state.h), state.c

    z, r, c = jax.eval_shape(maps)
    assert z.shape == r.shape == (5, *cell.output_shape, 8)
    assert c.shape == (5, *cell.output_shape, 2)


@pytest.mark.parametrize("peephole", [False, True])
def test_parameters(peephole):
    cell = ConvLSTM(16, (6, 7), (3, 2), strides=2, peephole=peephole, forget_bias=2)
    params = cell.init(jax.random.key(0), 24)
    assert cell.input_shape(params) == (6, 7, 24)
    assert cell.num_feature_axes == 3
    shape = (3, 4, 16)
    shapes = lstmx.Params(
        {"kernel": (3, 2, 24, 64), "bias": (64,)},
        {"kernel": (3, 2, 16, 64)},
        {"peephole": {"i": shape, "f": shape, "o": shape}} if peephole else (),
    )
    assert jax.tree.map(jnp.shape, params) == shapes
    np.testing.assert_array_equal(params.input["bias"], np.repeat([0, 2, 0, 0], 16))
    # 9,216 draws with 144 inputs each: the standard error of the variance is 1.5 %.
    assert abs(np.float64(params.input["kernel"]).var() * 144 - 1) < 0.06
    gates = np.split(np.float64(params.recurrent["kernel"]).reshape(96, 64), 4, axis=1)
    for k, gate in enumerate(gates):
        np.testing.assert_allclose(gate.T @ gate, np.eye(16), atol=1e-5)
        assert all(np.abs(gate - other).max() > 0.1 for other in gates[:k])


def test_numbers_stand_for_every_dimension():
    assert ConvLSTM(2, [4, 5], 3, 2, 1) == ConvLSTM(2, (4, 5), (3, 3), (2, 2), (1, 1))
    assert hash(ConvLSTM(2, [4, 5], np.int64(3))) == hash(ConvLSTM(2, (4, 5), (3, 3)))


def test_inputs_of_another_shape_are_named():
    cell = ConvLSTM(2, (4, 5))
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    with pytest.raises(ValueError, match="xs has 4 x 6 x 3 features, the parameters are for 4 x 5 x 3"):
        lstmx.scan(cell, params, jnp.ones((2, 1, 4, 6, 3)))


ERRORS = {
    "four dimensions": ({"spatial_shape": (2, 2, 2, 2)}, ValueError, "must have 1, 2 or 3 sizes"),
    "no dimension": ({"spatial_shape": ()}, ValueError, r"must have 1, 2 or 3 sizes, got \(\)"),
    "no size": ({"spatial_shape": (4, 0)}, ValueError, r"spatial_shape must be at least 1 .*got \(4, 0\)"),
    "kernel": ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size must be .* 2 .*got \(3, 3, 3\)"),
    "fraction": ({"strides": 1.5}, TypeError, r"strides must consist of integers, got 1\.5"),
    "dilation": ({"dilation": 0}, ValueError, "dilation must be at least 1 .*got 0"),
    "padding": ({"padding": "SAME"}, ValueError, 'padding must be "same" or "valid", got \'SAME\''),
    "small": ({"padding": "valid", "kernel_size": 5}, ValueError, r"\(4, 5\) is smaller than the kernel"),
    "activation": ({"gate_activation": "x"}, ValueError, "gate_activation: an activation must be"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_options_are_named(case):
    options, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        ConvLSTM(2, **{"spatial_shape": (4, 5), **options})
