"""Tables of numbers and times in CSV files, with errors that name file and line.

Files may be compressed (.gz, .xz). `series_sets.py` reads series from them.
"""

import csv
import dataclasses
import io
import pathlib
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from experiments.datasets.compressed import find_file
from experiments.datasets.csv_dialect import text_delimiter

_MISSING = ("", "na", "nan")
_FLAGS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}


def find_files(names: Sequence[str], folders: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Finds files in one folder, plain or compressed (.gz, .xz).

    Args:
      names: names of the files, without the suffix of a compression.
      folders: where to look; the first folder with all files is taken.

    Returns:
      The path of each name; empty if no folder has all files.
    """
    for folder in folders:
        files = {name: find_file(folder, name) for name in names}
        if all(files.values()):
            return files
    return {}


def missing_files(names: Sequence[str], folders: Sequence[pathlib.Path]) -> str:
    """Describes the files that were looked for, where, and which of them exist."""
    places = " or ".join(f"{folder}" for folder in folders)
    there = [name for name in names if any(find_file(folder, name) for folder in folders)]
    lacking = [name for name in names if name not in there]
    found = f"; found {', '.join(there)}, but not {', '.join(lacking)}" if there and lacking else ""
    return f"looked for {', '.join(names)} (plain, .gz or .xz) in {places}{found}"


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A CSV file as text.

    Attributes:
      path: path of the file, for messages.
      header: names of the columns.
      rows: the cells of each row.
      lines: the line of each row in the file, counted from 1.
    """

    path: pathlib.Path
    header: list[str]
    rows: list[list[str]] = dataclasses.field(repr=False)
    lines: list[int] = dataclasses.field(repr=False)

    def wrong(self, row: int, message: str) -> ValueError:
        """An error that names the file and the line of a row."""
        return ValueError(f"{self.path}, line {self.lines[row]}: {message}")

    def column(self, name: str) -> list[str]:
        """The cells of a column, stripped."""
        if name not in self.header:
            raise ValueError(
                f"{self.path} must have a column {name!r}, got {', '.join(map(repr, self.header))}"
            )
        place = self.header.index(name)
        return [row[place].strip() for row in self.rows]

    def numbers(self, names: Iterable[str], *, missing: bool = False) -> np.ndarray:
        """Columns of numbers, float64 [R, columns].

        Args:
          names: names of the columns.
          missing: whether empty cells, NA and NaN are allowed; they become NaN, and a warning counts them.
        """
        columns = [self._floats(name, self.column(name), missing) for name in names]
        values = np.stack(columns, axis=1)
        if count := int(np.isnan(values).sum()):
            warnings.warn(f"{self.path}: {count} of {values.size:,} values are missing", stacklevel=2)
        return values

    def _floats(self, name: str, cells: list[str], missing: bool) -> np.ndarray:
        if (values := _all_finite(cells)) is not None:
            return values
        return np.array([self._float(row, name, cell, missing) for row, cell in enumerate(cells)])

    def numbers_along(self, row: int) -> np.ndarray:
        """The numbers of a row after its first cell, float64, up to the last nonempty cell."""
        cells = [cell.strip() for cell in self.rows[row][1:]]
        while cells and not cells[-1]:
            cells.pop()
        if (values := _all_finite(cells)) is not None:
            return values
        named = zip(self.header[1:], cells, strict=False)
        return np.array([self._float(row, name, cell, missing=False) for name, cell in named])

    def _float(self, row: int, name: str, cell: str, missing: bool) -> float:
        if missing and cell.lower() in _MISSING:
            return np.nan
        try:
            number = float(cell)
        except ValueError:
            number = np.nan
        if not np.isfinite(number):
            raise self.wrong(row, f"column {name!r} must be a number, got {cell!r}")
        return number

    def flags(self, name: str) -> np.ndarray:
        """A column of true and false as 1 and 0, float64 [R]."""
        values = [_FLAGS.get(cell.lower(), np.nan) for cell in self.column(name)]
        if unknown := np.flatnonzero(np.isnan(values)).tolist():
            cell = self.column(name)[unknown[0]]
            raise self.wrong(unknown[0], f"column {name!r} must be true or false, got {cell!r}")
        return np.array(values)

    def times(self, name: str, unit: str, write: Callable[[str], str] = str) -> np.ndarray:
        """A column of times, datetime64[unit] [R].

        Args:
          name: name of the column.
          unit: `"s"`, `"D"` or `"M"`.
          write: converts a cell to ISO 8601 without a time zone.
        """
        cells = self.column(name)
        try:
            times = np.array([write(cell) for cell in cells], dtype=f"datetime64[{unit}]")
            if not np.isnat(times).any():
                return times
        except (ValueError, LookupError):
            pass
        return np.array([self._time(row, name, cell, unit, write) for row, cell in enumerate(cells)])

    def _time(self, row: int, name: str, cell: str, unit: str, write: Callable[[str], str]) -> np.datetime64:
        try:
            time = np.datetime64(write(cell), unit)
        except (ValueError, LookupError):
            time = np.datetime64("NaT")
        if np.isnat(time):
            raise self.wrong(row, f"column {name!r} must be a time, got {cell!r}")
        return time

    def rows_by(self, *names: str) -> dict[tuple[str, ...], np.ndarray]:
        """The rows with equal cells in some columns, by these cells, in order of first appearance."""
        found: dict[tuple[str, ...], list[int]] = {}
        for row, key in enumerate(zip(*map(self.column, names), strict=True)):
            found.setdefault(key, []).append(row)
        return {key: np.array(rows) for key, rows in found.items()}


def read_table(path: pathlib.Path, content: bytes) -> Table:
    """Reads a CSV file with a header, separated by commas, semicolons or tabs; blank lines are skipped.

    Args:
      path: path of the file, for messages.
      content: UTF-8, or else Latin-1.

    Raises:
      ValueError: if it is empty, is not text, or a row does not have as many cells as the header.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if "\0" in text:
        raise ValueError(f"{path} is not text: it contains a NUL character")
    rows, lines = [], []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=text_delimiter(text), strict=True)
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if len(rows) < 2:
        raise ValueError(f"{path} is empty: it must have a header and at least one row")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        raise ValueError(f"{path}, line {lines[0]}: two columns have the same name")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: {len(row)} cells, but the header has {len(header)}")
    return Table(path, header, rows[1:], lines[1:])


def _all_finite(cells: list[str]) -> np.ndarray | None:
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def steps_of(table: Table, rows: np.ndarray, times: np.ndarray, step: int = 1, *, gaps: bool) -> np.ndarray:
    """The step of each row of an evenly spaced series, int64 from 0.

    Args:
      table: the table, for messages.
      rows: int, the rows of the series.
      times: datetime64 of all rows of the table.
      step: units of time from one step to the next.
      gaps: whether steps may be missing.

    Raises:
      ValueError: if a time is not a whole number of steps after the one before, or not one step where gaps
        are not allowed.
    """
    apart, rest = np.divmod(np.diff(times[rows]).astype(np.int64), step)
    good = (rest == 0) & (apart >= 1 if gaps else apart == 1)
    if not good.all():
        row = int(rows[1:][~good][0])
        unit = np.datetime_data(times.dtype)[0]
        rule = "a whole number of steps" if gaps else "one step"
        raise table.wrong(
            row, f"{times[row]} must be {rule} of {step} {unit} after {times[rows[:-1][~good][0]]}"
        )
    return np.concatenate([[0], np.cumsum(apart)]).astype(np.int64)


def one_hot(name: str, values: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names `name=value` in sorted order, and float64 [R, kinds], 1 where a row has that value.

    Example:
      >>> one_hot("sky", ["rain", "clear"])
      (('sky=clear', 'sky=rain'), array([[0., 1.],
             [1., 0.]]))
    """
    kinds = sorted(set(values))
    found = np.array(values)[:, None] == np.array(kinds)
    return tuple(f"{name}={kind}" for kind in kinds), found.astype(np.float64)


def calendar_features(times: np.ndarray, frequency: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The position of times in their day, week and year, as sine and cosine of the angle.

    A day begins at midnight, a week on Monday, a year on 1 January. Cycles that are not longer than a step
    are left out.

    Args:
      times: datetime64 [R], in local time of the series.
      frequency: pandas alias of the frequency, such as `"30min"`, `"h"`, `"D"`, `"B"`, `"W"`, `"MS"`.

    Returns:
      (names, float64 [R, F]).

    Raises:
      ValueError: if the frequency is unknown.

    Example:
      >>> names, features = calendar_features(np.array(["2024-01-01T06", "2024-01-01T12"], "M8[h]"), "h")
      >>> names[:2], features[:, :2].round(3) + 0.0
      (('day_sin', 'day_cos'), array([[ 1.,  0.],
             [ 0., -1.]]))
    """
    unit = frequency.lstrip("0123456789")
    cycles = {"D": ("week", "year"), "B": ("week", "year"), "W": ("year",), "MS": ("year",)}.get(unit)
    if unit in ("s", "min", "h"):
        cycles = ("day", "week", "year")
    if cycles is None:
        raise ValueError(f"frequency must be one of s, min, h, D, B, W and MS, got {frequency!r}")
    times = np.asarray(times).astype("datetime64[s]")
    day, years = np.timedelta64(86_400, "s"), times.astype("datetime64[Y]")
    since_new_year = times - years.astype(times.dtype)
    since = {
        "day": (times - times.astype("datetime64[D]")) / day,
        "week": (times - np.datetime64("1970-01-05", "s")) / (7 * day),
        "year": since_new_year / ((years + 1).astype(times.dtype) - years.astype(times.dtype)),
    }
    angles = [2 * np.pi * (since[cycle] % 1) for cycle in cycles]
    names = tuple(f"{cycle}_{wave}" for cycle in cycles for wave in ("sin", "cos"))
    return names, np.stack([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
