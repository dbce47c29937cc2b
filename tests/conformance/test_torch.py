"""torch's LSTM, GRU and RNN: our networks, with the weights of their state dicts, compute what they do."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.conformance
torch = pytest.importorskip("torch", reason="torch is the oracle")

import torch_layers  # noqa: E402

from lstmx.convert.torch import from_state_dict  # noqa: E402

STEPS, BATCH, FEATURES, UNITS = 4, 3, 2, 3


@st.composite
def layers(draw):
    """A torch layer with its own random weights, and what `from_state_dict` has to be told of it."""
    kind = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    told = {}
    if kind == "RNN":
        told["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    options = dict(told)
    if kind == "LSTM":
        options["proj_size"] = draw(st.integers(0, UNITS - 1))
    layer = getattr(torch.nn, kind)(
        FEATURES,
        UNITS,
        num_layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        dtype=torch.float64,
        **options,
    )
    return layer, told


@given(
    layers(),
    st.none() | st.lists(st.integers(1, STEPS), min_size=BATCH, max_size=BATCH),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
@pytest.mark.usefixtures("double")
def test_values_and_gradients(layer, lengths, seed):
    layer, told = layer
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7, generator=generator)
    net, _ = from_state_dict(layer.state_dict(), **told)
    cell = net.layers[0].forward if layer.bidirectional else net.layers[0]
    case = oracles.random_case(
        net, np.random.default_rng(seed), steps=STEPS, batch=(BATCH,), features=FEATURES
    )
    ours, theirs = torch_layers.results(layer, cell, net, *case[1:], lengths)
    assert oracles.relative_error(ours, theirs) <= 1e-11
