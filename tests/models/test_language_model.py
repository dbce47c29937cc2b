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


def make(**options):
    sizes = {"embedding_size": 6, "hidden_size": 8} | options
    return LanguageModel(11, rngs=nnx.Rngs(params=0), **sizes)


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


def test_dropout_is_of_the_key_and_off_by_default():
    model = make(num_layers=2, dropout_rate=0.5)
    draw = lambda seed: model(TOKENS, deterministic=False, rngs=nnx.Rngs(dropout=seed))[1]  # noqa: E731
    assert oracles.relative_error(draw(0), draw(0)) == 0
    assert oracles.relative_error(draw(0), draw(1)) > 1e-2
    assert oracles.relative_error(model(TOKENS)[1], model(TOKENS, deterministic=True)[1]) == 0


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_a_gradient(tied):
    graph, params = nnx.split(make(num_layers=2, tied=tied))

    def loss(params):
        return jnp.sum(jax.nn.log_softmax(nnx.merge(graph, params)(TOKENS)[1])[..., 0])

    for path, leaf in jax.tree.leaves_with_path(jax.grad(loss)(params)):
        assert np.any(np.asarray(leaf) != 0), path
