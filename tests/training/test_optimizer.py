import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmx.training import OptimizerConfig, make_optimizer, make_schedule

NAMES = OptimizerConfig.__annotations__["name"].__args__
SCHEDULES = OptimizerConfig.__annotations__["schedule"].__args__


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("constant", 2.0, 2.0), ("linear", 1.25, 0.5), ("cosine", 1.25, 0.5), ("exponential", 1.0, 0.5)],
)
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedule_values(schedule, middle, last, warmup):
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=warmup, final_fraction=0.25)
    rate = make_schedule(config, steps=100 + warmup)
    assert float(rate(warmup)) == pytest.approx(2.0)
    assert float(rate(warmup + 50)) == pytest.approx(middle)
    assert float(rate(warmup + 100)) == pytest.approx(last if schedule != "constant" else 2.0)
    for step in range(warmup):
        assert float(rate(step)) == pytest.approx(2.0 * (step + 1) / warmup)


def test_a_staircase_is_that_of_zaremba():
    # Their program: epochs counted from 1, halved in each one after the fourth.
    config = OptimizerConfig(
        "sgd", learning_rate=20.0, schedule="staircase", stages=13, constant_stages=4, stage_factor=0.5
    )
    rate = make_schedule(config, steps=13 * 7)
    expected = [20.0 * 0.5 ** max(epoch + 1 - 4, 0) for epoch in range(13)]
    assert [float(rate(7 * epoch)) for epoch in range(13)] == pytest.approx(expected)
    assert [float(rate(7 * epoch + 6)) for epoch in range(13)] == pytest.approx(expected)
    # Of fewer steps than stages: it ends where it should.
    assert float(make_schedule(config, steps=5)(4)) == pytest.approx(20 * 0.5**8)
    after_warmup = make_schedule(dataclasses.replace(config, warmup_steps=3), steps=3 + 13)
    assert [float(after_warmup(step)) for step in (6, 7, 8)] == pytest.approx([20, 10, 5])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adam"])
def test_only_matrices_decay(name):
    config = OptimizerConfig(name, learning_rate=0.1, weight_decay=0.5)
    optimizer, _ = make_optimizer(config, steps=10)
    params = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0), "gain": jnp.asarray(2.0)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert np.all(np.asarray(updates["kernel"]) < 0)
    assert np.all(np.asarray(updates["bias"]) == 0)
    assert float(updates["gain"]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_descends(name):
    optimizer, _ = make_optimizer(OptimizerConfig(name, learning_rate=0.05), steps=100)
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    state = optimizer.init(params)

    def loss(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    first = loss(params)
    for _ in range(20):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert loss(params) < 0.8 * first


def test_adamw_is_that_of_optax():
    import optax

    config = OptimizerConfig("adamw", 0.1, weight_decay=0.01, clip_norm=None)
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    grads = {"w": jnp.ones((2, 3)) * 0.3}
    ours, _ = make_optimizer(config, steps=10)
    theirs = optax.adamw(0.1, weight_decay=0.01)
    states = ours.init(params), theirs.init(params)
    for _ in range(3):
        update, states = zip(
            *(o.update(grads, s, params) for o, s in zip((ours, theirs), states, strict=True)), strict=True
        )
        np.testing.assert_allclose(update[0]["w"], update[1]["w"], rtol=1e-6)


@pytest.mark.parametrize(("clip", "norm"), [(0.5, 0.5), (None, 5.0), (10.0, 5.0)])
def test_clipping(clip, norm):
    optimizer, _ = make_optimizer(OptimizerConfig("sgd", 1.0, momentum=0.0, clip_norm=clip), steps=10)
    params = {"w": jnp.zeros(2)}
    updates, _ = optimizer.update({"w": jnp.asarray([3.0, 4.0])}, optimizer.init(params), params)
    assert float(jnp.linalg.norm(updates["w"])) == pytest.approx(norm)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("name", "adamx", "one of adamw, adam"),
        ("schedule", "step", "one of constant, cosine"),
        ("learning_rate", 0.0, "positive and finite"),
        ("learning_rate", float("nan"), "positive and finite"),
        ("warmup_steps", -1, "at least 0"),
        ("stages", 0, "at least 1"),
        ("stage_factor", 0.0, "above 0 and at most 1"),
        ("final_fraction", 1.5, "between 0 and 1"),
        ("weight_decay", -0.1, "at least 0"),
        ("momentum", 1.0, "below 1"),
        ("b1", -0.1, "at least 0"),
        ("b2", 1.0, "below 1"),
        ("eps", 0.0, "positive"),
        ("clip_norm", 0.0, "positive and finite, or None"),
    ],
)
def test_invalid_values_are_named_with_the_rule(field, value, rule):
    with pytest.raises(ValueError, match=f"{field} must be .*{rule}.*, got"):
        OptimizerConfig(**{field: value})


def test_contradictions():
    with pytest.raises(ValueError, match="weight_decay must be 0 for adam"):
        OptimizerConfig("adam", weight_decay=0.1)
    with pytest.raises(ValueError, match="final_fraction must be above 0 if exponential"):
        OptimizerConfig(schedule="exponential", final_fraction=0.0)
    with pytest.raises(ValueError, match="constant_stages must be between 1 and stages, 3, got 4"):
        OptimizerConfig(schedule="staircase", stages=3, constant_stages=4)
    with pytest.raises(ValueError, match="warmup_steps must be below steps, got 10 of 10"):
        make_schedule(OptimizerConfig(warmup_steps=10), steps=10)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        make_schedule(OptimizerConfig(), steps=0)
