"""A program as users write it. mypy checks it (see the README's test command); nothing runs it.

Each line with `type: ignore` is wrong on purpose: if lstmx had `Any` there, mypy would find an unused ignore.
"""

from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import linen as nn
from flax import nnx

import lstmx
import lstmx.linen
import lstmx.nnx
from lstmx.data import LengthBuckets
from lstmx.forecasting import LSTMForecaster
from lstmx.models import LanguageModel

xs = jnp.ones((7, 2, 64))


def cells() -> None:
    cell = lstmx.LSTM(hidden_size=128, peephole=True)
    params = cell.init(jax.random.key(0), input_size=64)
    assert_type(params, lstmx.Params)
    assert_type(lstmx.GRU(4).initial_state((2,)), jax.Array)
    state, ys = lstmx.scan(cell, params, xs, lengths=jnp.array([7, 3]))
    assert_type(ys, jax.Array)
    state, ys, states = lstmx.scan(cell, params, xs, state, return_states=True)
    state, y = lstmx.step(cell, params, state, xs[0])
    assert_type(y, jax.Array)
    which = lstmx.which_implementation(cell, "fused", xs=xs)
    assert_type(lstmx.GRU(4).reset_after, bool)
    lstmx.scan(cell, params, xs, implementation="fastest")  # type: ignore[arg-type]
    lstmx.scan("lstm", params, xs)  # type: ignore[arg-type]
    lstmx.GRU(hidden_size="128")  # type: ignore[arg-type]
    lstmx.Elman(4, peephole=True)  # type: ignore[call-arg]
    which.upper()  # type: ignore[union-attr]


def networks() -> None:
    cell = lstmx.Regularized(lstmx.LSTM(128), recurrent_dropout=0.25)
    net = lstmx.Stack((lstmx.Bidirectional(lstmx.GRU(64), merge="concat"), cell), connections="plain")
    params = net.init(jax.random.key(0), 64)
    state, ys = lstmx.scan(net, params, xs, key=jax.random.key(1), remat="sqrt")
    lstmx.scan(cell, cell.init(jax.random.key(0), 64), xs)
    lstmx.Stack((cell,), connections="sparse")  # type: ignore[arg-type]
    lstmx.Bidirectional(lstmx.GRU(64), merge="product")  # type: ignore[arg-type]


def layers() -> None:
    layer = lstmx.nnx.LSTM(64, 128, num_layers=2, dropout_rate=0.1, rngs=nnx.Rngs(0))
    state, ys = layer(xs, lengths=jnp.array([7, 3]))
    assert_type(ys, jax.Array)
    nnx.RNN(lstmx.nnx.Cell(lstmx.LSTM(4), 64, rngs=nnx.Rngs(0)))
    lstmx.nnx.LSTM("64", 128, rngs=nnx.Rngs(0))  # type: ignore[arg-type]
    module = lstmx.linen.LSTM(128, bidirectional=True, peephole=True)
    (state, ys), variables = module.init_with_output(jax.random.key(0), xs)
    nn.RNN(lstmx.linen.Cell(lstmx.GRU(4)))
    lstmx.linen.LSTM("128")  # type: ignore[arg-type]


def models() -> None:
    model = LanguageModel(65, embedding_size=8, hidden_size=16, cell="gru", rngs=nnx.Rngs(0))
    _, logits = model(jnp.zeros((2, 5), int))
    assert_type(logits, jax.Array)
    LanguageModel(65, embedding_size=8, hidden_size=16, cell="lstmm", rngs=nnx.Rngs(0))  # type: ignore[arg-type]
    LengthBuckets(np.array([3, 9]), batch_size=2, seed="0")  # type: ignore[arg-type]


def forecasts(df: pd.DataFrame) -> None:
    forecaster = LSTMForecaster(h=14, max_steps=200).fit(df)
    forecaster.predict(level=[80])
    LSTMForecaster(h="14")  # type: ignore[arg-type]
