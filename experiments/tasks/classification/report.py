"""The report on a classifier: confusion matrix, baseline, pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tasks.classification.bigram_baseline import bigram_baseline
from experiments.tasks.classification.measures import accuracy, confusion_matrix, macro_f1
from experiments.tasks.pictures import draw_curves, new_figure, saved


def report(
    matrix: np.ndarray,
    classes: Sequence[str],
    examples: Mapping[str, Sequence[tuple[str, str]]],
    split: str,
    folder: Path,
) -> tuple[str, dict[str, Any]]:
    """The confusion matrix of a split and the baseline's accuracy, as text and for JSON; draws pictures.

    The baseline takes a while to train and depends only on the data: it is stored as RUN/baseline.json.

    Args:
      matrix: the confusion matrix of the split, `[C, C]`.
      classes: the names of the C classes.
      examples: `(text, label)` pairs of each split, for the baseline.
      split: the split.
      folder: the run; pictures go to its folder `plots`, where matplotlib is installed.

    Returns:
      (text, values): values `"classes"`, `"confusion"` (rows: true classes) and `"baseline"`, a dict of
      accuracy, f1, strength and features, or None where scikit-learn is not installed.
    """
    baseline = _baseline(examples, classes, split, folder / "baseline.json")
    lines = ["confusion (rows: true, columns: predicted)", *table(matrix, classes)]
    if baseline is None:
        lines.append("no baseline: scikit-learn is not installed")
    else:
        lines.append(
            f"baseline, logistic regression on {baseline['features']:,} words and pairs of words: "
            f"accuracy {baseline['accuracy']:.4f}, f1 {baseline['f1']:.4f}"
        )
    lines += [f"picture: {path}" for path in draw(matrix, classes, split, folder)]
    values = {"classes": list(classes), "confusion": matrix.tolist(), "baseline": baseline}
    return "\n".join(lines), values


def draw(matrix: np.ndarray, classes: Sequence[str], split: str, folder: Path) -> list[Path]:
    """Draws the curves of a run and the confusion matrix of a split; returns their paths."""
    drawn = [
        draw_curves(folder, ("loss", "accuracy")),
        draw_confusion(matrix, classes, folder / "plots" / f"confusion_{split}.png"),
    ]
    return [path for path in drawn if path is not None]


def _baseline(examples, classes: Sequence[str], split: str, file: Path) -> dict[str, float] | None:
    try:
        cached = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        cached = {}
    if split in cached:
        return cached[split]
    try:
        result = bigram_baseline(examples, split)
    except ImportError:
        return None
    index = {name: number for number, name in enumerate(classes)}
    predicted = np.array([index[label] for label in result.predictions])
    labels = np.array([index[label] for _, label in examples[split]])
    matrix = confusion_matrix(labels, predicted, len(classes))
    cached[split] = {
        "accuracy": accuracy(matrix),
        "f1": macro_f1(matrix),
        "strength": result.strength,
        "features": result.features,
    }
    file.write_text(json.dumps(cached, indent=2) + "\n", encoding="utf-8")
    return cached[split]


def table(matrix: np.ndarray, classes: Sequence[str]) -> list[str]:
    """A confusion matrix as lines.

    Example:
      >>> for line in table(np.array([[8, 1], [0, 12]]), ["no", "yes"]):
      ...     print(line)
              no  yes
         no    8    1
        yes    0   12
    """
    names = [name if len(name) <= 20 else name[:19] + "…" for name in classes]
    width = max(*map(len, names), len(str(matrix.max())), 3) + 2
    rows = [["", *names], *([name, *map(str, row)] for name, row in zip(names, matrix.tolist(), strict=True))]
    return ["".join(f"{cell:>{width}}" for cell in row) for row in rows]


def draw_confusion(matrix: np.ndarray, classes: Sequence[str], path: Path) -> Path | None:
    """Draws a confusion matrix; None where matplotlib is missing."""
    size = 2.4 + 0.8 * len(classes)
    figure = new_figure(size, size)
    if figure is None:
        return None
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=color)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    return saved(figure, path)
