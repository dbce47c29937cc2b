"""The problems: shapes, their arrays, their work and the shortest possible time."""

import functools
import os
from typing import Literal, NamedTuple

import numpy as np

Mode = Literal["forward", "training"]
MODES: tuple[Mode, ...] = ("forward", "training")


class Shape(NamedTuple):
    """One LSTM layer and its input."""

    batch: int
    steps: int
    features: int
    units: int

    def __str__(self):
        return ", ".join(map(str, self))


# Small and large layers of language models, one stream, and forecasting.
SHAPES = tuple(
    Shape(*sizes)
    for sizes in (
        (32, 128, 64, 64),
        (32, 128, 256, 256),
        (20, 32, 200, 200),
        (20, 32, 650, 650),
        (128, 24, 32, 64),
        (1, 512, 128, 128),
        (64, 48, 512, 512),
        (64, 784, 1, 128),
        (256, 96, 7, 128),
    )
)
# Streaming, forecasting, Baidu's DeepBench, and the language model of Zaremba et al. 2014.
PUBLISHED = tuple(
    Shape(*sizes)
    for sizes in (
        (1, 256, 64, 64),
        (32, 96, 8, 64),
        (64, 168, 32, 128),
        (128, 336, 64, 128),
        (256, 720, 64, 256),
        (64, 150, 256, 256),
        (32, 25, 512, 512),
        (64, 25, 1024, 1024),
        (20, 35, 650, 650),
    )
)
# The shape at which FlashRNN (Pöppel et al. 2024) is compared with cuDNN.
GPU_ONLY = (Shape(16, 1024, 768, 768),)
STREAMING = (Shape(1, 1, 64, 64), Shape(1, 1, 64, 256), Shape(16, 1, 256, 256))
MEMORY = (Shape(32, 128, 256, 256), Shape(20, 32, 650, 650), Shape(64, 784, 1, 128))
TINY = (Shape(2, 5, 3, 4), Shape(3, 4, 2, 5))


class Arrays(NamedTuple):
    """Inputs and weights, gates in the order i, f, g, o."""

    xs: np.ndarray  # [T, B, D]
    kernel: np.ndarray  # [D, 4H]
    recurrent: np.ndarray  # [H, 4H]
    bias: np.ndarray  # [4H]


@functools.lru_cache(maxsize=1)
def arrays(shape: Shape) -> Arrays:
    """The arrays of a shape in float32, the same in every process, so that all rivals compute the same."""
    batch, steps, features, units = shape
    rng = np.random.default_rng(0)
    bound = units**-0.5

    def uniform(*sizes):
        return rng.uniform(-bound, bound, sizes).astype(np.float32)

    xs = rng.normal(size=(steps, batch, features)).astype(np.float32)
    return Arrays(xs, uniform(features, 4 * units), uniform(units, 4 * units), uniform(4 * units))


def flops(shape: Shape, mode: Mode) -> tuple[int, int]:
    """The FLOPs of the matmuls (2 per multiply-add) that can leave the loop, and of one step in the loop.

    A training step has two passes over time with equal work, including gradients with respect to the inputs.
    """
    batch, steps, features, units = shape
    whole = 8 * steps * batch * units * (features + units) * (3 if mode == "training" else 1)
    step = 8 * batch * units**2
    return whole - sweeps(mode) * steps * step, step


def sweeps(mode: Mode) -> int:
    """The number of passes over time."""
    return 2 if mode == "training" else 1


def limit(shape: Shape, mode: Mode, peak: float, latency: float = 0.0) -> float:
    """The shortest possible time of a layer in seconds.

    hoisted FLOPs / peak + sweeps * T * max(latency, FLOPs of a step / peak)

    Args:
      shape: the shape.
      mode: forward pass or training step.
      peak: FLOP/s of the fastest matmul measured.
      latency: the shortest possible step in seconds; 0 on a CPU.
    """
    hoisted, step = flops(shape, mode)
    return hoisted / peak + sweeps(mode) * shape.steps * max(latency, step / peak)


def lengths(batch: int, steps: int, fill: float) -> np.ndarray:
    """Lengths `[B]`, from short to nearly T, of rows that fill a share of the steps; in random order."""
    quantiles = (np.arange(batch) + 0.5) / batch
    # The mean of u**p over the unit interval is 1 / (p + 1).
    rows = np.maximum(1, np.round(steps * quantiles ** (1 / fill - 1))).astype(np.int32)
    return np.random.default_rng(0).permutation(rows)


def packed_rows(rows: np.ndarray, steps: int) -> list[list[int]]:
    """Packs sequences of the given lengths into rows of T steps, the longest first.

    Example:
      >>> packed_rows(np.array([3, 5, 2, 4]), 5)
      [[5], [4], [3, 2]]
    """
    packed: list[list[int]] = []
    for length in sorted(rows.tolist(), reverse=True):
        place = next((row for row in packed if sum(row) + length <= steps), None)
        if place is None:
            packed.append([length])
        else:
            place.append(length)
    return packed


def threads() -> int:
    """The number of processors that this process may use, which is the number of threads of every rival."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
