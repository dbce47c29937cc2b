"""Files as they are, or compressed as .gz or .xz; text without the mark that some programs put before it."""

import codecs
import gzip
import lzma
import os
import pathlib
import zlib

# The longer mark of two that begin alike first.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
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


def read_utf8(path: pathlib.Path) -> bytes:
    """The content of a text file, decompressed, as UTF-8 without a byte order mark.

    Raises:
      ValueError: if the file is not a whole archive, or begins with the mark of UTF-16 or UTF-32 and is not.
    """
    return without_mark(read_content(path), path)


def without_mark(content: bytes, name: str | os.PathLike = "the text") -> bytes:
    """Drops the byte order mark of a text; UTF-16 and UTF-32, which are known by it, become UTF-8.

    Args:
      content: the text; without a mark it is returned as it is.
      name: what to call it in errors.

    Returns:
      The text without the mark.

    Raises:
      ValueError: if it has the mark of UTF-16 or UTF-32 and cannot be decoded as such.

    Example:
      >>> without_mark("\ufeffa,b".encode()), without_mark("a,b".encode("utf-16"))
      (b'a,b', b'a,b')
    """
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    rest, encoding = content.removeprefix(mark), _MARKS.get(mark, "utf-8")
    if encoding == "utf-8":
        return rest
    try:
        return rest.decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} begins as {encoding[:6].upper()} and is not: {error.reason} at offset "
            f"{len(mark) + error.start}"
        ) from error
