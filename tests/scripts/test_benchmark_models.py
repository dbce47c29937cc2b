"""Whole training steps in the benchmark: the models are the same on both sides, and learn."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lstmx.models import DirectForecaster, LanguageModel, Point
from scripts.benchmarks import forecasters, models, rivals, text_models

pytestmark = pytest.mark.full


def torch_rivals():
    pytest.importorskip("torch", reason="torch is a rival")
    from scripts.benchmarks import torch_rivals

    return torch_rivals


@pytest.mark.conformance
def test_models_are_the_same():
    problem = models.problems(quick=True)[0]
    run = models.lstmx_step(problem)
    losses = [float(run()["loss"]) for _ in range(30)]
    assert losses[0] == pytest.approx(np.log(problem.vocabulary), rel=0.1)
    assert losses[-1] < 0.97 * losses[0]  # the same batch again and again is learnt
    model = LanguageModel(20, embedding_size=8, hidden_size=16, num_layers=2, rngs=nnx.Rngs(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    torch_model = torch_rivals().LanguageModel(20, 8, 16, 2, 0.0)
    # torch has a second bias in each layer.
    assert sum(p.numel() for p in torch_model.parameters()) == count + 2 * 4 * 16


@pytest.mark.conformance
def test_the_models_of_torch_learn():
    arguments = ((4, 3), {"vocabulary": 5, "embedding": 4, "units": 6, "layers": 2, "dropout": 0.0})
    for rule, rate in (("adam", 0.01), ("sgd", 1.0)):
        run = torch_rivals().model_step(*arguments, rule, rate, 1.0)
        losses = [float(run()) for _ in range(30)]
        assert losses[-1] < 0.97 * losses[0]


@pytest.mark.conformance
def test_forecasters_are_the_same_and_learn():
    problem = forecasters.problems(quick=True)[0]
    run = forecasters.lstmx_step(problem)
    losses = [float(run()["loss"]) for _ in range(60)]
    assert losses[-1] < 0.97 * losses[0]
    model = DirectForecaster(
        input_size=12, horizon=3, head=Point(), hidden_size=6, patch_size=4, readout="all", linear=True,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    sizes = {"input_size": 12, "horizon": 3, "patch_size": 4, "units": 6, "readout": "all"}
    torch_model = torch_rivals().Forecaster(**sizes)
    assert sum(p.numel() for p in torch_model.parameters()) == count + 4 * 6
    run = torch_rivals().forecaster_step(4, sizes, 0.01, 1.0)
    losses = [float(run()) for _ in range(30)]
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.conformance
@pytest.mark.parametrize("problem", text_models.problems(quick=True), ids=lambda problem: problem.name)
def test_text_models_are_the_same_and_learn(problem):
    torch_rivals()
    run = text_models.lstmx_step(problem)
    losses = [float(run()["loss"]) for _ in range(60)]
    assert losses[-1] < 0.97 * losses[0]
    task = text_models.task_of(problem)
    params, _ = task.init(jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    from scripts.benchmarks import torch_text_models

    built = []
    made = torch_text_models._made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_text_models, "_made", lambda *args: built.append(made(*args)) or built[-1])
        with rivals.field("cpu", ("torch",)) as field:
            builders = text_models.builders(problem, field)
            builders["torch"]()
            (network, _), units = built[0], problem.config.model.hidden_size
            # torch has a second bias in each direction and in its cell.
            more = 2 * 4 * units if problem.name == "sentiment" else 2 * 4 * units // 2 + 4 * units
            assert sum(p.numel() for p in network.parameters()) == count + more


def test_the_table_of_forecasters():
    text = forecasters.section(rivals.Field(rounds=2, quick=True, only=()), 1e11).text
    assert "| quick: 6 units, patches of 4, B = 4, L = 12, H = 3 |" in text
    assert "* quick: lstmx " in text
