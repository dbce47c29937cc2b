"""The page."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.benchmarks.rivals import Field
from scripts.benchmarks.tables import Section

# A share of other processes above which the times are not reliable.
MUCH = 0.03

_METHOD = """\
All libraries are built and compiled first for each problem. They then run in turn, round after round, so that
other load on the machine affects all of them equally. Each measurement follows a pause and as many untimed
runs as timed ones; short runs are timed several in a row. Ratios compare times of the same round. All use the
same weights and inputs, and all threads. `lstmx` is `lstmx.scan`, time-major, with default options (with the
chosen implementation in parentheses). Columns named after an implementation use `implementation="..."`; the
column of the default one repeats its time."""
_RIVALS = {
    "flax": """\
Flax is `nnx.RNN` with `OptimizedLSTMCell`, time-major, with the faster of `unroll` 1 and 4 (on a GPU 1 and 8;
compile times are for 1).""",
    "torch": """\
torch is `torch.nn.LSTM`, in inference mode for the forward pass; it uses oneDNN on CPUs, cuDNN on GPUs.""",
    "flush": """\
"Denormals flushed" is torch after `torch.set_flush_denormal(True)`, in a second process that runs in the same
rounds, because torch's threads inherit this mode from the thread that starts them.""",
    "onnxruntime": """\
onnxruntime runs the LSTM operator (forward pass only).""",
}
_ON_GPU = """\
All wait for the device after each run. Float32 matmuls have the default precision of each library."""


def page(
    command: Sequence[str],
    machine: str,
    peaks: Mapping[str, float],
    field: Field,
    seconds: float,
    others: float | None,
    sections: Sequence[Section],
) -> str:
    """The whole page in Markdown.

    Args:
      command: the arguments of the run.
      machine: processor, threads and versions.
      peaks: FLOP/s of the fastest matmul by type, from which the limits are computed.
      field: the rivals.
      seconds: the duration of the run.
      others: the share of the processors that other processes used, None if unknown.
      sections: the results.
    """
    parts = [
        "# Benchmarks",
        f"Measured by\n\n    {shlex.join(command)}\n\n"
        f"on {datetime.date.today()}, in {seconds / 60:.1f} minutes: {machine}.",
        "" if others is None else _disturbance(others),
        _METHOD,
        "\n".join(_RIVALS[name] for name in field.present),
        _ON_GPU if field.device == "gpu" else "",
    ]
    if peaks:
        rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in peaks.items())
        latency = "" if field.device == "cpu" else ", and at least half a microsecond per step"
        parts.append(
            "The limit is the time of the matmuls alone, at the rate of the fastest square matmul measured "
            f"on this machine (by jax, and on a CPU also by torch): {rates}{latency}."
        )
    for section in sections:
        parts += [f"## {section.title}", section.text]
    return "\n\n".join(filter(None, parts)) + "\n"


def _disturbance(others: float) -> str:
    text = f"Other processes used {others:.1%} of the processors during the measurement."
    if others < MUCH:
        return text
    return (
        f"**{text} Do not trust these times**: libraries whose threads synchronize at every step, such as "
        "torch, are affected most."
    )


def write(output: Path, text: str, sections: Sequence[Section]) -> None:
    """Writes the page, and the plots beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    for section in sections:
        for name, svg in section.plots.items():
            (output.parent / name).write_text(svg, encoding="utf-8")
