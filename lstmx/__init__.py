"""lstmx: recurrent networks in JAX."""

from lstmx.cells import GRU, LSTM, Cell, Elman, LSTMState, Params
from lstmx.scan import scan, step, which_implementation

__version__ = "0.1.0"
__all__ = ["GRU", "LSTM", "Cell", "Elman", "LSTMState", "Params", "scan", "step", "which_implementation"]
