"""One step of a stack of layers by a direct call of the kernels, on arrays of NumPy.

A call through XLA costs about 10 us besides the arithmetic, which is as long as that of one row. Here the
weights are handed over once, and the kernels read and write buffers that this module keeps, so that a call
passes one pointer and copies a few small arrays.
"""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmx.cells.base import Cell, Params
from lstmx.cells.lstm import LSTM, LSTMState
from lstmx.implementations.native import library
from lstmx.implementations.native.layer import kernel_name, slot_biases

_FLOATS = ctypes.POINTER(ctypes.c_float)
_FLOAT = np.dtype(np.float32)


class StepLayer(ctypes.Structure):
    """A layer, as in kernels/step.h."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("kind", "batch", "features", "units")],
        *[(name, _FLOATS) for name in ("x", "input", "recurrent", "bias", "packed", "h", "c", "y")],
    )


class Stepper:
    """Layers, each reading the outputs of the one below, with their weights and the buffers of a step.

    Args:
      cells: the cells, the lowest first.
      params: the parameters of each.
      batch_shape: the batch axes.
      in_tuple: whether states are tuples with one entry for each layer.
    """

    def __init__(
        self, cells: Sequence[Cell], params: Sequence[Params], batch_shape: tuple[int, ...], in_tuple: bool
    ):
        self._function = library.stepper()
        self._in_tuple = in_tuple
        self._threads = ctypes.c_int64(library.threads())
        self._lock = threading.Lock()  # the buffers are those of one call at a time
        rows = int(np.prod(batch_shape, dtype=np.int64))
        features = params[0].input["kernel"].shape[0]
        self._x = np.zeros((*batch_shape, features), np.float32)
        self._kept: list[np.ndarray] = []
        self._states: list[tuple[np.ndarray, ...]] = []  # c and h, or h
        layers = []
        below = self._x
        for cell, p in zip(cells, params, strict=True):
            units = cell.hidden_size
            weights = [p.input["kernel"], p.recurrent["kernel"], slot_biases(cell, p)]
            weights = [np.array(leaf, np.float32, order="C") for leaf in weights]
            h, y = np.zeros((2, *batch_shape, units), np.float32)
            c = np.zeros_like(h) if isinstance(cell, LSTM) else None
            kind = library.KERNELS.index(kernel_name(cell))
            arrays = (below, *weights, None, h, c, y)
            pointers = [None if a is None else a.ctypes.data_as(_FLOATS) for a in arrays]
            layers.append(StepLayer(kind, rows, below.shape[-1], units, *pointers))
            self._kept += [*weights, y]
            if rows > 1:  # the kernel of a single row reads them as they are
                self._kept.append(library.packed(layers[-1]))
                layers[-1].packed = self._kept[-1].ctypes.data_as(_FLOATS)
            self._states.append((h,) if c is None else (c, h))
            below = y
        self._y = below
        self._count = ctypes.c_int64(len(layers))
        self._layers = (StepLayer * len(layers))(*layers)

    def __call__(self, state: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
        """The state and the output after a step."""
        parts = state if self._in_tuple else (state,)
        with self._lock:
            np.copyto(self._x, x)
            for buffers, part in zip(self._states, parts, strict=True):
                for buffer, leaf in zip(buffers, part if len(buffers) == 2 else (part,), strict=True):
                    # `copyto` would broadcast, and convert other types.
                    if leaf.shape != buffer.shape or leaf.dtype != _FLOAT:
                        raise ValueError(f"the state needs {buffer.shape}, got {leaf.shape} in {leaf.dtype}")
                    np.copyto(buffer, leaf)
            if not self._function(self._layers, self._count, self._threads):
                raise MemoryError("lstmx: out of memory in a native kernel")
            after = tuple(LSTMState(*map(np.copy, b)) if len(b) == 2 else b[0].copy() for b in self._states)
            y = self._y.copy()
        return after if self._in_tuple else after[0], y
