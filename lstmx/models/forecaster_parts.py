"""Parts that the forecasters share: recurrent layers, static features, concatenated inputs."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import lstmx
import lstmx.nnx
from lstmx.models.arguments import CELLS, make_cell
from lstmx.models.forecast_heads import ForecastHead


class StaticFeatures(nnx.Module):
    """Embeds static features and series as a vector `[B, 1, hidden]` that is added to the inputs."""

    def __init__(
        self, static: int, num_series: int, hidden_size: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ):
        self.of_static = (
            nnx.Linear(static, hidden_size, use_bias=False, dtype=dtype, rngs=rngs) if static else None
        )
        self.of_series = nnx.Embed(num_series, hidden_size, dtype=dtype, rngs=rngs) if num_series else None

    def __call__(self, static: Any, series: Any) -> jax.Array | float:
        """The vector for features `[B, F]` and numbers of series `[B]`; 0 without either."""
        total: Any = 0.0
        if self.of_static is not None:
            total = total + self.of_static(static)[:, None]
        if self.of_series is not None:
            total = total + self.of_series(series)[:, None]
        return total


def recurrent_layers(
    cell: str,
    hidden_size: int,
    num_layers: int,
    dropout_rate: float,
    *,
    dtype: DTypeLike | None,
    rngs: nnx.Rngs,
) -> lstmx.nnx.Layer:
    """Layers of a cell named in `CELLS`, with `hidden_size` input features."""
    layer = make_cell(cell, hidden_size, dtype=dtype, choices=tuple(CELLS))
    network = lstmx.networks.stacked(layer, num_layers, bidirectional=False, dropout_rate=dropout_rate)
    return lstmx.nnx.Layer(network, hidden_size, rngs=rngs)


def require_head(head: ForecastHead) -> None:
    """Raises TypeError unless it is a head.

    Example:
      >>> require_head("mse")
      Traceback (most recent call last):
      TypeError: head must be a ForecastHead, such as head_named('mse'), got 'mse'
    """
    if isinstance(head, type) or not isinstance(head, ForecastHead):
        raise TypeError(f"head must be a ForecastHead, such as head_named('mse'), got {head!r}")


def joined(*parts: jax.Array | None) -> jax.Array:
    """The features that are given, concatenated, as float32."""
    given = [jnp.asarray(part, jnp.float32) for part in parts if part is not None]
    return jnp.concatenate(given, axis=-1)
