"""Pictures of a run, if matplotlib is installed."""

from collections.abc import Sequence
from pathlib import Path

from lstmx.training import read_metrics


def draw_curves(folder: Path, names: Sequence[str]) -> Path | None:
    """Draws metrics along the training as RUN/plots/curves.png.

    Args:
      folder: the run, with its metrics.jsonl.
      names: the metrics, one panel each; a line for each split that has it.

    Returns:
      The picture's file; None where matplotlib or the metrics are missing.
    """
    records = read_metrics(folder / "metrics.jsonl")
    figure = new_figure(4.5 * len(names), 3.4)
    if figure is None or not records:
        return None
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        known = [record for record in records if record.get(name) is not None]
        for split in dict.fromkeys(record["split"] for record in known):
            points = [(record["step"], record[name]) for record in known if record["split"] == split]
            axes.plot(*zip(*points, strict=True), label=split)
        axes.set(xlabel="step", ylabel=name)
        values = [record[name] for record in known]
        if values and 0 < 30 * min(values) < max(values):
            axes.set_yscale("log")
        if known:
            axes.legend()
    return saved(figure, folder / "plots" / "curves.png")


def new_figure(width: float, height: float):
    """An empty figure, its size in inches; None if matplotlib is not installed."""
    try:
        # Not pyplot: it would look for a display.
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure((width, height), layout="constrained")


def with_dates(axes) -> None:
    """Labels an axis of datetime64 briefly: the year once, not at every tick."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def saved(figure, path: Path) -> Path:
    """Writes a figure to a file, and returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
