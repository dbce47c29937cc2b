"""Beam search against all sequences that there are, and against the search in plain Python."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmx.models import beam_search

WORDS, ROWS, LENGTH, STATES = 4, 5, 4, 97
BOS, EOS = 0, 3
# The next word depends on all words before, by a state that mixes them, and on the row.
TABLE = np.random.default_rng(0).normal(size=(ROWS, STATES, WORDS)) * 1.5
TABLE[3, :, EOS] = -jnp.inf  # this row can never end
TABLE[4, :, EOS] = 6.0  # and this one will at once
LOG_PROBS = np.asarray(jax.nn.log_softmax(jnp.asarray(TABLE, jnp.float32)), np.float64)


def follow(state, word):
    return (state * 31 + word + 7) % STATES


def step(state, words):
    rows, state = state
    state = follow(state, words)
    return (rows, state), jnp.asarray(TABLE, jnp.float32)[rows, state]


@functools.cache
def search(beam_size, alpha, rows=tuple(range(ROWS)), max_length=LENGTH, banned=()):
    def run(rows):
        start = (rows, jnp.full(len(rows), 11))
        return beam_search(
            step, start, batch_size=len(rows), beam_size=beam_size, max_length=max_length, bos=BOS, eos=EOS,
            alpha=alpha, banned=banned,
        )  # fmt: skip

    return jax.tree.map(np.asarray, jax.jit(run)(jnp.array(rows)))


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def log_prob(row, words):
    state, total, before = 11, 0.0, BOS
    for word in words:
        state = follow(state, before)
        total, before = total + LOG_PROBS[row, state, word], word
    return total


def sequences(found, row):
    """What was found for a row: (words, score), the best first."""
    return [
        (tuple(words[:length].tolist()), score)
        for words, length, score in zip(found.tokens[row], found.lengths[row], found.scores[row], strict=True)
        if length
    ]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(alpha):
    found = search(81, alpha)
    for row in range(ROWS):
        ended = [
            (*words, EOS)
            for n in range(LENGTH)
            for words in itertools.product([w for w in range(WORDS) if w != EOS], repeat=n)
        ]
        if row == 3:
            ended = list(itertools.product([w for w in range(WORDS) if w != EOS], repeat=LENGTH))
        scores = {words: log_prob(row, words) / penalty(len(words), alpha) for words in ended}
        best = max(scores, key=scores.get)
        words, score = sequences(found, row)[0]
        assert words == best
        assert score == pytest.approx(scores[best], rel=1e-5)
        assert found.finished[row, 0] == (row != 3)
        assert not found.tokens[row, 0, len(best) :].any()
        for words, score in sequences(found, row):
            assert score == pytest.approx(scores[words], rel=1e-5)


def in_python(row, beam_size, alpha, max_length):
    """The same search, one row, lists of words."""
    beams, found = [((), 0.0)], []
    for length in range(1, max_length + 1):
        best = max((score for _, score in found), default=-np.inf)
        if max((p for _, p in beams), default=-np.inf) / penalty(max_length, alpha) <= best:
            break
        options = [((*words, w), log_prob(row, (*words, w))) for words, _ in beams for w in range(WORDS)]
        options = sorted((o for o in options if np.isfinite(o[1])), key=lambda o: -o[1])[: 2 * beam_size]
        found += [(words, p / penalty(length, alpha)) for words, p in options if words[-1] == EOS]
        found = sorted(found, key=lambda o: -o[1])[:beam_size]
        beams = [o for o in options if o[0][-1] != EOS][:beam_size]
    return found or [(words, p / penalty(max_length, alpha)) for words, p in beams]


@pytest.mark.parametrize(("beam_size", "alpha"), [(1, 0.0), (2, 0.0), (2, 1.0), (3, 0.6), (5, 2.0)])
def test_it_is_the_search_in_plain_python(beam_size, alpha):
    found = search(beam_size, alpha, max_length=9)
    for row in range(ROWS):
        expected = in_python(row, beam_size, alpha, 9)
        got = sequences(found, row)
        assert [words for words, _ in got] == [words for words, _ in expected]
        assert [score for _, score in got] == pytest.approx([score for _, score in expected], rel=1e-5)


def test_one_beam_is_greedy():
    found = search(1, 0.0, max_length=9)
    for row in range(ROWS):
        words, state, before = [], 11, BOS
        while len(words) < 9 and before != EOS:
            state = follow(state, before)
            before = int(np.argmax(LOG_PROBS[row, state]))
            words.append(before)
        assert sequences(found, row)[0][0] == tuple(words)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_rows_do_not_depend_on_their_neighbours(alpha):
    together = search(3, alpha, max_length=9)
    for row in range(ROWS):
        alone = search(3, alpha, rows=(row,), max_length=9)
        for a, b in zip(alone, together, strict=True):
            assert np.array_equal(a[0], b[row])


def test_banned_words_do_not_occur():
    assert (search(2, 0.0).tokens[:3] == 2).any()
    found = search(2, 0.0, banned=(2,))
    assert not (found.tokens == 2).any()
    assert np.isfinite(found.scores[:, 0]).all()


def test_it_stops_when_nothing_better_can_come():
    """The model is asked no more once every row is done: as often as the longest search needs."""
    calls = []

    def counted(state, words):
        jax.debug.callback(lambda: calls.append(1))
        return step(state, words)

    start = (jnp.array([4]), jnp.array([11]))
    options = {"batch_size": 1, "beam_size": 1, "max_length": 1000, "bos": BOS, "eos": EOS}
    jax.block_until_ready(beam_search(counted, start, **options))
    jax.effects_barrier()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"alpha": -0.1}, "alpha must be at least 0, got -0.1"),
        ({"alpha": float("nan")}, "alpha must be at least 0, got nan"),
    ],
)
def test_bad_options_are_named(options, message):
    known = {"batch_size": 1, "beam_size": 1, "max_length": 1, "bos": 0, "eos": 3}
    with pytest.raises(ValueError, match=message):
        beam_search(step, (), **{**known, **options})
