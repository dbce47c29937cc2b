"""The character language model: what it reads, what it counts, and that it learns."""

import dataclasses
import json
import math

import jax
import numpy as np
import optax
import pytest

from experiments import char_lm
from lstmx.cells import base
from lstmx.training import train

TINY = char_lm.PRESETS["tiny"]


@pytest.fixture
def task_of(tmp_path):
    def make(text, config=TINY, **data):
        path = tmp_path / "text.txt"
        path.write_text(text)
        data = dataclasses.replace(config.data, path=path, data_dir=tmp_path / "data", **data)
        return char_lm.make_task(dataclasses.replace(config, data=data))

    return make


@pytest.mark.parametrize("text", ["a" * 3000, "\n" * 3000, "\ufeff" + "a" * 3000])
def test_one_distinct_character_is_refused(task_of, text):
    with pytest.raises(ValueError, match=r"at least two distinct characters, this text has only '(a|.n)'"):
        task_of(text)


def test_a_kept_vocabulary_refuses_other_characters(task_of):
    assets = task_of("abc" * 1000).assets()
    config = task_of("cba" * 1000).config  # whose text is the one that is read below
    kept = char_lm.make_task(config, assets)
    assert kept.vocabulary.characters == "abc"
    config.data.path.write_text("ab" * 1000 + "cd" * 100)
    with pytest.raises(ValueError, match=r"the validation split cannot be read: 45 of 110 .* 'd' at 21"):
        char_lm.make_task(config, assets)


def test_a_new_model_knows_nothing_and_evaluation_counts_every_character(task_of):
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh"), 4000))
    task = task_of(text, splits=(50, 30, 20))
    params, _ = task.init(jax.random.key(0))
    metrics = task.evaluate(params, "validation")
    assert abs(metrics["loss"] - math.log(8)) < 0.1
    assert metrics["bits per character"] == pytest.approx(metrics["loss"] / math.log(2))
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))

    # One stream has no cold starts: its loss is that of the text read at once.
    tokens = task.vocabulary.encode(text[2000:3200])
    _, logits = task.model(params)(tokens[None, :-1])
    whole = float(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[None, 1:]).mean())
    assert metrics["loss"] == pytest.approx(whole, abs=0.02)


def test_it_learns_a_pattern(task_of, tmp_path):
    config = dataclasses.replace(TINY, steps=150, loop=dataclasses.replace(TINY.loop, sample=False))
    task = task_of("hello world. " * 300, config)
    result = train(
        task, tmp_path / "run", steps=150, seed=0, optimizer=config.optimizer, loop=config.loop, quiet=True
    )
    assert result.validation["loss"] < 0.2
    text = "".join(
        task.generate(result.state.params, "hell", length=22, key=jax.random.key(0), temperature=0)
    )
    assert text == "o world. hello world. "


def test_the_carry_goes_from_window_to_window_and_is_fresh_at_an_epoch(task_of):
    task = task_of("abcdefgh" * 100)
    params, carry = task.init(jax.random.key(0))
    key = jax.random.key(1)
    first = task.batch(0)
    assert first["resets"][:, 0].all()
    _, (after, _) = task.loss(params, carry, first, key)
    second = task.batch(1)
    assert not second["resets"].any()
    assert float(task.loss(params, after, second, key)[0]) != float(task.loss(params, carry, second, key)[0])
    stale = jax.tree.map(lambda leaf: leaf + 1, carry)
    assert float(task.loss(params, stale, first, key)[0]) == float(task.loss(params, carry, first, key)[0])


def test_a_generator_needs_no_text(task_of):
    task = task_of("to be or not to be, " * 50)
    params, _ = task.init(jax.random.key(0))
    config = dataclasses.replace(task.config, data=dataclasses.replace(task.config.data, path="gone"))
    generator = char_lm.make_generator(config, task.assets())
    draw = lambda t: "".join(t.generate(params, "to ", length=9, key=jax.random.key(2)))  # noqa: E731
    assert draw(generator) == draw(task)
    with pytest.raises(ValueError, match="1 of 3 characters are not in the vocabulary: 'Z' at 2"):
        generator.generate(params, "toZ", length=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="at least one character"):
        generator.generate(params, "", length=1, key=jax.random.key(0))


@pytest.mark.parametrize(("text", "prompt"), [("ab\n ", "\n"), ("ba ", " "), ("ba", "a")])
def test_the_default_prompt_is_in_the_vocabulary(task_of, text, prompt):
    units = task_of(text * 1000).units
    assert units.default_prompt() == prompt
    assert len(units.prompt(prompt)) == 1


def test_assets_tell_texts_apart(task_of):
    one, other = task_of("abcd" * 200).assets(), task_of("abdc" * 200).assets()
    assert one["vocabulary.json"] == other["vocabulary.json"]
    assert one["texts.json"] != other["texts.json"]
    assert json.loads(one["texts.json"])["train"]["characters"] == 720


def test_the_networks_of_the_table_have_equal_size():
    sizes = {}
    for name in ("shakespeare", "shakespeare-gru", "shakespeare-elman"):
        model = char_lm.PRESETS[name].model
        generator = char_lm.make_generator(
            char_lm.PRESETS[name],
            {"vocabulary.json": json.dumps({"characters": "".join(map(chr, range(65)))})},
        )
        sizes[model.cell] = base.count(generator.model_shapes)
    assert sizes.keys() == {"lstm", "gru", "elman"}
    assert max(sizes.values()) / min(sizes.values()) < 1.001
