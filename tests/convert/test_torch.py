"""State dicts of torch and .safetensors files. (Values and gradients: tests/conformance/test_torch.py.)"""

import json

import conversions
import jax.numpy as jnp
import numpy as np
import pytest

import lstmx
from lstmx.convert import safetensors
from lstmx.convert.torch import from_safetensors, from_state_dict, to_safetensors, to_state_dict
from lstmx.networks import stacked

CELLS = {
    "lstm": lstmx.LSTM(4),
    "lstm-without-bias": lstmx.LSTM(4, use_bias=False),
    "lstm-projected": lstmx.LSTM(4, projection_size=2),
    "gru": lstmx.GRU(4),
    "gru-without-bias": lstmx.GRU(4, use_bias=False),
    "elman": lstmx.Elman(4),
    "elman-relu": lstmx.Elman(4, activation="relu", use_bias=False),
}


def told(cell):
    return {"nonlinearity": cell.activation} if isinstance(cell, lstmx.Elman) else {}


def tensors_of(cell=CELLS["lstm"], num_layers=1, bidirectional=False):
    net = stacked(cell, num_layers, bidirectional)
    return to_state_dict(net, conversions.random_params(net))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("name", CELLS)
def test_export_and_import_keep_every_bit(name, num_layers, bidirectional):
    net = stacked(CELLS[name], num_layers, bidirectional, dropout_rate=0.25)
    params = conversions.random_params(net)
    state_dict = to_state_dict(net, params, prefix="encoder.")
    assert all(key.startswith("encoder.") for key in state_dict)
    others = {"decoder.weight": np.ones(3), "embedding": np.ones((2, 2))}
    found = from_state_dict({**others, **state_dict}, "encoder.", dropout_rate=0.25, **told(CELLS[name]))
    assert found[0] == net
    conversions.assert_same_bits(found[1], params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_types_are_kept(dtype):
    cell = lstmx.GRU(4, param_dtype=dtype)
    params = conversions.random_params(cell, dtype=jnp.dtype(dtype))
    net, found = from_state_dict(to_state_dict(cell, params))
    assert net == lstmx.Stack((cell,))
    conversions.assert_same_bits(found, (params,))


def test_a_cell_and_a_bidirectional_are_stacks_of_one():
    params = conversions.random_params(lstmx.Bidirectional(lstmx.LSTM(4)))
    one, stack = lstmx.Bidirectional(lstmx.LSTM(4)), stacked(lstmx.LSTM(4), bidirectional=True)
    conversions.assert_same_bits(to_state_dict(one, params), to_state_dict(stack, (params,)))
    cell = to_state_dict(lstmx.LSTM(4), params.forward)
    conversions.assert_same_bits(cell, to_state_dict(stacked(lstmx.LSTM(4)), (params.forward,)))


@pytest.mark.conformance
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_import_and_export_add_the_biases_up(kind):
    torch = pytest.importorskip("torch")
    layer = getattr(torch.nn, kind)(3, 4, num_layers=2, bidirectional=True)
    state_dict = layer.state_dict()
    found = to_state_dict(*from_state_dict(state_dict))
    assert list(found) == list(state_dict)
    for name, tensor in state_dict.items():
        expected = tensor.numpy()
        if name.startswith("bias_ih") and kind != "GRU":
            expected = expected + state_dict[name.replace("ih", "hh")].numpy()
        elif name.startswith("bias_hh") and kind != "GRU":
            expected = np.zeros_like(expected)
        conversions.assert_same_bits(found[name], expected)


@pytest.mark.conformance
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.usefixtures("double")
def test_torch_takes_and_gives_every_type(dtype):
    torch = pytest.importorskip("torch")
    cell = lstmx.LSTM(4, projection_size=2, param_dtype=dtype)
    params = conversions.random_params(cell, dtype=jnp.dtype(dtype))
    layer = torch.nn.LSTM(3, 4, proj_size=2, dtype=getattr(torch, dtype))
    tensors = {name: torch.from_dlpack(array) for name, array in to_state_dict(cell, params).items()}
    layer.load_state_dict(tensors)
    for given in (layer.state_dict(), dict(layer.named_parameters())):
        conversions.assert_same_bits(from_state_dict(given)[1], (params,))


WRONG = {
    "missing": (
        lambda t: t.pop("bias_hh_l1_reverse"),
        r"the state dict lacks bias_hh_l1_reverse, expected with shape \(16,\); it has weight_ih_l0,",
    ),
    "missing layer": (
        lambda t: [t.pop(name) for name in list(t) if "_l0" in name and "hh_l0" not in name],
        r"lacks weight_ih_l0, expected with shape \[gates\*H, D\]",
    ),
    "extra": (
        lambda t: t.update({"weight_ih_l0.scale": np.ones((16, 1))}),
        r"the state dict has weight_ih_l0.scale of shape \(16, 1\), but no such tensor is expected",
    ),
    "mis-shaped": (
        lambda t: t.update(weight_ih_l1=np.ones((16, 4))),
        r"weight_ih_l1 must have shape \(16, 8\), got \(16, 4\)",
    ),
    "no recurrent kernel of any kind": (
        lambda t: t.update(weight_hh_l0=np.ones((16, 5))),
        r"weight_hh_l0 must have 4 H \(LSTM\), 3 H \(GRU\) or H \(RNN\) rows for H=5, got shape \(16, 5\)",
    ),
    "a vector": (
        lambda t: t.update(weight_hh_l0=np.ones(16)),
        r"weight_hh_l0 must have shape \[gates\*H, H\], got \(16,\)",
    ),
    "projection of a GRU": (
        lambda t: t.update(weight_hh_l0=np.ones((12, 2)), weight_hr_l0=np.ones((2, 4))),
        r"weight_hh_l0 must have 4 H \(LSTM with proj_size\) rows for H=4, got shape \(12, 2\)",
    ),
    "nothing": (dict.clear, r"the state dict lacks weight_hh_l0, .*; it has nothing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_named(name):
    change, message = WRONG[name]
    tensors = tensors_of(num_layers=2, bidirectional=True)
    change(tensors)
    with pytest.raises(ValueError, match=message):
        from_state_dict(tensors)


def test_integers_are_refused():
    tensors = tensors_of()
    tensors["bias_ih_l0"] = np.ones(16, np.int8)
    with pytest.raises(TypeError, match="bias_ih_l0 must be of a floating type, got int8"):
        from_state_dict(tensors)


def test_a_prefix_that_nothing_has_is_named():
    with pytest.raises(ValueError, match=r"the state dict under 'decoder\.' lacks weight_hh_l0"):
        from_state_dict(tensors_of(), "decoder.")


def test_nonlinearity():
    rnn = tensors_of(lstmx.Elman(4))
    assert from_state_dict(rnn)[0].layers[0].activation == "tanh"
    with pytest.raises(ValueError, match=r"nonlinearity must be one of \('tanh', 'relu'\), got 'gelu'"):
        from_state_dict(rnn, nonlinearity="gelu")
    with pytest.raises(ValueError, match="nonlinearity='relu' is for an RNN, the state dict is of LSTM"):
        from_state_dict(tensors_of(), nonlinearity="relu")


INEXPRESSIBLE = {
    "peephole": (lstmx.LSTM(4, peephole=True), "torch cannot express peephole=True of LSTM"),
    "gate_clip": (lstmx.GRU(4, gate_clip=1.0), "torch cannot express gate_clip=1.0 of GRU"),
    "reset": (lstmx.GRU(4, reset_after=False), "torch cannot express reset_after=False of GRU"),
    "activation": (lstmx.Elman(4, "softsign"), "torch cannot express activation='softsign' of Elman"),
    "heads": (lstmx.LSTM(4, num_heads=2), "torch cannot express num_heads=2 of LSTM"),
    "initial state": (lstmx.LSTM(4, learn_initial_state=True), "cannot express learn_initial_state=True"),
    "merge": (lstmx.Bidirectional(lstmx.LSTM(4), merge="sum"), "torch cannot express merge='sum' of Bidirec"),
    "connections": (
        lstmx.Stack((lstmx.LSTM(3),), connections="residual"),
        "torch cannot express connections='residual' of Stack",
    ),
    "unlike": (
        lstmx.Stack((lstmx.LSTM(4), lstmx.LSTM(5))),
        r"torch has equal layers only; l1 is LSTM\(hidden_size=5.*l0 is LSTM\(hidden_size=4",
    ),
    "kinds": (lstmx.Stack((lstmx.LSTM(4), lstmx.GRU(4))), "torch has equal layers only; l1 is GRU"),
    "directions": (
        lstmx.Stack((lstmx.LSTM(4), lstmx.Bidirectional(lstmx.LSTM(4)))),
        "torch has equal layers only; some of these are bidirectional",
    ),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_torch_cannot_express_is_named(name):
    net, message = INEXPRESSIBLE[name]
    params = conversions.random_params(net)
    with pytest.raises(ValueError, match=message):
        to_state_dict(net, params)


def test_a_cell_that_torch_has_not_is_named():
    net = lstmx.Stack((lstmx.Stack((lstmx.LSTM(4),)),))
    params = conversions.random_params(net)
    with pytest.raises(TypeError, match="torch can express Elman, GRU, LSTM, not Stack"):
        to_state_dict(net, params)


def test_wrong_params_are_named():
    cell, params = lstmx.LSTM(4), conversions.random_params(lstmx.LSTM(4))
    with pytest.raises(ValueError, match=r"recurrent.kernel must have shape \(4, 16\), got \(4, 12\)"):
        to_state_dict(cell, params._replace(recurrent={"kernel": jnp.ones((4, 12))}))
    with pytest.raises(ValueError, match=r"params: input/bias is missing, of shape \(16,\)"):
        to_state_dict(cell, params._replace(input={"kernel": params.input["kernel"]}))
    with pytest.raises(ValueError, match="params must have one entry for each of 2 layers, got 1"):
        to_state_dict(stacked(cell, 2), (params,))
    with pytest.raises(ValueError, match=r"weight_ih_l1 must have shape \(16, 4\), got \(16, 3\)"):
        to_state_dict(stacked(cell, 2), (params, params))


@pytest.mark.conformance
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.usefixtures("double")
def test_files_of_and_for_the_safetensors_package(tmp_path, dtype):
    package = pytest.importorskip("safetensors.flax")
    cell = lstmx.LSTM(4, param_dtype=dtype)
    params = conversions.random_params(cell, dtype=jnp.dtype(dtype))
    state_dict = to_state_dict(cell, params, prefix="rnn.")
    others = {"a": jnp.arange(3), "rnnx": jnp.ones((), "bfloat16"), "z": jnp.zeros((0, 2), "float16")}
    package.save_file({**others, **state_dict}, tmp_path / "theirs", metadata={"format": "pt"})
    conversions.assert_same_bits(from_safetensors(tmp_path / "theirs", "rnn.")[1], (params,))
    to_safetensors(tmp_path / "ours", cell, params, prefix="rnn.")
    conversions.assert_same_bits(package.load_file(tmp_path / "ours"), state_dict)


@pytest.mark.conformance
def test_torch_reads_our_files(tmp_path):
    package = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    net = stacked(lstmx.GRU(4), 2, bidirectional=True)
    params = conversions.random_params(net)
    to_safetensors(tmp_path / "ours", net, params)
    layer = torch.nn.GRU(3, 4, 2, bidirectional=True)
    layer.load_state_dict(package.load_file(tmp_path / "ours"))
    conversions.assert_same_bits(from_state_dict(layer.state_dict())[1], params)


@pytest.mark.conformance
def test_types_in_one_file(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors import safe_open

    tensors = {
        "b": np.ones(3, jnp.bfloat16),
        "a": np.arange(4.0).reshape(2, 2),
        "c": np.ones((1, 1), np.float16),
        "s": np.float32(2).reshape(()),
        "e": np.ones((0, 3), np.float32),
    }
    safetensors.save(tmp_path / "file", tensors, metadata={"made": "here"})
    conversions.assert_same_bits(safetensors.load(tmp_path / "file"), tensors)
    with safe_open(tmp_path / "file", "flax") as file:
        assert file.metadata() == {"made": "here"}
        assert set(file.keys()) == set(tensors)
    with pytest.raises(ValueError, match=r"n must be of a type in .*'BF16'.*, got int32"):
        safetensors.save(tmp_path / "file", {"n": np.ones(3, np.int32)})


def packed(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file: it is 0 bytes long"),
        (packed({}, length=99), "no safetensors file: its header would be 99 bytes long"),
        (packed(b"{'w'"), "no safetensors file: its header is not JSON"),
        (packed(b"[]"), "no safetensors file: its header is no JSON object"),
        (packed({"w": {}}), "w has no dtype, shape and data_offsets, got {}"),
        (packed(entry("I64"), bytes(8)), r"w must be of a type in \['BF16', 'F16', 'F32', 'F64'\], got I64"),
        (packed(entry(), bytes(7)), r"w of type F32 and shape \(2,\) cannot lie in bytes 0..8 of 7"),
        (
            packed(entry(shape=(3,)), bytes(8)),
            r"w of type F32 and shape \(3,\) cannot lie in bytes 0..8 of 8",
        ),
        (packed(entry(offsets=(-8, 0)), bytes(8)), r"cannot lie in bytes -8..0 of 8"),
    ],
)
def test_broken_files(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        safetensors.load(tmp_path / "file")
