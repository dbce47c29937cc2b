"""Which character separates the cells of a table: named, or recognised by the header."""

import csv
from collections.abc import Callable, Sequence

# The comma first: it is taken if none separates more cells.
_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {"tab": "\t", "comma": ",", "semicolon": ";"}


def delimiter_of(header: Callable[[str], Sequence[str]], columns: Sequence[str] = ()) -> str:
    """The delimiter of a table, recognised by its header: a comma, semicolon, tab or vertical bar.

    Args:
      header: gives the cells of the header for a delimiter.
      columns: names that the header should have.

    Returns:
      The delimiter that gives most of these columns; of those that give as many, the one with most cells.

    Example:
      >>> delimiter_of("time;load, MW".split)
      ','
      >>> delimiter_of("time;load, MW;temperature".split)
      ';'
      >>> delimiter_of("time;load, MW".split, columns=["time"])
      ';'
    """

    def rank(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip() for cell in header(delimiter)]
        return len({*columns} & {*cells}), len(cells)

    return max(_DELIMITERS, key=rank)


def text_delimiter(text: str, columns: Sequence[str] = ()) -> str:
    """The delimiter of a table that is given as text.

    Args:
      text: the table; lines before the header may be blank.
      columns: as in `delimiter_of`.

    Example:
      >>> text_delimiter("\\n'time, s';load\\n1;2\\n", ["load"])
      ';'
    """
    header = text.lstrip("\r\n").split("\n", 1)[0].rstrip("\r")
    return delimiter_of(lambda delimiter: next(csv.reader([header], delimiter=delimiter), []), columns)


def named_delimiter(name: str | None) -> str | None:
    """The delimiter that an option names: a single character, or `tab`, `comma` or `semicolon`.

    Raises:
      ValueError: if it is neither.

    Example:
      >>> named_delimiter("tab"), named_delimiter("|"), named_delimiter(None)
      ('\\t', '|', None)
    """
    if name is None:
        return None
    delimiter = _NAMES.get(name, name)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"delimiter must be one character or one of {', '.join(_NAMES)}, got {name!r}")
    return delimiter
