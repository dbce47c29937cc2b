"""`lstmx.scan` with the batch first, as Flax lays out its arrays."""

import jax
import jax.numpy as jnp

from lstmx.cells.base import PyTree
from lstmx.scan import scan


def batch_major_scan(
    network,
    params: PyTree,
    xs: jax.Array,
    initial_state: PyTree = None,
    *,
    mask=None,
    resets=None,
    segment_ids=None,
    **options,
) -> tuple[PyTree, jax.Array] | tuple[PyTree, jax.Array, PyTree]:
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
    xs = jnp.asarray(xs)
    time = xs.ndim - 1 - network.num_feature_axes
    if time < 0:
        raise ValueError(f"xs must be [*batch, time, features], got shape {xs.shape}")
    flags = {"mask": mask, "resets": resets, "segment_ids": segment_ids}
    flags = {k: jnp.moveaxis(jnp.asarray(v), -1, 0) for k, v in flags.items() if v is not None}
    state, *stacks = scan(network, params, jnp.moveaxis(xs, time, 0), initial_state, **flags, **options)
    return state, *jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, time), stacks)
