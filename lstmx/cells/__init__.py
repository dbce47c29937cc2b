"""Recurrent cells, one file a family."""

from lstmx.cells.base import Cell, Params
from lstmx.cells.conv_lstm import ConvLSTM
from lstmx.cells.elman import Elman
from lstmx.cells.gru import GRU
from lstmx.cells.indrnn import IndRNN
from lstmx.cells.lstm import LSTM, LSTMGatesState, LSTMState
from lstmx.cells.mgu import MGU
from lstmx.cells.minimal import MinGRU, MinLSTM
from lstmx.cells.mogrifier import Mogrifier
from lstmx.cells.slstm import SLSTM, SLSTMState

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "SLSTM",
    "Cell",
    "ConvLSTM",
    "Elman",
    "IndRNN",
    "LSTMGatesState",
    "LSTMState",
    "MinGRU",
    "MinLSTM",
    "Mogrifier",
    "Params",
    "SLSTMState",
]
