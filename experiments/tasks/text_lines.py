"""Lines of text from a file or a pipe, for commands that answer line by line."""

import codecs
import io
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from experiments.datasets.compressed import read_utf8

Numbered = tuple[int, bytes]


def read_lines(source: pathlib.Path | BinaryIO) -> Iterator[bytes]:
    """The lines of a file, decompressed, or of a stream as they arrive, without a byte order mark.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if a stream is UTF-16; a file is decoded.

    Example:
      >>> list(read_lines(io.BytesIO("\\ufeffone\\ntwo".encode())))
      [b'one\\n', b'two']
    """
    if isinstance(source, pathlib.Path):
        yield from io.BytesIO(read_utf8(source))  # lines end at line feeds only
        return
    for number, line in enumerate(source):
        if number == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("the standard input is UTF-16; convert it first: iconv -f utf-16 -t utf-8")
        yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line


def in_groups(lines: Iterable[bytes], most: int) -> Iterator[list[Numbered]]:
    """Numbered lines, counted from 1, so many at a time.

    Example:
      >>> list(in_groups([b"a", b"b", b"c"], 2))
      [[(1, b'a'), (2, b'b')], [(3, b'c')]]
    """
    numbered = enumerate(lines, 1)
    while group := list(itertools.islice(numbered, most)):
        yield group


def decode_lines(
    group: Iterable[Numbered], check: Callable[[str], None]
) -> tuple[dict[int, str], dict[int, str]]:
    """Separates the lines that can be used from those that cannot.

    Args:
      group: numbered lines.
      check: raises ValueError for a text that cannot be used.

    Returns:
      (texts, problems), both by line number.

    Example:
      >>> decode_lines([(1, b" a\\n"), (2, b"\\xe9")], check=lambda text: None)
      ({1: 'a'}, {2: 'not UTF-8: byte 0xe9 at offset 0'})
    """
    texts, problems = {}, {}
    for number, line in group:
        try:
            text = line.decode("utf-8").strip()
            check(text)
        except UnicodeDecodeError as error:
            problems[number] = f"not UTF-8: byte 0x{line[error.start]:02x} at offset {error.start}"
        except ValueError as error:
            problems[number] = str(error)
        else:
            texts[number] = text
    return texts, problems
