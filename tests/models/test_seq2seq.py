"""The translation model against a loop in NumPy, and against itself: word by word, padded, with dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from numpy_lstm import sigmoid

import lstmx
from lstmx.models import AttentionCell, Seq2Seq

DRAW = np.random.default_rng(0)
SOURCE, BEFORE = DRAW.integers(0, 11, (3, 5)), DRAW.integers(0, 13, (3, 7))
LENGTHS = np.array([5, 3, 1])


def make(**options):
    sizes = {"embedding_size": 4, "hidden_size": 6} | options
    model = Seq2Seq(11, 13, rngs=nnx.Rngs(params=0), **sizes)
    model.eval()
    return model


@functools.cache
def compiled(**options):
    """The model's methods as functions of its parameters, and these."""
    graph, params = nnx.split(make(**options))

    def method(name):
        return jax.jit(lambda params, *arguments: getattr(nnx.merge(graph, params), name)(*arguments))

    return params, *map(method, ("__call__", "attention", "encode", "step"))


def lstm(params, state, x):
    """One step of an LSTM."""
    c, h = state
    z = x @ params.input["kernel"] + params.input["bias"] + h @ params.recurrent["kernel"]
    i, f, g, o = np.split(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def encoded(model, tokens):
    """Memory and last outputs of a source without padding."""
    xs = np.asarray(model.source_embedding.embedding[...], np.float64)[tokens]
    for both in model.encoder.parameters():
        outputs = []
        for params, inputs in ((both[0], xs), (both[1], xs[::-1])):
            state, ys = (np.zeros(3), np.zeros(3)), []
            for x in inputs:
                state = lstm(params, state, x)
                ys.append(state[1])
            outputs.append(ys)
        last = np.concatenate([outputs[0][-1], outputs[1][-1]])
        xs = np.concatenate([outputs[0], outputs[1][::-1]], axis=1)
    return xs, last


def decoded(model, tokens, before):
    """Logits and attention of one target, by the equations as they are published."""
    memory, last = encoded(model, tokens)
    cell, params = model.decoder.network, model.decoder.parameters()
    start = np.tanh(last @ model.bridge.kernel[...] + model.bridge.bias[...])
    states = [tuple(part) for part in start.reshape(len(cell.layers), 2, 6)]
    vector, attention = np.zeros(4), params.update["attention"]
    feed = params.recurrent["feed"]["kernel"] if cell.input_feeding else np.zeros((4, 24))
    kernel = np.concatenate([params.input["kernel"], feed])
    layers = [params._replace(input={**params.input, "kernel": kernel}, recurrent=params.recurrent["layer"])]
    layers += params.update["above"]
    table = np.asarray(model.target_embedding.embedding[...], np.float64)
    logits, weights = [], []
    for token in before:
        x = np.concatenate([table[token], vector])
        for k, layer in enumerate(layers):
            states[k] = lstm(layer, states[k], x)
            x = states[k][1]
        keys = memory @ attention["keys"]["kernel"]
        if cell.score == "multiplicative":
            scores = keys @ x
        else:
            scores = np.tanh(x @ attention["query"]["kernel"] + keys) @ attention["score"]
        w = np.exp(scores) / np.exp(scores).sum()
        # tanh(W [context; h] + b)
        W = np.concatenate([attention["values"]["kernel"], attention["vector"]["kernel"]])
        vector = np.tanh(np.concatenate([w @ memory, x]) @ W + attention["values"]["bias"])
        if model.tied:
            logits.append(vector @ table.T + model.bias[...])
        else:
            logits.append(vector @ model.output.kernel[...] + model.output.bias[...])
        weights.append(w)
    return np.array(logits), np.array(weights)


VARIANTS = {
    "plain": {},
    "additive": {"attention": "additive"},
    "deep": {"encoder_layers": 2, "decoder_layers": 2},
    "deep, additive": {"attention": "additive", "decoder_layers": 2, "tied": False},
    "without input feeding": {"input_feeding": False, "decoder_layers": 2},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_the_published_equations(name):
    model = make(**VARIANTS[name])
    params, call, attention, *_ = compiled(**VARIANTS[name])
    logits = call(params, SOURCE, LENGTHS, BEFORE)
    weights = attention(params, SOURCE, LENGTHS, BEFORE)
    for b, length in enumerate(LENGTHS):
        expected, expected_weights = decoded(model, SOURCE[b, :length], BEFORE[b])
        assert oracles.relative_error(logits[b], expected) <= 2e-6
        assert oracles.relative_error(weights[b, :, :length], expected_weights) <= 2e-6
        assert np.all(np.asarray(weights[b, :, length:]) == 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_word_by_word_is_the_whole(name):
    params, call, _, encode, step = compiled(**VARIANTS[name])
    memory, state = encode(params, SOURCE, LENGTHS)
    pieces = []
    for t in range(BEFORE.shape[1]):
        state, logits = step(params, memory, state, BEFORE[:, t])
        pieces.append(logits)
    whole = call(params, SOURCE, LENGTHS, BEFORE)
    assert oracles.relative_error(np.stack(pieces, axis=1), whole) <= 1e-6


def test_several_targets_of_each_source_at_once():
    params, _, _, encode, step = compiled(**VARIANTS["deep, additive"])
    memory, state = encode(params, SOURCE, LENGTHS)
    _, alone = step(params, memory, state, BEFORE[:, 0])
    twice = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], 2, axis=1), state)
    _, logits = step(params, memory, twice, np.stack([BEFORE[:, 1], BEFORE[:, 0]], axis=1))
    assert logits.shape == (3, 2, 13)
    assert oracles.relative_error(logits[:, 1], alone) <= 1e-6
    assert oracles.relative_error(logits[:, 0], alone) > 1e-3


@pytest.mark.parametrize("name", ["plain", "additive", "without input feeding"])
def test_padding_has_no_influence(name):
    """Not on values, and not on any gradient: words after the end, and columns that nobody needs."""
    graph, params = nnx.split(make(**VARIANTS[name]))

    def loss(params, source, before):
        logits = nnx.merge(graph, params)(source, LENGTHS, before)[:, :7]
        counts = jnp.arange(7) < jnp.array([[7], [4], [2]])
        return jnp.sum(jax.nn.log_softmax(logits)[..., 0] * counts)

    run = jax.jit(jax.value_and_grad(loss))
    value, gradients = run(params, SOURCE, BEFORE)
    source, before = np.pad(SOURCE, ((0, 0), (0, 2))), np.pad(BEFORE, ((0, 0), (0, 3)))
    source[np.arange(7) >= LENGTHS[:, None]] = 10
    before[np.arange(10) >= np.array([[7], [4], [2]])] = 12
    padded_value, padded = run(params, source, before)
    assert float(padded_value) == pytest.approx(float(value), rel=1e-6)
    for (path, a), b in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(padded), strict=True):
        assert oracles.relative_error(b, a) <= 1e-5, path
        assert np.any(np.asarray(a) != 0), path


@pytest.mark.full
@pytest.mark.parametrize(
    ("layer", "score"), [(lstmx.LSTM(5), "multiplicative"), (lstmx.GRU(5), "additive")], ids=["lstm", "gru"]
)
def test_the_fast_reverse_pass_has_the_gradients_of_autodiff(double, layer, score):
    """Of everything: parameters, memory, inputs and initial state."""
    cell = AttentionCell((layer, layer), vector_size=4, memory_size=3, score=score)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), cell.init(jax.random.key(0), 2))
    xs, places = DRAW.normal(size=(6, 2, 2)), DRAW.normal(size=(2, 5, 3))
    assert lstmx.which_implementation(cell) == "fused"

    def loss(implementation, params, places, xs, state):
        memory = cell.remember(params, places, lengths=jnp.array([5, 2]))
        options = {"implementation": implementation}
        final, ys = lstmx.scan(cell, cell.with_memory(params, memory), xs, state, **options)
        return jnp.sum(jnp.sin(ys)) + sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(final))

    state = jax.tree.map(lambda leaf: leaf + 0.1, cell.initial_state((2,)))
    gradients = {
        name: jax.jit(jax.grad(functools.partial(loss, name), argnums=(0, 1, 2, 3)))(
            params, places, xs, state
        )
        for name in ("fused", "reference")
    }
    pairs = zip(*map(jax.tree.leaves, gradients.values()), strict=True)
    assert max(oracles.relative_error(a, b) for a, b in pairs) <= 1e-12


def test_one_embedding_for_all():
    model = Seq2Seq(13, 13, embedding_size=4, hidden_size=6, shared=True, rngs=nnx.Rngs(params=0))
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(model))]
    assert shapes.count((13, 4)) == 1
    assert jax.eval_shape(model, SOURCE, LENGTHS, BEFORE).shape == (3, 7, 13)


def test_dropout_follows_the_mode():
    model = Seq2Seq(11, 13, embedding_size=4, hidden_size=6, dropout_rate=0.5, rngs=nnx.Rngs(0))
    arguments = (SOURCE, LENGTHS, BEFORE)
    assert not np.array_equal(model(*arguments), model(*arguments))
    weights = model.attention(*arguments)
    clean = model(*arguments, deterministic=True)
    model.eval()
    np.testing.assert_array_equal(model(*arguments), clean)
    np.testing.assert_array_equal(model.attention(*arguments), weights)  # never has dropout


def test_dropout_is_of_the_key_and_off_in_evaluation():
    graph, params = nnx.split(make(dropout_rate=0.5, encoder_layers=2))
    arguments = (SOURCE, LENGTHS, BEFORE)

    @jax.jit
    def draw(key):
        rngs = nnx.Rngs(dropout=key)
        return nnx.merge(graph, params)(*arguments, deterministic=False, rngs=rngs)

    assert oracles.relative_error(draw(jax.random.key(0)), draw(jax.random.key(0))) == 0
    assert oracles.relative_error(draw(jax.random.key(0)), draw(jax.random.key(1))) > 1e-2
    plain = jax.jit(lambda params: nnx.merge(graph, params)(*arguments))(params)
    without, call, *_ = compiled(encoder_layers=2)
    assert oracles.relative_error(plain, call(without, *arguments)) <= 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 7}, "hidden_size must be even, half for each direction, got 7"),
        ({"shared": True}, "a shared embedding needs one vocabulary, got 11 and 13 words"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1, got 0"),
        ({"attention": "dot"}, "attention must be one of multiplicative, additive, got 'dot'"),
        ({"cell": "rnn"}, "cell must be one of lstm, gru, elman, got 'rnn'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
