"""Batches of sequences of similar length, so that little of a batch is padding.

Axes: N sequences, C columns (1, or 2 for pairs of sequences), B batch, T time.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import grain


class Rows(NamedTuple):
    """Which sequences a batch holds, and how wide it is.

    Attributes:
      rows: int [B], positions of the sequences; -1 for an empty row of the batch.
      widths: time steps T of the batch, one for each column of the lengths.
    """

    rows: np.ndarray
    widths: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class LengthBuckets:
    """Puts sequences of similar length into batches: little padding, and few shapes to compile.

    The sequences are divided into buckets, each with one shape. The cut that saves the most steps is made
    first, until the padding is small enough. What a bucket has left after its full batches joins the next
    larger one, and what the largest has left is not used in this epoch: `N % batch_size` of N sequences.

    Every batch is a pure function of (seed, step). With a seed, epoch e shuffles the sequences of each bucket
    and the order of the batches by `np.random.default_rng([seed, e])`; how many batches of which shape there
    are is the same in every epoch.

    Attributes:
      lengths: int [N], or [N, C] for C sequences that belong together, such as a sentence and its
        translation; at least 0. Kept as read-only int64.
      batch_size: sequences per batch B, at least 1; lowered to N if there are fewer.
      seed: a non-negative integer, or None for no shuffling: narrow batches first.
      most_padding: the share of padding at which buckets are no longer divided, above 0 and below 1. A bucket
        holds at least one batch, so with few sequences more padding may remain: see `padding`.
      most_shapes: how many shapes there may be, at least 1.
      shapes: the shapes, by the number of their steps; the last holds everything.
      steps_per_epoch: batches per epoch, `N // batch_size`.

    Raises:
      ValueError: if the lengths are not integers of at least 0, [N] or [N, C] and not empty, or if another
        argument is out of range.

    Example:
      >>> buckets = LengthBuckets([3, 9, 2, 10, 3, 9], batch_size=3, seed=0)
      >>> buckets.shapes
      ((3,), (10,))
      >>> for step in (0, 1):
      ...     print(buckets[step].widths, sorted(buckets[step].rows.tolist()))
      (3,) [0, 2, 4]
      (10,) [1, 3, 5]
      >>> round(buckets.padding, 3)
      0.077
    """

    lengths: np.ndarray = dataclasses.field(repr=False)
    batch_size: int
    _: dataclasses.KW_ONLY
    seed: int | None = None
    most_padding: float = 0.08
    most_shapes: int = 32
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(init=False)
    steps_per_epoch: int = dataclasses.field(init=False)
    _members: list[np.ndarray] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        lengths_NC = _checked_lengths(self.lengths)
        for name in ("batch_size", "most_shapes"):
            if operator.index(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed is not None and operator.index(self.seed) < 0:
            raise ValueError(f"seed must be a non-negative integer or None, got {self.seed}")
        if not 0 < self.most_padding < 1:
            raise ValueError(f"most_padding must be above 0 and below 1, got {self.most_padding}")
        batch_size = min(self.batch_size, len(lengths_NC))
        cells = _divided(lengths_NC, batch_size, self.most_padding, self.most_shapes)
        by_shape: dict[tuple[int, ...], list[np.ndarray]] = {_shape(lengths_NC): []}
        for cell in cells:
            by_shape.setdefault(_shape(lengths_NC[cell]), []).append(cell)
        shapes = sorted(by_shape, key=lambda shape: (sum(shape), shape))
        empty = np.zeros(0, int)
        members = [np.sort(np.concatenate([empty, *by_shape[shape]])) for shape in shapes]
        for name, value in {
            "lengths": lengths_NC,
            "batch_size": batch_size,
            "shapes": tuple(shapes),
            "steps_per_epoch": len(lengths_NC) // batch_size,
            "_members": members,
        }.items():
            object.__setattr__(self, name, value)

    def __getitem__(self, step: int) -> Rows:
        """Returns the batch of one training step.

        Args:
          step: any integer >= 0; epochs follow one another without end.

        Returns:
          `Rows(rows, widths)`, none of the rows empty.

        Raises:
          IndexError: if `step` is negative.
        """
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step must be >= 0, got {step}: the epochs have no end to count back from")
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch if self.seed is not None else 0)[position]

    def __iter__(self) -> Iterator[Rows]:
        """Yields the batches of steps 0, 1, 2, ... without end."""
        step = 0
        while True:
            yield self[step]
            step += 1

    def every_row(self) -> Iterator[Rows]:
        """Yields batches in which every sequence occurs exactly once, for evaluation.

        They are those of an epoch without shuffling, and one for the rest, filled up with -1.

        Yields:
          `Rows(rows, widths)`.

        Example:
          >>> [batch.rows.tolist() for batch in LengthBuckets([4, 4, 4], batch_size=2).every_row()]
          [[0, 1], [2, -1]]
        """
        batches, rest = self._cut(lambda members: members)
        yield from batches
        if rest.size:
            shape = self.shapes[-1]
            filled = np.concatenate([rest, np.full(self.batch_size - rest.size, -1)])
            yield Rows(filled, shape)

    def dataset(self, steps: int, make: Callable[[Rows], Any] | None = None) -> "grain.MapDataset":
        """The batches of the first `steps` steps as a Grain data set.

        Element k is `make(self[k])`, so the state of a Grain iterator over it is only the step.

        Args:
          steps: number of batches, at least 1.
          make: what makes a batch of the sequences; None for the `Rows` themselves.

        Returns:
          A `grain.MapDataset` of length `steps`.

        Raises:
          ValueError: if `steps` is below 1.

        Example:
          >>> buckets = LengthBuckets([1, 2, 3, 4], batch_size=2, seed=0)
          >>> dataset = buckets.dataset(100, make=lambda batch: batch.rows.sum())
          >>> len(dataset), int(dataset[40] + dataset[41])
          (100, 6)
        """
        # Imported here: training from arrays in memory does not need Grain.
        import grain

        if operator.index(steps) < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        return grain.MapDataset.range(steps).map(
            lambda step: self[step] if make is None else make(self[step])
        )

    @functools.cached_property
    def padding(self) -> float:
        """The share of an epoch's steps that is padding, measured over the first one."""
        batches = self._epoch(0)
        steps = sum(len(batch.rows) * sum(batch.widths) for batch in batches)
        return 1 - sum(int(self.lengths[batch.rows].sum()) for batch in batches) / steps

    def _epoch(self, epoch: int) -> list[Rows]:
        # Only one epoch is cached: steps follow one another, and an epoch is quick to make again.
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != epoch:
            kept = (epoch, self._drawn(epoch))
            object.__setattr__(self, "_kept", kept)
        return kept[1]

    def _drawn(self, epoch: int) -> list[Rows]:
        if self.seed is None:
            return self._cut(lambda members: members)[0]
        chance = np.random.default_rng([self.seed, epoch])
        batches, _ = self._cut(chance.permutation)
        return [batches[at] for at in chance.permutation(len(batches))]

    def _cut(self, ordered: Callable[[np.ndarray], np.ndarray]) -> tuple[list[Rows], np.ndarray]:
        waiting = [[ordered(members)] for members in self._members]
        batches, rest = [], np.zeros(0, int)
        for at, shape in enumerate(self.shapes):
            # Rows from a smaller bucket go first, so that few of them are passed on twice.
            rows = np.concatenate(waiting[at][::-1])
            full = len(rows) // self.batch_size * self.batch_size
            batches += [Rows(part, shape) for part in rows[:full].reshape(-1, self.batch_size)]
            rest = rows[full:]
            larger = (k for k in range(at + 1, len(self.shapes)) if _holds(self.shapes[k], shape))
            receiver = next(larger, None)
            if receiver is not None:
                waiting[receiver].append(rest)
        return batches, rest


def padded(
    sequences: Sequence[np.ndarray], rows: Sequence[int] | np.ndarray, width: int, *, fill: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Puts some sequences of tokens into one array.

    Args:
      sequences: N arrays of integers, one axis each.
      rows: which of them, B positions; -1 for an empty row.
      width: T, at least the longest of them.
      fill: value after the end of a sequence.

    Returns:
      `(tokens, lengths)`: int32 [B, T] and int32 [B].

    Raises:
      ValueError: if a sequence is longer than `width`.

    Example:
      >>> tokens, lengths = padded([np.array([5, 6]), np.array([7])], [1, 0, -1], width=3)
      >>> tokens
      array([[7, 0, 0],
             [5, 6, 0],
             [0, 0, 0]], dtype=int32)
      >>> lengths
      array([1, 2, 0], dtype=int32)
    """
    tokens_BT = np.full((len(rows), width), fill, np.int32)
    lengths_B = np.zeros(len(rows), np.int32)
    for at, row in enumerate(rows):
        if row < 0:
            continue
        sequence = sequences[row]
        if len(sequence) > width:
            raise ValueError(f"sequence {row} has {len(sequence)} tokens, more than the width {width}")
        tokens_BT[at, : len(sequence)] = sequence
        lengths_B[at] = len(sequence)
    return tokens_BT, lengths_B


def _checked_lengths(lengths: np.ndarray) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.ndim not in (1, 2) or lengths.size == 0:
        raise ValueError(f"lengths must be [N] or [N, C] and not empty, got shape {lengths.shape}")
    if not np.issubdtype(lengths.dtype, np.integer):
        raise ValueError(f"lengths must be integers, got dtype {lengths.dtype}")
    if lengths.min() < 0:
        raise ValueError(f"lengths must be at least 0, got {lengths.min()}")
    lengths = lengths.astype(np.int64).reshape(len(lengths), -1)
    lengths.flags.writeable = False
    return lengths


def _shape(lengths_NC: np.ndarray) -> tuple[int, ...]:
    # Avoids the special case of a scan over no steps.
    return tuple(np.maximum(lengths_NC.max(axis=0), 1).tolist())


def _holds(outer: tuple[int, ...], inner: tuple[int, ...]) -> bool:
    return all(a >= b for a, b in zip(outer, inner, strict=True))


def _divided(lengths_NC: np.ndarray, least: int, most_padding: float, most_shapes: int) -> list[np.ndarray]:
    """Rows in groups of at least `least` that need little padding, by greedy cuts."""
    cells = [np.arange(len(lengths_NC))]
    cuts = [_best_cut(lengths_NC, cells[0], least)]
    steps = len(lengths_NC) * int(lengths_NC.max(axis=0).sum())
    few = lengths_NC.sum() / (1 - most_padding)
    while steps > few and len(cells) < most_shapes:
        at = max(range(len(cells)), key=lambda k: cuts[k][0])
        saved, *halves = cuts[at]
        if saved == 0:
            break
        steps -= saved
        cells[at : at + 1] = halves
        cuts[at : at + 1] = [_best_cut(lengths_NC, half, least) for half in halves]
    return cells


def _best_cut(lengths_NC: np.ndarray, rows: np.ndarray, least: int) -> tuple[int, np.ndarray, np.ndarray]:
    """The steps that the best cut of a group saves, and both halves; 0 if there is none."""
    best = (0, rows, rows[:0])
    left = np.arange(1, len(rows))
    for column in range(lengths_NC.shape[1]):
        order = rows[np.argsort(lengths_NC[rows, column], kind="stable")]
        sorted_NC = lengths_NC[order]
        below = np.maximum.accumulate(sorted_NC)[:-1].sum(axis=1)
        above = np.maximum.accumulate(sorted_NC[::-1])[::-1][1:].sum(axis=1)
        whole = len(rows) * sorted_NC.max(axis=0).sum()
        saved = whole - left * below - (len(rows) - left) * above
        allowed = (np.diff(sorted_NC[:, column]) > 0) & (left >= least) & (len(rows) - left >= least)
        saved = np.where(allowed, saved, 0)
        if saved.size and saved.max() > best[0]:
            at = int(saved.argmax()) + 1
            best = (int(saved[at - 1]), order[:at], order[at:])
    return best
