"""A persistent kernel for a recurrence with resident weights, on NVIDIA's Hopper GPUs (Pallas, Mosaic GPU).

A step multiplies the weights by what the last one left, then does arithmetic on elements. The LSTM's forward
loop and its reverse (`lstmx.implementations.pallas_lstm`) are both of this kind.

A block of the grid owns `ROWS` rows of the batch for all of time, so that blocks never wait for one another.
In a block, one warpgroup owns `UNITS` hidden units: the cell state (or its cotangent) of these stays in its
registers, and what they multiply passes through shared memory. The weights are read from global memory once.

Everything is transposed, units by rows of the batch, since the matrix instruction has 64 rows at least and
8 columns: a batch tile can then be small, and many blocks share the batch.

This module imports Mosaic GPU, half a second of work; `lstmx.implementations.pallas` does so at first use.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = 8  # of the batch in a block: the least number of columns of the matrix instruction
UNITS = 64  # of a warpgroup: the rows of the matrix instruction
SLOTS = 2  # one that is read and one that is filled


class Plane(NamedTuple):
    """What a step reads for each unit, or for all units alike."""

    array: jax.Array  # [T, B, columns]
    first: int = 0  # column of the first unit
    shared: bool = False  # whether all warpgroups read the same UNITS columns


class Elements(NamedTuple):
    """What the arithmetic of a step gives, all of it `[UNITS, ROWS]`."""

    operands: list[jax.Array]  # bfloat16: what the next step multiplies; also shown
    emitted: list[jax.Array]  # float32, shown
    carry: tuple[jax.Array, ...]  # float32


def recurrence(
    elements: Callable[[list[jax.Array], list[jax.Array], tuple[jax.Array, ...]], Elements],
    weights: jax.Array,
    operand: jax.Array,
    planes: Sequence[Plane],
    carry: tuple[jax.Array, ...],
    *,
    emitted: int,
    reverse: bool,
    interpreted: bool,
) -> tuple[jax.Array, list[jax.Array], tuple[jax.Array, ...]]:
    """Runs `carry, operand = elements(weights @ operand, planes of t, carry)` over time.

    Args:
      elements: the arithmetic, of the products, the planes and the carry, each `[UNITS, ROWS]`.
      weights: bfloat16 `[H / UNITS, blocks, UNITS, UNITS]`, the blocks of a warpgroup's products in their
        order: as many for each product as the operand has columns, divided by UNITS.
      operand: bfloat16 `[B, n * H]`, what the first step multiplies; B a multiple of ROWS, H of UNITS.
      planes: bfloat16 or float32, T at least 1.
      carry: float32 `[B, H]` each.
      emitted: the number of arrays that a step emits besides the operand.
      reverse: whether time runs from T-1 to 0.
      interpreted: whether to interpret the kernel on a CPU.

    Returns:
      The operands after each step `[T, B, n * H]`, the emitted arrays `[T, B, H]`, and the last carry.
    """
    steps = planes[0].array.shape[0]
    batch, columns = operand.shape
    groups, count = weights.shape[:2]
    hidden = groups * UNITS
    parts = columns // hidden
    arrays = [weights, operand, *carry, *{id(p.array): p.array for p in planes}.values()]
    which = [next(k for k, a in enumerate(arrays) if a is p.array) for p in planes]

    def body(*refs, **scratch):
        inputs, outputs = refs[: len(arrays)], refs[len(arrays) :]
        sources = [(inputs[k], plane) for k, plane in zip(which, planes, strict=True)]
        # The interpreter's threads block those of XLA's CPU client, and hang if it has only two: there one
        # thread plays all warpgroups, each in its turn between two meetings.
        played = range(groups) if interpreted else [lax.axis_index("group")]
        blocks = [
            _Block(group, inputs, sources, outputs, scratch, steps, groups, parts, reverse, interpreted)
            for group in played
        ]
        _run_blocks(blocks, elements)

    threads = 1 if interpreted else groups
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    out_type = [
        jax.ShapeDtypeStruct((steps, batch, columns), jnp.bfloat16),
        *[f32((steps, batch, hidden))] * emitted,
        *[f32((batch, hidden))] * len(carry),
    ]
    scratch_types = {
        "weights": _tiles((groups, count, UNITS, UNITS), jnp.bfloat16),
        "operand": _tiles((SLOTS, columns // UNITS, ROWS, UNITS), jnp.bfloat16),
        "planes": [_tiles((SLOTS, groups, ROWS, UNITS), plane.array.dtype) for plane in planes],
        "emitted": [_tiles((SLOTS, groups, ROWS, UNITS), jnp.float32)] * emitted,
        "carry": [_tiles((groups, ROWS, UNITS), jnp.float32)] * len(carry),
        # A copy is an arrival.
        "first": plgpu.Barrier(num_arrivals=1 + parts + len(carry), num_barriers=groups),
        "arrived": plgpu.Barrier(num_arrivals=len(planes), num_barriers=groups * SLOTS),
        "together": plgpu.Barrier(num_arrivals=threads),
    }
    outputs = plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch_types,
        grid=(batch // ROWS,),
        grid_names=("tile",),
        num_threads=threads,
        thread_name="group",
        interpret=_interpreter() if interpreted else None,
    )(*arrays)
    return outputs[0], list(outputs[1 : 1 + emitted]), tuple(outputs[1 + emitted :])


class _Block(NamedTuple):
    """What the code of a warpgroup refers to."""

    group: Any
    inputs: Sequence[Any]  # weights, operand, carry, ...
    sources: list[tuple[Any, Plane]]
    outputs: Sequence[Any]
    scratch: dict[str, Any]
    steps: int
    groups: int
    parts: int
    reverse: bool
    interpreted: bool

    @property
    def rows(self):
        return pl.ds(lax.axis_index("tile") * ROWS, ROWS)

    def units(self, first=0):
        """The columns of the warpgroup's units, in an array with `first` columns before them."""
        return pl.ds(first + self.group * UNITS, UNITS)

    def time(self, step):
        return self.steps - 1 - step if self.reverse else step


def _run_blocks(blocks: list[_Block], elements: Callable) -> None:
    """The code of a thread, which plays one warpgroup or, interpreted, several."""
    for block in blocks:
        _load_all(block)
    _meet(blocks[0])

    def step(number, carries):
        carries = [
            _step(block, elements, number, carry) for block, carry in zip(blocks, carries, strict=True)
        ]
        _meet(blocks[0])
        return carries

    carries = lax.fori_loop(0, blocks[0].steps, step, [_first_carry(block) for block in blocks])
    for block, carry in zip(blocks, carries, strict=True):
        _store_carry(block, carry)


def _step(block: _Block, elements: Callable, number: Any, carry: tuple) -> tuple:
    scratch, slot = block.scratch, lax.rem(number, SLOTS)
    products = _products(block, slot)
    plgpu.barrier_wait(scratch["arrived"].at[block.group * SLOTS + slot])
    planes = [_read(ref.at[slot, block.group], block.interpreted) for ref in scratch["planes"]]
    result = elements(products, planes, carry)
    _show(block, number, 1 - slot, result)
    # All threads of the warpgroup have read this slot: `_show` made them meet.
    pl.when(number + SLOTS < block.steps)(lambda: _fetch(block, number + SLOTS, slot))
    return result.carry


def _first_carry(block: _Block) -> tuple[jax.Array, ...]:
    return tuple(_read(ref.at[block.group], block.interpreted) for ref in block.scratch["carry"])


def _store_carry(block: _Block, carry: tuple[jax.Array, ...]) -> None:
    """Writes the last carry to global memory, and waits until all that was written is there."""
    refs = block.scratch["carry"]
    for ref, value in zip(refs, carry, strict=True):
        _write(ref.at[block.group], value, block.interpreted)
    plgpu.commit_smem()
    for ref, output in zip(refs, block.outputs[-len(refs) :], strict=True):
        plgpu.copy_smem_to_gmem(ref.at[block.group], output.at[block.rows, block.units()])
    plgpu.wait_smem_to_gmem(0)


def _load_all(block: _Block) -> None:
    """Fills shared memory with what is there before the first step, and asks for the first planes."""
    scratch, group = block.scratch, block.group
    weights, operand, *carry = block.inputs[: 2 + len(block.scratch["carry"])]
    barrier = scratch["first"].at[group]
    plgpu.copy_gmem_to_smem(weights.at[group], scratch["weights"].at[group], barrier)
    for part in range(block.parts):
        source = operand.at[block.rows, block.units(part * block.groups * UNITS)]
        plgpu.copy_gmem_to_smem(source, scratch["operand"].at[0, part * block.groups + group], barrier)
    for source, ref in zip(carry, scratch["carry"], strict=True):
        plgpu.copy_gmem_to_smem(source.at[block.rows, block.units()], ref.at[group], barrier)
    for number in range(min(SLOTS, block.steps)):
        _fetch(block, number, number)
    plgpu.barrier_wait(barrier)


def _fetch(block: _Block, number: Any, slot: Any) -> None:
    """Asks for the planes of a step."""
    group = block.group
    barrier = block.scratch["arrived"].at[group * SLOTS + slot]
    for (source, plane), ref in zip(block.sources, block.scratch["planes"], strict=True):
        columns = pl.ds(plane.first, UNITS) if plane.shared else block.units(plane.first)
        tile = source.at[block.time(number), block.rows, columns]
        plgpu.copy_gmem_to_smem(tile, ref.at[slot, group], barrier)


def _products(block: _Block, slot: Any) -> list[jax.Array]:
    """The weights' products with the operand: float32 `[UNITS, ROWS]` each."""
    group = block.group
    weights, operand = block.scratch["weights"], block.scratch["operand"]
    per_product = operand.shape[1]
    count = weights.shape[1] // per_product
    pairs = [
        [(weights.at[group, n * per_product + k], operand.at[slot, k]) for k in range(per_product)]
        for n in range(count)
    ]
    if block.interpreted:
        dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
        return [sum(dot(a[...], b[...].T) for a, b in product) for product in pairs]

    def multiply(*accumulators):
        for accumulator, product in zip(accumulators, pairs, strict=True):
            for a, b in product:
                plgpu.wgmma(accumulator, a, b.transpose((1, 0)))
        return [accumulator[...] for accumulator in accumulators]

    return pl.run_scoped(multiply, *[plgpu.ACC((UNITS, ROWS), jnp.float32)] * count)


def _show(block: _Block, number: Any, slot: Any, result: Elements) -> None:
    """Leaves the operand to the next step, and writes it and what else is emitted to global memory."""
    scratch, group = block.scratch, block.group
    # The copies of the step before the last have read the slot.
    plgpu.wait_smem_to_gmem(SLOTS - 1, wait_read_only=True)
    tiles = [scratch["operand"].at[slot, part * block.groups + group] for part in range(block.parts)]
    tiles += [ref.at[slot, group] for ref in scratch["emitted"]]
    firsts = [part * block.groups * UNITS for part in range(block.parts)] + [0] * len(scratch["emitted"])
    outputs = [block.outputs[0]] * block.parts + list(block.outputs[1 : 1 + len(scratch["emitted"])])
    for tile, value in zip(tiles, (*result.operands, *result.emitted), strict=True):
        _write(tile, value, block.interpreted)
    plgpu.commit_smem()
    for tile, first, output in zip(tiles, firsts, outputs, strict=True):
        target = output.at[block.time(number), block.rows, block.units(first)]
        plgpu.copy_smem_to_gmem(tile, target, commit_group=False)
    plgpu.commit_smem_to_gmem_group()


def _meet(block: _Block) -> None:
    """Waits until the operands of all warpgroups are there.

    One wait a step is enough: the slot that is filled next was multiplied before it.
    """
    plgpu.barrier_arrive(block.scratch["together"])
    plgpu.barrier_wait(block.scratch["together"])


def _tiles(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory for `[..., rows, columns]`, laid out as the matrix instruction reads it."""
    columns = 128 // jnp.dtype(dtype).itemsize
    transforms = (plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


# The interpreter of jax 0.10 knows neither transposed references nor layouts, so these two and `_products`
# have a path for it.
def _read(ref: Any, interpreted: bool) -> jax.Array:
    """`[ROWS, UNITS]` in shared memory as `[UNITS, ROWS]` in registers."""
    if interpreted:
        return ref[...].T
    value = plgpu.layout_cast(ref.transpose((1, 0))[...], plgpu.Layout.WGMMA_TRANSPOSED)
    return plgpu.layout_cast(value, plgpu.Layout.WGMMA)


def _write(ref: Any, value: jax.Array, interpreted: bool) -> None:
    """The opposite of `_read`."""
    if interpreted:
        ref[...] = value.T
    else:
        ref.transpose((1, 0))[...] = plgpu.layout_cast(value, plgpu.Layout.WGMMA_TRANSPOSED)


def _interpreter() -> Any:
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    # jax 0.10 has it, without a public name.
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()
