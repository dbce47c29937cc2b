"""Forecasters in folders: JSON and NumPy arrays, without pickle.

Array files have digests in their names. `forecaster.json` names the array files that belong to it, and holds
their digests and one of its own text. Replacing this one file replaces the forecaster: a save that is killed
leaves either the old one or the new one.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import lstmx
from lstmx.data import Panel
from lstmx.forecasting.arguments import Recipe
from lstmx.forecasting.columns import frame_of, kind_of
from lstmx.forecasting.conformal import Conformal
from lstmx.forecasting.fitting import Fitted, shapes_of
from lstmx.forecasting.frames import FramePanel, times_of
from lstmx.forecasting.offsets import freq_from_json, freq_to_json, require_pandas
from lstmx.forecasting.scales import Scales
from lstmx.training.files import write_atomically

_FORMAT = 2
_DESCRIBED, _WEIGHTS, _SERIES = "forecaster.json", "weights", "series"
_ARRAYS = ("starts", "targets", "historic", "future", "static")
# Attributes of a `FramePanel` that are saved as they are.
_PLAIN = ("ids", "freq", "columns", "historic", "future", "static", "categories", "filled")
# Names of files that a save may have left: of this format, of format 1, and unfinished ones.
_OWN = re.compile(r"((weights|series)(-[0-9a-f]{16})?\.npz|forecaster\.json)(\.\d+\.tmp)?")
# Stands for the digest of a text in the text itself.
_BLANK = "0" * 64


class Saved(NamedTuple):
    """The content of a folder.

    Attributes:
      described: the values that were written as JSON.
      weights: the leaves of the parameters by their paths.
      series: the series, or None.
    """

    described: dict[str, Any]
    weights: dict[str, np.ndarray]
    series: FramePanel | None


def describe(fitted: Fitted, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A fitted forecaster without its arrays and series, as `write` takes it.

    Args:
      fitted: the fitted forecaster.
      arguments: those that it is made with when it is loaded.
    """
    return {
        "arguments": dict(arguments),
        "freq": fitted.freq,
        "names": fitted.names,
        "ids": fitted.ids if fitted.recipe.know_series else (),
        "scales": [{k: v.tolist() for k, v in part.items()} for part in fitted.scales],
        "errors": fitted.conformal and fitted.conformal.errors.tolist(),
        "kind": fitted.kind,
        "history": fitted.history,
    }


def fitted_of(recipe: Recipe, kept: Saved) -> Fitted:
    """The fitted forecaster with its checked arguments; whatever is damaged raises an error of any type."""
    described = kept.described
    ids, errors = tuple(described["ids"]), described.get("errors")
    scales = Scales(*({k: np.array(v) for k, v in part.items()} for part in described["scales"]))
    params = as_tree(shapes_of(recipe, scales, len(ids)), kept.weights)
    conformal = None if errors is None else Conformal(np.array(errors))
    names = {**described["names"], "categories": {**described["names"]["categories"]}}
    # Forecasters that were saved before there were histories have none.
    history = tuple(described.get("history", ()))
    kind = described.get("kind", "pandas")
    return Fitted(
        recipe, params, scales, described["freq"], names, ids, conformal, kept.series, kind, history
    )


def write(folder: Path, described: Mapping[str, Any], params: Any, series: FramePanel | None) -> None:
    """Writes a forecaster atomically.

    Args:
      folder: created if it does not exist.
      described: its arguments and state, as JSON can hold them.
      params: its parameters.
      series: its series, or None not to save them.

    Raises:
      OSError: if something cannot be written; the folder still holds what it held before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {_WEIGHTS: _write_arrays(folder, _WEIGHTS, by_path(params))}
    attributes = None
    if series is not None:
        arrays = {name: getattr(series.panel, name) for name in _ARRAYS}
        files[_SERIES] = _write_arrays(folder, _SERIES, {"begin": series.starts, **arrays})
        zone = None if series.zone is None else str(series.zone)
        attributes = {name: getattr(series, name) for name in _PLAIN} | {"zone": zone}
        attributes["freq"] = freq_to_json(series.freq)
        attributes["kind"] = kind_of(series.like, "df")
    about = {"format": _FORMAT, "lstmx": lstmx.__version__, "sha256": _BLANK, "files": files}
    described = {**described, "freq": freq_to_json(described["freq"])}
    text = json.dumps({**about, **described, "series": attributes}, indent=2)
    write_atomically(folder / _DESCRIBED, text.replace(_BLANK, _sha256(text.encode()), 1))
    # Files of the forecaster before this one, and of saves that were interrupted.
    current = {_DESCRIBED, *(file["name"] for file in files.values())}
    for path in folder.iterdir():
        if _OWN.fullmatch(path.name) and path.name not in current:
            with contextlib.suppress(OSError):  # The forecaster has been saved.
                path.unlink()


def read(folder: Path) -> Saved:
    """Reads what `write` wrote.

    Args:
      folder: the folder.

    Raises:
      ValueError: if there is no forecaster, or a file is missing, damaged or of a later version; the message
        names the file.
    """
    path = folder / _DESCRIBED
    if not path.is_file():
        raise ValueError(f"no forecaster in {folder}: there is no {_DESCRIBED}")
    content = _content(path)
    with damage_of(folder):
        described = json.loads(content.decode())
        if not isinstance(described, dict):
            raise TypeError("it does not hold an object")
        form, digest = described["format"], described.get("sha256")
        if digest is not None and _sha256(content.replace(digest.encode(), _BLANK.encode(), 1)) != digest:
            raise ValueError("its SHA-256 differs")
    if form not in (1, _FORMAT):
        raise ValueError(
            f"{path} has format {form}, of lstmx {described.get('lstmx')}; this is lstmx "
            f"{lstmx.__version__}, which reads formats 1 and {_FORMAT}"
        )
    with damage_of(folder):
        if form == 1:
            files = {name: {"name": f"{name}.npz", "sha256": None} for name in (_WEIGHTS, _SERIES)}
        elif digest is None:
            raise KeyError("sha256")
        else:
            files = described["files"]
        attributes = described.get("series")
        described["freq"] = freq_from_json(described["freq"])
        parts = [files[name] for name in (_WEIGHTS, *((_SERIES,) if attributes is not None else ()))]
    weights, *arrays = (_read_arrays(folder, part) for part in parts)
    with damage_of(folder):
        return Saved(described, weights, _series(arrays[0], attributes) if attributes is not None else None)


@contextlib.contextmanager
def damage_of(folder: Path, name: str = _DESCRIBED) -> Iterator[None]:
    """Turns whatever reading a damaged file raises into a ValueError that names the file."""
    try:
        yield
    except ImportError:
        raise
    # zipfile, zlib, NumPy, json and Python each report damage with exceptions of their own.
    except Exception as error:
        raise ValueError(f"{folder / name} is damaged: {type(error).__name__}: {error}") from error


def _write_arrays(folder: Path, kind: str, arrays: Mapping[str, Any]) -> dict[str, str]:
    """Writes a file of arrays, and returns its name and digest."""
    content = io.BytesIO()
    (np.savez if kind == _WEIGHTS else np.savez_compressed)(content, **arrays)
    digest = _sha256(content.getvalue())
    name = f"{kind}-{digest[:16]}.npz"
    write_atomically(folder / name, content.getvalue())
    return {"name": name, "sha256": digest}


def _read_arrays(folder: Path, file: Mapping[str, Any]) -> dict[str, np.ndarray]:
    name, digest = file["name"], file["sha256"]
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing, which {_DESCRIBED} names")
    content = _content(path)
    if digest is not None and _sha256(content) != digest:
        raise ValueError(f"{path} is damaged: its SHA-256 differs from that in {_DESCRIBED}")
    with damage_of(folder, name), np.load(io.BytesIO(content)) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _series(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> FramePanel:
    panel, begin = Panel(*(arrays[name] for name in _ARRAYS)), arrays["begin"]
    zone = None
    if attributes["zone"] is not None:
        zone = require_pandas().DatetimeTZDtype(tz=attributes["zone"]).tz
    names = {name: tuple(attributes[name]) for name in ("ids", "columns", "historic", "future", "static")}
    categories = {name: tuple(values) for name, values in attributes["categories"].items()}
    series = FramePanel(
        panel=panel,
        starts=begin,
        zone=zone,
        freq=freq_from_json(attributes["freq"]),
        filled=attributes["filled"],
        categories=categories,
        like=None,
        **names,
    )
    id_col, time_col, _ = series.columns
    first = times_of(series, 0, np.array([0]))
    like = frame_of(attributes["kind"], (id_col, [series.ids[0]]), {time_col: first}, {}, (None, None))
    return FramePanel(**{**vars(series), "like": like.head(0)})


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {"/".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def as_tree(shapes: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """The weights as a tree of the given shapes; ValueError if they do not fit."""
    wanted = {name: leaf.shape for name, leaf in by_path(shapes).items()}
    if wanted != {name: leaf.shape for name, leaf in weights.items()}:
        raise ValueError("its arguments do not describe the network of the weights")
    return jax.tree.unflatten(jax.tree.structure(shapes), [weights[name] for name in wanted])
