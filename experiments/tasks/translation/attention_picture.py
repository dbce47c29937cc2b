"""The picture of where a translation model's decoder looked."""

from pathlib import Path

from experiments.tasks.pictures import new_figure, saved
from experiments.tasks.translation.result import TranslationResult


def draw_attention(found: TranslationResult, path: Path) -> Path | None:
    """Draws how much of its attention each piece of a translation (a row) gave to each of the sentence.

    Args:
      found: the translation.
      path: the picture's file.

    Returns:
      The path, or None where matplotlib is missing.
    """
    rows, columns = found.attention.shape
    figure = new_figure(1.5 + 0.32 * columns, 1.2 + 0.3 * max(rows, 1))
    if figure is None or rows == 0:
        return None
    axes = figure.subplots()
    axes.imshow(found.attention, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), map(_shown, found.source_tokens), rotation=90)
    axes.set_yticks(range(rows), map(_shown, found.target_tokens))
    return saved(figure, path)


def _shown(token: str) -> str:
    # Dollars would be read as formulas, and half a letter has no picture.
    return token.replace("$", r"\$").replace("\ufffd", "?") if token.strip() else "\u2423"
