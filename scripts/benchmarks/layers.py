"""The tables of single layers: forward pass, training step, streaming step."""

import sys
from collections.abc import Sequence

from scripts.benchmarks import problems, rivals, tables
from scripts.benchmarks.problems import Mode, Shape
from scripts.benchmarks.rivals import OWN, Field
from scripts.benchmarks.tables import Row, Section
from scripts.benchmarks.timing import PAUSE, Rival, interleaved

# The shortest possible step of a loop on a GPU, in seconds: one thread block that holds the weights.
_GPU_LATENCY = 0.5e-6
_HEAD = "B, T, D, H"


def sections(shapes: Sequence[Shape], field: Field, peak: float) -> list[Section]:
    """Times, ratios and compile times of layers, forward and training.

    Args:
      shapes: the layers.
      field: the rivals.
      peak: FLOP/s of the fastest matmul measured.
    """
    return [_section(mode, shapes, field, peak) for mode in problems.MODES]


def _section(mode: Mode, shapes: Sequence[Shape], field: Field, peak: float) -> Section:
    rows, compiling = [], []
    for shape in shapes:
        built = built_from(rivals.layers(shape, mode, field))
        default = rivals.default_implementation(shape, field.dtype)
        limit = problems.limit(shape, mode, peak, latency(field.device))
        rows.append(row(str(shape), built, field, default, limit))
        say(f"{mode} {shape}", rows[-1])
        compiling.append({name: r.compiling for name, r in built.items() if _is_compiled(name)})
    what = {
        "forward": "Forward pass (inference): all outputs and the final state.",
        "training": "Training step: the mean square of the outputs and its gradients with respect to all "
        "parameters and inputs.",
    }[mode]
    text = [
        f"{what} Milliseconds, medians of {field.rounds} rounds; {field.dtype}.",
        tables.comparison(_HEAD, rows),
        "Compilation in seconds: the first call minus a later one.",
        _compile_table(shapes, compiling),
    ]
    title = {"forward": "Forward", "training": "Training"}[mode]
    return Section(f"{title}, {field.dtype}", "\n\n".join(text))


def streaming(shapes: Sequence[Shape], field: Field) -> Section:
    """The table of single streaming steps."""
    rows = []
    for shape in shapes:
        built = built_from(rivals.steps(shape, field))
        rows.append(row(str(shape), built, field, rivals.default_implementation(shape)))
        say(f"streaming {shape}", rows[-1])
    text = [
        "One streaming step, float32: the state is passed in and out, and each step waits for the previous "
        "one. `lstmx` is a jitted `lstmx.scan` over one step; `lstmx.step` is that function, jitted; "
        "`lstmx.compile_step` takes and returns arrays of NumPy here, as onnxruntime does. "
        f"Milliseconds, medians of {field.rounds} rounds.",
        tables.comparison(_HEAD, rows),
    ]
    return Section("Streaming", "\n\n".join(text))


def built_from(builders: rivals.Builders) -> dict[str, Rival]:
    """All rivals, compiled."""
    return {name: build() for name, build in builders.items()}


def row(
    label: str, built: dict[str, Rival], field: Field, default: str = "", limit: float | None = None
) -> Row:
    """A row of measurements; the column of the default implementation repeats that of lstmx."""
    times = interleaved(built, field.rounds, 0.0 if field.quick else PAUSE)
    if default and (field.only is None or default in field.only):
        times = {OWN: times[OWN], default: times[OWN], **times}
    return Row(label, times, limit, default)


def latency(device: str) -> float:
    """The shortest possible step of a loop in seconds."""
    return _GPU_LATENCY if device == "gpu" else 0.0


def say(what: str, row: Row) -> None:
    """Progress, on stderr."""
    times = ", ".join(f"{name} {tables.milliseconds(min(ts))}" for name, ts in row.times.items())
    print(f"{what}: {times} (minimum, ms)", file=sys.stderr, flush=True)


def _is_compiled(name: str) -> bool:
    return not name.startswith(("torch", "onnxruntime"))


def _compile_table(shapes: Sequence[Shape], compiling: Sequence[dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for seconds in compiling for name in seconds))
    lines = [[_HEAD, *names]]
    for shape, seconds in zip(shapes, compiling, strict=True):
        lines.append([str(shape), *(f"{seconds[name]:.1f}" if name in seconds else "" for name in names)])
    return tables.markdown(lines)
