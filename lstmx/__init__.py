"""lstmx: recurrent networks in JAX.

    cell = lstmx.LSTM(hidden_size=256)                       # lstmx.GRU, lstmx.Elman
    params = cell.init(jax.random.key(0), input_size=64)
    state, ys = lstmx.scan(cell, params, xs)                 # xs [T, B, D]

The Flax layers are `lstmx.nnx` and `lstmx.linen`; `data`, `models`, `training` and `forecasting` are
subpackages. Importing lstmx requires only jax and numpy: everything else is imported at first use.
"""

import importlib

from lstmx import networks, regularizers
from lstmx.cells import (
    GRU,
    LSTM,
    MGU,
    SLSTM,
    Cell,
    ConvLSTM,
    Elman,
    IndRNN,
    LSTMGatesState,
    LSTMState,
    MinGRU,
    MinLSTM,
    Mogrifier,
    Params,
    SLSTMState,
)
from lstmx.compiled_step import CompiledStep, compile_step
from lstmx.networks import Bidirectional, Stack
from lstmx.regularizers import Regularized
from lstmx.scan import scan, step, which_implementation

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "SLSTM",
    "Bidirectional",
    "Cell",
    "CompiledStep",
    "ConvLSTM",
    "Elman",
    "IndRNN",
    "LSTMGatesState",
    "LSTMState",
    "MinGRU",
    "MinLSTM",
    "Mogrifier",
    "Params",
    "Regularized",
    "SLSTMState",
    "Stack",
    "compile_step",
    "networks",
    "regularizers",
    "scan",
    "step",
    "which_implementation",
]

_LAZY = ("convert", "data", "forecasting", "linen", "models", "nnx", "sweeps", "training")


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"lstmx.{name}")
    raise AttributeError(f"module 'lstmx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
