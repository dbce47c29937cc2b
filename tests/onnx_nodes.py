"""What the tests of ONNX's nodes share."""

import jax
import numpy as np

from lstmx.convert import onnx as convert

T, B, D, H = 5, 3, 2, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = np.array([5, 0, 3], np.int32)


def random_node(op_type, attributes=None, without=(), dtype=np.float64, seed=0):
    """A node with all the tensors that it can have, but for some."""
    attributes = attributes or {}
    rng = np.random.default_rng(seed)
    directions, gates = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op_type]
    state = (B, directions, H) if attributes.get("layout") else (directions, B, H)
    shapes = {
        "W": (directions, gates * H, D),
        "R": (directions, gates * H, H),
        "B": (directions, 2 * gates * H),
        "initial_h": state,
    }
    if op_type == "LSTM":
        shapes |= {"initial_c": state, "P": (directions, 3 * H)}
    tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    tensors["sequence_lens"] = LENGTHS
    tensors = {name: tensor for name, tensor in tensors.items() if name not in without}
    return convert.Node(op_type, attributes, tensors)


def run(recurrent, X):
    """`lstmx.convert.onnx.run`, soon compiled."""

    def outputs(params, state, lengths, X):
        return convert.run(recurrent._replace(params=params, initial_state=state, lengths=lengths), X)

    compiled = jax.jit(outputs)
    return compiled(recurrent.params, recurrent.initial_state, recurrent.lengths, X)
