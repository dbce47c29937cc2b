"""The rivals of torch. Imports neither jax nor lstmx, since a second process also runs it (see paired.py)."""

import functools
import importlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from scripts.benchmarks.problems import Mode, Shape, arrays, threads
from scripts.benchmarks.timing import Run


def layer(sizes: Sequence[int], mode: Mode, device: str = "cpu", dtype: str = "float32") -> Run:
    """A run of torch.nn.LSTM, with oneDNN or cuDNN if torch has it."""
    shape = Shape(*sizes)
    lstm = _lstm(shape, device, dtype)
    xs = torch.tensor(arrays(shape).xs).to(device, getattr(torch, dtype))
    if mode == "forward":
        return _inference(lambda: lstm(xs), device)
    xs.requires_grad_()
    return _training(lstm, xs, lambda: lstm(xs)[0].float().square().mean(), device)


def step(sizes: Sequence[int], module: str) -> Run:
    """A run of one streaming step, by `"LSTM"` or by the cell, `"LSTMCell"`."""
    shape = Shape(*sizes)
    lstm = _lstm(shape, "cpu", "float32")
    x = torch.tensor(arrays(shape).xs)
    state = (torch.zeros(1, shape.batch, shape.units),) * 2
    if module == "LSTMCell":
        cell = torch.nn.LSTMCell(shape.features, shape.units)
        cell.load_state_dict({name.removesuffix("_l0"): p for name, p in lstm.state_dict().items()})
        x, state = x[0], tuple(part[0] for part in state)

    def run():
        nonlocal state
        with torch.inference_mode():
            if module == "LSTMCell":
                state = cell(x, state)
            else:
                _, state = lstm(x, state)
        return state

    return run


def ragged(sizes: Sequence[int], rows: Sequence[int], packed: bool, device: str = "cpu") -> Run:
    """A training step over rows of unequal length, packed beforehand or padded (computing the padding)."""
    shape = Shape(*sizes)
    lstm = _lstm(shape, device, "float32")
    xs = torch.tensor(arrays(shape).xs)
    rows = torch.tensor(np.asarray(rows), dtype=torch.int64)
    if packed:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(xs, rows, enforce_sorted=False).to(device)
        data = sequence.data.detach().requires_grad_()
        sequence = sequence._replace(data=data)
        return _training(lstm, data, lambda: lstm(sequence)[0].data.square().mean(), device)
    keep = (torch.arange(shape.steps)[:, None] < rows)[..., None].to(device)
    count = int(rows.sum()) * shape.units
    xs = xs.to(device).requires_grad_()
    return _training(lstm, xs, lambda: (lstm(xs)[0] * keep).square().sum() / count, device)


class LanguageModel(torch.nn.Module):
    """Embedding, stacked LSTM and softmax, with dropout as in `lstmx.models.LanguageModel`."""

    def __init__(self, vocabulary: int, embedding: int, units: int, layers: int, dropout: float):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, embedding)
        self.lstm = torch.nn.LSTM(embedding, units, layers, dropout=dropout if layers > 1 else 0.0)
        self.dropout = torch.nn.Dropout(dropout)
        self.output = torch.nn.Linear(units, vocabulary)

    def forward(self, tokens, state=None):
        """Logits `[T, B, V]` and the state for tokens `[T, B]`."""
        ys, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return self.output(self.dropout(ys)), state


def model_step(
    tokens: Sequence[int], model: dict, optimizer: str, learning_rate: float, clip: float, device: str = "cpu"
) -> Run:
    """A training step of a language model: loss, gradients, clipping and update, with the state carried over.

    Args:
      tokens: T and B.
      model: arguments of LanguageModel.
      optimizer: `"adam"` or `"sgd"`, in torch's fused form.
      learning_rate: the learning rate.
      clip: the largest global norm of the gradient.
      device: the name of the device in torch.
    """
    torch.set_num_threads(threads())
    torch.manual_seed(0)
    network = LanguageModel(**model).to(device)
    rule = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    update = rule(network.parameters(), lr=learning_rate, fused=True)
    rng = np.random.default_rng(0)
    inputs, targets = (
        torch.tensor(rng.integers(0, model["vocabulary"], tuple(tokens))).to(device) for _ in range(2)
    )
    state = None

    def run():
        nonlocal state
        logits, state = network(inputs, state)
        state = tuple(part.detach() for part in state)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return updated(network, update, loss, clip, device)

    return run


class Forecaster(torch.nn.Module):
    """A `lstmx.models.DirectForecaster` with patches, subtraction of the last value and a linear map."""

    def __init__(self, input_size: int, horizon: int, patch_size: int, units: int, readout: str):
        super().__init__()
        self.patch_size, self.readout = patch_size, readout
        self.embedding = torch.nn.Linear(patch_size, units)
        self.lstm = torch.nn.LSTM(units, units, batch_first=True)
        self.dropout = torch.nn.Dropout(0.2)
        read = units * (input_size // patch_size if readout == "all" else 1)
        self.output = torch.nn.Linear(read, horizon)
        self.linear = torch.nn.Linear(input_size, horizon)

    def forward(self, history):
        """Forecasts `[B, H]` for histories `[B, L]`."""
        last = history[:, -1:]
        xs = history - last
        ys, _ = self.lstm(self.dropout(self.embedding(xs.unflatten(1, (-1, self.patch_size)))))
        read = ys.flatten(1) if self.readout == "all" else ys[:, -1]
        return last + self.output(self.dropout(read)) + self.linear(xs)


def forecaster_step(batch: int, sizes: dict, learning_rate: float, clip: float, device: str = "cpu") -> Run:
    """A training step of a forecaster with squared errors.

    Args:
      batch: windows per batch.
      sizes: arguments of Forecaster.
      learning_rate, clip, device: as in `model_step`, with Adam.
    """
    torch.set_num_threads(threads())
    torch.manual_seed(0)
    network = Forecaster(**sizes).to(device)
    update = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    rng = np.random.default_rng(0)
    history, target = (
        torch.tensor(rng.normal(size=(batch, sizes[name])), dtype=torch.float32).to(device)
        for name in ("input_size", "horizon")
    )

    def run():
        loss = torch.nn.functional.mse_loss(network(history), target)
        return updated(network, update, loss, clip, device)

    return run


def named(function: str) -> Callable[..., Run]:
    """A function of this module, or of another one of this folder: `"module.function"`."""
    module, _, name = function.rpartition(".")
    return getattr(importlib.import_module(f"scripts.benchmarks.{module or 'torch_rivals'}"), name)


def matmul(size: int) -> Run:
    """A square matmul in float32."""
    torch.set_num_threads(threads())
    a, b = torch.randn(size, size), torch.randn(size, size)
    return _inference(lambda: a @ b, "cpu")


def flushes_denormals() -> bool:
    """Whether every thread flushes denormal numbers to zero."""
    torch.set_num_threads(threads())
    return bool((torch.full((1 << 20,), 1e-39) * 1.0 == 0).all())


def parameters(shape: Shape) -> dict[str, torch.Tensor]:
    """The weights of a shape under torch's names."""
    _, kernel, recurrent, bias = map(torch.tensor, arrays(shape))
    # Only the sum of torch's two biases matters.
    return {
        "weight_ih_l0": kernel.T.contiguous(),
        "weight_hh_l0": recurrent.T.contiguous(),
        "bias_ih_l0": bias,
        "bias_hh_l0": torch.zeros_like(bias),
    }


def _lstm(shape: Shape, device: str, dtype: str) -> torch.nn.LSTM:
    torch.set_num_threads(threads())
    lstm = torch.nn.LSTM(shape.features, shape.units)
    lstm.load_state_dict(parameters(shape))
    lstm = lstm.to(device, getattr(torch, dtype))
    lstm.flatten_parameters()  # which cuDNN otherwise does in every call
    return lstm


def _inference(call: Callable[[], object], device: str) -> Run:
    def run():
        with torch.inference_mode():
            result = call()
        _synchronized(device)
        return result

    return run


def _training(module, inputs, loss: Callable[[], torch.Tensor], device: str) -> Run:
    def run():
        module.zero_grad(set_to_none=True)
        inputs.grad = None
        value = loss()
        value.backward()
        _synchronized(device)
        return value, (module, inputs)

    return run


def updated(network, update, loss: torch.Tensor, clip: float, device: str) -> torch.Tensor:
    """The loss, after updating the network."""
    update.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
    update.step()
    _synchronized(device)
    return loss.detach()


@functools.cache
def _is_cuda(device: str) -> bool:
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.set_float32_matmul_precision("high")  # TF32, as in JAX and in torch's own LSTM
    return is_cuda


def _synchronized(device: str) -> None:
    if _is_cuda(device):
        torch.cuda.synchronize()
