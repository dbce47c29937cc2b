"""Complete training steps of language models, including the update."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments import char_lm
from experiments.tasks.language_model.task import CharLM
from lstmx.data import CharVocabulary
from lstmx.training import OptimizerConfig, init_state, make_keys, make_optimizer, make_step
from scripts.benchmarks import layers, rivals, tables, timing
from scripts.benchmarks.rivals import OWN, Builders, Field
from scripts.benchmarks.tables import Row, Section
from scripts.benchmarks.timing import Run

# The vocabularies of Tiny Shakespeare and of the Penn Treebank (Mikolov et al. 2010).
_CHARACTERS, _WORDS = 65, 10_000

# The medium model of Zaremba et al. 2014.
WORD_MODEL = char_lm.Config(
    data=char_lm.DataConfig(batch_size=20, window=35),
    model=char_lm.ModelConfig(embedding_size=650, hidden_size=650, num_layers=2, dropout_rate=0.5),
    optimizer=OptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.0, clip_norm=5.0),
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A language model, its training options and its vocabulary size."""

    name: str
    config: char_lm.Config
    vocabulary: int

    @property
    def label(self) -> str:
        """A description in one line."""
        data, model = self.config.data, self.config.model
        return (
            f"{self.name}: {model.num_layers} x {model.hidden_size} units, B = {data.batch_size}, "
            f"T = {data.window}, V = {self.vocabulary:,}, {self.config.optimizer.name}"
        )

    @property
    def flops(self) -> float:
        """Floating point operations of the matmuls of a training step."""
        data, model = self.config.data, self.config.model
        layers = stacked(model.embedding_size, model.hidden_size, model.num_layers)
        return training_flops(data.batch_size * data.window, layers + model.hidden_size * self.vocabulary)


def problems(quick: bool) -> list[Problem]:
    """The default of char_lm, and the word model."""
    if quick:
        return [Problem("char_lm", char_lm.PRESETS["tiny"], 20)]
    return [Problem("char_lm", char_lm.Config(), _CHARACTERS), Problem("word model", WORD_MODEL, _WORDS)]


def training_flops(rows: float, weights: float) -> float:
    """Operations of matmuls with all weights, forward and backward, for a number of rows of inputs."""
    return 3 * 2 * rows * weights


def stacked(features: int, units: int, layers: int) -> int:
    """Weights of LSTM layers on top of each other."""
    return 4 * units * (features + units) + (layers - 1) * 4 * units * 2 * units


def section(field: Field, peak: float) -> Section:
    """The table of complete training steps; `peak` is the rate of the fastest matmul in FLOP/s."""
    rows, rates = whole_steps(problems(field.quick), builders, _symbols, field, peak)
    text = [
        "A complete training step: embedding, dropout, recurrent layers, softmax, gradients, clipping and "
        "the update, with the state carried from batch to batch. lstmx runs the step of `scripts/train.py`, "
        "including the metrics that it logs; torch runs the same model with torch.nn.LSTM, a fused "
        f"optimizer and clip_grad_norm_. Milliseconds, medians of {field.rounds} rounds.",
        tables.comparison("model", rows),
        "Symbols per second:\n\n" + rates,
    ]
    return Section("Models", "\n\n".join(text))


def _symbols(problem: Problem) -> int:
    return problem.config.data.batch_size * problem.config.data.window


def whole_steps(
    problems: Sequence[Any],
    make: Callable[[Any, Field], Builders],
    units: Callable[[Any], int],
    field: Field,
    peak: float,
) -> tuple[list[Row], str]:
    """Times the training steps of problems; returns the rows, and the units per second in one line each."""
    rows, rates = [], []
    for problem in problems:
        row = layers.row(
            problem.label,
            layers.built_from(field.asked(make(problem, field))),
            field,
            limit=problem.flops / peak,
        )
        layers.say(row.label, row)
        rows.append(row)
        each = [f"{name} {units(problem) / statistics.median(ts):,.0f}" for name, ts in row.times.items()]
        rates.append(f"* {problem.name}: {', '.join(each)}")
    return rows, "\n".join(rates)


def builders(problem: Problem, field: Field) -> Builders:
    """The rivals of a problem."""
    config = problem.config
    model = {
        "vocabulary": problem.vocabulary,
        "embedding": config.model.embedding_size,
        "units": config.model.hidden_size,
        "layers": config.model.num_layers,
        "dropout": config.model.dropout_rate,
    }
    optimizer = "sgd" if config.optimizer.name == "sgd" else "adam"
    tokens = (config.data.window, config.data.batch_size)
    arguments = (tokens, model, optimizer, config.optimizer.learning_rate, config.optimizer.clip_norm)
    return {
        OWN: lambda: timing.rival(lstmx_step(problem)),
        **rivals.torch_pair("model_step", (*arguments, field.torch_device), field),
    }


def lstmx_step(problem: Problem) -> Run:
    """A run of the training step of a language model, as the training loop compiles it."""
    config = problem.config
    # Any distinct symbols: the model only uses their numbers.
    symbols = "".join(chr(0x4E00 + k) for k in range(problem.vocabulary))
    task = CharLM(config, CharVocabulary(symbols), {})
    optimizer, schedule = make_optimizer(config.optimizer, config.steps)
    keys = make_keys(config.seed)
    state = init_state(task, optimizer, keys.init)
    step = make_step(task.loss, optimizer, schedule)
    sizes = (config.data.batch_size, config.data.window)
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.integers(0, problem.vocabulary, sizes, np.int32),
        "targets": rng.integers(0, problem.vocabulary, sizes, np.int32),
        "resets": np.zeros(sizes, bool),
    }

    def run():
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, batch, keys.step))
        return metrics

    return run
