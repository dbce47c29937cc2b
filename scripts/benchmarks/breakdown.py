"""Where the time of a training step of the word model goes: its parts, each compiled and timed alone."""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lstmx
from lstmx.training import make_optimizer
from scripts.benchmarks import layers, models, tables, timing
from scripts.benchmarks.rivals import OWN, Field
from scripts.benchmarks.tables import Section
from scripts.benchmarks.timing import Run


def section(field: Field, peak: float) -> Section:
    """The table of the parts; `peak` is the rate of the fastest matmul in FLOP/s."""
    problem = models.problems(field.quick)[-1]
    every = {OWN: lambda: models.lstmx_step(problem), **parts(problem)}
    built = {name: timing.rival(build()) for name, build in every.items()}
    row = layers.row("", built, field)
    times = {name: statistics.median(row.times[name]) for name in every}
    rows, config = problem.config.data.batch_size * problem.config.data.window, problem.config.model
    recurrent = models.stacked(config.embedding_size, config.hidden_size, config.num_layers)
    limits = {
        OWN: problem.flops / peak,
        "recurrent layers": models.training_flops(rows, recurrent) / peak,
        "output layer": models.training_flops(rows, config.hidden_size * problem.vocabulary) / peak,
    }
    lines = [["part", "milliseconds", "share", "limit"]]
    for name in (*list(every)[1:], "all parts", OWN):
        seconds = sum(list(times.values())[1:]) if name == "all parts" else times[name]
        limit = tables.milliseconds(limits[name]) if name in limits else ""
        label = "the whole step" if name == OWN else name
        lines.append([label, tables.milliseconds(seconds), f"{seconds / times[OWN]:.0%}", limit])
    text = [
        f"The parts of the step of the {problem.label}, each compiled alone, forward and backward: the "
        "lookup of embeddings, the masks of dropout, the recurrent layers, the output layer (logits, their "
        "softmax, and the loss), clipping and the update of all parameters. Medians of "
        f"{field.rounds} rounds; the limit is the time of the matmuls alone.",
        tables.markdown(lines),
    ]
    return Section("Parts of a step", "\n\n".join(text))


def parts(problem: models.Problem) -> dict[str, Callable[[], Run]]:
    """The parts of a training step, by name: functions that compile them."""
    data, model = problem.config.data, problem.config.model
    sizes = (data.batch_size, data.window)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(0.05 * rng.normal(size=shape), jnp.float32)

    tokens = jnp.asarray(rng.integers(0, problem.vocabulary, sizes, np.int32))
    table = normal(problem.vocabulary, model.embedding_size)
    xs, ys = normal(*sizes, model.embedding_size), normal(*sizes, model.hidden_size)
    kernel, bias = normal(model.hidden_size, problem.vocabulary), normal(problem.vocabulary)
    network = lstmx.Stack((lstmx.LSTM(model.hidden_size),) * model.num_layers)
    params = network.init(jax.random.key(0), model.embedding_size)

    def embed(table, tokens, xs):
        return jax.value_and_grad(lambda table: jnp.vdot(table[tokens], xs))(table)

    def masks(key):
        keys = jax.random.split(key, model.num_layers + 1)
        shapes = [xs.shape, *[ys.shape] * model.num_layers]
        pairs = zip(keys, shapes, strict=True)
        return [jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32) for key, shape in pairs]

    def recurrent(params, xs, ys):
        def loss(params, xs):
            return jnp.vdot(lstmx.scan(network, params, jnp.moveaxis(xs, 1, 0))[1], jnp.moveaxis(ys, 1, 0))

        return jax.grad(loss, (0, 1))(params, xs)

    def output(ys, kernel, bias, tokens):
        def loss(ys, kernel, bias):
            logits = ys @ kernel + bias
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens))

        return jax.value_and_grad(loss, (0, 1, 2))(ys, kernel, bias)

    everything = {"table": table, "layers": params, "kernel": kernel, "bias": bias}
    return {
        "embedding": lambda: _run(embed, table, tokens, xs),
        "dropout masks": lambda: _run(masks, jax.random.key(1)),
        "recurrent layers": lambda: _run(recurrent, params, xs, ys),
        "output layer": lambda: _run(output, ys, kernel, bias, tokens),
        "update": lambda: _update(problem, everything),
    }


def _run(function: Callable, *arguments: Any) -> Run:
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def _update(problem: models.Problem, params: Any) -> Run:
    optimizer, _ = make_optimizer(problem.config.optimizer, problem.config.steps)
    grads = jax.tree.map(lambda leaf: 0.1 * leaf, params)

    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    # Copies, since the first call takes over the buffers.
    params = jax.tree.map(jnp.copy, params)
    state = params, optimizer.init(params)

    def run():
        nonlocal state
        state = jax.block_until_ready(compiled(*state, grads))
        return state

    return run
