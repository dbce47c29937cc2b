"""The torch models of a text classifier and a translation model, and their training steps.

Imports neither jax nor lstmx, as torch_rivals.py.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from scripts.benchmarks.problems import threads
from scripts.benchmarks.timing import Run
from scripts.benchmarks.torch_rivals import updated


def both_directions(lstm: torch.nn.LSTM, xs: torch.Tensor, lengths: torch.Tensor):
    """Outputs `[B, T, 2H]` and final h `[B, 2H]` of rows `[B, T, D]`, the longest first."""
    packed = pack_padded_sequence(xs, lengths, batch_first=True)
    ys, (h, _) = lstm(packed)
    ys, _ = pad_packed_sequence(ys, batch_first=True, total_length=xs.shape[1])
    return ys, torch.cat([h[0], h[1]], dim=-1)


class Classifier(torch.nn.Module):
    """A `lstmx.models.SequenceClassifier` with the largest output of each unit."""

    def __init__(self, vocabulary: int, classes: int, embedding: int, units: int, rates: dict[str, float]):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, embedding)
        self.lstm = torch.nn.LSTM(embedding, units, bidirectional=True, batch_first=True)
        self.output = torch.nn.Linear(2 * units, classes)
        self.word_dropout = torch.nn.Dropout(rates["word"])
        self.feature_dropout = torch.nn.Dropout(rates["embedding"])
        self.dropout = torch.nn.Dropout(rates["output"])

    def forward(self, tokens, lengths):
        """Logits `[B, C]` of tokens `[B, T]`."""
        xs = self.embedding(tokens)
        rows, steps, features = xs.shape
        xs = xs * self.word_dropout(xs.new_ones(rows, steps, 1))
        xs = xs * self.feature_dropout(xs.new_ones(rows, 1, features))
        ys, _ = both_directions(self.lstm, xs, lengths)
        exists = (torch.arange(steps) < lengths[:, None])[..., None].to(ys.device)
        return self.output(self.dropout(ys.masked_fill(~exists, -torch.inf).amax(dim=1)))


class Translator(torch.nn.Module):
    """A `lstmx.models.Seq2Seq` with multiplicative attention, input feeding and one embedding for all."""

    def __init__(self, vocabulary: int, embedding: int, units: int, dropout: float):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, embedding)
        self.encoder = torch.nn.LSTM(embedding, units // 2, bidirectional=True, batch_first=True)
        self.bridge = torch.nn.Linear(units, 2 * units)
        self.decoder = torch.nn.LSTMCell(2 * embedding, units)
        self.keys = torch.nn.Linear(units, units, bias=False)
        self.values = torch.nn.Linear(units, embedding)
        self.vector = torch.nn.Linear(units, embedding, bias=False)
        self.output = torch.nn.Linear(embedding, vocabulary)
        self.output.weight = self.embedding.weight
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, source, lengths, before):
        """Logits `[B, T, V]`."""
        ys, last = both_directions(self.encoder, self.dropout(self.embedding(source)), lengths)
        c, h = torch.tanh(self.bridge(last)).chunk(2, dim=-1)
        ys = self.dropout(ys)
        keys, values = self.keys(ys), self.values(ys)
        exists = (torch.arange(source.shape[1]) < lengths[:, None]).to(ys.device)
        hidden = torch.zeros_like(exists, dtype=ys.dtype).masked_fill(~exists, -1e30)
        xs = self.dropout(self.embedding(before))
        fed = values.new_zeros(len(source), values.shape[-1])
        vectors = []
        for x in xs.unbind(dim=1):
            h, c = self.decoder(torch.cat([x, fed], dim=-1), (h, c))
            weights = torch.softmax(torch.bmm(keys, h[..., None])[..., 0] + hidden, dim=-1)
            fed = torch.tanh(self.vector(h) + torch.bmm(weights[:, None], values)[:, 0])
            vectors.append(fed)
        return self.output(self.dropout(torch.stack(vectors, dim=1)))


def classifier_step(
    batch: dict[str, Sequence], model: dict, learning_rate: float, clip: float, device: str = "cpu"
) -> Run:
    """A training step of `Classifier`, with Adam.

    Args:
      batch: tokens `[B, T]`, lengths `[B]` that do not grow, labels `[B]`, as lists.
      model: arguments of `Classifier`.
      learning_rate: the learning rate.
      clip: the largest global norm of the gradient.
      device: the name of the device in torch.
    """
    network, tensors = _made(Classifier, model, batch, device)
    labels = tensors.pop("labels")
    return _run(network, lambda: cross_entropy(network(**tensors), labels), learning_rate, clip, device)


def translation_step(
    batch: dict[str, Sequence], model: dict, learning_rate: float, clip: float, device: str = "cpu"
) -> Run:
    """A training step of `Translator` with labels smoothed by 0.1; see `classifier_step`.

    Args:
      batch: source `[B, S]`, lengths `[B]` that do not grow, before and target `[B, T]`.
    """
    network, tensors = _made(Translator, model, batch, device)
    target = tensors.pop("target").flatten()

    def loss():
        return cross_entropy(network(**tensors).flatten(0, 1), target, label_smoothing=0.1)

    return _run(network, loss, learning_rate, clip, device)


def _made(kind: type, model: dict, batch: dict[str, Sequence], device: str):
    torch.set_num_threads(threads())
    torch.manual_seed(0)
    tensors = {name: torch.tensor(np.asarray(rows, np.int64)) for name, rows in batch.items()}
    # Packing needs the lengths on the CPU.
    return kind(**model).to(device), {n: t if n == "lengths" else t.to(device) for n, t in tensors.items()}


def _run(network, loss: Callable[[], torch.Tensor], learning_rate: float, clip: float, device: str) -> Run:
    update = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    return lambda: updated(network, update, loss(), clip, device)
