"""The word language model: what it counts, against a loop in double precision, and that it learns."""

import dataclasses
import itertools
import json
import math

import jax
import numpy as np
import pytest

from experiments import word_lm
from experiments.tasks.language_model.adaptive_evaluation import evaluate_dynamically, evaluate_with_cache
from lstmx.cells import base
from lstmx.training import make_optimizer, train

TINY = word_lm.PRESETS["tiny"]
SENTENCE = "the cat sat on the mat , the dog did not"


@pytest.fixture
def task_of(tmp_path):
    def make(texts, config=TINY, **data):
        for name, text in zip(("train", "valid", "test"), texts, strict=True):
            (tmp_path / f"{name}.txt").write_text(text)
        data = dataclasses.replace(config.data, path=tmp_path, data_dir=tmp_path / "data", **data)
        return word_lm.make_task(dataclasses.replace(config, data=data))

    return make


@pytest.mark.parametrize("train", ["one two three\n", " \n \n"])
def test_a_text_without_known_words_is_refused(task_of, train):
    with pytest.raises(ValueError, match="at least one known word"):
        task_of([train, "one\n", "two\n"])


@pytest.fixture
def random_task(task_of):
    """A task whose parameters are not small, so that mistakes show."""
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(SENTENCE.split(), 9)) + "\n" for _ in range(60)]
    task = task_of(["".join(lines[:40]), "".join(lines[40:50]), "a new word\n" + "".join(lines[50:])])
    params, _ = task.init(jax.random.key(0))
    return task, jax.tree.map(lambda leaf: leaf + 0.3 * random.normal(size=leaf.shape).astype("f"), params)


def read_in_double(params, tokens):
    """Log-likelihoods and outputs of one LSTM layer with tied embeddings, word by word."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table, lstm = params["embedding"]["embedding"], params["recurrent"]["params"]["0"]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    c = h = np.zeros(lstm["recurrent"]["kernel"].shape[0])
    nats, hidden = [], []
    for now, after in itertools.pairwise(tokens):
        gates = table[now] @ lstm["input"]["kernel"] + lstm["input"]["bias"] + h @ lstm["recurrent"]["kernel"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        logits = h @ params["projection"]["kernel"] @ table.T + params["bias"]
        nats.append(np.log(np.sum(np.exp(logits))) - logits[after])
        hidden.append(h)
    return np.array(nats), np.array(hidden)


def test_perplexity_is_that_of_the_whole_text_read_word_by_word(random_task):
    task, params = random_task
    # Line ends count, unknown words too, and the vocabulary is that of the training split.
    tokens = task.tokens("test")
    assert task.vocabulary.decode(tokens[:4]) == ["<unk>", "<unk>", "<unk>", "<eos>"]
    assert len(tokens) == 4 + 10 * 10
    nats, _ = read_in_double(params, tokens)
    metrics = task.evaluate(params, "test")
    assert metrics["loss"] == pytest.approx(nats.mean(), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(nats.mean()), rel=1e-5)


def test_a_cache_adds_what_was_read(random_task):
    task, params = random_task
    tokens = task.tokens("validation")
    nats, hidden = read_in_double(params, tokens)
    expected = []
    for t, (word, loss) in enumerate(zip(tokens[1:], nats, strict=True)):
        scores = np.exp(0.5 * hidden[max(0, t - 20) : t] @ hidden[t])
        same = tokens[1:][max(0, t - 20) : t] == word
        cached = 0.8 * np.exp(-loss) + 0.2 * scores[same].sum() / max(scores.sum(), 1e-300)
        expected.append(loss if t == 0 else -np.log(cached))
    got = evaluate_with_cache(task, params, tokens, size=20, theta=0.5, weight=0.2)
    assert got["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_dynamic_evaluation_learns_from_the_text_after_predicting_it(random_task):
    task, params = random_task
    tokens = task.tokens("validation")
    still = evaluate_dynamically(task, params, tokens, rate=0.0, decay=0.0, statistics_batches=2)
    assert still["loss"] == pytest.approx(task.evaluate(params, "validation")["loss"], rel=1e-5)
    learning = evaluate_dynamically(task, params, tokens, rate=0.05, decay=0.0, epsilon=0.1)
    assert learning["loss"] < still["loss"] - 0.05
    # A text of one segment is predicted before anything is learnt.
    first = tokens[:6]
    alone = evaluate_dynamically(task, params, first, rate=1.0, decay=0.0, statistics_batches=1)
    assert alone["loss"] == pytest.approx(read_in_double(params, first)[0].mean(), rel=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {
            "num_layers": 2, "last_hidden_size": 8, "input_dropout": 0.1, "hidden_dropout": 0.1,
            "output_dropout": 0.1, "embedding_dropout": 0.05, "weight_drop": 0.1,
        },
    ],
    ids=["plain", "awd"],
)  # fmt: skip
def test_it_learns_a_sentence(task_of, tmp_path, model):
    penalties = word_lm.PenaltyConfig(activation=0.01, temporal=0.01) if model else word_lm.PenaltyConfig()
    config = dataclasses.replace(
        TINY, steps=160, loop=dataclasses.replace(TINY.loop, eval_every=0, tensorboard=False),
        model=dataclasses.replace(TINY.model, **model), penalties=penalties,
        optimizer=dataclasses.replace(TINY.optimizer, learning_rate=0.03),
    )  # fmt: skip
    text = "one two three four five\nsix seven eight nine\n" * 80
    task = task_of([text, text[:300], text[:200]], config)
    result = train(
        task, tmp_path / "run", steps=160, seed=0, optimizer=config.optimizer, loop=config.loop, quiet=True
    )
    assert result.validation["perplexity"] < 1.6
    assert result.validation["loss"] == pytest.approx(math.log(result.validation["perplexity"]))
    assert ("nats" in result.train) == bool(model)
    key = jax.random.key(0)
    words = "".join(task.generate(result.state.params, "one two", length=7, key=key, temperature=0))
    assert words == " three four five\n six seven eight"
    lines = (tmp_path / "run" / "samples" / "160.txt").read_text()
    assert "seven" in lines


def test_windows_of_random_length_weigh_by_their_length(task_of):
    text = f"{SENTENCE}\n" * 200
    config = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, window=20))
    task = task_of([text, text, text], config, random_windows=True)
    params, carry = task.init(jax.random.key(0))
    plain = task_of([text, text, text], config)
    batches = {batch["inputs"].shape[1]: batch for batch in map(task.batch, range(100))}
    for length in (15, 25):
        batch = batches[length]
        both = [
            jax.jit(jax.value_and_grad(one.loss, has_aux=True))(params, carry, batch, jax.random.key(0))
            for one in (task, plain)
        ]
        ((loss, _), gradient), ((same, _), full) = both
        assert float(loss) == pytest.approx(float(same), rel=1e-6)
        for got, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(full), strict=True):
            np.testing.assert_allclose(got, length / 20 * np.asarray(expected), rtol=1e-4, atol=1e-7)


def test_a_generator_needs_no_text_and_writes_no_unknown_words(random_task):
    task, params = random_task
    config = dataclasses.replace(task.config, data=dataclasses.replace(task.config.data, path="gone"))
    generator = word_lm.make_generator(config, task.assets())
    draw = lambda t, **o: "".join(  # noqa: E731
        t.generate(params, "the cat", length=60, key=jax.random.key(2), top_p=0.9, **o)
    )
    assert draw(generator) == draw(task)
    assert draw(generator, temperature=0.5) != draw(task)
    assert "<unk>" not in draw(task, temperature=9.0)
    assert set(draw(task).split()) <= set(task.vocabulary.tokens)
    for prompt in ("", "  "):
        with pytest.raises(ValueError, match="at least one word"):
            generator.generate(params, prompt, length=1, key=jax.random.key(0))


def test_rare_words_are_unknown_and_the_vocabulary_is_kept(task_of):
    task = task_of(["a a b b b c\n" * 1 + "a b\n" * 60, "a c\n", "b\n"], least_count=3, vocabulary_size=4)
    assert task.vocabulary.tokens == ("<unk>", "<eos>", "b", "a")
    assert task.tokens("validation").tolist() == [3, 0, 1]
    kept = json.loads(task.assets()["vocabulary.json"])
    assert kept == {"words": ["<unk>", "<eos>", "b", "a"], "unknown": "<unk>", "tokenizer": "spaces"}


def test_presets_are_the_published_networks():
    sizes = {}
    for name in word_lm.PRESETS.keys() - {"tiny"}:
        words = ["<unk>", "<eos>", *map(str, range(9998))]
        asset = json.dumps({"words": words, "unknown": "<unk>", "tokenizer": "spaces"})
        config = word_lm.PRESETS[name]
        make_optimizer(config.optimizer, config.steps)
        task = word_lm.make_generator(config, {"vocabulary.json": asset})
        sizes[name] = round(base.count(task.model_shapes) / 1e6)
    assert sizes == {"zaremba-small": 5, "zaremba-medium": 20, "zaremba-large": 66, "awd": 24, "fast": 5}
