"""Complete training steps of a text classifier and of a translation model, including the update."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments import sentiment, translation
from experiments.tasks.classification.task import TextClassification
from experiments.tasks.classification.text_encoding import TextEncoder
from experiments.tasks.translation.task import Translation, Vocabularies
from lstmx.training import OptimizerConfig, init_state, make_keys, make_optimizer, make_step
from scripts.benchmarks import models, rivals, tables, timing
from scripts.benchmarks.rivals import OWN, Builders, Field
from scripts.benchmarks.tables import Section
from scripts.benchmarks.timing import Run

OPTIMIZER = OptimizerConfig(name="adam", learning_rate=1e-3, clip_norm=1.0)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, and the sizes of a batch.

    Attributes:
      name: `"sentiment"` or `"translation"`.
      batch: rows.
      steps: tokens of the longest row, of the source and of the target.
      vocabulary: known tokens.
      config: the experiment's, whose model it is.
    """

    name: str
    batch: int
    steps: int
    vocabulary: int
    config: Any

    @property
    def label(self) -> str:
        """A description in one line."""
        model = self.config.model
        return (
            f"{self.name}: {model.hidden_size} units, E = {model.embedding_size}, B = {self.batch}, "
            f"T = {self.steps}, V = {self.vocabulary:,}"
        )

    @property
    def flops(self) -> float:
        """Floating point operations of the matmuls of a training step, those of padding left out."""
        model = self.config.model
        tokens = int(batch_of(self)["lengths"].sum())
        features, units = model.embedding_size, model.hidden_size
        if self.name == "sentiment":
            return models.training_flops(tokens, 2 * models.stacked(features, units, 1))
        encoder = 2 * models.stacked(features, units // 2, 1)
        # The decoder reads its last attention vector too, which is made of its output and of the memory. The
        # scores are left out.
        decoder = models.stacked(2 * features, units, 1) + 2 * units * features + features * self.vocabulary
        return models.training_flops(tokens, encoder) + models.training_flops(
            self.batch * self.steps, decoder
        )


def problems(quick: bool) -> list[Problem]:
    """The presets for SST-2 (without adversarial training, which runs the model twice) and Multi30k."""
    if quick:
        tiny = translation.PRESETS["tiny"]
        shared = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, shared=True))
        return [
            Problem("sentiment", 4, 6, 20, sentiment.PRESETS["tiny"]),
            Problem("translation", 4, 5, 20, shared),
        ]
    return [
        Problem("sentiment", 64, 24, 16_000, dataclasses.replace(sentiment.PRESETS["sst2"], adversarial=0.0)),
        Problem("translation", 64, 16, 6_000, translation.PRESETS["multi30k-de-en"]),
    ]


def section(field: Field, peak: float) -> Section:
    """The table of training steps."""
    rows, rates = models.whole_steps(
        problems(field.quick), builders, lambda problem: problem.batch, field, peak
    )
    text = [
        "A complete training step of the models of SST-2 (embedding, three kinds of dropout, both "
        "directions, the largest output of each unit) and Multi30k (encoder in both directions, decoder with "
        "attention that reads its last attention vector, smoothed labels), on rows of unequal lengths: loss, "
        "gradients, clipping and Adam. lstmx runs the step of `scripts/train.py`; torch runs the same model "
        "with torch.nn.LSTM on packed sequences sorted by length, torch.nn.LSTMCell in the decoder's loop, "
        f"fused Adam and clip_grad_norm_. Milliseconds, medians of {field.rounds} rounds.",
        tables.comparison("model", rows),
        "Rows per second:\n\n" + rates,
    ]
    return Section("Text models", "\n\n".join(text))


def batch_of(problem: Problem) -> dict[str, np.ndarray]:
    """A batch of random tokens, the longest rows first."""
    rng = np.random.default_rng(0)
    sizes = (problem.batch, problem.steps)
    lengths = np.sort(rng.integers(1, problem.steps + 1, problem.batch))[::-1].astype(np.int32)
    lengths[0] = problem.steps

    def tokens():
        return rng.integers(4, problem.vocabulary, sizes, np.int32)

    if problem.name == "sentiment":
        return {"tokens": tokens(), "lengths": lengths, "labels": rng.integers(0, 2, problem.batch, np.int32)}
    return {"source": tokens(), "lengths": lengths, "before": tokens(), "target": tokens()}


def builders(problem: Problem, field: Field) -> Builders:
    """The rivals of a problem."""
    model = problem.config.model
    batch = {name: array.tolist() for name, array in batch_of(problem).items()}
    sizes = {"vocabulary": problem.vocabulary, "embedding": model.embedding_size, "units": model.hidden_size}
    if problem.name == "sentiment":
        rates = {
            "word": model.word_dropout_rate,
            "embedding": model.embedding_dropout_rate,
            "output": model.dropout_rate,
        }
        function, sizes = "torch_text_models.classifier_step", {**sizes, "classes": 2, "rates": rates}
    else:
        function, sizes = "torch_text_models.translation_step", {**sizes, "dropout": model.dropout_rate}
    arguments = (batch, sizes, OPTIMIZER.learning_rate, OPTIMIZER.clip_norm, field.torch_device)
    return {OWN: lambda: timing.rival(lstmx_step(problem)), **rivals.torch_pair(function, arguments, field)}


def task_of(problem: Problem) -> Any:
    """The task of the experiment, with a vocabulary of the problem's size and no texts."""
    if problem.name == "sentiment":
        encoder = TextEncoder.learn([" ".join(map(str, range(problem.vocabulary - 1)))], "word")
        return TextClassification(problem.config, encoder, ("bad", "good"), {})
    pieces = _Pieces(problem.vocabulary)
    return Translation(problem.config, Vocabularies(pieces, pieces), {})


def lstmx_step(problem: Problem) -> Run:
    """A run of the training step, as the training loop compiles it."""
    task, batch = task_of(problem), batch_of(problem)
    if problem.name == "translation":
        batch["target_lengths"] = np.full(problem.batch, problem.steps, np.int32)
    optimizer, schedule = make_optimizer(OPTIMIZER, 1)
    keys = make_keys(0)
    state = init_state(task, optimizer, keys.init)
    step = make_step(task.loss, optimizer, schedule)

    def run():
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, batch, keys.step))
        return metrics

    return run


class _Pieces:
    """A vocabulary of which only the size matters."""

    def __init__(self, size: int):
        self._size = size

    def __len__(self):
        return self._size

    def id_of(self, piece: str) -> int:
        return ("<pad>", "<bos>", "<eos>").index(piece)
