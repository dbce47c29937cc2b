import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmx.data import ContiguousStreams, EvaluationStreams

sizes = st.integers(1, 7)
seeds = st.none() | st.integers(0, 3) | st.just(2**70)


@st.composite
def training_streams(draw):
    batch_size, window, seed = draw(sizes), draw(sizes), draw(seeds)
    slack = 0 if seed is None else window - 1
    least = batch_size * window + 1 + slack
    length = draw(st.integers(least, least + 60))
    return ContiguousStreams(np.arange(length) * 10, batch_size, window, seed=seed)


def assert_same(batch, expected):
    assert batch.keys() == expected.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], expected[name], err_msg=name, strict=True)


def training_batch_slowly(tokens, batch_size, window, seed, step):
    """The oracle: one token at a time."""
    slack = 0 if seed is None else window - 1
    stream_length = (len(tokens) - 1 - slack) // batch_size
    steps_per_epoch = stream_length // window
    epoch, position = step // steps_per_epoch, step % steps_per_epoch
    offset = 0 if seed is None else int(np.random.default_rng([seed, epoch]).integers(window))
    batch = {
        "inputs": np.zeros((batch_size, window), np.int32),
        "targets": np.zeros((batch_size, window), np.int32),
        "resets": np.zeros((batch_size, window), bool),
    }
    for row in range(batch_size):
        for time in range(window):
            at = offset + row * stream_length + position * window + time
            batch["inputs"][row, time] = tokens[at]
            batch["targets"][row, time] = tokens[at + 1]
            batch["resets"][row, time] = position == 0 and time == 0
    return batch


@given(training_streams(), st.integers(0, 40))
def test_training_batch_equals_the_slow_loop(streams, step):
    expected = training_batch_slowly(
        streams.tokens.tolist(), streams.batch_size, streams.window, streams.seed, step
    )
    assert_same(streams[step], expected)


@given(training_streams(), st.integers(0, 3))
def test_windows_of_an_epoch_join_to_contiguous_text(streams, epoch):
    steps = range(epoch * streams.steps_per_epoch, (epoch + 1) * streams.steps_per_epoch)
    batches = [streams[step] for step in steps]
    inputs = np.concatenate([batch["inputs"] for batch in batches], axis=1)
    targets = np.concatenate([batch["targets"] for batch in batches], axis=1)
    resets = np.concatenate([batch["resets"] for batch in batches], axis=1)
    # The tokens are 0, 10, 20, ...: contiguous means steps of 10.
    assert (np.diff(inputs, axis=1) == 10).all()
    np.testing.assert_array_equal(targets, inputs + 10)
    assert np.unique(targets).size == targets.size  # the streams do not overlap
    assert targets.max() <= streams.tokens[-1]
    assert resets[:, 0].all()
    assert not resets[:, 1:].any()


@given(training_streams())
def test_an_epoch_leaves_out_less_than_a_window_and_the_offset_per_stream(streams):
    used = streams.batch_size * streams.window * streams.steps_per_epoch
    slack = 0 if streams.seed is None else streams.window - 1
    # A part of a window per stream, the remainder of the division into streams, and the offset.
    spare = streams.batch_size * (streams.window - 1) + (streams.batch_size - 1) + slack
    assert 0 <= streams.tokens.size - 1 - used <= spare


def test_seed_moves_the_windows_between_epochs():
    streams = ContiguousStreams(np.arange(1000), 2, 16, seed=5)
    first = {int(streams[epoch * streams.steps_per_epoch]["inputs"][0, 0]) for epoch in range(200)}
    assert first == set(range(16))
    other = ContiguousStreams(np.arange(1000), 2, 16, seed=6)
    assert any(
        (streams[step]["inputs"] != other[step]["inputs"]).any()
        for step in range(0, 5 * streams.steps_per_epoch, streams.steps_per_epoch)
    )


def test_without_seed_epochs_are_equal():
    streams = ContiguousStreams(np.arange(100), 2, 7)
    assert_same(streams[3], streams[3 + 11 * streams.steps_per_epoch])


def test_access_is_random_and_repeatable():
    tokens = np.random.default_rng(0).integers(50, size=500)
    streams = ContiguousStreams(tokens, 3, 8, seed=1)
    again = pickle.loads(pickle.dumps(streams))
    forwards = [streams[step] for step in range(60)]
    for step in (59, 0, 31, 7):
        assert_same(again[step], forwards[step])
    for batch, expected in zip(streams, forwards[:25], strict=False):
        assert_same(batch, expected)
    assert_same(streams[np.int64(10**12)], again[10**12])


@pytest.mark.parametrize(("extra", "seed"), [(0, None), (2, 0)])
def test_shortest_text_makes_one_batch(extra, seed):
    streams = ContiguousStreams(np.arange(2 * 3 + 1 + extra), 2, 3, seed=seed)
    assert streams.steps_per_epoch == 1
    for step in range(5):
        assert streams[step]["resets"][:, 0].all()
    with pytest.raises(ValueError, match=f"{6 + extra} tokens.*2 and window 3 need at least {7 + extra}"):
        ContiguousStreams(np.arange(2 * 3 + extra), 2, 3, seed=seed)


@pytest.mark.parametrize("streams_type", [ContiguousStreams, EvaluationStreams])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.arange(100), 0, 3), "batch_size must be at least 1, got 0"),
        ((np.arange(100), 3, -2), "window must be at least 1, got -2"),
        ((np.zeros((10, 10), int), 1, 3), r"one-dimensional \[N\], got shape \(10, 10\)"),
        ((np.zeros(100), 1, 3), "must be integers, got dtype float64"),
        ((np.zeros(100, bool), 1, 3), "must be integers, got dtype bool"),
        ((np.array([0, 2**31] * 9), 1, 3), "fit int32, got values from 0 to 2147483648"),
    ],
)
def test_invalid_arguments_are_refused(streams_type, arguments, message):
    with pytest.raises(ValueError, match=message):
        streams_type(*arguments)


def test_invalid_seed_and_step_are_refused():
    with pytest.raises(ValueError, match="seed must be a non-negative integer or None, got -1"):
        ContiguousStreams(np.arange(100), 2, 3, seed=-1)
    with pytest.raises(IndexError, match="step must be >= 0, got -1"):
        ContiguousStreams(np.arange(100), 2, 3)[-1]
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        ContiguousStreams(np.arange(100), 2, 3).dataset(0)


def test_tokens_cannot_be_written_through_the_streams():
    streams = ContiguousStreams(np.arange(100, dtype=np.int32), 2, 3)
    with pytest.raises(ValueError, match="read-only"):
        streams.tokens[0] = 1
    streams[0]["inputs"][:] = -1  # a batch is the caller's own
    assert streams[0]["inputs"].min() >= 0


def test_grain_dataset_goes_over_epochs_and_resumes():
    streams = ContiguousStreams(np.arange(120), 2, 9, seed=3)
    steps = 3 * streams.steps_per_epoch + 1
    dataset = streams.dataset(steps)
    assert len(dataset) == steps
    for step in range(steps):
        assert_same(dataset[step], streams[step])
    iterator = iter(dataset.to_iter_dataset())
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    resumed = iter(streams.dataset(steps).to_iter_dataset())
    resumed.set_state(state)
    for step in range(7, steps):
        assert_same(next(resumed), streams[step])
    with pytest.raises(StopIteration):
        next(resumed)


evaluation_cases = {"length": st.integers(2, 90), "batch_size": st.integers(1, 9), "window": sizes}


@given(**evaluation_cases)
def test_every_evaluation_target_counts_exactly_once(length, batch_size, window):
    tokens = np.random.default_rng(length).permutation(length) + 100
    streams = EvaluationStreams(tokens, batch_size, window)
    pairs = []
    for batch in streams:
        assert all(array.shape == (streams.batch_size, window) for array in batch.values())
        mask = batch["mask"]
        pairs += zip(batch["inputs"][mask].tolist(), batch["targets"][mask].tolist(), strict=True)
        assert not batch["inputs"][~mask].any()
        assert not batch["targets"][~mask].any()
        assert mask.any()  # no batch for nothing
    assert sorted(pairs) == sorted(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))


@given(**evaluation_cases)
def test_evaluation_batches_equal_the_slow_loop(length, batch_size, window):
    tokens = np.arange(100, 100 + length)
    streams = EvaluationStreams(tokens, batch_size, window)
    batches = list(streams)
    rows = min(batch_size, length - 1)
    assert streams.batch_size == rows
    assert {batch["inputs"].dtype for batch in batches} == {np.dtype(np.int32)}
    assert {batch["targets"].dtype for batch in batches} == {np.dtype(np.int32)}
    lengths = []
    following = 0  # the streams cover the text in order
    for row in range(rows):
        joined = [token for batch in batches for token in batch["targets"][row][batch["mask"][row]].tolist()]
        assert joined == list(range(101 + following, 101 + following + len(joined)))
        following += len(joined)
        lengths.append(len(joined))
        mask = np.concatenate([batch["mask"][row] for batch in batches])
        assert mask.tolist() == [time < len(joined) for time in range(mask.size)]
        resets = np.concatenate([batch["resets"][row] for batch in batches])
        assert resets.tolist() == [time == 0 for time in range(resets.size)]
    assert following == length - 1
    assert max(lengths) - min(lengths) <= 1
    assert len(streams) == len(batches) == -(-max(lengths) // window)


def test_evaluation_indices_are_those_of_a_sequence():
    streams = EvaluationStreams(np.arange(30), 2, 4)
    assert_same(streams[-1], streams[len(streams) - 1])
    assert_same(streams[-len(streams)], streams[0])
    for index in (len(streams), -len(streams) - 1):
        with pytest.raises(IndexError, match=rf"index must be in \[-4, 4\), got {index}"):
            streams[index]


@pytest.mark.parametrize("length", [0, 1])
def test_evaluation_needs_a_target(length):
    with pytest.raises(ValueError, match=f"at least 2 tokens.*got {length}"):
        EvaluationStreams(np.zeros(length, int), 1, 1)
