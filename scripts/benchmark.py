"""Times the training step of LSTM layers side by side: benchmark.py [--output docs/benchmarks.md].

A training step here is a loss and its gradients with respect to the parameters and the inputs, float32. All
rivals of a shape are compiled, then run in turn, again and again, in one process, so that whatever else the
machine does hits them alike; the median of each is reported, and its ratio to lstmx in the same round. Rivals
that are not installed are left out.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lstmx
import lstmx.nnx

# Batch, time, input and hidden sizes: small and large layers of language models, one stream, and forecasting.
SHAPES = (
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

Shape = tuple[int, int, int, int]
Run = Callable[[], object]


def lstmx_layer(shape: Shape, xs: np.ndarray, **options) -> Run:
    """A run of lstmx's own layer."""
    _, _, features, units = shape
    layer = lstmx.nnx.LSTM(features, units, rngs=nnx.Rngs(0))
    return _nnx_run(layer, lambda layer, xs: layer(xs, **options)[1], xs)


def flax_layer(shape: Shape, xs: np.ndarray) -> Run:
    """Flax's fastest: the cell with fused matmuls, in its RNN."""
    batch, _, features, units = shape
    rnn = nnx.RNN(nnx.OptimizedLSTMCell(features, units, rngs=nnx.Rngs(0)), rngs=False)
    # Without a carry of its own it would draw one, which a jitted function may not.
    carry = (jnp.zeros((batch, units)), jnp.zeros((batch, units)))
    return _nnx_run(rnn, lambda rnn, xs: rnn(xs, initial_carry=carry), xs)


def _nnx_run(layer: nnx.Module, call: Callable, xs: np.ndarray) -> Run:
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def step(params, xs):
        def loss(params, xs):
            return jnp.mean(call(nnx.merge(graph, params, rest), xs) ** 2)

        return jax.value_and_grad(loss, argnums=(0, 1))(params, xs)

    xs = jnp.asarray(xs)
    return lambda: jax.block_until_ready(step(params, xs))


def torch_layer(shape: Shape, xs: np.ndarray) -> Run:
    """torch.nn.LSTM, with oneDNN where torch has it, on as many threads as there are processors."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    _, _, features, units = shape
    layer = torch.nn.LSTM(features, units, batch_first=True)
    inputs = torch.tensor(xs, requires_grad=True)

    def run():
        layer.zero_grad(set_to_none=True)
        inputs.grad = None
        layer(inputs)[0].square().mean().backward()

    return run


RIVALS: dict[str, Callable[[Shape, np.ndarray], Run]] = {
    "lstmx": lstmx_layer,
    "lstmx remat": lambda shape, xs: lstmx_layer(shape, xs, remat="gates"),
    "lstmx reference": lambda shape, xs: lstmx_layer(shape, xs, implementation="reference"),
    "flax": flax_layer,
    "torch": torch_layer,
}


def measure(shape: Shape, rivals: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Times all rivals at one shape.

    Returns:
      For each rival: `median` and `least` in milliseconds, `first` call in seconds (compilation included) and
      `ratio`, the median over the rounds of its time by that of lstmx.
    """
    batch, steps, features, _ = shape
    xs = np.random.default_rng(0).normal(size=(batch, steps, features)).astype(np.float32)
    runs, first = {}, {}
    for name in rivals:
        runs[name] = RIVALS[name](shape, xs)
        start = time.perf_counter()
        runs[name]()
        first[name] = time.perf_counter() - start
    times = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_seconds(run))
    return {
        name: {
            "median": 1e3 * statistics.median(ts),
            "least": 1e3 * min(ts),
            "first": first[name],
            "ratio": statistics.median(t / own for t, own in zip(ts, times["lstmx"], strict=True)),
        }
        for name, ts in times.items()
    }


def _seconds(run: Run) -> float:
    # The threads of a rival go on spinning after its run (torch's OpenMP does), on the cores that the next
    # one wants: so there is a pause. A run after a pause has to wake its threads: so there is one untimed.
    time.sleep(0.05)
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(results: dict[Shape, dict[str, dict[str, float]]], rivals: list[str]) -> str:
    """The results in Markdown: milliseconds, in brackets the ratio to lstmx (above 1: lstmx is faster)."""
    head = ["B, T, D, H", *rivals, "first call of lstmx, s"]
    rows = [head, ["---"] * len(head)]
    for shape, result in results.items():
        cells = [
            f"{result[name]['median']:.1f}" + ("" if name == "lstmx" else f" ({result[name]['ratio']:.2f})")
            for name in rivals
        ]
        rows.append([", ".join(map(str, shape)), *cells, f"{result['lstmx']['first']:.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def machine() -> str:
    """The processor, the threads and the versions that the numbers belong to."""
    versions = []
    for package in ("jax", "flax", "torch"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else _processor()
    threads = len(os.sched_getaffinity(0))
    return f"{kind}, {threads} threads, Python {platform.python_version()}, {', '.join(versions)}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    wide = any("avx512f" in line for line in lines if line.startswith("flags"))
    return (names[0] if names else platform.processor()) + (" (AVX-512)" if wide else "")


def main() -> None:
    """Runs the benchmark."""
    # argparse, not tyro: this also runs where only jax, flax, optax and orbax are installed.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rivals", nargs="+", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--shapes", nargs="+", metavar="B,T,D,H", help="shapes instead of the published ones")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved repetitions (15)")
    parser.add_argument("--output", type=Path, help="also write the table to this Markdown file")
    arguments = parser.parse_args()
    rivals = ["lstmx", *(name for name in arguments.rivals if name != "lstmx")]
    if "torch" in rivals and not _installed("torch"):
        print("torch is not installed: left out", file=sys.stderr)
        rivals.remove("torch")
    shapes = [_shape(text, parser) for text in arguments.shapes] if arguments.shapes else SHAPES
    print(machine())
    results = {}
    for shape in shapes:
        results[shape] = measure(shape, rivals, arguments.rounds)
        print(table({shape: results[shape]}, rivals).splitlines()[-1], flush=True)
    text = table(results, rivals)
    print(text)
    if arguments.output:
        arguments.output.write_text(_page(text))


def _shape(text: str, parser: argparse.ArgumentParser) -> Shape:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        parser.error(f"a shape is four positive integers B,T,D,H, got {text!r}")
    return tuple(map(int, parts))


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _page(text: str) -> str:
    command = " ".join(["python", *sys.argv])
    return f"""# Benchmarks

Training step of one LSTM layer (loss, and gradients with respect to parameters and inputs), float32,
milliseconds, median of interleaved repetitions; in brackets the time by that of lstmx in the same round, so
above 1 lstmx is faster. Made by

    {command}

on {datetime.date.today()}: {machine()}.

{text}
"""


if __name__ == "__main__":
    main()
