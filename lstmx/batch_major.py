"""What the layers of `lstmx.nnx` and `lstmx.linen` share: `lstmx.scan` with the batch first, and checks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lstmx import axes
from lstmx.cells.base import Cell, PyTree, described
from lstmx.cells.capabilities import Network
from lstmx.scan import scan


def batch_major_scan(
    network: Cell | Network,
    params: PyTree,
    xs: jax.Array,
    initial_state: PyTree = None,
    *,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    **options: Any,
) -> tuple[PyTree, jax.Array, *tuple[PyTree, ...]]:
    """Runs a cell or network over sequences.

    Args:
      network: the cell or network.
      params: its parameters.
      xs: `[*batch, T, D]`.
      initial_state: leaves `[*batch, ...]`, None for that of the network.
      mask: bool `[*batch, T]`.
      resets: bool `[*batch, T]`.
      segment_ids: integers `[*batch, T]`.
      **options: the other options of `lstmx.scan`.

    Returns:
      `(final_state, ys)`, ys `[*batch, T, H]`, and with `return_states` states or gates `[*batch, T, ...]`.

    Raises:
      ValueError: as `lstmx.scan`.
    """
    xs = require_sequences(network, xs)
    time = xs.ndim - 1 - network.num_feature_axes
    given = {"mask": mask, "resets": resets, "segment_ids": segment_ids}
    flags: dict[str, Any] = {k: jnp.asarray(v) for k, v in given.items() if v is not None}
    for name, flag in flags.items():
        if flag.ndim == 0:
            raise ValueError(f"{name} must be [*batch, time] = {xs.shape[: time + 1]}, got ()")
        flags[name] = jnp.moveaxis(flag, -1, 0)
    with axes.batch_first():
        state, *stacks = scan(network, params, jnp.moveaxis(xs, time, 0), initial_state, **flags, **options)
    return state, *jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, time), stacks)


def require_sequences(network: Cell | Network, xs: jax.Array) -> jax.Array:
    """The inputs of a layer as an array.

    Raises:
      TypeError: if they are a tuple or dictionary, such as a state.
      ValueError: if they have too few axes.
    """
    if isinstance(xs, tuple | dict):
        raise TypeError(
            f"xs must be an array, got {described(xs)}; the order of arguments is layer(xs, initial_state)"
        )
    xs = jnp.asarray(xs)
    if xs.ndim < 1 + network.num_feature_axes:
        raise ValueError(f"xs must be [*batch, time, features], got shape {xs.shape}")
    return xs


def require_layers_between(num_layers: int, dropout_rate: float, connections: str) -> None:
    """Refuses options of what is between layers if there is one layer only.

    Raises:
      ValueError: if there is one that has no effect.

    Example:
      >>> require_layers_between(1, 0.5, "plain")
      Traceback (most recent call last):
      ValueError: dropout_rate=0.5 has no effect with num_layers=1: it is applied between layers
    """
    if num_layers == 1 and dropout_rate:
        raise ValueError(
            f"dropout_rate={dropout_rate} has no effect with num_layers=1: it is applied between layers"
        )
    if num_layers == 1 and connections == "residual":
        raise ValueError('connections="residual" has no effect with num_layers=1')
