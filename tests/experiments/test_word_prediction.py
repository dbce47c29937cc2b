"""Sentiment's training as a language model first: what is predicted, what is learned, the change over."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import sentiment
from experiments.tasks.classification.word_prediction import WordPrediction
from lstmx.training import LoopConfig, OptimizerConfig, read_metrics, train

TINY = dataclasses.replace(
    sentiment.PRESETS["tiny"],
    steps=60,
    pretraining=sentiment.PretrainingConfig(steps=40, candidates=50),
    optimizer=OptimizerConfig(learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    data = dataclasses.replace(TINY.data, data_dir=tmp_path_factory.getbasetemp() / "data")
    return sentiment.make_task(dataclasses.replace(TINY, data=data))


def test_candidates_occur_as_often_as_in_the_texts():
    texts = [np.array([0, 0, 0, 1]), np.array([3, 0, 0, 1, 0, 0])]
    words = WordPrediction(texts, 4, candidates=20_000, seed=1)
    batch = words.batch(5, {"tokens": 1, "lengths": 2, "labels": 3})
    assert set(batch) == {"tokens", "lengths", "candidates"}
    counts = np.bincount(batch["candidates"], minlength=4)
    np.testing.assert_allclose(counts / 20_000, np.array([7, 2, 1, 1]) / 11, atol=0.01)
    again = words.batch(5, {"tokens": 1, "lengths": 2})["candidates"]
    np.testing.assert_array_equal(batch["candidates"], again)
    assert (words.batch(6, {"tokens": 1, "lengths": 2})["candidates"] != again).any()


@pytest.mark.full
def test_words_are_learned_and_then_classes(task, tmp_path):
    result = train(
        task, tmp_path / "run", steps=60, optimizer=TINY.optimizer,
        loop=LoopConfig(eval_every=0, checkpoint_every=30, log_every=1), quiet=True,
    )  # fmt: skip
    records = [
        record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if record["split"] == "train"
    ]
    nats = [record["nats per word"] for record in records[:40]]
    assert np.mean(nats[-5:]) < np.mean(nats[:5]) - 0.5
    assert all("accuracy" in record and "nats per word" not in record for record in records[40:])
    assert result.step == 60


def test_only_a_pretrained_network_has_the_weights_for_it(task):
    plain = sentiment.make_classifier(
        dataclasses.replace(TINY, pretraining=sentiment.PretrainingConfig()), task.assets()
    )
    added = set(task.init(jax.random.key(0))[0]) - set(plain.init(jax.random.key(0))[0])
    assert added == {"next_word", "previous_word", "word_bias"}


def test_what_leaves_no_step_for_classes_is_refused():
    with pytest.raises(ValueError, match="60 pretraining steps leave none of 60 for classes"):
        dataclasses.replace(TINY, pretraining=sentiment.PretrainingConfig(steps=60))
    with pytest.raises(ValueError, match="got -1 and 5"):
        sentiment.PretrainingConfig(-1, 5)
