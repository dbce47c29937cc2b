"""Cuts one long sequence of tokens into batches of windows, for training and for evaluation.

Axes: N tokens, B batch (parallel streams), T time (the window).
"""

import dataclasses
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import grain

_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class ContiguousStreams:
    """Batches for truncated back-propagation through time with a recurrent state carried between them.

    The N tokens are cut into B contiguous streams. Batch `step` holds window `step % steps_per_epoch` of each
    stream, so row b of a batch continues where row b of the previous batch ended, and the state after one
    batch is the initial state of the next. Where an epoch begins, `resets` resets the state.

    Every batch is a pure function of (seed, step). With a seed, epoch e starts at token
    `np.random.default_rng([seed, e]).integers(window)`, so that the windows differ from epoch to epoch.

    Attributes:
      tokens: int [N], the text as ids; kept as read-only int32.
      batch_size: number of parallel streams B, at least 1.
      window: tokens per window T, the length that gradients flow through, at least 1.
      seed: a non-negative integer, or None for epochs that all start at token 0.
      steps_per_epoch: batches per epoch, the same for every epoch: `(N - 1 - slack) // B // T` where slack,
        the tokens put aside for the offset, is T - 1 with a seed and 0 without.

    Raises:
      ValueError: if the tokens are not one-dimensional integers that fit int32, if batch_size or window is
        below 1, if the seed is negative, or if the text is too short for one window per stream.

    Example:
      >>> streams = ContiguousStreams(np.arange(13), batch_size=2, window=3)
      >>> streams.steps_per_epoch
      2
      >>> streams[0]["inputs"]
      array([[0, 1, 2],
             [6, 7, 8]], dtype=int32)
      >>> streams[1]["inputs"]  # each row continues
      array([[ 3,  4,  5],
             [ 9, 10, 11]], dtype=int32)
      >>> streams[1]["targets"]
      array([[ 4,  5,  6],
             [10, 11, 12]], dtype=int32)
      >>> streams[2]["resets"]  # step 2 opens the second epoch
      array([[ True, False, False],
             [ True, False, False]])
    """

    tokens: np.ndarray = dataclasses.field(repr=False)
    batch_size: int
    window: int
    _: dataclasses.KW_ONLY
    seed: int | None = None
    steps_per_epoch: int = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "tokens", _checked_tokens(self.tokens))
        _check_at_least_one("batch_size", self.batch_size)
        _check_at_least_one("window", self.window)
        if self.seed is not None and operator.index(self.seed) < 0:
            raise ValueError(f"seed must be a non-negative integer or None, got {self.seed}")
        needed = self.batch_size * self.window + 1 + self._slack
        if self.tokens.size < needed:
            slack = f" + {self._slack} for the random offset" if self._slack else ""
            raise ValueError(
                "the text is too short for one window per stream: "
                f"{self.tokens.size} tokens, but batch_size {self.batch_size} and window {self.window} need "
                f"at least {needed} (batch_size * window + 1{slack}); make one of them smaller"
            )
        object.__setattr__(self, "steps_per_epoch", self._stream_length // self.window)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of one training step.

        Args:
          step: any integer >= 0; epochs follow one another without end.

        Returns:
          inputs: int32 [B, T].
          targets: int32 [B, T], the token that follows each input.
          resets: bool [B, T], True at time 0 of the first window of each epoch and nowhere else.

        Raises:
          IndexError: if `step` is negative.
        """
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step must be >= 0, got {step}: the streams have no end to count back from")
        epoch, position = divmod(step, self.steps_per_epoch)
        first = self._offset(epoch) + position * self.window
        starts_B = first + self._stream_length * np.arange(self.batch_size)
        window_BT = self.tokens[starts_B[:, None] + np.arange(self.window + 1)]
        resets_BT = np.zeros((self.batch_size, self.window), bool)
        resets_BT[:, 0] = position == 0
        return {
            "inputs": np.ascontiguousarray(window_BT[:, :-1]),
            "targets": np.ascontiguousarray(window_BT[:, 1:]),
            "resets": resets_BT,
        }

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of steps 0, 1, 2, ... without end."""
        step = 0
        while True:
            yield self[step]
            step += 1

    def dataset(self, steps: int) -> "grain.MapDataset":
        """The batches of the first `steps` steps as a Grain data set.

        Element k equals `self[k]`, so the state of a Grain iterator over it is only the step. The length is
        that of the whole run, over as many epochs as it takes: `.repeat()` would start again at epoch 0.

        Args:
          steps: number of batches, at least 1.

        Returns:
          A `grain.MapDataset` of length `steps`.

        Raises:
          ValueError: if `steps` is below 1.

        Example:
          >>> streams = ContiguousStreams(np.arange(100), batch_size=2, window=3, seed=0)
          >>> dataset = streams.dataset(1000)
          >>> len(dataset)
          1000
          >>> bool((dataset[999]["inputs"] == streams[999]["inputs"]).all())
          True
        """
        # Imported here: training from arrays in memory does not need Grain.
        import grain

        _check_at_least_one("steps", steps)
        return grain.MapDataset.range(steps).map(self.__getitem__)

    @property
    def _slack(self) -> int:
        return 0 if self.seed is None else self.window - 1

    @property
    def _stream_length(self) -> int:
        # Counted in targets: every stream may read one token more, which is the first input of the next one.
        # The largest offset is put aside in every epoch, so that no epoch has a step more than another.
        return (self.tokens.size - 1 - self._slack) // self.batch_size

    def _offset(self, epoch: int) -> int:
        if self.seed is None:
            return 0
        return int(np.random.default_rng([self.seed, epoch]).integers(self.window))


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationStreams:
    """A finite sequence of batches in which every target, token 1 to N - 1, counts exactly once.

    The N - 1 targets are cut into B contiguous streams whose lengths differ by one at most, and each stream
    is read window by window with a carried state, as in `ContiguousStreams`. What is left of the last window
    is padding. The first characters of each stream are predicted from the initial state; `batch_size=1` is
    the exact sequential evaluation, larger ones are faster.

    Attributes:
      tokens: int [N], N >= 2; kept as read-only int32.
      batch_size: number of parallel streams B, at least 1; lowered to N - 1 if the text is shorter.
      window: tokens per window T, at least 1.

    Raises:
      ValueError: if the tokens are not at least 2 integers in one dimension that fit int32, or if batch_size
        or window is below 1.

    Example:
      >>> streams = EvaluationStreams(np.arange(10, 18), batch_size=2, window=3)
      >>> len(streams)
      2
      >>> first, last = streams
      >>> last["targets"]
      array([[ 0,  0,  0],
             [17,  0,  0]], dtype=int32)
      >>> last["mask"]
      array([[False, False, False],
             [ True, False, False]])
      >>> sum(int(batch["mask"].sum()) for batch in streams)
      7
    """

    tokens: np.ndarray = dataclasses.field(repr=False)
    batch_size: int
    window: int

    def __post_init__(self):
        object.__setattr__(self, "tokens", _checked_tokens(self.tokens))
        _check_at_least_one("batch_size", self.batch_size)
        _check_at_least_one("window", self.window)
        if self.tokens.size < 2:
            raise ValueError(
                f"evaluation needs at least 2 tokens, one input and one target, got {self.tokens.size}"
            )
        object.__setattr__(self, "batch_size", min(self.batch_size, self.tokens.size - 1))

    def __len__(self) -> int:
        longest = -(-(self.tokens.size - 1) // self.batch_size)
        return -(-longest // self.window)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns one batch.

        Args:
          index: in `[-len(self), len(self))`.

        Returns:
          inputs: int32 [B, T], 0 where the mask is False.
          targets: int32 [B, T], the token that follows each input, 0 where the mask is False.
          resets: bool [B, T], True at time 0 of the first batch and nowhere else.
          mask: bool [B, T], True where the target counts.

        Raises:
          IndexError: if `index` is out of range.
        """
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"index must be in [{-len(self)}, {len(self)}), got {index}")
        # int64 at once: the product of two int32 sizes need not fit.
        bounds = np.arange(self.batch_size + 1, dtype=np.int64) * (self.tokens.size - 1) // self.batch_size
        input_at_BT = (bounds[:-1] + position * self.window)[:, None] + np.arange(self.window)
        mask_BT = input_at_BT < bounds[1:, None]
        input_at_BT = np.where(mask_BT, input_at_BT, 0)
        resets_BT = np.zeros(mask_BT.shape, bool)
        resets_BT[:, 0] = position == 0
        return {
            "inputs": np.where(mask_BT, self.tokens[input_at_BT], np.int32(0)),
            "targets": np.where(mask_BT, self.tokens[input_at_BT + 1], np.int32(0)),
            "resets": resets_BT,
            "mask": mask_BT,
        }

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[index] for index in range(len(self)))


def _checked_tokens(tokens: np.ndarray) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1:
        raise ValueError(f"tokens must be one-dimensional [N], got shape {tokens.shape}")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens must be integers, got dtype {tokens.dtype}")
    if tokens.size and (tokens.min() < _INT32.min or tokens.max() > _INT32.max):
        raise ValueError(f"tokens must fit int32, got values from {tokens.min()} to {tokens.max()}")
    tokens = tokens.astype(np.int32, copy=False).view()
    tokens.flags.writeable = False
    return tokens


def _check_at_least_one(name: str, value: int) -> None:
    if operator.index(value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
