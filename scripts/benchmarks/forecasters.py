"""Complete training steps of forecasters, including the update."""

import dataclasses

import jax
import numpy as np

from lstmx.data import Panel, SeriesWindows
from lstmx.forecasting import ForecastTask
from lstmx.models import DirectForecaster, Point
from lstmx.training import OptimizerConfig, init_state, make_keys, make_optimizer, make_step
from scripts.benchmarks import models, rivals, tables, timing
from scripts.benchmarks.rivals import OWN, Builders, Field
from scripts.benchmarks.tables import Section
from scripts.benchmarks.timing import Run

OPTIMIZER = OptimizerConfig(name="adam", learning_rate=5e-4, clip_norm=1.0)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A forecaster trained on squared errors that subtracts the last value, and its data.

    Attributes:
      name: the name of the row.
      batch: windows per batch.
      input_size: steps of history.
      horizon: steps to forecast.
      patch_size: time steps per step of the recurrent network.
      units: units of its single layer.
      readout: whether the last output is read, or all.
    """

    name: str
    batch: int
    input_size: int
    horizon: int
    patch_size: int
    units: int
    readout: str

    @property
    def label(self) -> str:
        """A description in one line."""
        return (
            f"{self.name}: {self.units} units, patches of {self.patch_size}, B = {self.batch}, "
            f"L = {self.input_size}, H = {self.horizon}"
        )

    @property
    def flops(self) -> float:
        """Floating point operations of the matmuls of a training step."""
        steps = self.input_size // self.patch_size
        layer = models.stacked(self.units, self.units, 1) + self.patch_size * self.units
        outputs = self.units * (steps if self.readout == "all" else 1) + self.input_size
        return models.training_flops(self.batch * steps, layer) + models.training_flops(
            self.batch, outputs * self.horizon
        )


def problems(quick: bool) -> list[Problem]:
    """The presets of the experiment, and one without patches."""
    if quick:
        return [Problem("quick", 4, 12, 3, 4, 6, "all")]
    return [
        Problem("ettm1", 224, 336, 96, 12, 64, "all"),
        Problem("weather", 336, 336, 96, 12, 128, "all"),
        Problem("m4-hourly", 256, 168, 48, 24, 128, "all"),
        Problem("step by step", 64, 168, 48, 1, 128, "last"),
    ]


def section(field: Field, peak: float) -> Section:
    """The table of training steps of forecasters."""
    rows, rates = models.whole_steps(
        problems(field.quick), builders, lambda problem: problem.batch, field, peak
    )
    text = [
        "A complete training step of a forecaster: subtraction of the last value, patches and their linear "
        "map, dropout, an LSTM, a linear readout of the horizon plus a linear map of the history, squared "
        "errors, gradients, clipping and Adam. lstmx runs the step of `scripts/train.py`; torch runs the "
        "same model with torch.nn.LSTM, fused Adam and clip_grad_norm_. Milliseconds, medians of "
        f"{field.rounds} rounds.",
        tables.comparison("forecaster", rows),
        "Windows per second:\n\n" + rates,
    ]
    return Section("Forecasters", "\n\n".join(text))


def builders(problem: Problem, field: Field) -> Builders:
    """The rivals of a problem."""
    sizes = {
        name: getattr(problem, name) for name in ("input_size", "horizon", "patch_size", "units", "readout")
    }
    arguments = (problem.batch, sizes, OPTIMIZER.learning_rate, OPTIMIZER.clip_norm)
    return {
        OWN: lambda: timing.rival(lstmx_step(problem)),
        **rivals.torch_pair("forecaster_step", (*arguments, field.torch_device), field),
    }


def lstmx_step(problem: Problem) -> Run:
    """A run of the training step, as the training loop compiles it."""
    steps = problem.input_size + problem.horizon + problem.batch
    values = np.random.default_rng(0).normal(size=(steps, 1)).cumsum(axis=0)
    windows = SeriesWindows(Panel(np.array([0, steps]), values), problem.input_size, problem.horizon)

    def model(rngs):
        return DirectForecaster(
            input_size=problem.input_size,
            horizon=problem.horizon,
            head=Point(),
            hidden_size=problem.units,
            patch_size=problem.patch_size,
            readout=problem.readout,
            scaler_type="last",
            linear=True,
            dropout_rate=0.2,
            rngs=rngs,
        )

    splits = {"train": windows.within(least_history=problem.input_size)}
    task = ForecastTask(windows, splits, model, batch_size=problem.batch, seed=0)
    optimizer, schedule = make_optimizer(OPTIMIZER, 1)
    keys = make_keys(0)
    state = init_state(task, optimizer, keys.init)
    step, batch = make_step(task.loss, optimizer, schedule), task.batch(0)

    def run():
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, batch, keys.step))
        return metrics

    return run
