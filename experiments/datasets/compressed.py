"""Files as they are, or compressed as .gz or .xz."""

import gzip
import lzma
import pathlib
import zlib

_OPENERS = {"": open, ".gz": gzip.open, ".xz": lzma.open}


def find_file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file of a name in a folder, with the ending of a compression or without; None if there is none."""
    return next((folder / (name + s) for s in _OPENERS if (folder / (name + s)).is_file()), None)


def is_compressed(path: pathlib.Path) -> bool:
    """Whether a path ends as that of a compressed file."""
    return path.suffix in (".gz", ".xz")


def read_content(path: pathlib.Path) -> bytes:
    """The content of a file, decompressed by its ending.

    Raises:
      ValueError: if the file is not a whole archive.
    """
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise ValueError(f"{path} is not a whole {path.suffix} file: {error}") from error
