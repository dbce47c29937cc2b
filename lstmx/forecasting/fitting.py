"""What a forecaster of frames is made of: its network, and how that is trained."""

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from lstmx.forecasting.task import ForecastTask
from lstmx.models import DirectForecaster, RecurrentForecaster, head_named
from lstmx.training import LoopConfig, OptimizerConfig, restore_params, train

if TYPE_CHECKING:
    from lstmx.forecasting.forecaster import LSTMForecaster

# Of the head `quantiles`: the bounds of intervals of up to 95 %.
LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)


def network(
    of: "LSTMForecaster", sizes: Mapping[str, int], count: int, rngs: nnx.Rngs
) -> DirectForecaster | RecurrentForecaster:
    """The network of a forecaster with fresh parameters.

    Args:
      of: the forecaster.
      sizes: how many covariates there are of each kind.
      count: how many series.
      rngs: `params`.
    """
    common = {
        "input_size": of.input_size,
        "horizon": of.h,
        "head": head_named(of.head, LEVELS if of.head == "quantiles" else None),
        "future": sizes["future"],
        "static": sizes["static"],
        "num_series": count if of.know_series else 0,
        "cell": of.cell,
        "hidden_size": of.encoder_hidden_size,
        "num_layers": of.encoder_n_layers,
        "scaling": of.scaler_type,
        "season": of.season_length,
        "dropout_rate": of.dropout_rate,
        "rngs": rngs,
    }
    if of.decoder == "recurrent":
        return RecurrentForecaster(lags=of.lags, **common)
    linear = of.linear and common["head"].location_scale
    return DirectForecaster(
        historic=sizes["historic"],
        patch_size=of.patch_size,
        linear=linear,
        shrinkage=of.shrinkage,
        missing=True,
        **common,
    )


def trained(task: ForecastTask, of: "LSTMForecaster", *, choose: bool) -> Any:
    """The parameters that training finds: with `choose` the best by validation, else the last."""
    optimizer = OptimizerConfig(
        learning_rate=of.learning_rate,
        schedule="cosine",
        warmup_steps=min(50, of.max_steps // 10),
        final_fraction=0.02,
    )
    every = of.val_check_steps if choose else 0
    loop = LoopConfig(eval_every=every, checkpoint_every=0, tensorboard=False, sample=False)
    with tempfile.TemporaryDirectory(prefix="lstmx-forecaster-") as folder:
        train(
            task,
            folder,
            steps=of.max_steps,
            seed=of.random_seed,
            optimizer=optimizer,
            loop=loop,
            quiet=of.quiet,
        )
        which = "best" if choose else "latest"
        return jax.device_get(restore_params(folder, task, which).items["params"])
