"""The update of dynamic evaluation against the paper's formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmx.models import adapter, gradient_scale


def trees(random, count):
    return [{"a": random.normal(size=(2, 3)), "b": random.normal(size=4)} for _ in range(count)]


def test_it_is_the_rule_of_the_paper():
    random = np.random.default_rng(0)
    gradients, (trained, gradient) = trees(random, 5), trees(random, 2)
    scale = {name: np.sqrt(np.mean([g[name] ** 2 for g in gradients], axis=0)) for name in "ab"}
    mean = (scale["a"].mean() + scale["b"].mean()) / 2
    params, expected = trained, trained
    single = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)  # noqa: E731
    update = adapter(
        single(trained), gradient_scale(map(single, gradients)), rate=0.02, decay=0.9, epsilon=0.01
    )
    params = single(trained)
    for _ in range(3):
        params = update(params, single(gradient))
        expected = {
            name: expected[name]
            - 0.02 * gradient[name] / (scale[name] + 0.01)
            + np.minimum(0.9 * scale[name] / mean, 1) * (trained[name] - expected[name])
            for name in "ab"
        }
    assert (0.9 * scale["a"] / mean).max() > 1  # else the minimum would not be tested
    for name in "ab":
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5, atol=1e-6)


def test_without_a_gradient_the_parameters_return():
    trained, scale = jnp.zeros(3), jnp.ones(3)
    update, params = adapter(trained, scale, rate=1.0, decay=0.5), jnp.ones(3)
    for _ in range(30):
        params = update(params, jnp.zeros(3))
    assert float(jnp.abs(params).max()) < 1e-6


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="at least one batch, got none"):
        gradient_scale([])
    for field, value in {"rate": -1.0, "decay": float("nan"), "epsilon": 0.0}.items():
        with pytest.raises(ValueError, match=f"{field} must be"):
            adapter(jnp.ones(1), jnp.ones(1), **{"rate": 1.0, "decay": 0.0, "epsilon": 1.0, field: value})
