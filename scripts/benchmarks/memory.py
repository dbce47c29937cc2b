"""The memory of a forward pass or a training step, each rival in a separate process.

The growth of a process is the peak of its resident memory during a few runs minus its memory before them. On
a GPU, the memory is that allocated by the library.
"""

import concurrent.futures
import ctypes
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks import problems, tables
from scripts.benchmarks.problems import Mode, Shape
from scripts.benchmarks.tables import Section
from scripts.benchmarks.timing import Run

_ROOT = Path(__file__).resolve().parents[2]
_STATUS = Path("/proc/self/status")
_RUNS = 3
REMAT = 'lstmx, remat="gates"'


def section(shapes: Sequence[Shape], field) -> Section:
    """The table of peak memory.

    Args:
      shapes: the layers.
      field: the rivals.
    """
    jobs = [
        (shape, mode, name)
        for shape in shapes
        for mode in problems.MODES
        for name in _names(shape, mode, field)
    ]
    # Processes may run side by side, since only memory is measured; but there is one GPU.
    with concurrent.futures.ThreadPoolExecutor(problems.threads() if field.device == "cpu" else 1) as pool:
        results = dict(zip(jobs, pool.map(lambda job: _measured_apart(*job, field), jobs), strict=True))
    names = list(dict.fromkeys(name for _, _, name in sorted(jobs, key=lambda job: job[1] == "forward")))
    lines = [["B, T, D, H", "", "outputs", *names]]
    for shape in shapes:
        outputs = f"{4 * shape.steps * shape.batch * shape.units / 2**20:.1f}"
        for mode in problems.MODES:
            cells = [_shown(results.get((shape, mode, name))) for name in names]
            cells[0] = f"{_default(shape)} {cells[0]}"
            lines.append([str(shape), mode, outputs, *cells])
    what = "of the process" if field.device == "cpu" else "of what is allocated on the GPU"
    text = [
        f"Peak memory in MiB, float32: the growth {what} during {_RUNS} runs, after everything was built and "
        "compiled and a tiny layer had run, each library in a separate process. In parentheses: the size of "
        "the temporary and output buffers reported by XLA, which excludes memory that a kernel allocates "
        "itself. `outputs` is the size of the layer's outputs.",
        tables.markdown(lines),
    ]
    return Section("Memory", "\n\n".join(text))


def _shown(result: dict | None) -> str:
    if result is None:
        return ""
    buffers = "" if result["buffers"] is None else f" ({result['buffers'] / 2**20:.1f})"
    return f"{result['growth'] / 2**20:.1f}{buffers}"


def _names(shape: Shape, mode: Mode, field) -> list[str]:
    from scripts.benchmarks import rivals

    builders = rivals.layers(shape, mode, field)
    names = [name for name in builders if name != rivals.FLUSH]
    if mode == "training":
        names.insert(1, REMAT)
    return names


def _default(shape: Shape) -> str:
    from scripts.benchmarks import rivals

    return rivals.default_implementation(shape)


def _measured_apart(shape: Shape, mode: Mode, name: str, field) -> dict:
    question = {"shape": shape, "mode": mode, "name": name, "device": field.device}
    command = [sys.executable, "-m", "scripts.benchmarks.memory", json.dumps(question)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the memory of {name} at {shape}, {mode}, was not measured:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"memory {shape}, {mode}, {name}: {_shown(result)} MiB", file=sys.stderr, flush=True)
    return result


def measure(shape: Shape, mode: Mode, name: str, device: str) -> dict:
    """The growth of this process and the size of XLA's buffers for one rival, in bytes."""
    # A tiny one first: it loads the libraries and starts the threads.
    run, _ = _built(problems.TINY[0], mode, name, device)
    run()
    run, buffers = _built(shape, mode, name, device)
    problems.arrays.cache_clear()
    return {"growth": _growth(run, name, device), "buffers": buffers}


def _built(shape: Shape, mode: Mode, name: str, device: str) -> tuple[Run, int | None]:
    """A compiled run of a rival, and the size of XLA's buffers in bytes."""
    if name == "torch":
        from scripts.benchmarks import torch_rivals

        return torch_rivals.layer(shape, mode, "cuda" if device == "gpu" else "cpu"), None
    if name == "onnxruntime":
        from scripts.benchmarks import rivals

        return rivals.onnx_layer(shape), None
    return _compiled(shape, mode, name, device)


def _compiled(shape: Shape, mode: Mode, name: str, device: str) -> tuple[Run, int]:
    import jax

    from scripts.benchmarks import machine, rivals

    machine.choose_device(device)
    options = {} if name in (rivals.OWN, "flax") else {"implementation": name}
    options = {"remat": "gates"} if name == REMAT else options
    who = "flax" if name == "flax" else rivals.OWN
    function, params, xs = rivals.program(who, shape, mode, "float32", **options)
    compiled = function.lower(params, xs).compile()
    account = compiled.memory_analysis()
    buffers = account.temp_size_in_bytes + account.output_size_in_bytes
    return lambda: jax.block_until_ready(compiled(params, xs)), buffers


def _growth(run, name: str, device: str) -> int:
    if device == "cpu":
        return _resident_growth(run)
    if name == "torch":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    import jax

    # The peak since the start of the process: nothing ran before.
    before = jax.devices()[0].memory_stats()["bytes_in_use"]
    run()
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] - before


def _resident_growth(run) -> int:
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # otherwise the run could reuse memory freed by the compiler
    before = _reset_peak()
    for _ in range(_RUNS):
        run()
    return max(0, _peak() - before)


def _reset_peak() -> int:
    """Resets the peak, and returns the current resident memory in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _peak()  # without the reset on Linux, only growth beyond the previous peak is visible


def _peak() -> int:
    try:
        return _status("VmHWM")
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measures what the first argument describes, and prints the result; both are JSON."""
    question = json.loads(sys.argv[1])
    print(json.dumps(measure(**question | {"shape": Shape(*question["shape"])})))


if __name__ == "__main__":
    main()
