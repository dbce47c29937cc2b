"""Contiguous streams whose windows vary in length, so that they are not cut at the same places every epoch.

Axes: N tokens, B batch (parallel streams), T time (the window).
"""

import dataclasses
import functools
import operator
from typing import TYPE_CHECKING

import numpy as np

from lstmx.data.batching import ContiguousStreams

if TYPE_CHECKING:
    import grain


@dataclasses.dataclass(frozen=True, eq=False)
class RandomWindowStreams:
    """`ContiguousStreams` with windows of random length (Merity et al. 2018).

    A window is drawn from a normal distribution around `window` (in one of twenty cases around half of it)
    with a deviation of `spread`. Each length is a shape to be compiled, so lengths are rounded to multiples
    of `multiple`, and stay within three deviations. Every batch is a pure function of (seed, step).

    Attributes:
      tokens: int [N], the text as ids.
      batch_size: number of parallel streams B, at least 1.
      window: the usual length, at least 1.
      seed: a non-negative integer.
      spread: standard deviation of the length.
      multiple: lengths are multiples of this, at least 1.
      steps_per_epoch: batches of the first epoch; another may have a few more or less.

    Raises:
      ValueError: as `ContiguousStreams`, or if `spread` or `multiple` is out of range, or the text is too
        short for one window of the greatest length per stream.

    Example:
      >>> streams = RandomWindowStreams(np.arange(4000), batch_size=2, window=70, seed=0)
      >>> [streams[step]["inputs"].shape for step in range(3)]
      [(2, 70), (2, 65), (2, 75)]
      >>> bool(streams[1]["inputs"][0, 0] == streams[0]["targets"][0, -1])
      True
    """

    tokens: np.ndarray = dataclasses.field(repr=False)
    batch_size: int
    window: int
    _: dataclasses.KW_ONLY
    seed: int
    spread: float = 5.0
    multiple: int = 5
    steps_per_epoch: int = dataclasses.field(init=False)

    def __post_init__(self):
        if not 0 <= self.spread < self.window:
            raise ValueError(
                f"spread must lie in [0, window), got {self.spread} and a window of {self.window}"
            )
        if operator.index(self.multiple) < 1:
            raise ValueError(f"multiple must be at least 1, got {self.multiple}")
        if operator.index(self.seed) < 0:
            raise ValueError(f"seed must be a non-negative integer, got {self.seed}")
        longest = self._rounded(self.window + 3 * self.spread)
        # It checks the rest, and that the longest window fits.
        checked = ContiguousStreams(self.tokens, self.batch_size, longest)
        object.__setattr__(self, "tokens", checked.tokens)
        object.__setattr__(self, "steps_per_epoch", len(self._epoch(0)) - 1)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of one training step: see `ContiguousStreams`; T differs from step to step."""
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step must be >= 0, got {step}: the streams have no end to count back from")
        epoch = 0
        while step >= (count := len(self._epoch(epoch)) - 1):
            step, epoch = step - count, epoch + 1
        first, last = self._epoch(epoch)[step : step + 2]
        starts_B = first + self._stream_length * np.arange(self.batch_size)
        window_BT = self.tokens[starts_B[:, None] + np.arange(last - first + 1)]
        resets_BT = np.zeros((self.batch_size, last - first), bool)
        resets_BT[:, 0] = step == 0
        return {
            "inputs": np.ascontiguousarray(window_BT[:, :-1]),
            "targets": np.ascontiguousarray(window_BT[:, 1:]),
            "resets": resets_BT,
        }

    def dataset(self, steps: int) -> "grain.MapDataset":
        """The batches of the first `steps` steps as a Grain data set."""
        import grain

        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        return grain.MapDataset.range(steps).map(self.__getitem__)

    @property
    def _stream_length(self) -> int:
        return (self.tokens.size - 1) // self.batch_size

    @functools.cached_property
    def _epochs(self) -> dict[int, np.ndarray]:
        return {}

    def _epoch(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch begin, and where the last one ends."""
        if epoch not in self._epochs:
            random = np.random.default_rng([self.seed, epoch])
            # Enough for the shortest: what is left at the end, shorter than a window, is not read.
            count = self._stream_length // self._rounded(1) + 1
            middle = np.where(random.random(count) < 0.95, self.window, self.window / 2)
            noise = np.clip(random.normal(size=count), -3, 3) * self.spread
            ends = np.cumsum([self._rounded(length) for length in (middle + noise).tolist()])
            self._epochs[epoch] = np.concatenate([[0], ends[ends <= self._stream_length]])
        return self._epochs[epoch]

    def _rounded(self, length: float) -> int:
        return max(round(length / self.multiple), 1) * self.multiple
