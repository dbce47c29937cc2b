"""Spaces of configs: what they mean, and what is refused before any trial."""

import pytest

import experiments
from experiments import char_lm, forecasting
from lstmx.sweeps import Choice, Range, parse_space
from lstmx.sweeps.space import parse_values, split_assignments
from lstmx.training import field_types, make_schedule, replace_fields

CONFIG = char_lm.Config()


def test_the_language_of_spaces():
    texts = {
        "optimizer.learning_rate": "log:1e-4:1e-2",
        "model.dropout_rate": "0:0.6",
        "model.hidden_size": "16:64",
        "data.batch_size": "16:64:16",
        "model.cell": "lstm,gru",
        "optimizer.clip_norm": "none,0.5",
        "model.tied": "true,false",
        "steps": "100",
        "data.splits": [(80, 10, 10), (90, 5, 5)],
    }
    assert parse_space(CONFIG, texts) == {
        "optimizer.learning_rate": Range(1e-4, 1e-2, log=True),
        "model.dropout_rate": Range(0.0, 0.6),
        "model.hidden_size": Range(16, 64),
        "data.batch_size": Range(16, 64, step=16),
        "model.cell": Choice(("lstm", "gru")),
        "optimizer.clip_norm": Choice((None, 0.5)),
        "model.tied": Choice((True, False)),
        "steps": Choice((100,)),
        "data.splits": Choice(((80, 10, 10), (90, 5, 5))),
    }


WRONG = {
    "optimizer.learning_rat=0:1": "not a field of the config; did you mean optimizer.learning_rate?",
    "model.lr=0:1": "the space has model.lr, which is not a field of the config",
    "model=1,2": "which is a group of fields: model.cell, model.embedding_size,",
    "model.cell=lstm,rnn": "model.cell=lstm,rnn: must be one of lstm, gru, elman, got rnn",
    "model.cell=1:2": "a range needs a field of numbers",
    "model.hidden_size=1.5:2": "the bounds of a range must be of type int",
    "model.hidden_size=a,b": "must be of type int, got 'a'",
    "model.dropout_rate=0.6:0.1": "the lower bound must be below the upper one, got 0.6 and 0.1",
    "model.dropout_rate=0.5:0.5": "the lower bound must be below the upper one",
    "model.dropout_rate=log:0:0.5": "a logarithmic range must be above 0, got 0.0",
    "model.dropout_rate=0:nan": "the lower bound must be below the upper one",
    "model.dropout_rate=0:1:2:3": "a range is LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH",
    "model.dropout_rate=0:0.5:0.7": "the step must be above 0 and at most 0.5, got 0.7",
    "model.dropout_rate=log:0.5": "a range is LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH",
    "model.tied=yes,no": "must be true or false, got yes",
    "model.cell=lstm,lstm": "a value is there twice",
    # Refused by the config itself.
    "optimizer.learning_rate=0:1": "learning_rate must be positive and finite, got 0.0",
    "optimizer.momentum=0.5,1": "momentum must be at least 0 and below 1, got 1.0",
    "steps=10,50": "warmup_steps must be below steps, got 100 of 10",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_spaces_are_refused(text):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the message is compared
        parse_space(CONFIG, split_assignments([text]), lambda c: make_schedule(c.optimizer, c.steps))
    assert WRONG[text] in str(error.value)
    assert text.partition("=")[0] in str(error.value)


def test_an_empty_space_and_one_named_twice():
    with pytest.raises(ValueError, match="the space is empty"):
        parse_space(CONFIG, {})
    with pytest.raises(ValueError, match=r"model.cell is given twice: lstm and gru"):
        split_assignments(["model.cell=lstm", "model.cell=gru"])
    with pytest.raises(ValueError, match=r"expected FIELD=VALUES, got 'model.cell'"):
        split_assignments(["model.cell"])


def test_values_to_try_first_lie_in_the_space():
    space = parse_space(CONFIG, {"model.dropout_rate": "0:0.5", "model.cell": "lstm,gru"})
    values = parse_values(space, {"model.dropout_rate": "0.25", "model.cell": "gru"}, CONFIG)
    assert values == {"model.dropout_rate": 0.25, "model.cell": "gru"}
    with pytest.raises(ValueError, match=r"model.dropout_rate=0.7 cannot be tried first: it is outside"):
        parse_values(space, {"model.dropout_rate": "0.7"}, CONFIG)
    with pytest.raises(ValueError, match=r"steps cannot be tried first: the space has model.dropout_rate"):
        parse_values(space, {"steps": "5"}, CONFIG)


def test_fields_are_replaced_in_nested_configs():
    changed = replace_fields(CONFIG, {"model.dropout_rate": 0.25, "optimizer.clip_norm": None, "steps": 7})
    assert (changed.model.dropout_rate, changed.optimizer.clip_norm, changed.steps) == (0.25, None, 7)
    assert changed.data is CONFIG.data
    with pytest.raises(ValueError, match=r"model.size is not a field of ModelConfig"):
        replace_fields(CONFIG, {"model.size": 3})
    with pytest.raises(ValueError, match=r"steps must be of type int, got 1.5"):
        replace_fields(CONFIG, {"steps": 1.5})
    assert field_types(forecasting.Config)["data.horizon"] == int | None


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_has_a_space_that_its_presets_accept(name):
    module = experiments.load(name)
    space = parse_space(
        module.Config(), module.sweep(), lambda config: make_schedule(config.optimizer, config.steps)
    )
    assert 2 <= len(space) <= 4
    assert "optimizer.learning_rate" in space
