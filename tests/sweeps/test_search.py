"""The search in memory: what it asks for, which trial is the best, and when it stops."""

import math

import pytest

from lstmx.sweeps import Choice, Range, Search, SweepError
from lstmx.sweeps.sampling import points_of

SPACE = {"rate": Range(1e-3, 1.0, log=True), "width": Range(8, 64, step=8), "lags": Choice((None, (1, 2)))}


def drawn(seed, sampler="tpe", count=15):
    search = Search(SPACE, sampler=sampler, seed=seed)
    values = []
    for _ in range(count):
        asked = search.ask()
        assert asked.number == len(values)
        values.append(asked.values)
        search.finish(asked, asked.values["rate"])
    lowest = min(range(count), key=lambda at: values[at]["rate"])
    assert (search.best.number, search.best.values) == (lowest, values[lowest])
    return values


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_seed_decides(sampler):
    first = drawn(0, sampler)
    assert drawn(0, sampler) == first
    assert drawn(1, sampler) != first
    for values in first:
        assert 1e-3 <= values["rate"] <= 1
        assert values["width"] in range(8, 65, 8)
        assert values["lags"] in (None, (1, 2))


def test_results_guide_the_search():
    tpe, random = ([values["rate"] for values in drawn(0, sampler, 40)[20:]] for sampler in ("tpe", "random"))
    assert sum(map(math.log, tpe)) < sum(map(math.log, random)) - 20


def test_a_grid_ends_and_the_first_of_equals_is_the_best():
    space = {"a": Choice((1, 2)), "b": Range(0, 4, step=2)}
    search, values = Search(space, sampler="grid"), []
    while (asked := search.ask()) is not None:
        values.append(tuple(asked.values.values()))
        search.finish(asked, 1.0)
    assert values == [(a, b) for a in (1, 2) for b in (0, 2, 4)]
    assert search.best.number == 0


@pytest.mark.parametrize(
    ("space", "count"),
    [
        ({"a": Choice((1, 2)), "b": Range(0, 5, step=2)}, 6),
        ({"a": Range(3, 7)}, 5),
        ({"a": Range(0.0, 1.0, step=0.25)}, 5),
        ({"a": Range(0.0, 1.0), "b": Choice((1,))}, math.inf),
        ({"a": Range(1, 100, log=True)}, math.inf),
    ],
)
def test_points_are_counted(space, count):
    assert points_of(space) == count


def test_failures_in_a_row_end_it_and_pruned_trials_are_not_the_best():
    search = Search(SPACE, pruner="median")
    assert search.best is None
    for number in range(6):
        asked = search.ask()
        ends = search.report(asked, 1, 1.0 + number)
        assert ends == (number == 5)
        search.prune(asked) if ends else search.finish(asked, 10.0 - number)
    assert search.best.number == 4
    with pytest.raises(ValueError, match="loss must be finite, got nan"):
        search.finish(search.ask(), math.nan)
    for number in range(5):
        search.fail(search.ask(), f"no {number}")
    with pytest.raises(SweepError, match="the last 5 trials failed, so the search stops; the last one: no 4"):
        search.ask()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sampler": "grid"}, "rate is a continuous range"), ({"pruner": "best"}, "pruners are none, median")],
)
def test_what_cannot_be(options, message):
    with pytest.raises(SweepError, match=message):
        Search(SPACE, **options)
