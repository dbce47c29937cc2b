"""Forecasters in folders: JSON and NumPy arrays, without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import lstmx
from lstmx.data import Panel
from lstmx.forecasting.columns import frame_of, kind_of
from lstmx.forecasting.frames import FramePanel, times_of
from lstmx.forecasting.frequencies import require_pandas

_FORMAT = 1
_DESCRIBED, _WEIGHTS, _SERIES = "forecaster.json", "weights.npz", "series.npz"
_ARRAYS = ("starts", "targets", "historic", "future", "static")
# Of a `FramePanel`, what is kept as it is.
_PLAIN = ("ids", "freq", "columns", "historic", "future", "static", "categories", "filled")


class Saved(NamedTuple):
    """What a folder holds.

    Attributes:
      described: what was to be written as JSON.
      weights: the leaves of the parameters by their paths.
      series: the series, or None.
    """

    described: dict[str, Any]
    weights: dict[str, np.ndarray]
    series: FramePanel | None


def write(folder: Path, described: Mapping[str, Any], params: Any, series: FramePanel | None) -> None:
    """Writes a forecaster: what it is, its parameters, and the series if they are to be kept."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / _WEIGHTS, **by_path(params))
    kept = None
    if series is not None:
        arrays = {name: getattr(series.panel, name) for name in _ARRAYS}
        np.savez_compressed(folder / _SERIES, begin=series.starts, **arrays)
        zone = None if series.zone is None else str(series.zone)
        kept = {name: getattr(series, name) for name in _PLAIN} | {"zone": zone}
        kept["kind"] = kind_of(series.like, "df")
    else:
        (folder / _SERIES).unlink(missing_ok=True)
    about = {"format": _FORMAT, "lstmx": lstmx.__version__, **described, "series": kept}
    (folder / _DESCRIBED).write_text(json.dumps(about, indent=2))


def read(folder: Path) -> Saved:
    """Reads what `write` wrote; ValueError if it is not there, or of another format."""
    for name in (_DESCRIBED, _WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"no forecaster in {folder}: there is no {name}")
    described = json.loads((folder / _DESCRIBED).read_text())
    if described["format"] != _FORMAT:
        raise ValueError(
            f"{folder} has format {described['format']}, of lstmx {described['lstmx']}; this is "
            f"lstmx {lstmx.__version__}, which reads format {_FORMAT}"
        )
    with np.load(folder / _WEIGHTS) as weights:
        found = {name: weights[name] for name in weights.files}
    return Saved(described, found, _series(folder, described.get("series")))


def _series(folder: Path, kept: Mapping[str, Any] | None) -> FramePanel | None:
    if kept is None:
        return None
    if not (folder / _SERIES).is_file():
        raise ValueError(f"the series of the forecaster in {folder} are gone: there is no {_SERIES}")
    with np.load(folder / _SERIES) as arrays:
        panel, begin = Panel(*(arrays[name] for name in _ARRAYS)), arrays["begin"]
    zone = None
    if kept["zone"] is not None:
        zone = require_pandas().DatetimeTZDtype(tz=kept["zone"]).tz
    names = {name: tuple(kept[name]) for name in ("ids", "columns", "historic", "future", "static")}
    categories = {name: tuple(values) for name, values in kept["categories"].items()}
    series = FramePanel(
        panel=panel, starts=begin, zone=zone, freq=kept["freq"], filled=kept["filled"],
        categories=categories, like=None, **names,
    )  # fmt: skip
    id_col, time_col, _ = series.columns
    first = times_of(series, 0, [0])
    like = frame_of(kept["kind"], (id_col, [series.ids[0]]), {time_col: first}, {}, (None, None))
    return FramePanel(**{**vars(series), "like": like.head(0)})


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {"/".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def as_tree(shapes: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """The weights in a tree of such shapes; ValueError if they do not fit."""
    wanted = {name: leaf.shape for name, leaf in by_path(shapes).items()}
    if wanted != {name: leaf.shape for name, leaf in weights.items()}:
        raise ValueError(f"{_WEIGHTS} does not hold the weights of {_DESCRIBED}")
    return jax.tree.unflatten(jax.tree.structure(shapes), [weights[name] for name in wanted])
