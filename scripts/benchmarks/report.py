"""The page."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.benchmarks.rivals import Field
from scripts.benchmarks.tables import Section

# From here on the work of others is no mere noise.
MUCH = 0.03

_METHOD = """\
All rivals of a problem are built and compiled first, and then run in turn, round after round, so that
whatever else the machine does hits them alike; each is timed after a pause and as many untimed runs as timed
ones, several in a row where they are short. A ratio is that of two times of the same round. All have the same
weights and inputs, and all the threads. lstmx is `lstmx.scan`, time-major, as it comes (in brackets the
implementation it chose); a column with the name of an implementation is `implementation="..."`, and that of
the one it chose repeats its time."""
_RIVALS = {
    "flax": """\
Flax is `nnx.RNN` of `OptimizedLSTMCell`, time-major and with the better of `unroll` 1 and 4 (compile times:
those of 1).""",
    "torch": """\
torch is `torch.nn.LSTM`, forward in inference mode; on a CPU it uses oneDNN, on a GPU cuDNN.""",
    "flush": """\
"Denormals flushed" is the same after `torch.set_flush_denormal(True)` in a second process that takes its turn
in the same rounds: torch's threads take that mode from the thread that starts them.""",
    "onnxruntime": """\
onnxruntime runs the LSTM operator, forward.""",
}
_ON_GPU = """\
All wait for the device after each run. Float32 matmuls are as precise as each makes them by itself."""


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
      command: the arguments that made it.
      machine: processor, threads and versions.
      peaks: FLOP/s of the best matmul by type; the limit is made of them, where there is one.
      field: the rivals that took part.
      seconds: how long it took.
      others: the share of the processors that other processes took meanwhile, None if it is not known.
      sections: what was measured.
    """
    parts = [
        "# Benchmarks",
        f"Made by\n\n    {shlex.join(command)}\n\non {datetime.date.today()}, in {seconds / 60:.1f} minutes: "
        f"{machine}.",
        "" if others is None else _disturbance(others),
        _METHOD,
        "\n".join(_RIVALS[name] for name in field.present),
        _ON_GPU if field.device == "gpu" else "",
    ]
    if peaks:
        rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in peaks.items())
        latency = "" if field.device == "cpu" else ", and no step below half a microsecond"
        parts.append(
            "The limit is the work of the matmuls at the rate of the best square matmul measured here (by "
            f"jax, and on a CPU by torch): {rates}{latency}."
        )
    for section in sections:
        parts += [f"## {section.title}", section.text]
    return "\n\n".join(filter(None, parts)) + "\n"


def _disturbance(others: float) -> str:
    text = f"Other processes took {others:.1%} of the processors meanwhile."
    if others < MUCH:
        return text
    return (
        f"**{text} Do not trust these times**: those whose threads wait for one another at every step, as "
        "torch's do, suffer the most."
    )


def write(output: Path, text: str, sections: Sequence[Section]) -> None:
    """Writes the page, and the plots beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    for section in sections:
        for name, svg in section.plots.items():
            (output.parent / name).write_text(svg, encoding="utf-8")
