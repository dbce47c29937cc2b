"""Time series, concatenated in flat arrays, and windows of them.

Axes: N series, R rows (the steps of all series), D targets, F covariates, L steps of history, H steps of the
horizon, B batch, M windows.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np

# M windows: the series of each, and how many of its steps are history; int [M] each.
Windows = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """Series of one frequency, one row per step of each series.

    Steps at the end whose targets are all NaN are the future; they hold the covariates known in advance.

    Attributes:
      starts: int [N + 1], increasing from 0; series n has the rows from `starts[n]` to `starts[n + 1]`.
      targets: float [R, D]; NaN where a value is missing.
      historic: float [R, F], covariates known only for the past; NaN where missing; None for none.
      future: float [R, F], covariates known in advance, such as calendars and prices; None for none.
      static: float [N, F], static covariates; None for none.

    Raises:
      ValueError: if a shape does not fit, a value is infinite, or a covariate known in advance is NaN.

    Example:
      >>> panel = Panel(np.array([0, 3, 5]), np.array([[1.0], [2.0], [3.0], [10.0], [np.nan]]))
      >>> len(panel), panel.lengths.tolist(), panel.observed.tolist()
      (2, [3, 2], [3, 1])
    """

    starts: np.ndarray
    targets: np.ndarray = dataclasses.field(repr=False)
    historic: np.ndarray | None = dataclasses.field(default=None, repr=False)
    future: np.ndarray | None = dataclasses.field(default=None, repr=False)
    static: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        starts = np.asarray(self.starts)
        if starts.ndim != 1 or len(starts) < 2 or starts[0] != 0 or np.any(np.diff(starts) < 0):
            raise ValueError(
                "starts must be [series + 1], begin with 0, never decrease, and have at least one series"
            )
        object.__setattr__(self, "starts", starts.astype(np.int64))
        count, rows = len(starts) - 1, int(starts[-1])
        for name, length in (("targets", rows), ("historic", rows), ("future", rows), ("static", count)):
            given = getattr(self, name)
            values = np.zeros((length, 0)) if given is None else np.asarray(given, np.float64)
            if values.ndim != 2 or len(values) != length:
                raise ValueError(f"{name} must be [{length}, columns], got shape {values.shape}")
            if np.isinf(values).any():
                raise ValueError(
                    f"{name} must not be infinite, got such a value in row {_row(np.isinf(values))}"
                )
            if name in ("future", "static") and np.isnan(values).any():
                raise ValueError(f"{name} must be known, got NaN in row {_row(np.isnan(values))}")
            object.__setattr__(self, name, values)
        if self.targets.shape[1] == 0:
            raise ValueError("targets must have at least one column")

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each series, int64 [N], including those of the future."""
        return np.diff(self.starts)

    @functools.cached_property
    def observed(self) -> np.ndarray:
        """Number of steps of each series up to the last one with a target, int64 [N]."""
        rows = np.flatnonzero(~np.isnan(self.targets).all(axis=1))
        last = np.searchsorted(rows, self.starts[1:]) - 1
        found = rows[np.maximum(last, 0)] if len(rows) else np.zeros(len(self), int)
        some = (last >= 0) & (found >= self.starts[:-1])
        return np.where(some, found + 1 - self.starts[:-1], 0)

    def series(self, number: int) -> np.ndarray:
        """The targets of one series, float64 [steps, D]."""
        return self.targets[self.starts[number] : self.starts[number + 1]]

    def together(self) -> "Panel":
        """One series with the targets of all series as columns, for a multivariate model.

        Historic covariates become columns too; those known in advance must be equal in all series.

        Raises:
          ValueError: if the series differ in length or in the covariates known in advance, or have static
            covariates.

        Example:
          >>> Panel(np.array([0, 2, 4]), np.arange(4.0)[:, None]).together().targets
          array([[0., 2.],
                 [1., 3.]])
        """
        count, lengths = len(self), self.lengths
        for number in np.flatnonzero(lengths != lengths[0])[:1]:
            raise ValueError(
                f"series of a multivariate model must be equally long, got {lengths[0]} and {lengths[number]}"
            )
        historic, future, static = (
            cast(np.ndarray, each) for each in (self.historic, self.future, self.static)
        )
        future = future.reshape(count, lengths[0], -1)
        if static.shape[1] or (future != future[0]).any():
            raise ValueError(
                "series of a multivariate model must share future covariates and have no static ones"
            )
        targets, historic = (np.hstack(np.split(values, count)) for values in (self.targets, historic))
        return Panel(np.array([0, lengths[0]]), targets, historic, future[0])


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesWindows:
    """Windows of a panel: the history before a cutoff, and the targets after it.

    The window of series n at cutoff c reads the steps from `c - input_size` to `c - 1`, and its targets are
    those from `c` to `c + horizon - 1`. Steps outside of the series count as missing and are zero.

    Attributes:
      panel: the series.
      input_size: number of steps of history L, at least 1.
      horizon: number of steps to forecast H, at least 1.

    Raises:
      ValueError: if a size is below 1.

    Example:
      >>> panel = Panel(np.array([0, 5]), np.arange(5.0)[:, None])
      >>> windows = SeriesWindows(panel, input_size=3, horizon=2)
      >>> batch = windows.batch(np.array([0, 0]), np.array([3, 2]))
      >>> batch["history"][..., 0]
      array([[0., 1., 2.],
             [0., 0., 1.]], dtype=float32)
      >>> batch["history_exists"][..., 0]
      array([[ True,  True,  True],
             [False,  True,  True]])
      >>> batch["target"][..., 0]
      array([[3., 4.],
             [2., 3.]], dtype=float32)
    """

    panel: Panel
    input_size: int
    horizon: int

    def __post_init__(self):
        for name in ("input_size", "horizon"):
            if operator.index(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def within(
        self,
        first: int | np.ndarray = 0,
        stop: int | np.ndarray | None = None,
        *,
        least_history: int = 1,
        every: int = 1,
    ) -> Windows:
        """All windows whose targets lie in a range of steps of their series.

        Args:
          first: first step that targets may begin at, for all series or for each.
          stop: step before which targets end; by default after the last observed step.
          least_history: steps that a series must have before the targets, at least 1.
          every: distance of cutoffs, counted back from the last one.

        Returns:
          (series, cutoffs), int64 [M] each, series by series.
        """
        observed = self.panel.observed
        stop = observed if stop is None else np.minimum(stop, observed)
        lowest = np.broadcast_to(np.maximum(first, least_history), observed.shape)
        highest = stop - self.horizon
        counts = np.maximum((highest - lowest) // every + 1, 0)
        series = np.repeat(np.arange(len(observed)), counts)
        back = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        offsets = np.repeat(counts, counts) - 1 - back
        return series, highest[series] - every * offsets

    def batch(self, series: np.ndarray, cutoffs: np.ndarray) -> dict[str, np.ndarray]:
        """The windows of some series at some cutoffs.

        Args:
          series: int [B], the numbers of the series.
          cutoffs: int [B], the number of steps that are history, at least 0.

        Returns:
          float32 arrays, zero where missing: `history` [B, L, D] and `target` [B, H, D], with the
          bools `history_exists` and `target_exists`; `historic` [B, L, F]; `future` [B, L + H, F], for
          history and horizon; `static` [B, F]. And `series`, int32 [B].
        """
        series, panel, size = np.asarray(series), self.panel, self.input_size
        steps_BT = np.asarray(cutoffs)[:, None] + np.arange(-size, self.horizon)
        inside_BT = (steps_BT >= 0) & (steps_BT < panel.lengths[series][:, None])
        rows_BT = np.where(inside_BT, panel.starts[series][:, None] + steps_BT, 0)
        historic, future, static = (
            cast(np.ndarray, each) for each in (panel.historic, panel.future, panel.static)
        )
        targets, exists = _known(panel.targets, rows_BT, inside_BT)
        return {
            "history": targets[:, :size],
            "history_exists": exists[:, :size],
            "target": targets[:, size:],
            "target_exists": exists[:, size:],
            "historic": _known(historic, rows_BT[:, :size], inside_BT[:, :size])[0],
            "future": _known(future, rows_BT, inside_BT)[0],
            "static": static[series].astype(np.float32),
            "series": series.astype(np.int32),
        }

    def parts(self, of: Windows, size: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Windows in batches of one size, so that all have one shape; the last is padded.

        Args:
          of: M windows.
          size: windows per batch, at least 1; lowered to M if there are fewer.

        Yields:
          (count, batch): how many windows of the batch are not padding, and the batch as from `batch`.

        Example:
          >>> windows = SeriesWindows(Panel(np.array([0, 5]), np.arange(5.0)[:, None]), 1, 1)
          >>> [(n, batch["target"].ravel().tolist()) for n, batch in windows.parts(windows.within(), 3)]
          [(3, [1.0, 2.0, 3.0]), (1, [4.0, 4.0, 4.0])]
        """
        series, cutoffs = map(np.asarray, of)
        size = min(size, len(series))
        for start in range(0, len(series), size or 1):
            at = np.arange(start, start + size)
            inside = at < len(series)
            at = np.where(inside, at, start)
            yield int(inside.sum()), self.batch(series[at], cutoffs[at])


@dataclasses.dataclass(frozen=True, eq=False)
class WindowBatches:
    """Shuffled batches of windows for training, each a pure function of (seed, step).

    Epoch e shuffles the windows by `np.random.default_rng([seed, e])`; those left over after the last full
    batch are skipped in that epoch.

    Attributes:
      windows: where the batches come from.
      series, cutoffs: int [M], the windows to draw, as from `SeriesWindows.within`.
      batch_size: windows per batch B; lowered to M if there are fewer.
      seed: a non-negative integer.
      steps_per_epoch: batches per epoch, `M // batch_size`.

    Raises:
      ValueError: if there are no windows, or an argument is out of range.

    Example:
      >>> windows = SeriesWindows(Panel(np.array([0, 9]), np.arange(9.0)[:, None]), 2, 1)
      >>> batches = WindowBatches(windows, *windows.within(least_history=2), batch_size=3, seed=0)
      >>> batches.steps_per_epoch, batches[0]["target"].shape
      (2, (3, 1, 1))
    """

    windows: SeriesWindows
    series: np.ndarray = dataclasses.field(repr=False)
    cutoffs: np.ndarray = dataclasses.field(repr=False)
    _: dataclasses.KW_ONLY
    batch_size: int
    seed: int
    steps_per_epoch: int = dataclasses.field(init=False)
    _order: Callable[[int], np.ndarray] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if len(self.series) == 0:
            raise ValueError(
                f"there is no window to train on: no series has {self.windows.horizon} steps of targets "
                "and enough history before them"
            )
        if operator.index(self.batch_size) < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if operator.index(self.seed) < 0:
            raise ValueError(f"seed must be a non-negative integer, got {self.seed}")
        object.__setattr__(self, "batch_size", min(self.batch_size, len(self.series)))
        object.__setattr__(self, "steps_per_epoch", len(self.series) // self.batch_size)
        object.__setattr__(self, "_order", functools.lru_cache(maxsize=2)(self._shuffled))

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a training step, counted from 0; epochs follow one another without end."""
        if operator.index(step) < 0:
            raise IndexError(f"step must be >= 0, got {step}: the epochs have no end to count back from")
        epoch, position = divmod(step, self.steps_per_epoch)
        chosen = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        return self.windows.batch(self.series[chosen], self.cutoffs[chosen])

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.series))


def _known(values: np.ndarray, rows_BT: np.ndarray, inside_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of rows as float32 [B, T, C], zero where missing, and where they exist."""
    if values.shape[1] == 0:
        empty = np.zeros((*rows_BT.shape, 0), np.float32)
        return empty, empty.astype(bool)
    found = values[rows_BT]
    exists = inside_BT[..., None] & ~np.isnan(found)
    return np.where(exists, found, 0).astype(np.float32), exists


def _row(wrong: np.ndarray) -> int:
    return int(np.flatnonzero(wrong.any(axis=1))[0])
