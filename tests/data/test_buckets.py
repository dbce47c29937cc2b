"""Batches by length: who is in them, how wide they are, and how much of them is padding."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmx.data import LengthBuckets, padded

CHANCE = np.random.default_rng(0)
# Like sentences, like long reviews, like sentences and their translations, all alike.
LENGTHS = {
    "sentences": CHANCE.integers(1, 50, 5000),
    "reviews": np.minimum(np.exp(CHANCE.normal(5.2, 0.6, 3000)).astype(int), 400),
    "pairs": (base := CHANCE.integers(4, 40, (3000, 1))) + CHANCE.integers(-2, 3, (3000, 2)),
    "equal": np.full(100, 7),
}


def epoch_of(buckets, epoch=0):
    first = epoch * buckets.steps_per_epoch
    return [buckets[step] for step in range(first, first + buckets.steps_per_epoch)]


@pytest.mark.parametrize("name", LENGTHS)
def test_an_epoch_has_every_sequence_once_and_little_padding(name):
    lengths = LENGTHS[name]
    buckets = LengthBuckets(lengths, batch_size=32, seed=0)
    for epoch in range(3):
        batches = epoch_of(buckets, epoch)
        rows = np.concatenate([batch.rows for batch in batches])
        assert len(set(rows.tolist())) == rows.size == len(lengths) // 32 * 32
        steps = filled = 0
        for batch in batches:
            longest = buckets.lengths[batch.rows].max(axis=0)
            assert (longest <= batch.widths).all()
            steps += 32 * sum(batch.widths)
            filled += lengths[batch.rows].sum()
        assert 1 - filled / steps < 0.1
    assert buckets.padding < 0.1
    assert {batch.widths for batch in batches} <= set(buckets.shapes)
    assert len(buckets.shapes) <= 32


def test_the_cuts_are_nearly_as_good_as_the_best():
    lengths = CHANCE.integers(1, 13, 400)
    buckets = LengthBuckets(lengths, batch_size=1, most_padding=0.2)
    count = len(buckets.shapes)

    def padding(widths):
        steps = np.array(widths)[np.searchsorted(widths, lengths)].sum()
        return 1 - lengths.sum() / steps

    ways = itertools.combinations(range(1, 12), count - 1)
    best = min(padding([*inner, 12]) for inner in ways)
    assert best <= buckets.padding <= best + 0.03
    assert buckets.padding <= 0.2


def test_a_batch_is_a_function_of_seed_and_step():
    make = lambda seed: LengthBuckets(LENGTHS["sentences"], 32, seed=seed)  # noqa: E731
    one, again, other = make(0), make(0), make(1)
    for step in (0, 400, 3):
        np.testing.assert_array_equal(one[step].rows, again[step].rows)
        assert one[step].widths == again[step].widths
    assert any((one[step].rows != other[step].rows).any() for step in range(3))
    first, second = epoch_of(one), epoch_of(one, 1)
    assert sorted(batch.widths for batch in first) == sorted(batch.widths for batch in second)
    assert [batch.widths for batch in first] != [batch.widths for batch in second]
    dataset = one.dataset(500, make=lambda batch: batch.rows)
    assert len(dataset) == 500
    np.testing.assert_array_equal(dataset[499], one[499].rows)


def test_without_a_seed_batches_are_in_order():
    buckets = LengthBuckets(np.array([5, 1, 5, 1, 1, 5]), batch_size=3)
    assert [batch.rows.tolist() for batch in epoch_of(buckets)] == [[1, 3, 4], [0, 2, 5]]
    assert buckets[2].rows.tolist() == [1, 3, 4]


def test_what_sits_out_an_epoch_is_another_every_time():
    buckets = LengthBuckets(np.full(10, 3), batch_size=4, seed=0)
    missing = [
        set(range(10)) - set(np.concatenate([b.rows for b in epoch_of(buckets, e)])) for e in range(20)
    ]
    assert {len(rows) for rows in missing} == {2}
    assert set.union(*missing) == set(range(10))


@given(
    st.integers(1, 2).flatmap(
        lambda columns: st.lists(
            st.lists(st.integers(0, 9), min_size=columns, max_size=columns), min_size=1, max_size=40
        )
    ),
    st.integers(1, 12),
    st.integers(1, 5),
)
def test_any_lengths_can_be_put_into_batches(lengths, batch_size, most_shapes):
    buckets = LengthBuckets(np.array(lengths), batch_size, seed=0, most_shapes=most_shapes)
    assert len(buckets.shapes) <= most_shapes + 1  # and one for what nothing else holds
    rows = np.concatenate([batch.rows for batch in epoch_of(buckets)])
    assert len(set(rows.tolist())) == rows.size
    whole = list(buckets.every_row())
    assert all(len(batch.rows) == buckets.batch_size for batch in whole)
    rows = np.concatenate([batch.rows for batch in whole])
    assert sorted(rows[rows >= 0].tolist()) == list(range(len(lengths)))
    for batch in whole:
        assert (buckets.lengths[batch.rows[batch.rows >= 0]].max(axis=0) <= batch.widths).all()


def test_padded_puts_sequences_side_by_side():
    sequences = [np.arange(1, 4), np.array([], int), np.array([9])]
    tokens, lengths = padded(sequences, np.array([2, -1, 0, 1]), 4, fill=7)
    assert tokens.tolist() == [[9, 7, 7, 7], [7, 7, 7, 7], [1, 2, 3, 7], [7, 7, 7, 7]]
    assert lengths.tolist() == [1, 0, 3, 0]
    with pytest.raises(ValueError, match="sequence 0 has 3 tokens, more than the width 2"):
        padded(sequences, [0], 2)


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, r"not empty, got shape \(0,\)"),
        ([[[1]]], {}, r"got shape \(1, 1, 1\)"),
        ([1.5], {}, "integers, got dtype float64"),
        ([3, -1], {}, "at least 0, got -1"),
        ([3], {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ([3], {"most_shapes": 0}, "most_shapes must be at least 1, got 0"),
        ([3], {"most_padding": 1.0}, "most_padding must be above 0 and below 1, got 1.0"),
        ([3], {"seed": -1}, "seed must be a non-negative integer or None, got -1"),
    ],
)
def test_wrong_arguments_are_named(lengths, options, message):
    with pytest.raises(ValueError, match=message):
        LengthBuckets(np.array(lengths), **{"batch_size": 2, **options})


def test_steps_have_a_beginning():
    buckets = LengthBuckets([1, 2], batch_size=1)
    with pytest.raises(IndexError, match="step must be >= 0, got -1"):
        buckets[-1]
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        buckets.dataset(0)
