import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmx.data import RandomWindowStreams


@given(st.integers(0, 3), st.integers(1, 3), st.integers(60, 400))
def test_an_epoch_reads_each_stream_once_in_order(seed, batch_size, length):
    tokens = np.arange(batch_size * length + 1)
    streams = RandomWindowStreams(tokens, batch_size, 20, seed=seed, spread=3)
    step = 0
    for _ in range(2):
        rows = [[] for _ in range(batch_size)]
        while step == 0 or not (resets := streams[step]["resets"])[:, 0].all() or not rows[0]:
            batch = streams[step]
            assert batch["resets"].sum() == (0 if rows[0] else batch_size)
            np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
            for row, inputs in zip(rows, batch["inputs"], strict=True):
                row.extend(inputs.tolist())
            step += 1
        assert resets.any()
        for at, row in enumerate(rows):
            assert row == list(range(at * length, at * length + len(row)))
            assert length - 30 <= len(row) <= length


def test_lengths_are_drawn_as_they_should_and_few():
    streams = RandomWindowStreams(np.arange(400_001), 1, 70, seed=1)
    lengths = np.array([streams[step]["inputs"].shape[1] for step in range(5000)])
    assert set(lengths % 5) == {0}
    assert len(set(lengths)) <= 14
    assert abs((lengths < 53).mean() - 0.05) < 0.015
    long = lengths[lengths >= 53]
    assert abs(long.mean() - 70) < 0.5
    assert abs(long.std() - np.hypot(5, 5 / np.sqrt(12))) < 0.5
    assert streams.steps_per_epoch == pytest.approx(400_000 / lengths.mean(), rel=0.01)


def test_a_batch_is_a_function_of_seed_and_step():
    tokens = np.random.default_rng(0).integers(0, 9, 3000)
    one, other = (RandomWindowStreams(tokens, 2, 30, seed=5) for _ in range(2))
    forwards = [one[step]["inputs"] for step in range(150)]
    for step in (149, 0, 77):
        np.testing.assert_array_equal(other[step]["inputs"], forwards[step])
        np.testing.assert_array_equal(one.dataset(150)[step]["inputs"], forwards[step])
    lengths = [batch.shape[1] for batch in forwards]
    seeded = RandomWindowStreams(tokens, 2, 30, seed=6)
    assert [seeded[step]["inputs"].shape[1] for step in range(150)] != lengths


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spread": 20}, r"spread must lie in \[0, window\), got 20 and a window of 20"),
        ({"multiple": 0}, "multiple must be at least 1, got 0"),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4}, "too short for one window per stream"),
        ({"tokens": np.zeros((2, 2), int)}, "one-dimensional"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    arguments = {"tokens": np.arange(100), "batch_size": 1, "window": 20, "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        RandomWindowStreams(**arguments)


def test_no_negative_steps():
    with pytest.raises(IndexError, match="step must be >= 0, got -1"):
        RandomWindowStreams(np.arange(100), 1, 20, seed=0)[-1]
