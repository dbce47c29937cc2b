"""An update's pullback that leaves the weight gradients of its matmuls for after the loop.

Most updates are pointwise, some hold matmuls: the projection of a projected LSTM, the candidate of a GRU that
resets before it, the rounds of a Mogrifier. Their weight gradients are sums over time of outer products of
what a matmul read and the cotangent of what it gave. Differentiating with respect to a term added to the
product, instead of the kernel, gives the second; the first is kept; one matmul after the loop does the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstmx.cells import base
from lstmx.cells.base import Cell, Params, PyTree


class Matmul(NamedTuple):
    """A matmul inside an update."""

    leaf: int  # of params.update, its kernel
    product: jax.ShapeDtypeStruct  # of one step


def matmuls(cell: Cell, params: Params, *arguments: PyTree) -> tuple[Matmul, ...]:
    """The matmuls of `cell.update(params.update, *arguments)` whose kernels are leaves of `params.update`."""
    found: list[Matmul] = []

    def traced(update_params, *arguments):
        places = _places(update_params)

        def recorder(kernel, x):
            if id(kernel) not in places:
                return None
            product = base.dot(kernel, x)
            found.append(Matmul(places[id(kernel)], jax.ShapeDtypeStruct(product.shape, product.dtype)))
            return product

        with base.recording(recorder):
            return cell.update(update_params, *arguments)

    jax.eval_shape(traced, params.update, *arguments)
    return tuple(found)


def vjp(cell: Cell, found: Sequence[Matmul], update_params: PyTree, *arguments: PyTree):
    """`jax.vjp(cell.update, ...)` that spares the kernels of the matmuls found.

    Returns:
      The new state; its pullback, to the cotangents of `(other leaves, products, *arguments)`; and what each
      matmul read.
    """
    leaves, structure = jax.tree.flatten(update_params)
    spared = {matmul.leaf for matmul in found}

    def update(others, added, *arguments):
        others = iter(others)
        own = [leaf if k in spared else next(others) for k, leaf in enumerate(leaves)]
        update_params = jax.tree.unflatten(structure, own)
        places = _places(update_params)
        read: list[jax.Array] = []

        def recorder(kernel, x):
            if places.get(id(kernel)) not in spared:
                return None
            read.append(x)
            return base.dot(kernel, x) + added[len(read) - 1]

        with base.recording(recorder):
            return cell.update(update_params, *arguments), read

    added = [jnp.zeros(matmul.product.shape, matmul.product.dtype) for matmul in found]
    new, pullback, read = jax.vjp(update, unspared(found, update_params), added, *arguments, has_aux=True)
    return new, pullback, read


def unspared(found: Sequence[Matmul], update_params: PyTree) -> list[jax.Array]:
    """The leaves whose gradients the loop adds up: all but the kernels."""
    spared = {matmul.leaf for matmul in found}
    return [leaf for k, leaf in enumerate(jax.tree.leaves(update_params)) if k not in spared]


def gradients(found, update_params: PyTree, others: list, read: list, d_products: list) -> PyTree:
    """The gradients of `update_params`: `others` from the loop, the kernels' from what the loop emitted.

    Args:
      found: the matmuls.
      update_params: the parameters, as they are stored.
      others: gradients of the leaves that were not spared.
      read: `[T, *batch, n]` of each matmul.
      d_products: `[T, *batch, m]` of each.
    """
    leaves, structure = jax.tree.flatten(update_params)
    others = iter(others)
    spared = {matmul.leaf for matmul in found}
    total = [None if k in spared else next(others) for k in range(len(leaves))]
    for matmul, x, d_product in zip(found, read, d_products, strict=True):
        (d_kernel,) = jax.vjp(lambda kernel, x=x: base.dot(kernel, x), leaves[matmul.leaf])[1](d_product)
        before = total[matmul.leaf]
        total[matmul.leaf] = d_kernel if before is None else before + d_kernel
    return jax.tree.unflatten(structure, total)


def _places(tree: PyTree) -> dict[int, int]:
    return {id(leaf): k for k, leaf in enumerate(jax.tree.leaves(tree))}
