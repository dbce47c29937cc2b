"""Training steps of several members at once: `vmap` over parameters and inputs, as in a sweep."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

import lstmx
from scripts.benchmarks import layers, problems, rivals, tables, timing
from scripts.benchmarks.problems import Shape
from scripts.benchmarks.rivals import OWN, Builders, Field
from scripts.benchmarks.tables import Row, Section
from scripts.benchmarks.timing import Run

MEMBERS = 16
SOLO = "one by one"
SHAPES = (Shape(16, 64, 64, 64), *problems.SHAPES)


def section(shapes: Sequence[Shape], field: Field) -> Section:
    """The table of members at once and one by one."""
    rows: list[Row] = []
    for shape in shapes:
        builders = solo_and_mapped(shape, field)
        rows.append(layers.row(str(shape), layers.built_from(builders), field))
        layers.say(f"members {shape}", rows[-1])
    text = [
        f"A training step of {MEMBERS} members with parameters and inputs of their own, by `jax.vmap`; "
        f'"{SOLO}" is the same step jitted for one member and called {MEMBERS} times. Milliseconds, medians '
        f"of {field.rounds} rounds; {field.dtype}.",
        tables.comparison("B, T, D, H", rows),
    ]
    return Section(f"{MEMBERS} members", "\n\n".join(text))


def solo_and_mapped(shape: Shape, field: Field) -> Builders:
    """The default implementation for all members at once, the others that can run it, and one by one."""
    builders: Builders = {OWN: lambda: timing.rival(run(shape, field.dtype))}
    for name in rivals.implementations(shape, field.dtype):
        if name not in ("reference", "cudnn"):
            builders[name] = lambda name=name: timing.rival(run(shape, field.dtype, name))
    return {**field.asked(builders), SOLO: lambda: timing.rival(run_solo(shape, field.dtype))}


def tables_of(field: Field) -> Iterator[tuple[str, dict[str, Callable]]]:
    """One row at a time: functions that return builders, the default's name, and no limit."""
    dtype = field.dtype
    for shape in problems.TINY[:1] if field.quick else SHAPES[:3]:
        default = rivals.default_implementation(shape, dtype)
        yield (
            f"{MEMBERS} members, {dtype}",
            {str(shape): lambda s=shape, d=default: (solo_and_mapped(s, field), d, None)},
        )


def run(shape: Shape, dtype: str, implementation: str | None = None) -> Run:
    """A run of the mapped step."""
    function, params, xs = _problem(shape, dtype, implementation)
    params, xs = (_repeated(leaf) for leaf in (params, xs))
    mapped = jax.jit(jax.vmap(function))
    return lambda: jax.block_until_ready(mapped(params, xs))


def run_solo(shape: Shape, dtype: str) -> Run:
    """A run of as many steps of one member."""
    function, params, xs = _problem(shape, dtype, None)
    step = jax.jit(function)
    return lambda: jax.block_until_ready([step(params, xs) for _ in range(MEMBERS)])


def _problem(shape: Shape, dtype: str, implementation: str | None):
    cell, params = rivals.lstmx_params(shape, dtype)

    def loss(params, xs):
        _, ys = lstmx.scan(cell, params, xs, implementation=implementation)
        return jnp.mean(ys.astype(jnp.float32) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1)), params, jnp.asarray(problems.arrays(shape).xs, dtype)


def _repeated(tree):
    return jax.tree.map(lambda leaf: jnp.stack([leaf * (1 - 0.01 * k) for k in range(MEMBERS)]), tree)
