"""Forecasting as a task for the training loop.

Axes: M windows, B batch, L steps of history, H steps of the horizon, D targets, Q quantiles.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstmx.data import SeriesWindows, WindowBatches, Windows
from lstmx.forecasting.arguments import integer
from lstmx.models import DirectForecaster, ForecastHead, RecurrentForecaster
from lstmx.training import ModuleTask

# Windows per batch of forecasts, or paths per batch of a step-by-step model.
_BATCH = 512


class Forecasts(NamedTuple):
    """Forecasts of windows, in the units of the panel.

    Attributes:
      mean: float32 [M, H, D]; the median if the head has no mean.
      quantiles: float32 [M, H, D, Q], at the requested levels.
    """

    mean: np.ndarray
    quantiles: np.ndarray


class ForecastTask(ModuleTask):
    """A forecasting model as an `lstmx.training.Task`, with its forecasts.

    Args:
      windows: the series, with the lengths of history and horizon.
      splits: the windows `(series, cutoffs)` of each split; those of "train" are trained on.
      make_model: builds the model from random streams.
      batch_size: windows per training step.
      seed: seed of the order of the windows, and of sampled paths.
      loss_units: whether the loss is in the units of the normalized `"window"`, so that large series do not
        dominate, or in those of the `"panel"`. For counts it is always in those of the panel.
      paths: number of paths that a `RecurrentForecaster` samples for each window.
      members: number of networks trained side by side from different initial parameters. The parameters of
        their distributions are averaged, and their paths pooled.

    Raises:
      ValueError: if an argument is out of range.

    Source: ensembles of networks: Lakshminarayanan, Pritzel & Blundell 2017.

    Example:
      >>> import numpy as np
      >>> from lstmx.data import Panel, SeriesWindows
      >>> from lstmx.models import DirectForecaster, Point
      >>> panel = Panel(np.array([0, 60]), np.sin(np.arange(60.0))[:, None])
      >>> windows = SeriesWindows(panel, input_size=12, horizon=3)
      >>> task = ForecastTask(
      ...     windows,
      ...     {"train": windows.within(0, 50), "validation": windows.within(50)},
      ...     lambda rngs: DirectForecaster(
      ...         input_size=12, horizon=3, head=Point(), hidden_size=4, rngs=rngs
      ...     ),
      ...     batch_size=8,
      ...     seed=0,
      ... )
      >>> params, _ = task.init(jax.random.key(0))
      >>> sorted(task.evaluate(params, "validation"))
      ['loss', 'mae', 'mse']
    """

    unit = "windows"

    def __init__(
        self,
        windows: SeriesWindows,
        splits: Mapping[str, Windows],
        make_model: Callable[[nnx.Rngs], DirectForecaster | RecurrentForecaster],
        *,
        batch_size: int,
        seed: int,
        loss_units: Literal["window", "panel"] = "window",
        paths: int = 100,
        members: int = 1,
    ):
        if loss_units not in ("window", "panel"):
            raise ValueError(f"loss_units must be window or panel, got {loss_units!r}")
        self.windows, self.windows_of, self.splits = windows, dict(splits), tuple(splits)
        self._make_model, self._loss_units = make_model, loss_units
        self._seed = seed
        self._paths, self._members = integer("paths", paths, 1), integer("members", members, 1)
        self.units_per_step = batch_size
        if "train" in splits:
            self.batches = WindowBatches(windows, *splits["train"], batch_size=batch_size, seed=seed)
            self.units_per_step = self.batches.batch_size
        self.split_model()

    def build(self, key: jax.Array) -> DirectForecaster | RecurrentForecaster:
        """The model with fresh parameters."""
        return self._make_model(nnx.Rngs(params=key))

    def init(self, key: jax.Array) -> tuple[Any, tuple]:
        """Parameters, with a leading axis for several members; nothing is carried from batch to batch."""
        return initial_params(self._make_model, key, self._members), ()

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """A batch of windows, see `lstmx.data.SeriesWindows.batch`."""
        return self.batches[step]

    def loss(
        self, params: Any, carry: tuple, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[tuple, dict]]:
        """The head's loss, averaged over the existing values and the members."""

        def of_one(model, key):
            options = {"deterministic": False, "rngs": nnx.Rngs(dropout=key)}
            losses, exists, _ = self._losses(model, batch, **options)
            return jnp.sum(losses, where=exists) / jnp.maximum(jnp.sum(exists), 1)

        return self._each(of_one, params, key).mean(), (carry, {})

    def _each(self, function, params, key):
        """`function(model, key)` of each member, stacked along a leading axis."""
        if self._members == 1:
            return jax.tree.map(lambda leaf: leaf[None], function(self.model(params), key))
        keys = jax.random.split(key, self._members)
        return jax.vmap(lambda params, key: function(self.model(params), key))(params, keys)

    def _losses(self, model, batch, **options):
        """Losses, which of them exist, and the distributions, in the units of the panel."""
        target, exists = batch["target"], batch["target_exists"]
        if isinstance(model, RecurrentForecaster):
            raw, loc, scale = model.raw(
                batch["history"], target, batch["history_exists"], exists, **_covariates(batch), **options
            )
            steps = slice(-raw.shape[1], None)
            target = jnp.concatenate([batch["history"], target], axis=1)[:, steps]
            known = jnp.concatenate([batch["history_exists"], exists], axis=1)
            # The first value of a series has no history to be forecast from.
            exists = (known[:, 1:] & (jnp.cumsum(known, axis=1)[:, :-1] > 0))[:, steps]
        else:
            raw, loc, scale = model.raw(
                batch["history"], batch["history_exists"], **_inputs(batch), **options
            )
        distribution = model.head.distribution(raw, loc, scale)
        if self._loss_units == "window" and model.head.location_scale:
            losses = model.head.loss(model.head.distribution(raw), (target - loc) / scale)
        else:
            losses = model.head.loss(distribution, target)
        return losses, exists, distribution

    def evaluate(self, params: Any, split: str) -> dict[str, float]:
        """The loss, and for a `DirectForecaster` the mean squared and absolute errors, over a whole split.

        The errors are those of the averaged forecast, the loss is the average of the members' losses.
        """
        sums: dict[str, Any] = {}
        count = 0
        for rows, batch in self._parts(self.windows_of[split]):
            metrics = {name: np.asarray(leaf)[:rows] for name, leaf in self._evaluated(params, batch).items()}
            exists = metrics.pop("exists")
            count += exists.sum()
            for name, values in metrics.items():
                sums[name] = sums.get(name, 0.0) + values.sum(where=exists, dtype=np.float64)
        return {name: float(total / max(count, 1)) for name, total in sums.items()}

    @functools.cached_property
    def _evaluated(self):
        def evaluated(params, batch):
            key = jax.random.key(0)  # It is not used.
            losses, exists, distribution = self._each(
                lambda model, key: self._losses(model, batch), params, key
            )
            metrics = {"loss": losses.mean(axis=0), "exists": exists[0]}
            if isinstance(self._shapes, DirectForecaster):
                errors = self.head.mean(_averaged(distribution)) - batch["target"]
                metrics |= {"mse": errors**2, "mae": jnp.abs(errors)}
            return metrics

        return jax.jit(evaluated)

    def forecast(self, params: Any, windows: Windows, levels: Sequence[float] = ()) -> Forecasts:
        """Forecasts of windows.

        Args:
          params: the parameters.
          windows: (series, cutoffs), int [M] each.
          levels: probabilities of quantiles.

        Returns:
          The forecasts, in the order of the windows.
        """
        means, quantiles = [], []
        for number, (rows, batch) in enumerate(self._parts(windows)):
            mean, some = self._forecast_part(params, batch, number, tuple(levels))
            means.append(np.asarray(mean)[:rows])
            quantiles.append(np.asarray(some, np.float32)[:rows])
        return Forecasts(np.concatenate(means), np.concatenate(quantiles))

    def _forecast_part(self, params, batch, number: int, levels: tuple[float, ...]):
        predicted, head = self._predicted(params, batch, number), self.head
        if isinstance(self._shapes, RecurrentForecaster):
            return predicted.mean(axis=0), np.moveaxis(np.quantile(predicted, levels, axis=0), 0, -1)
        mean = head.mean(predicted)
        return mean, head.quantiles(predicted, levels) if levels else np.zeros((*mean.shape, 0))

    @functools.cached_property
    def _predicted(self):
        """Compiled: paths of a step-by-step model, the distribution of a direct one."""

        def of_one(model, key, batch):
            history = batch["history"], batch["history_exists"]
            if isinstance(model, RecurrentForecaster):
                count = -(-self._paths // self._members)
                return model.paths(key, *history, count=count, **_covariates(batch))
            return model(*history, **_inputs(batch))

        def predicted(params, batch, number):
            key = jax.random.fold_in(jax.random.key(self._seed), number)
            members = self._each(lambda model, key: of_one(model, key, batch), params, key)
            if isinstance(self._shapes, RecurrentForecaster):
                return members.reshape(-1, *members.shape[2:])
            return _averaged(members)

        return jax.jit(predicted)

    def _parts(self, windows: Windows):
        each = self._paths if isinstance(self._shapes, RecurrentForecaster) else 1
        return self.windows.parts(windows, max(_BATCH // each, 1))

    @functools.cached_property
    def _shapes(self) -> DirectForecaster | RecurrentForecaster:
        """The model, with shapes in place of parameters."""
        return self.model(self.model_shapes)

    @property
    def head(self) -> ForecastHead:
        """The head of the model."""
        return self._shapes.head

    def display(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The loss."""
        return {"loss": metrics["loss"]}

    def sample(self, params: Any, key: jax.Array) -> str | None:
        """None: forecasts are not text."""
        return None

    def describe(self) -> str:
        """The series, and the number of windows of each split."""
        panel, windows = self.windows.panel, self.windows
        sizes = ", ".join(f"{name} {len(series):,}" for name, (series, _) in self.windows_of.items())
        return (
            f"{len(panel):,} series of {panel.lengths.min():,} to {panel.lengths.max():,} steps; windows of "
            f"{windows.input_size} steps to forecast {windows.horizon}: {sizes}"
        )


def initial_params(make_model: Callable[[nnx.Rngs], nnx.Module], key: jax.Array, members: int = 1) -> Any:
    """Initial parameters as a dict, with a leading axis for several members."""

    def fresh(key):
        return nnx.to_pure_dict(nnx.state(make_model(nnx.Rngs(params=key))))

    return fresh(key) if members == 1 else jax.vmap(fresh)(jax.random.split(key, members))


def _averaged(distributions: Any) -> Any:
    """Distributions with the average of each parameter over the leading axis."""
    return jax.tree.map(lambda leaf: leaf.mean(axis=0), distributions)


def _covariates(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The exogenous variables of a step-by-step model, as far as there are any."""
    given = {name: batch[name] for name in ("future", "static") if batch[name].shape[-1]}
    return {**given, "series": batch["series"]}


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The exogenous variables of a direct model, as far as there are any."""
    given = {"historic": batch["historic"]} if batch["historic"].shape[-1] else {}
    return {**_covariates(batch), **given}
