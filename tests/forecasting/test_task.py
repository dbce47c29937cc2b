"""The forecasting task: several networks side by side give what each gives by itself."""

import operator

import jax
import numpy as np
import pytest

from lstmx.data import Panel, SeriesWindows
from lstmx.forecasting import ForecastTask
from lstmx.models import DirectForecaster, Gaussian, Quantiles, RecurrentForecaster

SERIES = np.random.default_rng(0).normal(3, 2, (90, 1)).astype(np.float32)
WINDOWS = SeriesWindows(Panel(np.array([0, 50, 90]), SERIES), input_size=12, horizon=4)
LEVELS = (0.1, 0.5, 0.9)


def task(kind=DirectForecaster, members=1, head=None, paths=6):
    def make(rngs):
        return kind(input_size=12, horizon=4, head=head or Gaussian(), hidden_size=5, rngs=rngs)

    splits = {"train": WINDOWS.within(0, 30), "validation": WINDOWS.within(30)}
    return ForecastTask(WINDOWS, splits, make, batch_size=8, seed=0, paths=paths, members=members)


def apart(params):
    """The parameters of each member."""
    return [jax.tree.map(operator.itemgetter(number), params) for number in range(3)]


@pytest.mark.parametrize("kind", [DirectForecaster, RecurrentForecaster])
def test_the_loss_is_the_average(kind):
    several, one = task(kind, 3), task(kind)
    params, _ = several.init(jax.random.key(0))
    key, batch = jax.random.key(1), one.batch(0)

    def slopes(task, params):
        return jax.jit(jax.value_and_grad(lambda params: task.loss(params, (), batch, key)[0]))(params)

    loss, gradient = slopes(several, params)
    losses, gradients = zip(*(slopes(one, member) for member in apart(params)), strict=True)
    assert np.ptp(losses) > 0.01
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    for found, expected in zip(apart(gradient), gradients, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-3, atol=1e-5), found, expected)


@pytest.mark.parametrize("head", [Gaussian(), Quantiles(LEVELS)])
def test_forecasts_are_the_average(head):
    several, one = task(members=3, head=head), task(head=head)
    params, _ = several.init(jax.random.key(0))
    split = several.windows_of["validation"]
    levels = LEVELS if isinstance(head, Quantiles) else ()
    found = several.forecast(params, split, levels)
    singles = [one.forecast(member, split, levels) for member in apart(params)]
    for index in range(2):
        expected = np.mean([single[index] for single in singles], axis=0)
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-5)
    targets = np.concatenate(
        [one.windows.batch(*(part[[row]] for part in split))["target"] for row in range(len(split[0]))]
    )
    together, singly = (
        several.evaluate(params, "validation"),
        [one.evaluate(m, "validation") for m in apart(params)],
    )
    np.testing.assert_allclose(together["mse"], np.mean((found.mean - targets) ** 2), rtol=1e-4)
    np.testing.assert_allclose(together["loss"], np.mean([each["loss"] for each in singly]), rtol=1e-4)
    assert together["mse"] < np.mean([each["mse"] for each in singly])


def test_paths_of_all_members_are_put_together():
    several, one = task(RecurrentForecaster, 3, paths=7), task(RecurrentForecaster, paths=3)
    params, _ = several.init(jax.random.key(0))
    batch = WINDOWS.batch(*(part[:4] for part in several.windows_of["validation"]))
    paths = np.asarray(several._predicted(params, batch, 0))
    assert paths.shape == (9, 4, 4, 1)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)
    for number, member in enumerate(apart(params)):
        model = one.model(member)
        expected = model.paths(keys[number], batch["history"], batch["history_exists"], count=3)
        np.testing.assert_allclose(paths[3 * number : 3 * number + 3], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["members", "paths"])
@pytest.mark.parametrize("value", [0, True, 1.5])
def test_there_is_at_least_one_member_and_path(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value}"):
        task(**{name: value})
