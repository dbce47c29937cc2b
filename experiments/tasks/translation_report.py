"""Pictures of a translation model: where its decoder looked, and how its training went."""

from pathlib import Path
from typing import TYPE_CHECKING

from lstmx.training import read_metrics

if TYPE_CHECKING:
    from experiments.tasks.translation import Found


def draw_attention(found: "Found", path: Path) -> Path | None:
    """Draws how much of its attention each piece of a translation (a row) gave to each of the sentence.

    Args:
      found: the translation.
      path: the picture's file.

    Returns:
      The path, or None where matplotlib is missing.
    """
    rows, columns = found.attention.shape
    figure = _figure(1.5 + 0.32 * columns, 1.2 + 0.3 * max(rows, 1))
    if figure is None or rows == 0:
        return None
    axes = figure.subplots()
    axes.imshow(found.attention, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), map(_shown, found.source_tokens), rotation=90)
    axes.set_yticks(range(rows), map(_shown, found.target_tokens))
    return _saved(figure, path)


def draw_curves(folder: Path, path: Path) -> Path | None:
    """Draws loss and BLEU along the training; None where matplotlib is missing.

    Args:
      folder: the run.
      path: the picture's file.
    """
    records = read_metrics(folder / "metrics.jsonl")
    figure = _figure(9, 3.4)
    if figure is None or not records:
        return None
    for axes, name in zip(figure.subplots(1, 2), ("nats", "BLEU"), strict=True):
        for split in dict.fromkeys(record["split"] for record in records if record.get(name) is not None):
            points = [
                (r["step"], r[name]) for r in records if r["split"] == split and r.get(name) is not None
            ]
            axes.plot(*zip(*points, strict=True), label=split)
            axes.legend()
        axes.set(xlabel="step", ylabel=name)
    return _saved(figure, path)


def _shown(token: str) -> str:
    # Dollars would be read as formulas, and half a letter has no picture.
    return token.replace("$", r"\$").replace("\ufffd", "?")


def _figure(width: float, height: float):
    try:
        # Not pyplot: it would look for a display.
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure((width, height), layout="constrained")


def _saved(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
