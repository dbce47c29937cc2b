"""Recurrent cells, one file a family."""

from lstmx.cells.base import Cell, Params
from lstmx.cells.elman import Elman
from lstmx.cells.gru import GRU
from lstmx.cells.lstm import LSTM, LSTMState

__all__ = ["GRU", "LSTM", "Cell", "Elman", "LSTMState", "Params"]
