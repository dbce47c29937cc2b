"""A persistent kernel for a recurrence with resident weights, on NVIDIA's Hopper GPUs (Pallas, Mosaic GPU).

A step multiplies the weights by the result of the previous step, then does elementwise arithmetic. The LSTM's
forward loop and its reverse (`lstmx.implementations.pallas.lstm`) both have this form.

A cluster of CTAs owns `ROWS` rows of the batch for all of time, so that clusters never wait for each other;
it is a single CTA if that has enough memory for the weights (`lstmx.implementations.pallas.memory`). Within a
cluster, one warpgroup owns `UNITS` hidden units: their cell state (or its cotangent) stays in its registers,
and the operand of the products passes through shared memory. The weights are read from global memory once.

Everything is transposed, units by rows of the batch, because the matrix instruction has at least 64 rows and
8 columns: a batch tile can then be small, and many clusters share the batch.

Each CTA holds the weights of its own units and a copy of the whole operand: a warpgroup writes its part of
the next operand to the shared memory of every CTA of the cluster, then all synchronize, once per step. In the
LSTM's reverse the operand consists of the cotangents of the four gates. The alternative, sending partial sums
to each CTA, halves the traffic (2 KiB in float32 from one warpgroup to another instead of 4 in bfloat16), but
needs a second kind of loop, whose products are completed after the synchronization, and supports no more
units: the weights fill the memory, and H = 384 would take 246 KiB of 227.

The tests do not interpret the exchange between CTAs (`_operands_of_others`, `_synchronize`): there, one
thread plays all CTAs of a cluster in turn, each with its own memory. The real exchange has only been compiled
for the GPU. Only a GPU can show that a write to another CTA is visible to the matrix instruction there in
time, what a synchronization costs, and how many clusters a GPU holds at once.

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
from jaxlib.mlir.dialects import nvvm

from lstmx.implementations.pallas import memory as shared
from lstmx.implementations.pallas.memory import ROWS, SLOTS, UNITS

_COMPILER_PARAMS = plgpu.CompilerParams(
    # By default a warpgroup synchronizes before and after each of its writes to shared memory and before each
    # copy to it. Synchronizing in `_publish` is enough: no thread reads what another has written.
    unsafe_no_auto_barriers=True,
    # The default of jax 0.10. That of 0.11 does not support writes to another CTA.
    lowering_semantics=plgpu.LoweringSemantics.Lane,
)


class Plane(NamedTuple):
    """An input of a step, for each unit or shared by all units."""

    array: jax.Array  # [T, B, columns]
    first: int = 0  # column of the first unit
    shared: bool = False  # whether all warpgroups read the same UNITS columns


class Elements(NamedTuple):
    """The results of the arithmetic of a step, all `[UNITS, ROWS]`."""

    operands: list[jax.Array]  # bfloat16: the operand of the next step; also an output
    emitted: list[jax.Array]  # float32: further outputs
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
      weights: bfloat16 `[M, H / UNITS, blocks, UNITS, UNITS]`, the blocks of a warpgroup's products in order;
        for each product there is one block for each UNITS columns of the operand. Each of the M members has
        an equal part of the rows, in order.
      operand: bfloat16 `[B, n * H]`, of the first step; B must be a multiple of M * ROWS, H of UNITS and at
        most `lstmx.implementations.pallas.memory.MOST_UNITS`.
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
    members, groups, count = weights.shape[:3]
    hidden = groups * UNITS
    parts = columns // hidden
    dtypes = tuple(plane.array.dtype.name for plane in planes)
    needs = shared.Step(count * UNITS // columns, parts, dtypes, emitted, len(carry))
    ctas = shared.fewest_ctas(needs, groups)
    own = groups // ctas
    clustered = ctas > 1 and not interpreted
    threads = 1 if interpreted else own
    tiles = batch // (members * ROWS)
    arrays = [weights, operand, *carry, *{id(p.array): p.array for p in planes}.values()]
    which = [next(k for k, a in enumerate(arrays) if a is p.array) for p in planes]

    def body(*refs, memories):
        inputs, outputs = refs[: len(arrays)], refs[len(arrays) :]
        sources = [(inputs[k], plane) for k, plane in zip(which, planes, strict=True)]
        # The interpreter's threads block those of XLA's CPU client, and hang if it has only two. So when
        # interpreted, one thread plays all warpgroups of a cluster in turn, between two synchronizations.
        if interpreted:
            places = [(cta, index) for cta in range(ctas) for index in range(own)]
        else:
            places = [(lax.axis_index("cta") if clustered else 0, lax.axis_index("group"))]
        common = memories, inputs, sources, outputs, steps, tiles, groups, ctas, parts, reverse, interpreted
        warpgroups = [_Warpgroup(*place, *common) for place in places]
        _run_warpgroups(warpgroups, elements)

    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    out_type = [
        jax.ShapeDtypeStruct((steps, batch, columns), jnp.bfloat16),
        *[f32((steps, batch, hidden))] * emitted,
        *[f32((batch, hidden))] * len(carry),
    ]
    # Each copy is an arrival.
    arrivals = {"first": 1 + parts * ctas + len(carry), "arrived": len(planes), "together": threads}
    memory = jax.tree.map(_tiles, shared.buffers(needs, groups, ctas))
    for name, number in shared.barriers(groups, ctas).items():
        memory[name] = plgpu.Barrier(num_arrivals=arrivals[name], num_barriers=number)
    outputs = plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types={"memories": [memory] * (ctas if interpreted else 1)},
        grid=(batch // ROWS,),
        grid_names=("tile",),
        cluster=(ctas,) if clustered else (),
        cluster_names=("cta",) if clustered else (),
        num_threads=threads,
        thread_name="group",
        compiler_params=_COMPILER_PARAMS,
        interpret=_interpreter() if interpreted else None,
    )(*arrays)
    return outputs[0], list(outputs[1 : 1 + emitted]), tuple(outputs[1 + emitted :])


class _Warpgroup(NamedTuple):
    """The arguments of a warpgroup's code."""

    cta: Any
    index: Any  # in its CTA
    memories: list[dict[str, Any]]  # of its CTA; interpreted, of all CTAs of the cluster
    inputs: Sequence[Any]  # weights, operand, carry, ...
    sources: list[tuple[Any, Plane]]
    outputs: Sequence[Any]
    steps: int
    tiles: int  # of a member
    groups: int  # in the cluster
    ctas: int
    parts: int
    reverse: bool
    interpreted: bool

    @property
    def memory(self):
        return self.memories[self.cta if self.interpreted else 0]

    @property
    def own(self):
        """The number of warpgroups in a CTA."""
        return self.groups // self.ctas

    @property
    def group(self):
        """Its place in the cluster."""
        return self.cta * self.own + self.index

    @property
    def member(self):
        return lax.axis_index("tile") // self.tiles

    @property
    def rows(self):
        return pl.ds(lax.axis_index("tile") * ROWS, ROWS)

    def units(self, first=0):
        """The columns of the warpgroup's units, in an array with `first` columns before them."""
        return pl.ds(first + self.group * UNITS, UNITS)

    def time(self, step):
        return self.steps - 1 - step if self.reverse else step


def _run_warpgroups(warpgroups: list[_Warpgroup], elements: Callable) -> None:
    """The code of a thread, which plays one warpgroup or, when interpreted, several."""
    for wg in warpgroups:
        _load_all(wg)
    _synchronize(warpgroups[0])

    def step(number, carries):
        carries = [_step(wg, elements, number, carry) for wg, carry in zip(warpgroups, carries, strict=True)]
        _synchronize(warpgroups[0])
        return carries

    carries = lax.fori_loop(0, warpgroups[0].steps, step, [_first_carry(wg) for wg in warpgroups])
    for wg, carry in zip(warpgroups, carries, strict=True):
        _store_carry(wg, carry)


def _step(wg: _Warpgroup, elements: Callable, number: Any, carry: tuple) -> tuple:
    slot = lax.rem(number, SLOTS)
    products = _products(wg, slot)
    plgpu.barrier_wait(wg.memory["arrived"].at[wg.index * SLOTS + slot])
    planes = [_read(ref.at[slot, wg.index], wg.interpreted) for ref in wg.memory["planes"]]
    result = elements(products, planes, carry)
    _publish(wg, number, 1 - slot, result)
    # All threads of the warpgroup have read this slot, since `_publish` synchronizes them.
    pl.when(number + SLOTS < wg.steps)(lambda: _fetch(wg, number + SLOTS, slot))
    return result.carry


def _first_carry(wg: _Warpgroup) -> tuple[jax.Array, ...]:
    return tuple(_read(ref.at[wg.index], wg.interpreted) for ref in wg.memory["carry"])


def _store_carry(wg: _Warpgroup, carry: tuple[jax.Array, ...]) -> None:
    """Writes the last carry to global memory, and waits for all writes to complete."""
    refs = wg.memory["carry"]
    for ref, value in zip(refs, carry, strict=True):
        _write(ref.at[wg.index], value, wg.interpreted)
    plgpu.commit_smem()
    for ref, output in zip(refs, wg.outputs[-len(refs) :], strict=True):
        plgpu.copy_smem_to_gmem(ref.at[wg.index], output.at[wg.rows, wg.units()])
    plgpu.wait_smem_to_gmem(0)


def _load_all(wg: _Warpgroup) -> None:
    """Fills shared memory with the inputs of the first step, and requests the first planes."""
    memory, index = wg.memory, wg.index
    weights, operand, *carry = wg.inputs[: 2 + len(memory["carry"])]
    barrier = memory["first"].at[index]
    plgpu.copy_gmem_to_smem(weights.at[wg.member, wg.group], memory["weights"].at[index], barrier)
    # Each CTA needs the whole operand; its warpgroups share the copying.
    for turn in range(wg.parts * wg.ctas):
        tile = turn * wg.own + index
        source = operand.at[wg.rows, pl.ds(tile * UNITS, UNITS)]
        plgpu.copy_gmem_to_smem(source, memory["operand"].at[0, tile], barrier)
    for source, ref in zip(carry, memory["carry"], strict=True):
        plgpu.copy_gmem_to_smem(source.at[wg.rows, wg.units()], ref.at[index], barrier)
    for number in range(min(SLOTS, wg.steps)):
        _fetch(wg, number, number)
    plgpu.barrier_wait(barrier)


def _fetch(wg: _Warpgroup, number: Any, slot: Any) -> None:
    """Requests the planes of a step."""
    barrier = wg.memory["arrived"].at[wg.index * SLOTS + slot]
    for (source, plane), ref in zip(wg.sources, wg.memory["planes"], strict=True):
        columns = pl.ds(plane.first, UNITS) if plane.shared else wg.units(plane.first)
        tile = source.at[wg.time(number), wg.rows, columns]
        plgpu.copy_gmem_to_smem(tile, ref.at[slot, wg.index], barrier)


def _products(wg: _Warpgroup, slot: Any) -> list[jax.Array]:
    """The products of the weights with the operand, each float32 `[UNITS, ROWS]`."""
    weights, operand = wg.memory["weights"].at[wg.index], wg.memory["operand"].at[slot]
    terms = operand.shape[0]
    count = weights.shape[0] // terms
    if wg.interpreted:
        weights = weights[...].reshape(count, terms, UNITS, UNITS)
        products = jnp.einsum("nkuv,krv->nur", weights, operand[...], preferred_element_type=jnp.float32)
        return list(products)

    def multiply(*accumulators):
        for n, accumulator in enumerate(accumulators):
            for k in range(terms):
                plgpu.wgmma(accumulator, weights.at[n * terms + k], operand.at[k].transpose((1, 0)))
        return [accumulator[...] for accumulator in accumulators]

    return pl.run_scoped(multiply, *[plgpu.ACC((UNITS, ROWS), jnp.float32)] * count)


def _publish(wg: _Warpgroup, number: Any, slot: Any, result: Elements) -> None:
    """Passes the operand on to the next step, and writes it and the other outputs to global memory."""
    memory, tiles = wg.memory, [part * wg.groups + wg.group for part in range(wg.parts)]
    # The copies of the step before the previous one have read the slot.
    plgpu.wait_smem_to_gmem(SLOTS - 1, wait_read_only=True)
    targets = [memory["operand"].at[slot, tile] for tile in tiles]
    targets += [ref.at[slot, wg.index] for ref in memory["emitted"]]
    for ref, value in zip(targets, (*result.operands, *result.emitted), strict=True):
        _write(ref, value, wg.interpreted)
    for operand in _operands_of_others(wg):
        for tile, value in zip(tiles, result.operands, strict=True):
            _write(operand.at[slot, tile], value, wg.interpreted)
    plgpu.commit_smem()
    outputs = [(wg.outputs[0], tile * UNITS) for tile in tiles]
    outputs += [(output, wg.group * UNITS) for output in wg.outputs[1 : 1 + len(memory["emitted"])]]
    for ref, (output, first) in zip(targets, outputs, strict=True):
        target = output.at[wg.time(number), wg.rows, pl.ds(first, UNITS)]
        plgpu.copy_smem_to_gmem(ref, target, commit_group=False)
    plgpu.commit_smem_to_gmem_group()


def _operands_of_others(wg: _Warpgroup) -> list[Any]:
    """The operands in the shared memory of the other CTAs of the cluster."""
    if wg.interpreted:
        return [memory["operand"] for cta, memory in enumerate(wg.memories) if cta != wg.cta]
    # Each begins with its successor, so that not all write to the same CTA at once.
    others = [lax.rem(wg.cta + turn, wg.ctas) for turn in range(1, wg.ctas)]
    return [plgpu.cluster_ref(wg.memory["operand"], {"cta": cta}) for cta in others]


def _synchronize(wg: _Warpgroup) -> None:
    """Waits until the operands of all warpgroups are written.

    One synchronization per step is enough: the slot that is filled next was read before it. After the last
    one no CTA writes to another, so that each may end at any time.
    """
    if wg.ctas > 1 and not wg.interpreted:
        _cluster_barrier()
        # Makes the writes of other CTAs visible to the matrix instruction: their own `commit_smem` was for
        # their own memory.
        plgpu.commit_smem()
    else:
        plgpu.barrier_arrive(wg.memory["together"])
        plgpu.barrier_wait(wg.memory["together"])


@plgpu.inline_mgpu()
def _cluster_barrier(_) -> None:
    """Waits for all threads of the cluster, and makes their previous writes to shared memory visible.

    PTX guarantees this for the hardware's barrier, but not for `plgpu.ClusterBarrier`, whose arrivals release
    the writes of a thread only in the scope of its own CTA.
    """
    nvvm.cluster_arrive(aligned=True)
    nvvm.cluster_wait(aligned=True)


def _tiles(array: jax.ShapeDtypeStruct) -> Any:
    """Shared memory for `[..., rows, columns]`, laid out as the matrix instruction reads it."""
    columns = 128 // array.dtype.itemsize
    transforms = (plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(array.shape, array.dtype, transforms=transforms)


# The interpreter of jax 0.10 supports neither transposed references nor layouts, so `_read`, `_write` and
# `_products` have separate paths for it.
def _read(ref: Any, interpreted: bool) -> jax.Array:
    """`[ROWS, UNITS]` in shared memory as `[UNITS, ROWS]` in registers."""
    if interpreted:
        return ref[...].T
    value = plgpu.layout_cast(ref.transpose((1, 0))[...], plgpu.Layout.WGMMA_TRANSPOSED)
    return plgpu.layout_cast(value, plgpu.Layout.WGMMA)


def _write(ref: Any, value: jax.Array, interpreted: bool) -> None:
    """The inverse of `_read`."""
    if interpreted:
        ref[...] = value.T
    else:
        ref.transpose((1, 0))[...] = plgpu.layout_cast(value, plgpu.Layout.WGMMA_TRANSPOSED)


def _interpreter() -> Any:
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    # In jax 0.10 it has no public name.
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()
