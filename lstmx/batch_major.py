"""`lstmx.scan` with the batch first, as Flax lays out its arrays."""

import jax
import jax.numpy as jnp

from lstmx.cells.base import PyTree
from lstmx.scan import scan


def batch_major_scan(
    network, params: PyTree, xs: jax.Array, initial_state: PyTree = None, *, mask=None, resets=None, **options
) -> tuple[PyTree, jax.Array]:
    """Runs a cell or network over sequences.

    Args:
      network: the cell or network.
      params: its parameters.
      xs: `[*batch, T, D]`.
      initial_state: leaves `[*batch, ...]`, None for that of the network.
      mask: bool `[*batch, T]`.
      resets: bool `[*batch, T]`.
      **options: the other options of `lstmx.scan`.

    Returns:
      `(final_state, ys)`, ys `[*batch, T, H]`.

    Raises:
      ValueError: as `lstmx.scan`.
    """
    xs = jnp.asarray(xs)
    if xs.ndim < 2:
        raise ValueError(f"xs must be [*batch, time, features], got shape {xs.shape}")
    flags = {
        name: jnp.moveaxis(jnp.asarray(value), -1, 0)
        for name, value in {"mask": mask, "resets": resets}.items()
        if value is not None
    }
    state, ys = scan(network, params, jnp.moveaxis(xs, -2, 0), initial_state, **flags, **options)
    return state, jnp.moveaxis(ys, 0, -2)
