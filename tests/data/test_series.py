"""Panels and their windows compared with loops over steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmx.data import Panel, SeriesWindows, WindowBatches


def random_panel(seed, *, lengths=(7, 0, 3, 12), columns=(2, 1, 2, 3)):
    chance = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    targets, historic, future = (chance.normal(size=(starts[-1], count)) for count in columns[:3])
    for values in (targets, historic):
        values[chance.random(values.shape) < 0.3] = np.nan
    return Panel(starts, targets, historic, future, chance.normal(size=(len(lengths), columns[3])))


def value_at(panel, values, series, step):
    """The values of steps and which of them exist, step by step."""
    start, stop = panel.starts[series], panel.starts[series + 1]
    if step < 0 or start + step >= stop:
        return np.zeros(values.shape[1]), np.zeros(values.shape[1], bool)
    row = values[start + step]
    return np.where(np.isnan(row), 0, row), ~np.isnan(row)


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 5))
def test_a_batch_is_the_loop(seed, size, horizon):
    panel = random_panel(seed)
    windows = SeriesWindows(panel, size, horizon)
    chance = np.random.default_rng(seed + 1)
    series, cutoffs = chance.integers(0, 4, 5), chance.integers(0, 13, 5)
    batch = windows.batch(series, cutoffs)
    for name, values, first, last in (
        ("history", panel.targets, -size, 0),
        ("target", panel.targets, 0, horizon),
        ("historic", panel.historic, -size, 0),
        ("future", panel.future, -size, horizon),
    ):
        pairs = [
            [value_at(panel, values, n, c + offset) for offset in range(first, last)]
            for n, c in zip(series, cutoffs, strict=True)
        ]
        expected = np.array([[value for value, _ in row] for row in pairs], np.float32)
        np.testing.assert_array_equal(batch[name], expected)
        if f"{name}_exists" in batch:
            known = np.array([[exists for _, exists in row] for row in pairs])
            np.testing.assert_array_equal(batch[f"{name}_exists"], known)
    np.testing.assert_array_equal(batch["static"], panel.static[series].astype(np.float32))
    assert {leaf.dtype.name for leaf in batch.values()} == {"float32", "bool", "int32"}


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 6))
def test_within_is_the_loop(seed, horizon, least, every, first):
    panel = random_panel(seed)
    windows = SeriesWindows(panel, 3, horizon)
    expected = []
    for number in range(len(panel)):
        values = panel.series(number)
        known = [step for step in range(len(values)) if not np.isnan(values[step]).all()]
        stop = max(known) + 1 if known else 0
        assert panel.observed[number] == stop
        cutoffs = range(stop - horizon, max(first, least) - 1, -every)
        expected += [(number, cutoff) for cutoff in cutoffs[::-1]]
    found = windows.within(first, least_history=least, every=every)
    assert list(zip(*found, strict=True)) == expected


def test_within_stops_where_each_series_is_cut():
    windows = SeriesWindows(Panel(np.array([0, 9, 15]), np.zeros((15, 1))), 2, 2)
    series, cutoffs = windows.within(np.array([3, 1]), np.array([7, 99]))
    assert list(zip(series, cutoffs, strict=True)) == [(0, 3), (0, 4), (0, 5), (1, 1), (1, 2), (1, 3), (1, 4)]


def test_epochs_draw_every_window_once():
    windows = SeriesWindows(random_panel(0), 3, 2)
    of = windows.within()
    batches = WindowBatches(windows, *of, batch_size=4, seed=5)
    assert batches.steps_per_epoch == len(of[0]) // 4
    drawn = []
    for epoch in range(2):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        order = np.random.default_rng([5, epoch]).permutation(len(of[0]))[: 4 * len(steps)]
        for position, step in enumerate(steps):
            rows = order[4 * position : 4 * position + 4]
            expected = windows.batch(of[0][rows], of[1][rows])
            for name, leaf in batches[step].items():
                np.testing.assert_array_equal(leaf, expected[name])
        drawn.append(order.tolist())
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_parts_hold_every_window(size):
    windows = SeriesWindows(random_panel(0), 3, 2)
    of = windows.within()
    whole = windows.batch(*of)
    parts = list(windows.parts(of, size))
    assert {len(batch["series"]) for _, batch in parts} == {min(size, len(of[0]))}
    for name, expected in whole.items():
        found = np.concatenate([batch[name][:count] for count, batch in parts])
        np.testing.assert_array_equal(found, expected)
    assert not list(windows.parts((of[0][:0], of[1][:0]), size))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Panel(np.array([1, 2]), np.zeros((2, 1))), "starts must be"),
        (lambda: Panel(np.array([0, 3, 2]), np.zeros((2, 1))), "starts must be"),
        (
            lambda: Panel(np.array([0, 3]), np.zeros((2, 1))),
            r"targets must be \[3, columns\], got shape \(2, 1\)",
        ),
        (lambda: Panel(np.array([0, 2]), np.array([[0.0], [np.inf]])), "targets must .* row 1"),
        (
            lambda: Panel(np.array([0, 2]), np.zeros((2, 1)), future=np.array([[np.nan], [0.0]])),
            "future must be known, got NaN in row 0",
        ),
        (lambda: SeriesWindows(random_panel(0), 0, 1), "input_size must be at least 1, got 0"),
        (
            lambda: WindowBatches(SeriesWindows(random_panel(0), 1, 50), [], [], batch_size=1, seed=0),
            "no window to train on: no series has 50 steps",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_series_together_stand_side_by_side():
    chance = np.random.default_rng(0)
    targets, historic = chance.normal(size=(8, 1)), chance.normal(size=(8, 2))
    future = np.tile(chance.normal(size=(4, 3)), (2, 1))
    panel = Panel(np.array([0, 4, 8]), targets, historic, future)
    found = panel.together()
    assert found.starts.tolist() == [0, 4]
    np.testing.assert_array_equal(found.targets, np.stack([targets[:4, 0], targets[4:, 0]], axis=1))
    np.testing.assert_array_equal(found.historic, np.concatenate([historic[:4], historic[4:]], axis=1))
    np.testing.assert_array_equal(found.future, future[:4])
    for other, message in (
        (Panel(np.array([0, 3, 8]), targets), "equally long, got 3 and 5"),
        (Panel(np.array([0, 4, 8]), targets, future=np.arange(8.0)[:, None]), "share future covariates"),
        (Panel(np.array([0, 4, 8]), targets, static=np.ones((2, 1))), "have no static ones"),
    ):
        with pytest.raises(ValueError, match=message):
            other.together()
