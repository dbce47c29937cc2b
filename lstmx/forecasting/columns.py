"""Reads columns of pandas and polars frames: ids, times and numbers, with errors that name the row."""

import decimal
import difflib
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lstmx.forecasting.frequencies import require_pandas


class Keys(NamedTuple):
    """The series and the time of each row of a frame.

    Attributes:
      ids: the series, sorted.
      codes: int [rows], positions in `ids`.
      times: datetime64 [rows], in UTC where there is a zone; or int64.
      zone: time zone of the times, or None.
      order: int [rows], the rows sorted by series and time.
    """

    ids: tuple
    codes: np.ndarray
    times: np.ndarray
    zone: Any
    order: np.ndarray

    def at(self, row: int) -> str:
        """Describes a row, for errors."""
        time = self.times[row]
        if time.dtype.kind == "M":
            time = require_pandas().Timestamp(time)
            time = time if self.zone is None else time.tz_localize("UTC").tz_convert(self.zone)
        return f"series {self.ids[self.codes[row]]!r} at {shown(time)} (row {row})"


def shown(time: Any) -> str:
    """A time as text, without midnight."""
    return str(time).removesuffix(" 00:00:00")


def kind_of(df: Any, called: str) -> str:
    """Returns "pandas" or "polars".

    Raises:
      TypeError: if it is not a DataFrame of either.
    """
    for base in type(df).__mro__:
        package = base.__module__.split(".")[0]
        if base.__name__ == "DataFrame" and package in ("pandas", "polars"):
            return package
    raise TypeError(f"{called} must be a pandas or polars DataFrame, got {type(df).__name__}")


def require_columns(df: Any, called: str, names: Sequence[str]) -> None:
    """Raises ValueError unless a frame has rows, and each of the columns once."""
    kind_of(df, called)
    columns = list(df.columns)
    for name in names:
        if columns.count(name) > 1 or names.count(name) > 1:
            raise ValueError(
                f"{called} must have one column {name!r}, used for one purpose, got {columns} for {names}"
            )
        if name not in columns:
            near = difflib.get_close_matches(str(name).lower(), [str(c).lower() for c in columns], 1)
            found = [repr(c) for c in columns if str(c).lower() in near]
            found += ["the index"] if name in getattr(getattr(df, "index", None), "names", ()) else []
            hint = f"; did you mean {' or '.join(found)}?" if found else ""
            raise ValueError(f"{called} must have a column {name!r}, got {columns}{hint}")
    if len(df) == 0:
        raise ValueError(f"{called} must have rows, got none")


def column_of(df: Any, name: str) -> Any:
    """A column of either kind of frame as a pandas Series whose index counts from 0."""
    pd = require_pandas()
    column = df[name]
    if kind_of(df, "df") == "pandas":
        return column.reset_index(drop=True)
    dtype = column.dtype
    if zone := getattr(dtype, "time_zone", None):
        times = pd.Series(column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy())
        return times.dt.tz_localize("UTC").dt.tz_convert(zone)
    if dtype.is_temporal() or (dtype.is_numeric() and not dtype.is_decimal()):
        return pd.Series(column.to_numpy())
    return pd.Series(column.to_list(), dtype=object)


def keys_of(df: Any, id_col: str, time_col: str) -> Keys:
    """Reads the ids and times of a frame.

    Raises:
      ValueError: if one is missing or of the wrong type, or a series has a time twice.
    """
    ids, codes = labels_of(column_of(df, id_col), id_col, lambda row: f"row {row}")

    def at(row):
        return f"series {ids[codes[row]]!r} (row {row})"

    times, zone = _times_of(column_of(df, time_col), time_col, at)
    order = np.lexsort((times, codes))
    keys = Keys(ids, codes, times, zone, order)
    twice = (np.diff(codes[order]) == 0) & (times[order][1:] == times[order][:-1])
    for first in np.flatnonzero(twice)[:1]:
        raise ValueError(
            f"a series must have one row for each time, got {keys.at(order[first])} again in row "
            f"{order[first + 1]}; {twice.sum()} rows are repeated"
        )
    return keys


def labels_of(column: Any, name: str, at: Callable[[int], str]) -> tuple[tuple, np.ndarray]:
    """The distinct strings or integers of a column, sorted, and int [rows], the position of each row's.

    Raises:
      ValueError: if one is missing, or they are not all strings or all integers.
    """
    pd = require_pandas()
    values = column.astype(object)
    _require(values.notna(), lambda row: f"{name} must not be missing, but is in {at(row)}")
    if pd.api.types.infer_dtype(values, skipna=False) not in ("string", "integer"):
        kinds = [_label_kind(value) for value in values]
        right = np.array([kind is not None and kind == kinds[0] for kind in kinds])
        rule = f"{name} must be all strings or all integers"
        _require(right, lambda row: f"{rule}, got {values[row]!r} in {at(row)}")
    codes, labels = pd.factorize(values, sort=True)
    return tuple(label if isinstance(label, str) else int(label) for label in labels), codes


def numbers_of(
    column: Any,
    name: str,
    at: Callable[[int], str],
    *,
    booleans: bool = True,
    known: np.ndarray | None = None,
) -> np.ndarray:
    """Reads the numbers of a column.

    Args:
      column: a pandas Series.
      name: its name in errors.
      at: describes a row, for errors.
      booleans: whether booleans are accepted.
      known: bool [rows], where NaN is refused; None for nowhere.

    Returns:
      float64 [rows]; NaN where a number is missing.

    Raises:
      ValueError: if a value is not a number, infinite, or NaN where it is refused.
    """
    types = require_pandas().api.types
    fast = types.is_float_dtype(column.dtype) or types.is_integer_dtype(column.dtype)
    if not fast:
        column = column.astype(object)
        kinds = (numbers.Real, decimal.Decimal, *((np.bool_,) if booleans else ()))
        right = np.array([isinstance(v, kinds) and (booleans or not isinstance(v, bool)) for v in column])
        rule = f"{name} must hold numbers"
        _require(right | column.isna().to_numpy(), lambda row: f"{rule}, got {column[row]!r} in {at(row)}")
    values = column.to_numpy(np.float64, na_value=np.nan)
    _require(~np.isinf(values), lambda row: f"{name} must not be infinite, got {values[row]} in {at(row)}")
    if known is not None:
        _require(~np.isnan(values) | ~known, lambda row: f"{name} must be known, got NaN in {at(row)}")
    return values


def read_static(
    static_df: Any, names: tuple[str, ...], id_col: str, ids: tuple, categories: Mapping[str, Sequence] | None
) -> tuple[np.ndarray | None, tuple[str, ...], dict[str, tuple]]:
    """The static covariates of series.

    Args:
      static_df: a frame, or None.
      names: its columns.
      id_col: the column of the ids.
      ids: the N series.
      categories: categories of the columns that have any; None for those that occur.

    Returns:
      (values, names, categories): float64 [N, F] or None, the names of its columns, and the categories.

    Raises:
      ValueError: if a series is missing, or a value of one, or its category is not among those.
    """
    if (static_df is None) != (not names):
        raise ValueError("static_df and stat_exog, the names of its columns, must be given together")
    if static_df is None:
        return None, (), {}
    require_columns(static_df, "static_df", (id_col, *names))
    labels, codes = labels_of(column_of(static_df, id_col), id_col, lambda row: f"row {row} of static_df")
    for code in np.flatnonzero(np.bincount(codes) > 1)[:1]:
        raise ValueError(f"static_df must have one row for each series, got several for {labels[code]!r}")
    row_of = dict(zip(labels, np.argsort(codes), strict=True))
    if lacking := [label for label in ids if label not in row_of]:
        raise ValueError(f"static_df must have a row for series {lacking[0]!r}; {len(lacking)} are missing")
    rows = [row_of[label] for label in ids]
    types = require_pandas().api.types
    columns, found = {}, {}

    def at(row):
        return f"series {ids[row]!r}"

    for name in names:
        column = column_of(static_df, name)[rows].reset_index(drop=True)
        text = types.infer_dtype(column) in ("string", "categorical")
        if not (text if categories is None else name in categories):
            columns[name] = numbers_of(column, name, at, known=np.ones(len(ids), bool))
            continue
        present, codes = labels_of(column, name, at)
        found[name] = present if categories is None else tuple(categories[name])
        labels = np.array(present, object)[codes]
        known = f"{name} must be one of {', '.join(map(repr, found[name]))}"
        _require(
            np.isin(codes, [present.index(label) for label in {*present} & {*found[name]}]),
            _label_message(known, labels, at),
        )
        columns |= {f"{name}={category}": (labels == category).astype(float) for category in found[name]}
    return np.stack(list(columns.values()), axis=1), tuple(columns), found


def frame_of(
    kind: str,
    ids: tuple[str, list],
    times: Mapping[str, Any],
    values: Mapping[str, np.ndarray],
    dtypes: tuple[Any, Any],
) -> Any:
    """Builds a frame.

    Args:
      kind: "pandas" or "polars".
      ids: name and values of the first column.
      times: the next columns, as pandas indices.
      values: the other columns.
      dtypes: the types of ids and times; None if they are not known.

    Returns:
      A DataFrame.
    """
    name, labels = ids
    if kind == "pandas":
        pd = require_pandas()
        return pd.DataFrame({name: pd.Series(labels, dtype=dtypes[0]), **times, **values})
    import polars as pl

    columns = {name: pl.Series(labels) if dtypes[0] is None else pl.Series(labels).cast(dtypes[0])}
    for name, index in times.items():
        zone = getattr(index, "tz", None)
        array = (index if zone is None else index.tz_convert("UTC").tz_localize(None)).to_numpy()
        # Polars has no times in seconds.
        column = pl.Series(array.astype("datetime64[ms]") if array.dtype == "datetime64[s]" else array)
        if zone is not None:
            column = column.dt.replace_time_zone("UTC").dt.convert_time_zone(str(zone))
        if dtypes[1] is not None and dtypes[1] != pl.String:
            cast = column.cast(dtypes[1])
            # Hours would be lost in a column of days.
            column = cast if (cast.cast(column.dtype) == column).all() else column
        columns[name] = column
    return pl.DataFrame({**columns, **values})


def table_of(kind: str, columns: Mapping[str, Sequence]) -> Any:
    """A frame of plain values; None where there is no value.

    Args:
      kind: "pandas" or "polars".
      columns: the values by column; those of numbers with a fraction are floats even if there are none.
    """
    pd = require_pandas()
    floats = [
        name
        for name, values in columns.items()
        if all(value is None or isinstance(value, float) for value in values)
    ]
    if kind == "pandas":
        return pd.DataFrame(
            {
                name: pd.Series(values, dtype=float if name in floats else None)
                for name, values in columns.items()
            }
        )
    import polars as pl

    types = {name: pl.Float64 if name in floats else None for name in columns}
    return pl.DataFrame(
        [pl.Series(name, values, types[name], strict=False) for name, values in columns.items()]
    )


def _times_of(column: Any, name: str, at: Callable[[int], str]) -> tuple[np.ndarray, Any]:
    """The times of a column, in UTC where they have a zone, and their zone."""
    pd = require_pandas()
    rule = f"{name} must hold dates, ISO 8601 strings or integers"
    _require(column.notna(), lambda row: f"{name} must not be missing, but is in {at(row)}")
    kind = pd.api.types.infer_dtype(column, skipna=False)
    if kind == "integer":
        return column.to_numpy(np.int64), None
    if kind not in ("datetime64", "datetime", "date", "string"):
        values = column.astype(object)
        row = next((row for row, value in enumerate(values) if type(value) is not type(values[0])), 0)
        raise ValueError(f"{rule}, got {values[row]!r} in {at(row)}, a column of {column.dtype}")
    options = {"format": "ISO8601"} if kind == "string" else {}
    parsed = pd.to_datetime(column, errors="coerce", utc=True, **options)
    right = parsed.notna()
    if kind == "string":
        # pandas takes "now" for a time.
        right &= column.str.match(r"\d")
    _require(right, lambda row: f"{rule}, got {column[row]!r} in {at(row)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # of pandas 2, where pandas 3 has an error
            parsed = pd.to_datetime(column, **options)
    except (TypeError, ValueError, FutureWarning):
        offsets = _offsets(column)
        rule = f"{name} must be in one time zone or none (convert to UTC before)"
        _require(offsets == offsets[0], lambda row: f"{rule}, got {column[0]} and {column[row]} in {at(row)}")
        raise
    zone = parsed.dt.tz
    parsed = parsed if zone is None else parsed.dt.tz_convert("UTC").dt.tz_localize(None)
    return parsed.to_numpy(), zone


def _offsets(column: Any) -> Any:
    """The time zones: the ends of strings, the zones of dates."""
    if isinstance(column[0], str):
        return column.str.extract(r"[T ]\d.*?(Z|[+-]\d\d(?::?\d\d)?)$", expand=False).fillna("")
    return column.map(lambda time: str(getattr(time, "tzinfo", None)))


def _label_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "string"
    return "integer" if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def _label_message(rule: str, labels: np.ndarray, at: Callable[[int], str]) -> Callable[[int], str]:
    return lambda row: f"{rule}, got {labels[row]!r} in {at(row)}"


def _require(right: Any, message: Callable[[int], str]) -> None:
    """Raises ValueError with the message for the first row where the condition fails."""
    wrong = np.flatnonzero(~np.asarray(right, bool))
    if len(wrong):
        raise ValueError(message(int(wrong[0])))
