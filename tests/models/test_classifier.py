"""The classifier against NumPy, torch and its own definition of saliency."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import lstmx.convert.torch
from lstmx.models import SequenceClassifier, saliency
from lstmx.models.arguments import CELLS
from lstmx.models.classifier import POOLINGS

CHANCE = np.random.default_rng(0)
TOKENS = CHANCE.integers(0, 11, (4, 6))
LENGTHS = np.array([6, 3, 1, 0])


def make(**options):
    sizes = {"embedding_size": 5, "hidden_size": 4} | options
    model = SequenceClassifier(11, 3, rngs=nnx.Rngs(params=0), **sizes)
    model.eval()
    return model


def logits_of(model, tokens=TOKENS, lengths=LENGTHS):
    graph, params = nnx.split(model)
    return np.asarray(jax.jit(lambda p, t, n: nnx.merge(graph, p)(t, n))(params, tokens, lengths))


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def expected(model, tokens, lengths):
    """Row by row in float64, each without its padding."""
    array = lambda param: np.asarray(param[...], np.float64)  # noqa: E731
    name = {cell: kind for kind, cell in CELLS.items()}[type(model.recurrent.network.layers[0].forward)]
    logits = []
    for row, length in zip(tokens, lengths, strict=True):
        ys = array(model.embedding.embedding)[row[:length], None]
        for params, layer in zip(model.recurrent.parameters(), model.recurrent.network.layers, strict=True):
            both = [
                oracles.run(name, one, ys, layer.forward.initial_state((1,)), reverse=backward)[1]
                for backward, one in enumerate(params)
            ]
            ys = np.concatenate(both, axis=-1)
        ys, size = ys[:, 0], model.hidden_size
        if length == 0:
            vector = np.zeros(2 * size)
        elif model.pooling == "last":
            vector = np.concatenate([ys[-1, :size], ys[0, size:]])
        elif model.pooling == "attention":
            keys = np.tanh(ys @ array(model.keys.kernel) + array(model.keys.bias))
            vector = softmax((keys @ array(model.query.kernel))[:, 0]) @ ys
        else:
            vector = {"max": np.max, "mean": np.mean}[model.pooling](ys, axis=0)
        logits.append(vector @ array(model.output.kernel) + array(model.output.bias))
    return np.array(logits)


@pytest.mark.parametrize(
    ("pooling", "cell", "num_layers"), [*((p, "lstm", 1) for p in POOLINGS), ("max", "gru", 2)]
)
def test_the_model_is_the_loop_over_each_row(pooling, cell, num_layers):
    model = make(pooling=pooling, cell=cell, num_layers=num_layers)
    logits = logits_of(model)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(model, TOKENS, LENGTHS), atol=2e-6)
    np.testing.assert_allclose(logits[3], model.output.bias[...], atol=1e-7)


@pytest.mark.conformance
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_model_is_that_of_torch(pooling):
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    model = make(pooling=pooling)
    state = lstmx.convert.torch.to_state_dict(model.recurrent.network, model.recurrent.parameters())
    lstm = torch.nn.LSTM(5, 4, bidirectional=True, batch_first=True)
    lstm.load_state_dict({name: torch.as_tensor(np.array(value)) for name, value in state.items()})
    as_torch = lambda param: torch.as_tensor(np.array(param[...]))  # noqa: E731
    xs = as_torch(model.embedding.embedding)[torch.as_tensor(TOKENS)][:3]
    lengths = torch.as_tensor(LENGTHS[:3])
    packed = torch.nn.utils.rnn.pack_padded_sequence(xs, lengths, batch_first=True)
    ys, (h, _) = lstm(packed)
    ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, batch_first=True)
    exists = torch.arange(6) < lengths[:, None]
    if pooling == "last":
        vectors = torch.cat([h[-2], h[-1]], dim=1)
    elif pooling == "max":
        vectors = ys.masked_fill(~exists[..., None], -torch.inf).amax(1)
    elif pooling == "mean":
        vectors = ys.sum(1) / lengths[:, None]
    else:
        scores = torch.tanh(ys @ as_torch(model.keys.kernel) + as_torch(model.keys.bias))
        scores = (scores @ as_torch(model.query.kernel))[..., 0].masked_fill(~exists, -torch.inf)
        vectors = (scores.softmax(1)[..., None] * ys).sum(1)
    logits = vectors @ as_torch(model.output.kernel) + as_torch(model.output.bias)
    np.testing.assert_allclose(logits_of(model)[:3], logits.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(("pooling", "bidirectional"), [*((p, True) for p in POOLINGS), ("last", False)])
def test_batch_mates_and_padding_have_no_influence(pooling, bidirectional):
    model = make(pooling=pooling, bidirectional=bidirectional)
    whole = logits_of(model)
    wider = np.concatenate([TOKENS, CHANCE.integers(0, 11, (4, 3))], axis=1)
    np.testing.assert_allclose(logits_of(model, wider), whole, atol=1e-6)
    other = np.where(np.arange(6) < LENGTHS[:, None], TOKENS, 7)
    np.testing.assert_allclose(logits_of(model, other), whole, atol=1e-6)
    for row in (1, 3):
        alone = logits_of(model, TOKENS[row : row + 1], LENGTHS[row : row + 1])
        np.testing.assert_allclose(alone, whole[row : row + 1], atol=1e-6)
    assert np.abs(logits_of(model, lengths=np.array([1, 3, 1, 0]))[0] - whole[0]).max() > 1e-4


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_parameter_has_a_finite_gradient_and_padding_none(pooling):
    graph, params = nnx.split(make(pooling=pooling))

    def loss(params):
        return jnp.sum(jax.nn.log_softmax(nnx.merge(graph, params)(TOKENS, LENGTHS))[..., 0])

    gradients = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        leaf = np.asarray(leaf)
        assert np.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path
    read = set(np.concatenate([row[:n] for row, n in zip(TOKENS, LENGTHS, strict=True)]).tolist())
    table = np.asarray(gradients.embedding.embedding[...])
    assert {token for token in range(11) if (table[token] != 0).any()} == read


def test_attention_sums_to_one():
    model = make(pooling="attention")
    weights = np.asarray(model.attention(CHANCE.normal(size=(4, 6, 8)), LENGTHS))
    np.testing.assert_allclose(weights.sum(axis=1), [1, 1, 1, 0], atol=1e-6)
    assert (weights[np.arange(6) >= LENGTHS[:, None]] == 0).all()


@pytest.mark.parametrize("rate", ["dropout_rate", "embedding_dropout_rate", "word_dropout_rate"])
def test_dropout_follows_the_mode(rate):
    model = SequenceClassifier(11, 3, embedding_size=5, hidden_size=4, rngs=nnx.Rngs(0), **{rate: 0.5})
    assert not np.array_equal(model(TOKENS, LENGTHS), model(TOKENS, LENGTHS))
    clean = model(TOKENS, LENGTHS, deterministic=True)
    explained = saliency(model, TOKENS, LENGTHS, jnp.zeros(4, int), points=1)  # never has dropout
    model.eval()
    np.testing.assert_array_equal(saliency(model, TOKENS, LENGTHS, jnp.zeros(4, int), points=1), explained)
    np.testing.assert_array_equal(model(TOKENS, LENGTHS), clean)


def test_dropout_is_of_the_key_and_off_in_evaluation():
    rates = ("dropout_rate", "embedding_dropout_rate", "word_dropout_rate")
    plain = make()(TOKENS, LENGTHS)
    for rate in rates:
        model = make(**{rate: 0.5})
        draw = lambda seed: model(TOKENS, LENGTHS, deterministic=False, rngs=nnx.Rngs(dropout=seed))  # noqa: E731, B023
        np.testing.assert_array_equal(draw(0), draw(0))
        assert np.abs(draw(0) - draw(1)).max() > 1e-3, rate
        np.testing.assert_allclose(model(TOKENS, LENGTHS), plain, atol=1e-6)


def test_words_are_dropped_whole_and_features_for_all_steps():
    model = make(word_dropout_rate=0.5, embedding_dropout_rate=0.0)
    seen = model.word_dropout(jnp.ones((4, 6, 5)), deterministic=False, rngs=nnx.Rngs(dropout=0))
    assert {tuple(set(row)) for row in np.asarray(seen).reshape(-1, 5).tolist()} == {(0.0,), (2.0,)}
    model = make(embedding_dropout_rate=0.5)
    seen = model.embedding_dropout(jnp.ones((4, 6, 5)), deterministic=False, rngs=nnx.Rngs(dropout=0))
    assert (np.asarray(seen) == np.asarray(seen)[:, :1]).all()
    assert set(np.asarray(seen).ravel().tolist()) == {0.0, 2.0}


def test_saliency_is_complete_and_zero_at_padding():
    model = make(pooling="attention", num_layers=2)
    classes = np.array([0, 1, 2, 1])
    found = np.asarray(jax.jit(lambda t: saliency(model, t, LENGTHS, classes, points=64))(TOKENS))
    xs = model.embedding(TOKENS)

    def log_odds(xs):
        p = np.asarray(jax.nn.softmax(model.from_vectors(xs, LENGTHS)), np.float64)[np.arange(4), classes]
        return np.log(p / (1 - p))

    np.testing.assert_allclose(found.sum(axis=1), log_odds(xs) - log_odds(0 * xs), atol=2e-3)
    assert (found[np.arange(6) >= LENGTHS[:, None]] == 0).all()
    assert np.abs(found[0]).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "sum"}, "pooling must be one of last, max, mean, attention, got 'sum'"),
        ({"cell": "lstn"}, "cell must be one of lstm, gru, elman, got 'lstn'"),
        ({"word_dropout_rate": 1.5}, r"word_dropout_rate must lie in \[0, 1\), got 1.5"),
        ({"embedding_dropout_rate": -0.1}, r"embedding_dropout_rate must lie in \[0, 1\), got -0.1"),
        ({"unknown": 11}, r"unknown must be a token in 0\.\.10, got 11"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        SequenceClassifier(11, 1, embedding_size=2, hidden_size=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        saliency(make(), TOKENS, LENGTHS, LENGTHS, points=0)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_neighbours_are_predicted_from_what_was_read_before_them(bidirectional):
    model = make(predicts_words=True, bidirectional=bidirectional)
    _, targets, exist = model.neighbours(TOKENS, LENGTHS)
    directions = [TOKENS[:, 1:], TOKENS[:, :-1]][: 1 + bidirectional]
    np.testing.assert_array_equal(targets, np.concatenate(directions).ravel())
    expected = [[place + 1 < length for place in range(5)] for length in LENGTHS]
    np.testing.assert_array_equal(exist, np.ravel(expected * len(directions)))

    def predictions(tokens):
        vectors, _, _ = model.neighbours(tokens[None], np.array([6]))
        return np.asarray(vectors).reshape(len(directions), 5, -1)

    before = predictions(TOKENS[0])
    for at in range(6):
        tokens = TOKENS[0].copy()
        tokens[at] = (tokens[at] + 1) % 11
        changed = (predictions(tokens) != before).any(axis=-1)
        # Row 0 predicts tokens 1 to 5 from those before, row 1 tokens 0 to 4 from those after.
        assert (
            changed.tolist() == [[i >= at for i in range(5)], [i < at for i in range(5)]][: 1 + bidirectional]
        )


def test_layers_that_have_seen_a_word_do_not_predict_it():
    with pytest.raises(ValueError, match=r"predicts_words needs num_layers=1 .* got 2"):
        make(predicts_words=True, num_layers=2)
    make(predicts_words=True, num_layers=2, bidirectional=False)


def test_unknown_tokens_are_read_as_dropped_ones():
    model, plain = make(unknown=3), make()
    assert (TOKENS[LENGTHS > 0] == 3).any()
    xs = np.where((TOKENS == 3)[..., None], 0, np.asarray(model.embedding.embedding)[TOKENS])
    np.testing.assert_array_equal(model.vectors(TOKENS), xs)
    np.testing.assert_array_equal(model(TOKENS, LENGTHS), plain.from_vectors(jnp.asarray(xs), LENGTHS))
    found = saliency(model, TOKENS, LENGTHS, jnp.zeros(4, int))
    assert (np.asarray(found)[TOKENS == 3] == 0).all()
