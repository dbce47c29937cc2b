"""Pictures of the attention of a translation model."""

from pathlib import Path

from experiments.tasks.pictures import new_figure, saved
from experiments.tasks.translation.result import TranslationResult


def draw_attention(translation: TranslationResult, path: Path) -> Path | None:
    """Draws the attention of each piece of a translation (a row) to each piece of the sentence.

    Args:
      translation: the translation.
      path: the picture's file.

    Returns:
      The path, or None if matplotlib is not installed.
    """
    rows, columns = translation.attention.shape
    figure = new_figure(1.5 + 0.32 * columns, 1.2 + 0.3 * max(rows, 1))
    if figure is None or rows == 0:
        return None
    axes = figure.subplots()
    axes.imshow(translation.attention, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), map(_shown, translation.source_tokens), rotation=90)
    axes.set_yticks(range(rows), map(_shown, translation.target_tokens))
    return saved(figure, path)


def _shown(token: str) -> str:
    # Dollars would be read as formulas, and half a letter has no picture.
    return token.replace("$", r"\$").replace("\ufffd", "?") if token.strip() else "\u2423"
