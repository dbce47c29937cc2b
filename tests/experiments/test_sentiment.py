"""The classification of texts: what it reads and counts, that it learns, and what it says of a text."""

import dataclasses
import json
import math

import jax
import numpy as np
import optax
import pytest

from experiments import sentiment
from experiments.tasks.classification.bigram_baseline import bigram_baseline
from experiments.tasks.classification.measures import accuracy, confusion_matrix, macro_f1
from experiments.tasks.classification.task import TextClassification, worst_change
from experiments.tasks.classification.text_encoding import TextEncoder
from lstmx.data import padded

TINY = sentiment.PRESETS["tiny"]
CHANCE = np.random.default_rng(0)


@pytest.fixture(scope="module")
def task_of(tmp_path_factory):
    def make(config=TINY, **data):
        data = dataclasses.replace(config.data, data_dir=tmp_path_factory.getbasetemp() / "data", **data)
        return sentiment.make_task(dataclasses.replace(config, data=data))

    return make


@pytest.fixture(scope="module")
def tiny(task_of):
    return task_of()


def test_one_class_and_labels_that_the_run_does_not_have_are_refused(tiny):
    examples = {"train": tiny.examples["train"][:40]}
    with pytest.raises(ValueError, match="at least two classes, got positive"):
        TextClassification(tiny.config, tiny.encoder, ["positive"], examples)
    with pytest.raises(ValueError, match=r"labels must be bad, positive, the classes .*, got also negative"):
        TextClassification(tiny.config, tiny.encoder, ["bad", "positive"], examples)
    with pytest.raises(ValueError, match="no word occurs at least 2 times"):
        TextEncoder.learn(["one two"], "word", least_count=2)


def params_of(task):
    return task.init(jax.random.key(0))[0]


def test_numbers_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predictions = CHANCE.integers(0, 4, (2, 50))
    matrix = confusion_matrix(labels, predictions, 4)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predictions))
    assert accuracy(matrix) == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert macro_f1(matrix) == pytest.approx(metrics.f1_score(labels, predictions, average="macro"))
    assert macro_f1(np.array([[3, 0, 0], [0, 2, 0], [0, 0, 0]])) == pytest.approx(2 / 3)


def test_evaluation_counts_every_text_once_whatever_stands_beside_it(tiny):
    params = params_of(tiny)
    metrics = tiny.evaluate(params, "validation")
    assert abs(metrics["loss"] - math.log(2)) < 0.1
    model, right, nats = tiny.model(params), 0, 0.0
    some = tiny.examples["validation"]
    alone = jax.jit(lambda ids, length: jax.nn.log_softmax(model(ids, length))[0])
    for text, label in some[:20]:
        logp = alone(*padded([tiny.encoder.encode(text)], [0], 25))
        right += tiny.classes[int(logp.argmax())] == label
        nats -= float(logp[tiny.classes.index(label)])
    logp, labels = tiny.log_probabilities(params, "validation")[:20], tiny.labels("validation")[:20]
    assert (logp.argmax(axis=1) == labels).sum() == right
    assert -logp[np.arange(20), labels].sum() == pytest.approx(nats, abs=1e-4)


def test_a_batch_is_of_texts_and_their_labels(tiny):
    texts = {tuple(tiny.encoder.encode(text)): label for text, label in tiny.examples["train"]}
    for step in (0, 100, 3):
        batch = tiny.batch(step)
        for ids, length, label in zip(batch["tokens"], batch["lengths"], batch["labels"], strict=True):
            assert texts[tuple(ids[:length])] == tiny.classes[label]
            assert (ids[length:] == 0).all()
    assert tiny.buckets.padding < 0.1
    assert "padding" in tiny.describe()


@pytest.mark.parametrize("level", ["word", "character", "bpe"])
def test_text_is_encoded_and_kept(level):
    texts = ["It isn't good.", "A GOOD film, a good plot"]
    encoder = TextEncoder.learn(texts, level, size=300)
    again = TextEncoder.from_json(encoder.to_json())
    for text in (*texts, "unheard-of ☃ plot"):
        ids = encoder.encode(text)
        assert ids.tolist() == again.encode(text).tolist()
        assert len(ids) == len(encoder.pieces(text)) > 0
        assert 0 <= ids.min() <= ids.max() < len(encoder)
    assert encoder.encode("GOOD").tolist() == encoder.encode("good").tolist()
    upper = TextEncoder.learn(texts, level, size=300, lowercase=False)
    assert upper.encode("GOOD").tolist() != upper.encode("good").tolist()


def trained(task, steps):
    """Parameters after some steps of Adam, compiled quickly."""
    optimizer = optax.adam(1e-2)

    @jax.jit
    def advance(params, state, batch, key):
        gradients = jax.grad(lambda params: task.loss(params, (), batch, key)[0])(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    params = params_of(task)
    state = optimizer.init(params)
    for step in range(steps):
        params, state = advance(params, state, task.batch(step), jax.random.key(step))
    return params


def test_it_learns_what_not_and_but_mean(task_of, tmp_path):
    config = dataclasses.replace(
        TINY,
        steps=300,
        data=dataclasses.replace(TINY.data, batch_size=16),
        model=dataclasses.replace(
            TINY.model, hidden_size=16, embedding_dropout_rate=0.0, word_dropout_rate=0.0
        ),
    )
    task = task_of(config)
    params = trained(task, config.steps)
    assert task.evaluate(params, "test")["accuracy"] > 0.97

    one, other = task.classify(params, ["the plot is good", "the plot is not good"])
    assert (one.label, other.label) == ("positive", "negative")
    assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert other.tokens == ["the", "plot", "is", "not", "good"]
    assert other.saliency[3] > 0 > other.saliency[4]  # "not" speaks for it, "good" against it
    assert other.left_out == 0

    _, values = task.report(params, "test", tmp_path)
    assert np.sum(values["confusion"]) == 250
    if values["baseline"] is not None:
        # Pairs of words know "not good", but not which of two clauses counts.
        assert 0.6 < values["baseline"]["accuracy"] < 0.97
        kept = json.loads((tmp_path / "baseline.json").read_text())
        assert kept == {"test": values["baseline"]}


def test_the_penalty_of_the_baseline_is_chosen_on_validation():
    pytest.importorskip("sklearn")
    noise = [(f"w{CHANCE.integers(30)} w{CHANCE.integers(30)}", str(CHANCE.integers(2))) for _ in range(60)]
    signal = [("yes w1", "1"), ("no w2", "0")] * 5
    examples = {"train": noise + signal, "validation": noise, "test": signal}
    found = bigram_baseline(examples, "test")
    assert found.strength > bigram_baseline({**examples, "validation": signal}, "test").strength
    assert len(found.predictions) == len(signal)


def test_a_classifier_needs_no_texts(tiny):
    config = dataclasses.replace(tiny.config, data=dataclasses.replace(tiny.config.data, path="gone"))
    classifier = sentiment.make_classifier(config, tiny.assets())
    texts = ["the pace is not bad", "the unheard-of ending is good!"]
    params = params_of(tiny)
    plain = classifier.classify(params, texts, explain=False)
    assert plain == tiny.classify(params, texts, explain=False)
    assert [verdict.saliency for verdict in plain] == [None, None]
    for verdict, text in zip(classifier.classify(params, texts), texts, strict=True):
        assert len(verdict.saliency) == len(verdict.tokens) == len(tiny.encoder.pieces(text))
    assert classifier.classify(params, []) == []
    with pytest.raises(ValueError, match="nothing to classify in ' '"):
        classifier.classify(params, ["good", " "])
    with pytest.raises(ValueError, match="no split tset: this run has train, validation, test"):
        tiny.evaluate(params, "tset")


@pytest.mark.parametrize(("keep", "read"), [("first", "the plot is"), ("last", "is not good")])
def test_long_texts_are_cut_and_counted_or_refused(task_of, keep, read):
    task = task_of(limit=3, keep=keep)
    assert f"their {keep} 3 tokens are read: train 1,500, validation 250, test 250" in task.describe()
    (verdict,) = task.classify(params_of(task), ["the plot is not good"], explain=False)
    assert (verdict.tokens, verdict.left_out) == (read.split(), 2)
    assert set(task.batch(0)["lengths"]) == {3}
    with pytest.raises(ValueError, match=r"a text has [0-9]+ tokens, the limit is 3"):
        task_of(limit=3, too_long="refuse")


def test_assets_tell_texts_apart(task_of, tmp_path):
    rows = [f"text {n},{n % 2}\n" for n in range(20)]
    one, other = tmp_path / "a.csv", tmp_path / "b.csv"
    one.write_text("text,label\n" + "".join(rows))
    other.write_text("text,label\n" + "".join(rows[::-1]))
    kept = [task_of(path=path).assets() for path in (one, other)]
    assert kept[0]["classes.json"] == kept[1]["classes.json"] == '["0", "1"]'
    assert kept[0]["texts.json"] != kept[1]["texts.json"]
    assert json.loads(kept[0]["texts.json"])["train"]["texts"] == 16


def test_a_change_for_the_worse_has_its_size_and_raises_the_loss(tiny):
    params, batch, key = params_of(tiny), tiny.batch(0), jax.random.key(1)
    sharp = jax.tree.map(lambda leaf: 4 * leaf, params)  # far from the flat beginning
    losses = []
    for size in (0.0, 1e-6, 0.1, 0.5):
        task = sentiment.make_classifier(dataclasses.replace(tiny.config, adversarial=size), tiny.assets())
        losses.append(float(jax.jit(task.loss)(sharp, (), batch, key)[0]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[1] < losses[2] < losses[3]

    xs, uphill = CHANCE.normal(size=(2, 3, 5, 4)).astype(np.float32)
    lengths = np.array([5, 2, 0])
    uphill *= np.arange(5)[:, None] < lengths[:, None, None]
    change = np.asarray(worst_change(xs, uphill, lengths, 0.3))
    norms = np.linalg.norm(xs, axis=-1)
    sizes = [0.3 * norms[0].mean(), 0.3 * norms[1, :2].mean(), 0]
    np.testing.assert_allclose(np.linalg.norm(change, axis=(1, 2)), sizes, rtol=1e-5)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="adversarial must be at least 0 and finite, got -1"):
        sentiment.Config(adversarial=-1.0)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        sentiment.DataConfig(limit=0)


def test_unknown_words_say_nothing(task_of):
    for level in ("word", "character", "bpe"):
        task = task_of(level=level)
        assert task.encoder.unknown == 0
        assert task.model(params_of(task)).unknown == 0
    task = task_of()
    one, other = task.classify(params_of(task), ["not qwrtz at all", "not xyzzy at all"])
    assert one.probabilities == other.probabilities
    assert one.saliency[1] == 0 != one.saliency[0]
