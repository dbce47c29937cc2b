"""What the tests of hand-written reverse passes differentiate, under which options."""

import jax
import jax.numpy as jnp
import numpy as np

import lstmx

LENGTHS = np.array([7, 0, 3, 1])
MASK = np.random.default_rng(0).random((7, 4)) < 0.6
RESETS = np.random.default_rng(1).random((7, 4)) < 0.3

# Of `lstmx.scan`, for cases of 7 steps and 4 rows.
OPTIONS = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": MASK},
    "resets": {"resets": RESETS},
    "mask and resets": {"mask": MASK, "resets": RESETS},
    "reverse": {"reverse": True},
    "reverse, lengths and resets": {"lengths": LENGTHS, "resets": RESETS, "reverse": True},
}

EVERY = (0, 1, 2)  # parameters, xs, state


def loss_and_results_of(cell, **options):
    """A loss that depends on every output and on every leaf of the final state; and these."""

    def loss(params, xs, state):
        results = lstmx.scan(cell, params, xs, state, **options)
        # Shifted, so that the cotangent of a zero is not zero.
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(results)), results

    return loss


def loss_of(cell, **options):
    """The loss alone."""
    loss = loss_and_results_of(cell, **options)
    return lambda *case: loss(*case)[0]
