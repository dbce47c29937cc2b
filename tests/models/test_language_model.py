"""The language model against its parts, and its streaming form against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import lstmx
from lstmx.models import LanguageModel

TOKENS = np.random.default_rng(0).integers(0, 11, (3, 8))


def make(rngs=None, **options):
    sizes = {"embedding_size": 6, "hidden_size": 8} | options
    model = LanguageModel(11, rngs=rngs or nnx.Rngs(params=0), **sizes)
    model.eval()
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_the_model_is_embedding_scan_and_output(cell, tied):
    model = make(cell=cell, tied=tied)
    _, logits = model(TOKENS)
    table = np.asarray(model.embedding.embedding[...])
    recurrent = model.recurrent
    xs = jnp.asarray(table[TOKENS].swapaxes(0, 1))
    _, ys = lstmx.scan(recurrent.network, recurrent.parameters(), xs)
    if tied:
        expected = ys @ model.projection.kernel[...] @ table.T + model.bias[...]
    else:
        expected = ys @ model.output.kernel[...] + model.output.bias[...]
    assert oracles.relative_error(logits, expected.swapaxes(0, 1)) <= 1e-5


def test_tied_output_has_no_matrix_of_its_own():
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(make(tied=True, embedding_size=8)))]
    assert sum(11 in shape and len(shape) == 2 for shape in shapes) == 1
    assert make(tied=True, embedding_size=8).projection is None


@pytest.mark.parametrize("num_layers", [1, 2])
def test_streaming_is_the_whole(num_layers):
    model = make(num_layers=num_layers, dropout_rate=0.5)
    _, whole = model(TOKENS)
    state, pieces = model.initial_state((3,)), []
    for t in range(8):
        state, logits = model.step(state, TOKENS[:, t])
        pieces.append(logits)
    assert oracles.relative_error(np.stack(pieces, axis=1), whole) <= 1e-5


def test_windows_with_the_state_carried_are_the_whole():
    model = make(num_layers=2)
    _, whole = model(TOKENS)
    state, first = model(TOKENS[:, :3])
    _, second = model(TOKENS[:, 3:], state)
    assert oracles.relative_error(jnp.concatenate([first, second], axis=1), whole) <= 1e-5


def test_a_reset_forgets_what_came_before():
    model = make()
    resets = np.zeros((3, 8), bool)
    resets[:, 4] = True
    _, logits = model(TOKENS, resets=resets)
    _, alone = model(TOKENS[:, 4:])
    assert oracles.relative_error(logits[:, 4:], alone) <= 1e-6
    assert oracles.relative_error(model(TOKENS)[1][:, 4:], alone) > 1e-3


def test_dropout_is_of_the_key_and_off_in_evaluation():
    model = make(num_layers=2, dropout_rate=0.5)
    draw = lambda seed: model(TOKENS, deterministic=False, rngs=nnx.Rngs(dropout=seed))[1]  # noqa: E731
    assert oracles.relative_error(draw(0), draw(0)) == 0
    assert oracles.relative_error(draw(0), draw(1)) > 1e-2
    assert oracles.relative_error(model(TOKENS)[1], model(TOKENS, deterministic=True)[1]) == 0


@pytest.mark.parametrize("rate", ["dropout_rate", "embedding_dropout", "output_dropout", "weight_drop"])
def test_dropout_follows_the_mode(rate):
    """Of every kind: of nnx.Dropout, of the recurrent layers, and what the model does itself."""
    model = LanguageModel(11, embedding_size=6, hidden_size=8, rngs=nnx.Rngs(0), **{rate: 0.5})
    logits = lambda **options: model(TOKENS, **options)[1]  # noqa: E731
    model.eval()
    clean = logits()
    assert np.array_equal(clean, logits())
    assert not np.array_equal(clean, logits(deterministic=False))
    model.train()
    assert not np.array_equal(logits(), logits())
    assert np.array_equal(clean, logits(deterministic=True))
    assert np.array_equal(*(logits(rngs=nnx.Rngs(dropout=3)) for _ in range(2)))


def test_a_new_model_is_in_training_mode_as_in_flax():
    model = LanguageModel(11, embedding_size=6, hidden_size=8, embedding_dropout=0.5, rngs=nnx.Rngs(params=0))
    with pytest.raises(ValueError, match="dropout needs rngs"):
        model(TOKENS)


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_a_gradient(tied):
    graph, params = nnx.split(make(num_layers=2, tied=tied))

    def loss(params):
        return jnp.sum(jax.nn.log_softmax(nnx.merge(graph, params)(TOKENS)[1])[..., 0])

    for path, leaf in jax.tree.leaves_with_path(jax.grad(loss)(params)):
        assert np.any(np.asarray(leaf) != 0), path


AWD = {
    "num_layers": 3, "last_hidden_size": 6, "tied": True, "input_dropout": 0.4, "hidden_dropout": 0.3,
    "output_dropout": 0.2, "embedding_dropout": 0.3, "weight_drop": 0.5,
}  # fmt: skip


def test_an_awd_lstm_evaluates_as_its_layers_without_noise():
    model = make(**AWD)
    assert model.projection is None
    _, logits = model(TOKENS)
    table = model.embedding.embedding[...]
    ys = jnp.swapaxes(table[TOKENS], 0, 1)
    for size, params in zip((8, 8, 6), model.recurrent.parameters(), strict=True):
        _, ys = lstmx.scan(lstmx.LSTM(size), params, ys)
    expected = ys @ table.T + model.bias[...]
    assert oracles.relative_error(logits, expected.swapaxes(0, 1)) <= 1e-5


def test_the_noise_of_an_awd_lstm_is_locked_in_time():
    model = make(**AWD)
    same = np.full((3, 8), 4)

    def ratios(apply):
        ones = jnp.ones((3, 8, 6))
        return np.asarray(apply(ones, deterministic=False, rngs=nnx.Rngs(dropout=1)))

    outputs = ratios(model.drop_outputs)
    assert np.all(outputs == outputs[:, :1])
    np.testing.assert_allclose(np.unique(outputs), [0, 1 / 0.8], rtol=1e-6)
    # A word is dropped wherever it occurs, in all rows.
    embedded = model._embed(same, deterministic=False, rngs=nnx.Rngs(dropout=0))
    assert len(np.unique(np.asarray(embedded).reshape(24, -1), axis=0)) == 1
    draws = [model._embed(TOKENS, deterministic=False, rngs=nnx.Rngs(dropout=s)) for s in range(40)]
    dropped = np.mean([np.all(np.asarray(draw) == 0, axis=-1).mean() for draw in draws])
    assert abs(dropped - 0.3) < 0.1


@pytest.mark.parametrize("rate", [name for name in AWD if "drop" in name])
def test_each_rate_is_noise_of_its_own(rate):
    model = make(num_layers=2, **{rate: 0.5})
    draw = lambda seed: model(TOKENS, deterministic=False, rngs=nnx.Rngs(dropout=seed))[1]  # noqa: E731
    assert oracles.relative_error(draw(0), draw(0)) == 0
    assert oracles.relative_error(draw(0), draw(1)) > 1e-3
    assert oracles.relative_error(model(TOKENS)[1], make(num_layers=2)(TOKENS)[1]) == 0
    with pytest.raises(ValueError, match=f"{rate}|output_dropout"):
        make(num_layers=2, **{rate: 1.0})


def test_a_uniform_draw_is_of_all_parameters():
    leaves = jax.tree.leaves(nnx.state(make(num_layers=2, init_scale=0.1), nnx.Param))
    values = np.concatenate([np.ravel(leaf) for leaf in leaves])
    assert np.abs(values).max() <= 0.1
    assert abs(values.std() - 0.1 / np.sqrt(3)) < 0.005
    assert len(np.unique(values)) > 0.99 * values.size


WRONG = [
    ({"init_scale": 0.0}, ValueError, "init_scale must be positive, got 0.0"),
    ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
    ({"hidden_size": True}, TypeError, "hidden_size must be an integer, got True"),
    ({"last_hidden_size": 0}, ValueError, "last_hidden_size must be at least 1, got 0"),
    ({"embedding_size": 2.5}, TypeError, "embedding_size must be an integer, got 2.5"),
    ({"cell": "rnn"}, ValueError, "cell must be one of lstm, gru, elman, got 'rnn'"),
    ({"hidden_dropout": 0.5}, ValueError, "hidden_dropout=0.5 has no effect with num_layers=1"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)
