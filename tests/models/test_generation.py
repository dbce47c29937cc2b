"""Generated tokens: which, from where, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstmx.models import LanguageModel, generate
from lstmx.models.generation import choose

MODEL = LanguageModel(11, embedding_size=6, hidden_size=8, rngs=nnx.Rngs(params=0))
KEY = jax.random.key(0)


def test_greedy_takes_the_likeliest_after_the_whole_text():
    text = [3, 1, 4]
    got = list(generate(MODEL, text, length=6, key=KEY, temperature=0))
    for token in got:
        _, logits = MODEL(jnp.array([text]))
        assert token == int(jnp.argmax(logits[0, -1]))
        text = [*text, token]


def test_the_same_key_the_same_text():
    draw = lambda seed, **options: list(  # noqa: E731
        generate(MODEL, [1], length=40, key=jax.random.key(seed), **options)
    )
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert draw(0)[:10] == list(generate(MODEL, [1], length=10, key=KEY))
    assert draw(3, top_k=1) == draw(4, temperature=0)
    assert draw(3, top_p=1e-6) == draw(4, temperature=0)


@pytest.mark.parametrize("temperature", [0, 3.0])
def test_what_is_excluded_is_never_drawn(temperature):
    greedy = next(generate(MODEL, [1], length=1, key=KEY, temperature=0))
    excluded = [greedy, (greedy + 1) % 11]
    drawn = list(generate(MODEL, [1], length=200, key=KEY, temperature=temperature, exclude=excluded))
    assert not set(drawn) & set(excluded)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.5, None, None), (2.0, 3, None), (1.0, None, 0.7), (2.0, 4, 0.6), (1.0, None, 1.0)],
)
def test_tokens_come_as_often_as_they_should(temperature, top_k, top_p):
    logits = np.array([0.0, 1.0, -1.0, 2.0, 0.5])
    expected = np.exp(logits / temperature)
    if top_k:
        expected[np.argsort(logits)[:-top_k]] = 0
    expected /= expected.sum()
    if top_p:
        reached = 0.0
        for token in np.argsort(-logits):
            reached, expected[token] = reached + expected[token], expected[token] * (reached < top_p)
        expected /= expected.sum()
    keys = jax.random.split(KEY, 20_000)
    row = jnp.asarray(logits, jnp.float32)
    tokens = jax.vmap(lambda key: choose(key, row, temperature, top_k, top_p))(keys)
    counts = np.bincount(tokens, minlength=5) / 20_000
    # Five standard deviations of a frequency.
    assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected * (1 - expected) / 20_000))


def test_it_streams():
    stream = generate(MODEL, [1], length=10**9, key=KEY)
    assert len([next(stream) for _ in range(3)]) == 3
    assert list(generate(MODEL, [1], length=0, key=KEY)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt must hold at least one token"),
        ({"length": -1}, "length must be at least 0, got -1"),
        ({"temperature": -0.5}, "temperature must be at least 0, got -0.5"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\], got 1.5"),
        ({"exclude": range(11)}, "exclude must leave at least one of the 11 tokens"),
        ({"exclude": [11]}, "exclude must leave at least one of the 11 tokens"),
    ],
)
def test_bad_arguments_are_named_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(MODEL, **{"prompt": [1], "length": 3, "key": KEY, **arguments})
