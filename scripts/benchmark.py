#!/usr/bin/env python3
"""Times LSTM layers and models together with flax, torch and onnxruntime.

    python scripts/benchmark.py --output docs/benchmarks.md         # everything, about ten minutes
    python scripts/benchmark.py --parts layers --rivals torch       # one part against one rival
    python scripts/benchmark.py --device gpu --budget 480 --output gpu.md    # on a GPU, in eight minutes

With --budget, each part has a share of the time: comparisons with float64, layers, streaming, models, and
implementations that are parallel in time. Results are written as they come, so that a run that is cut off
leaves what it has.

Prints a page in Markdown, and progress on stderr. Rivals that are not installed are skipped.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lstmx.training import keep_freed_memory
from scripts.benchmarks import (
    breakdown,
    budgeted,
    forecasters,
    layers,
    machine,
    members,
    memory,
    models,
    problems,
    ragged,
    report,
    rivals,
    scaling,
    text_models,
)
from scripts.benchmarks.problems import Shape
from scripts.benchmarks.rivals import Field
from scripts.benchmarks.tables import Section

PARTS = (
    "layers",
    "streaming",
    "memory",
    "scaling",
    "ragged",
    "models",
    "text_models",
    "forecasters",
    "members",
)
_LISTS = {"measured": problems.SHAPES, "published": problems.PUBLISHED}


def main() -> None:
    """Runs the benchmark."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.budget is not None:
        print(_budgeted(arguments, parser))
        return
    shapes = _shapes(arguments, parser)
    try:
        machine.choose_device(arguments.device)
    except RuntimeError as error:
        sys.exit(str(error))
    keep_freed_memory()
    before, start = machine.busy(), time.perf_counter()
    rounds = 2 if arguments.quick else arguments.rounds
    with rivals.field(arguments.device, arguments.rivals, rounds=rounds, quick=arguments.quick) as field:
        rivals.warm_up()
        peaks = {}
        sections = [
            section
            for part in PARTS
            if part in arguments.parts
            for section in measured(part, shapes, field, arguments.output, peaks)
        ]
    command = ["python", *sys.argv]
    seconds = time.perf_counter() - start
    others = None if before is None else machine.others_share(before, machine.busy())
    text = report.page(command, machine.description(), peaks, field, seconds, others, sections)
    print(text)
    if others is not None and others > report.MUCH:
        print(
            f"other processes used {others:.0%} of the processors: do not trust these times", file=sys.stderr
        )
    if arguments.output:
        report.write(arguments.output, text, sections)


def _budgeted(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    command = ["python", *sys.argv]
    options = {"device": arguments.device, "rounds": arguments.rounds, "quick": arguments.quick}
    try:
        return budgeted.run(budget=arguments.budget, command=command, output=arguments.output, **options)
    except ValueError as error:
        parser.error(str(error))
    except RuntimeError as error:
        sys.exit(str(error))


def measured(
    part: str, shapes: tuple[Shape, ...], field: Field, output: Path | None, peaks: dict[str, float]
) -> list[Section]:
    """The sections of a part; adds to `peaks` the rates of the matmuls that limits are based on."""
    stem = output.stem if output else "benchmarks"
    if "float32" not in peaks and part in ("models", "text_models", "forecasters"):
        peaks["float32"] = machine.matmul_peak(field)
    if part == "layers":
        sections = []
        for dtype in ("float32",) if field.device == "cpu" else ("float32", "bfloat16"):
            typed = dataclasses.replace(field, dtype=dtype)
            peaks[dtype] = machine.matmul_peak(typed)
            sections += layers.sections(shapes, typed, peaks[dtype])
        return sections
    if part == "streaming":
        return [layers.streaming((Shape(1, 1, 3, 4),) if field.quick else problems.STREAMING, field)]
    if part == "memory":
        return [memory.section(problems.TINY[:1] if field.quick else problems.MEMORY, field)]
    if part == "scaling":
        return [scaling.section(field, stem)]
    if part == "ragged":
        return [ragged.section(field, stem)]
    if part == "members":
        asked = members.SHAPES if shapes == problems.SHAPES else shapes
        return [members.section(problems.TINY[:1] if field.quick else asked, field)]
    if part == "models":
        return [models.section(field, peaks["float32"]), breakdown.section(field, peaks["float32"])]
    return [{"text_models": text_models, "forecasters": forecasters}[part].section(field, peaks["float32"])]


def _parser() -> argparse.ArgumentParser:
    # argparse, not tyro: this also runs where only jax, flax, optax and orbax are installed.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where to run (cpu)")
    parser.add_argument(
        "--parts", type=_parts, default=PARTS, help=f"what to measure: {','.join(PARTS)} (all)"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["measured"],
        metavar="B,T,D,H",
        help=f"shapes of layers, or one of the lists {', '.join(_LISTS)} (measured)",
    )
    parser.add_argument(
        "--rivals",
        type=_rivals,
        metavar="NAME,NAME",
        help=f"what to compare with: {','.join(rivals.names())} (all); 'none' for lstmx only",
    )
    parser.add_argument("--rounds", type=_positive, default=9, help="how often to time each (9)")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="do what is worth most within this time"
    )
    parser.add_argument("--quick", action="store_true", help="tiny problems, to check that it works")
    parser.add_argument(
        "--output", type=Path, help="also write the page to this file, and its plots next to it"
    )
    return parser


def _rivals(text: str) -> tuple[str, ...]:
    asked = () if text == "none" else tuple(text.split(","))
    unknown = [name for name in asked if name not in rivals.names()]
    if unknown:
        raise argparse.ArgumentTypeError(f"rivals are {', '.join(rivals.names())}, got {', '.join(unknown)}")
    return asked


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"parts are {', '.join(PARTS)}, got {', '.join(unknown)}")
    return parts


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text}")
    return int(text)


def _shapes(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[Shape, ...]:
    if len(arguments.shapes) == 1 and arguments.shapes[0] in _LISTS:
        extra = problems.GPU_ONLY if arguments.device == "gpu" else ()
        return problems.TINY[:1] if arguments.quick else (*_LISTS[arguments.shapes[0]], *extra)
    shapes = []
    for text in arguments.shapes:
        sizes = text.split(",")
        if len(sizes) != 4 or not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
            parser.error(
                f"a shape is four positive integers B,T,D,H or one of {', '.join(_LISTS)}, got {text!r}"
            )
        shapes.append(Shape(*map(int, sizes)))
    return tuple(shapes)


if __name__ == "__main__":
    main()
