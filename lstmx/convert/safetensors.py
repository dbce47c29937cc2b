"""The .safetensors file format, read and written with NumPy alone.

A file is the length of its header (8 bytes, little-endian), the header (JSON: of each tensor its type, its
shape and where in the data it begins and ends) and the data, row-major and little-endian.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstmx.convert.tensors import as_array

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_CODES = {np.dtype(dtype): code for code, dtype in _TYPES.items()}
_METADATA = "__metadata__"


def load(path: str | os.PathLike, prefix: str = "") -> dict[str, np.ndarray]:
    """Reads the tensors whose names begin with a prefix.

    Args:
      path: the file.
      prefix: tensors of other names are not read.

    Returns:
      The tensors under their whole names, in the order of the file.

    Raises:
      ValueError: if the file is not of this format, or a tensor's type is none of F64, F32, F16, BF16.

    Example:
      >>> import tempfile, pathlib, numpy as np
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> save(path, {"a": np.ones(2), "b": np.zeros(1)})
      >>> load(path, prefix="a")
      {'a': array([1., 1.])}
    """
    path = Path(path)
    with path.open("rb") as file:
        header, start = _header(file, path)
        size = path.stat().st_size - start
        tensors = {}
        for name, entry in header.items():
            if name == _METADATA or not name.startswith(prefix):
                continue
            dtype, shape, begin, end = _entry(name, entry, size, path)
            file.seek(start + begin)
            tensors[name] = np.frombuffer(file.read(end - begin), dtype).reshape(shape)
    return tensors


def save(
    path: str | os.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors to a file.

    Args:
      path: the file.
      tensors: arrays of float64, float32, float16 or bfloat16, by name.
      metadata: text to keep with them.

    Raises:
      ValueError: if a tensor is of another type.

    Example:
      >>> import tempfile, pathlib, numpy as np
      >>> save(pathlib.Path(tempfile.mkdtemp()) / "model.safetensors", {"a": np.ones((2, 3))})
    """
    # Wide types first, so that every tensor is aligned to its own items.
    arrays = {
        name: np.asarray(t if isinstance(t, np.ndarray) else as_array(t)) for name, t in tensors.items()
    }
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        array = arrays[name]
        if array.dtype not in _CODES:
            raise ValueError(f"{name} must be of a type in {sorted(_CODES.values())}, got {array.dtype.name}")
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _CODES[array.dtype], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(arrays[name].tobytes())


def _header(file, path: Path) -> tuple[dict, int]:
    """The header and the position of the first byte of data."""
    size = path.stat().st_size
    if size < 8:
        raise ValueError(f"{path} is no safetensors file: it is {size} bytes long")
    length = int.from_bytes(file.read(8), "little")
    if length + 8 > size:
        raise ValueError(f"{path} is no safetensors file: its header would be {length} bytes long")
    try:
        header = json.loads(file.read(length))
    except ValueError as error:
        raise ValueError(f"{path} is no safetensors file: its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header is no JSON object")
    return header, 8 + length


def _entry(name: str, entry: dict, size: int, path: Path) -> tuple[np.dtype, tuple[int, ...], int, int]:
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: {name} has no dtype, shape and data_offsets, got {entry!r}") from None
    if code not in _TYPES:
        raise ValueError(f"{path}: {name} must be of a type in {sorted(_TYPES)}, got {code}")
    dtype = np.dtype(_TYPES[code])
    if not 0 <= begin <= end <= size or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(
            f"{path}: {name} of type {code} and shape {shape} cannot lie in bytes {begin}..{end} of {size}"
        )
    return dtype, shape, begin, end
