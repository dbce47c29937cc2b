"""The package of converters, and what they share."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import lstmx
from lstmx import convert
from lstmx.convert.tensors import as_array

FRAMEWORKS = ("torch", "keras", "flax", "haiku", "onnx", "onnxruntime", "safetensors", "tensorflow", "h5py")

# Raises on every import of a framework, then writes and reads with each converter.
WITHOUT = f"""
import pathlib, sys, tempfile
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FRAMEWORKS!r}:
            raise ModuleNotFoundError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
import jax, lstmx, lstmx.convert as convert
print(sorted(name for name in sys.modules if name.startswith("lstmx.convert")))
cell = lstmx.LSTM(2)
params = cell.init(jax.random.key(0), 3)
path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
convert.torch.to_safetensors(path, cell, params)
found = [
    convert.torch.from_safetensors(path)[1][0],
    convert.cudnn.from_blob(convert.cudnn.to_blob(cell, params), 3, 2)[1][0],
    convert.flax.from_nnx(convert.flax.to_nnx(cell, params))[1],
    convert.flax.from_linen(convert.flax.to_linen(cell, params))[1],
    convert.haiku.from_params(convert.haiku.to_params(cell, params, "lstm"), "lstm")[1],
    convert.keras.from_weights("LSTM", convert.keras.to_weights(cell, params))[1],
]
print(all(bool((a == b).all()) for p in found for a, b in zip(*map(jax.tree.leaves, (p, params)))))
print(convert.onnx.__name__)
"""


def test_no_framework_is_needed():
    root = Path(lstmx.__file__).resolve().parent.parent
    command = [sys.executable, "-W", "error", "-c", WITHOUT]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    expected = ["['lstmx.convert']", "True", "lstmx.convert.onnx"]
    assert (done.stdout.splitlines(), done.returncode) == (expected, 0), done.stderr


def test_names():
    assert set(convert.__all__) <= set(dir(convert))
    with pytest.raises(AttributeError, match=r"module 'lstmx.convert' has no attribute 'equinox'"):
        convert.equinox  # noqa: B018


@pytest.mark.parametrize("make", [list, np.asarray, jnp.asarray])
def test_whatever_numpy_takes_is_an_array(make):
    array = as_array(make([1.0, 2.0]))
    assert isinstance(array, jnp.ndarray)
    np.testing.assert_array_equal(array, [1, 2])


@pytest.mark.conformance
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_tensors_of_torch_are_arrays_of_their_type(dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([[1.5, -2.0], [3.0, 0.1]]).to(getattr(torch, dtype)).T
    if tensor.is_floating_point():
        tensor.requires_grad_()
    array = as_array(tensor)
    assert array.dtype.name == dtype
    np.testing.assert_array_equal(np.float64(array), tensor.detach().double().numpy())


OTHERS = {
    "torch": (
        lambda: convert.torch.from_state_dict([1]),
        TypeError,
        "state_dict must be a mapping, got list",
    ),
    "nnx": (lambda: convert.flax.from_nnx(None), TypeError, "parameters must be a mapping, got NoneType"),
    "linen": (lambda: convert.flax.from_linen([1]), TypeError, "parameters must be a mapping, got list"),
    "haiku": (lambda: convert.haiku.from_params([1], "lstm"), TypeError, "must be a mapping, got list"),
    "keras class": (lambda: convert.keras.from_weights(3, []), TypeError, "kind must be the class .*, got 3"),
    "keras config": (
        lambda: convert.keras.from_weights("LSTM", [], [1]),
        TypeError,
        "config must be a mapping",
    ),
    "keras wrapper": (
        lambda: convert.keras.from_weights("RNN", []),
        ValueError,
        "RNN needs its config, for 'cell'",
    ),
    "onnx attributes": (
        lambda: convert.onnx.from_node("LSTM", [1], {}),
        TypeError,
        "attributes must be a mapping",
    ),
    "onnx tensors": (lambda: convert.onnx.from_node("LSTM", {}, [1]), TypeError, "tensors must be a mapping"),
    "cudnn": (
        lambda: convert.cudnn.from_blob([1.0], 1, 1, 0, False),
        ValueError,
        "num_layers must be at least 1",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_arguments_of_another_type_are_refused(name):
    call, error, message = OTHERS[name]
    with pytest.raises(error, match=message):
        call()
