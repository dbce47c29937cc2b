import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from lstmx.training import OptimizerConfig, make_optimizer, restore_params, train
from lstmx.training import checkpoint as checkpoints
from lstmx.training.averaging import exchange_average, observe_validation
from lstmx.training.state import abstract_state

toy = experiments.load(str(Path(__file__).parent / "toy_experiment.py"))
SGD = OptimizerConfig("sgd", 0.1, momentum=0.0, clip_norm=None, average_patience=2)


@pytest.mark.parametrize(
    "losses", [[5, 4, 3, 2, 1, 0.5], [5, 4, 6, 4.5, 3, 9], [1, 2, 3, 1, 1, 1], [3, 3, 3, 3, 3, 3]]
)
def test_it_is_the_published_loop(losses):
    optimizer, _ = make_optimizer(SGD, steps=100)
    params = {"w": jnp.arange(3.0)}
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    w, mean, count, before = np.arange(3.0), None, 0, []
    random = np.random.default_rng(0)
    for loss in losses:
        for _ in range(3):
            gradient = random.normal(size=3)
            w = w - 0.1 * gradient
            if mean is not None:
                count += 1
                mean = w if count == 1 else mean + (w - mean) / count
            updates, state = step({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
            params = {"w": params["w"] + updates["w"]}
        if mean is None and len(before) > 2 and loss > min(before[:-2]):
            mean = w
        before.append(loss)
        state = observe_validation(state, loss)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.average["w"], w if mean is None else mean, rtol=1e-5)
    assert int(state.count) == count


@pytest.mark.parametrize(("patience", "horizon"), [(None, 4), (1, 4), (None, 1)])
def test_with_a_horizon_older_parameters_fade(patience, horizon):
    config = dataclasses.replace(SGD, average_patience=patience, average_horizon=horizon)
    optimizer, _ = make_optimizer(config, steps=100)
    params, losses = {"w": jnp.arange(3.0)}, [1.0, 2.0, 3.0, 4.0]
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    w, mean, count = np.arange(3.0), np.arange(3.0), 0
    random = np.random.default_rng(0)
    for at, loss in enumerate(losses):
        for _ in range(5):
            gradient = random.normal(size=3)
            w = w - 0.1 * gradient
            begun = patience is None or at > 2  # the third is above the first
            count += begun
            mean = mean + max(1 / max(count, 1), 1 / horizon) * (w - mean) if begun else w
            updates, state = step({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
            params = {"w": params["w"] + updates["w"]}
        state = observe_validation(state, loss)
    np.testing.assert_allclose(state.average["w"], mean, rtol=1e-5)
    assert (horizon == 1) == bool(np.allclose(state.average["w"], params["w"], rtol=1e-6))


def run(folder, losses):
    task = toy.Toy(toy.Config())
    task.validation_losses = list(losses)
    loop = dataclasses.replace(toy.Config().loop, eval_every=4, checkpoint_every=4, keep_latest=9)
    return task, train(task, folder, steps=20, seed=0, optimizer=SGD, loop=loop, quiet=True)


def test_checkpoints_hold_the_average_and_go_on_with_the_parameters(tmp_path):
    # Only the fourth has one before the last two, and is above it.
    task, whole = run(tmp_path / "whole", [1.0, 2.0, 3.0, 4.0, 5.0])
    target = checkpoints.state_items(abstract_state(task, make_optimizer(SGD, 20)[0]))
    for step in (12, 16, 20):
        restored = checkpoints.restore(tmp_path / "whole", step, target)
        state = checkpoints.items_state(restored.items)
        assert bool(state.opt_state.started) == (step >= 16)
        kept = restore_params(tmp_path / "whole", task, step).items["params"]
        assert toy.fingerprint(kept) == toy.fingerprint(state.opt_state.average)
        assert (toy.fingerprint(kept) != toy.fingerprint(state.params)) == (step == 20)
    last = checkpoints.items_state(checkpoints.restore(tmp_path / "whole", 20, target).items)
    assert toy.fingerprint(last) == toy.fingerprint(whole.state)


def test_evaluation_takes_the_average(tmp_path):
    seen = []
    task = toy.Toy(toy.Config())
    plain = task.evaluate

    def evaluate(params, split):
        seen.append(toy.fingerprint(params))
        return {**plain(params, split), "loss": float(len(seen))}

    task.evaluate = evaluate
    loop = dataclasses.replace(toy.Config().loop, eval_every=4)
    result = train(task, tmp_path, steps=20, seed=0, optimizer=SGD, loop=loop, quiet=True)
    average, _ = exchange_average(result.state.params, result.state.opt_state)
    assert seen[-1] == toy.fingerprint(average) != toy.fingerprint(result.state.params)


def test_others_do_not_average():
    optimizer, _ = make_optimizer(OptimizerConfig("sgd", 0.1), steps=10)
    params = {"w": jnp.ones(2)}
    state = optimizer.init(params)
    assert observe_validation(state, 1.0) is state
    assert exchange_average(params, state) == (params, state)
    with pytest.raises(ValueError, match="average_patience must be at least 1, or None"):
        OptimizerConfig("sgd", 0.1, average_patience=0)
    with pytest.raises(ValueError, match="average_horizon must be at least 1, or None"):
        OptimizerConfig("sgd", 0.1, average_horizon=0)
