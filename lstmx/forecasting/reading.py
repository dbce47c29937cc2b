"""Frames to series, as a forecaster's arguments say."""

from collections.abc import Mapping
from typing import Any

from lstmx.forecasting.arguments import Recipe
from lstmx.forecasting.fitting import Fitted
from lstmx.forecasting.frames import FramePanel, read_frame


def read_series(
    recipe: Recipe,
    df: Any,
    static_df: Any,
    freq: Any,
    names: Mapping[str, Any],
    categories: Mapping[str, Any] | None = None,
) -> FramePanel:
    """Reads a frame with the exogenous variables of a recipe.

    Args:
      recipe: the arguments of the forecaster.
      df, static_df, freq, categories: see `read_frame`.
      names: further arguments of `read_frame`, whose categories are ignored.
    """
    return read_frame(
        df,
        freq=freq,
        static_df=static_df,
        hist_exog=recipe.hist_exog_list,
        futr_exog=recipe.futr_exog_list,
        stat_exog=recipe.stat_exog_list,
        categories=categories,
        **{name: value for name, value in names.items() if name != "categories"},
    )


def require_known(series: FramePanel, fitted: Fitted) -> None:
    """Raises ValueError if series have embeddings and are not those of the fit."""
    if not fitted.recipe.know_series or series.ids == fitted.ids:
        return
    new = [label for label in series.ids if label not in {*fitted.ids}]
    if new:
        raise ValueError(f"know_series allows only the series it was fitted to, got {new[0]!r} as well")
    raise ValueError("with know_series, df must hold all series it was fitted to")
