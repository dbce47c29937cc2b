"""The processor, threads and versions of a measurement, and the peak rate of matmuls."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scripts.benchmarks import problems, timing
from scripts.benchmarks.rivals import Field

_STAT = Path("/proc/stat")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "onnxruntime", "numpy")


def choose_device(device: str) -> None:
    """Makes jax use a CPU or a GPU.

    Raises:
      RuntimeError: if there is no GPU.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    # Otherwise jax reserves most of the memory, which leaves too little for the other libraries.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    found = jax.default_backend()
    if found != "gpu":
        asked = os.environ.get("JAX_PLATFORMS")
        because = f" (JAX_PLATFORMS={asked})" if asked else ""
        raise RuntimeError(
            f"--device gpu: jax finds no GPU on this machine, its platform is {found}{because}"
        )


class Busy(NamedTuple):
    """Processor seconds so far: of this process and its finished children, and of all processes."""

    own: float
    all: float
    clock: float


def busy(stat: str | None = None) -> Busy | None:
    """The processor seconds so far; None if the system does not report them.

    Args:
      stat: the contents of /proc/stat, None to read it.
    """
    if stat is None:
        if not _STAT.exists():
            return None
        stat = _STAT.read_text()
    # user nice system idle iowait irq softirq steal
    ticks = [int(number) for number in stat.split("\n", 1)[0].split()[1:9]]
    waiting = ticks[3] + ticks[4]
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return Busy(own, (sum(ticks) - waiting) / os.sysconf("SC_CLK_TCK"), time.perf_counter())


def others_share(before: Busy, after: Busy) -> float:
    """The share of this process's processors that other processes used, from 0 to 1."""
    others = (after.all - before.all) - (after.own - before.own)
    return max(0.0, others / (after.clock - before.clock) / problems.threads())


def description() -> str:
    """The device, threads and versions in one line."""
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else f"{device.device_kind}, driven by {_processor()}"
    count = f"{problems.threads()} threads"
    return f"{kind}, {count}, {platform.system()}, Python {platform.python_version()}, {', '.join(versions)}"


def matmul_peak(field: Field) -> float:
    """FLOP/s of the fastest of several square matmuls by jax and, on a CPU, by torch."""
    sizes = (64,) if field.quick else (1024, 2048) if field.device == "cpu" else (4096, 8192)
    best = 0.0
    for size in sizes:
        run = _jax_matmul(size, field.dtype)
        runs = [run]
        if field.torch and field.device == "cpu":
            from scripts.benchmarks import torch_rivals

            runs.append(torch_rivals.matmul(size))
        for run in runs:
            run()
            seconds = min(timing.seconds(run, 1) for _ in range(10))
            best = max(best, 2 * size**3 / seconds)
    return best


def _jax_matmul(size: int, dtype: str) -> timing.Run:
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(size, size)), dtype) for _ in range(2))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(a, b))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    wide = any("avx512f" in line for line in lines if line.startswith("flags"))
    return (names[0] if names else platform.processor() or platform.machine()) + (
        " (AVX-512)" if wide else ""
    )
