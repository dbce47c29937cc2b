"""Which character separates the cells of a table."""

from collections.abc import Callable, Sequence

# The comma first: it is taken if none separates more cells.
_DELIMITERS = (",", ";", "\t")


def delimiter_of(header: Callable[[str], Sequence[str]]) -> str:
    """The delimiter of a table, recognised by its header: the comma, semicolon or tab that gives most cells.

    Args:
      header: gives the cells of the header for a delimiter.

    Example:
      >>> delimiter_of("time;load, MW".split)
      ','
      >>> delimiter_of("time;load, MW;temperature".split)
      ';'
    """
    return max(_DELIMITERS, key=lambda delimiter: len(header(delimiter)))
