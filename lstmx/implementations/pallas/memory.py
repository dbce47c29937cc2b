"""The shared memory of the kernel in `lstmx.implementations.pallas.kernel`, and how many units fit into it.

A CTA (a block of threads, which one multiprocessor runs) has 227 KiB on Hopper, and W_hh takes 8 H^2 bytes.
Weights that do not fit into one CTA are spread over a cluster of CTAs, which run at the same time and can
write to each other's memory: each holds the weights of its own units, 512 H bytes for 64 of them. The
operand, however, must be in the memory of every CTA as a whole, and twice: 32 H bytes in the LSTM's forward
loop, 128 H in its reverse. With 26 KiB for everything else the reverse fits up to H = 320, with 992 bytes
left; the forward loop by itself would fit up to 384.

This module does not import Pallas, so that `refusal` does not have to either.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ROWS = 8  # of the batch in a tile: the least number of columns of the matrix instruction
UNITS = 64  # of a warpgroup: the rows of the matrix instruction
SLOTS = 2  # one is read while the other is filled
BYTES = 227 * 1024  # of shared memory of a CTA
MOST_CTAS = 8  # in a cluster, wherever there are clusters


class Step(NamedTuple):
    """The inputs and outputs of a step."""

    products: int  # of the weights with the operand, for a unit
    parts: int  # of the operand, for a unit; bfloat16
    planes: tuple[str, ...]  # their types
    emitted: int  # float32
    carry: int  # float32


# The steps of `lstmx.implementations.pallas.lstm`, with everything that options can add.
FORWARD = Step(
    products=4,
    parts=1,
    planes=("bfloat16",) * 5,  # z of the gates; flags of skipped steps
    emitted=1,
    carry=2,
)
BACKWARD = Step(
    products=1,
    parts=4,
    # Local derivatives, forget gate, cotangents of outputs and of cell states; flags of skipped steps.
    planes=("bfloat16",) * 5 + ("float32", "bfloat16", "float32", "bfloat16"),
    emitted=0,
    carry=2,
)


def buffers(step: Step, groups: int, ctas: int) -> dict[str, Any]:
    """The arrays in the shared memory of each CTA, for `groups` warpgroups in a cluster."""
    own = groups // ctas
    columns = step.parts * groups

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    return {
        "weights": array("bfloat16", own, step.products * columns, UNITS, UNITS),
        "operand": array("bfloat16", SLOTS, columns, ROWS, UNITS),
        "planes": [array(dtype, SLOTS, own, ROWS, UNITS) for dtype in step.planes],
        "emitted": [array("float32", SLOTS, own, ROWS, UNITS)] * step.emitted,
        "carry": [array("float32", own, ROWS, UNITS)] * step.carry,
    }


def barriers(groups: int, ctas: int) -> dict[str, int]:
    """The barriers in the shared memory of each CTA."""
    own = groups // ctas
    return {"first": own, "arrived": own * SLOTS, "together": 1}


def taken(step: Step, groups: int, ctas: int) -> int:
    """The bytes of shared memory that each CTA needs."""
    arrays = jax.tree.leaves(buffers(step, groups, ctas))
    barrier_bytes = 8 * sum(barriers(groups, ctas).values())
    return sum(array.size * array.dtype.itemsize for array in arrays) + barrier_bytes


def fewest_ctas(step: Step, groups: int) -> int | None:
    """The smallest number of CTAs that hold the warpgroups; None if no cluster is large enough."""
    divisors = [ctas for ctas in range(1, MOST_CTAS + 1) if groups % ctas == 0]
    return next((ctas for ctas in divisors if taken(step, groups, ctas) <= BYTES), None)


def most_ctas(hidden_size: int) -> int:
    """The CTAs of a cluster in the loop that needs more of them, the forward loop or its reverse.

    Example:
      >>> most_ctas(64), most_ctas(256)
      (1, 4)
    """
    groups = -(-hidden_size // UNITS)
    found = [fewest_ctas(step, groups) for step in (FORWARD, BACKWARD)]
    return max(ctas for ctas in found if ctas is not None)


def _most_groups() -> int:
    groups = 1
    while all(fewest_ctas(step, groups + 1) for step in (FORWARD, BACKWARD)):
        groups += 1
    return groups


MOST_UNITS = UNITS * _most_groups()
