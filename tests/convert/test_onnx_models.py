"""Nodes in and out of ONNX's models, with onnx itself."""

import warnings

import conversions
import numpy as np
import pytest
from onnx_nodes import B, D, H, T, random_node

import lstmx
from lstmx.convert import onnx as convert

onnx = pytest.importorskip("onnx", reason="onnx makes the models of this test")
pytestmark = pytest.mark.conformance

NODES = {
    "lstm": random_node("LSTM", {"hidden_size": H, "clip": 0.7, "input_forget": 1}, dtype=np.float32),
    "gru": random_node(
        "GRU", {"direction": "bidirectional", "linear_before_reset": 1}, ("initial_h",), np.float16
    ),
    "rnn": random_node(
        "RNN", {"activations": ["HardSigmoid"], "activation_alpha": [0.3], "activation_beta": [0.1]}, ("B",)
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_there_and_back(name, tmp_path):
    node = NODES[name]
    model = convert.to_model([node])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "model.onnx")
    for source in (model, tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        (found,) = convert.from_model(source)
        assert found[:2] == node[:2]
        conversions.assert_same_bits(found.tensors, node.tensors)


def test_a_chain_of_batch_major_nodes():
    # onnxruntime has no batch-major nodes; onnx's own slow evaluator has them for RNN.
    from onnx.reference import ReferenceEvaluator

    net = lstmx.Stack((lstmx.Bidirectional(lstmx.Elman(2)), lstmx.Elman(3)))
    params = conversions.random_params(net, features=D)
    model = convert.to_model(convert.to_nodes(net, params, layout=1))
    onnx.checker.check_model(model, full_check=True)
    X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    Y, *_ = ReferenceEvaluator(model).run(None, {"X": X})
    _, ys = lstmx.scan(net, params, X.swapaxes(0, 1))
    np.testing.assert_allclose(Y[:, :, 0].swapaxes(0, 1), ys, atol=1e-5, strict=True)
    recurrent = convert.from_nodes(convert.from_model(model))
    assert (recurrent.network, recurrent.layout) == (net, 1)
    conversions.assert_same_bits(recurrent.params, params)


def test_weights_in_constants_and_given():
    node = random_node("RNN", {"hidden_size": H}, dtype=np.float32)
    model = convert.to_model([node])
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    # W comes from a Constant, R and the initial state from outside.
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored[name] for name in ("B", "sequence_lens"))
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["W"], value=stored["W"]))
    (found,) = convert.from_model(model, {"R": node.tensors["R"]})
    expected = {name: tensor for name, tensor in node.tensors.items() if name != "initial_h"}
    conversions.assert_same_bits(found.tensors, expected)
    with pytest.raises(ValueError, match=r"R of the RNN node '' is 'R', which the model computes"):
        convert.from_model(model)


def test_numbers_are_those_that_were_written():
    model = convert.to_model([random_node("LSTM", {"clip": 0.1, "activations": ["Sigmoid", "Tanh", "Tanh"]})])
    (node,) = convert.from_model(model)
    assert node.attributes == {"clip": 0.1, "activations": ["Sigmoid", "Tanh", "Tanh"]}


def test_refusals():
    with pytest.raises(ValueError, match="at least one node, all of one layout, got"):
        convert.to_model([])
    nodes = [random_node("RNN", {"layout": layout}) for layout in (0, 1)]
    with pytest.raises(ValueError, match=r"all of one layout, got layouts \{0, 1\}"):
        convert.to_model(nodes)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_what_torch_exports(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes the model of this test")
    layer = getattr(torch.nn, kind)(D, H, num_layers=2, bidirectional=True)
    X = torch.randn(T, B, D)
    with warnings.catch_warnings():
        # Of its two exporters this one needs no further package, and is deprecated.
        warnings.simplefilter("ignore")
        torch.onnx.export(layer, (X,), str(tmp_path / "layer.onnx"), dynamo=False)
    recurrent = convert.from_nodes(convert.from_model(tmp_path / "layer.onnx"))
    _, ys = lstmx.scan(recurrent.network, recurrent.params, X.numpy())
    np.testing.assert_allclose(ys, layer(X)[0].detach().numpy(), atol=1e-5, strict=True)
