"""ONNX's own cases of its operators LSTM, GRU and RNN: all of them, in memory, as `onnx` makes them."""

import warnings

import conversions
import numpy as np
import onnx_nodes
import pytest

from lstmx.convert import onnx as convert

pytestmark = pytest.mark.conformance
pytest.importorskip("onnx", minversion="1.23", reason="onnx has the cases of this test")

# Those of onnx 1.23.2.
NAMES = [
    *(f"test_lstm_{case}" for case in ("defaults", "with_initial_bias", "with_peepholes", "batchwise")),
    *(f"test_lstm_{case}" for case in ("reverse", "bidirectional")),
    *(f"test_gru_{case}" for case in ("defaults", "with_initial_bias", "seq_length", "batchwise")),
    *(f"test_gru_{case}" for case in ("reverse", "bidirectional")),
    *(f"test_simple_rnn_{case}" for case in ("defaults", "with_initial_bias", "batchwise")),
    *(f"test_simple_rnn_{case}" for case in ("reverse", "bidirectional")),
    "test_rnn_seq_length",
]


@pytest.fixture(scope="module")
def cases():
    """The cases of the recurrent operators, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        # The cases of all operators are made, and those of Cast overflow on purpose.
        warnings.simplefilter("ignore", RuntimeWarning)
        collected = collect_testcases(None)
    operators = {case.name: {node.op_type for node in case.model.graph.node} for case in collected}
    return {case.name: case for case in collected if operators[case.name] & {"LSTM", "GRU", "RNN"}}


def check(case):
    """Runs a case; exported and imported it is the same."""
    names = [value.name for value in case.model.graph.input]
    (graph_node,) = case.model.graph.node
    for inputs, expected in case.data_sets:
        values = dict(zip(names, inputs, strict=True))
        (node,) = convert.from_model(case.model, values)
        recurrent = convert.from_node(*node)
        again = convert.from_node(*convert.to_node(*recurrent))
        assert again.network == recurrent.network
        conversions.assert_same_bits(again[1:], recurrent[1:])
        outputs = onnx_nodes.run(recurrent, values[graph_node.input[0]])
        found = [y for y, name in zip(outputs, graph_node.output, strict=False) if name]
        assert len(found) == len(expected) > 0
        for y, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(y, other, rtol=1e-5, atol=1e-6, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_case(cases, name):
    check(cases[name])


def test_no_case_of_this_version_of_onnx_is_left_out(cases):
    assert len(NAMES) == 18
    assert set(NAMES) <= set(cases)
    for name in set(cases) - set(NAMES):
        check(cases[name])
