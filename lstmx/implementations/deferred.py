"""Pullbacks of updates that defer the weight gradients of their matmuls until after the loop.

Most updates are pointwise, but some contain matmuls: the projection of a projected LSTM, the candidate of a
GRU with `reset_after=False`, the rounds of a Mogrifier. Their weight gradients are sums over time of outer
products of a matmul's input and its output's cotangent. Differentiating with respect to a term added to the
product, instead of the kernel, gives the cotangent; the input is stored; one matmul after the loop gives the
gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstmx.cells import base
from lstmx.cells.base import Cell, Params, PyTree


class Matmul(NamedTuple):
    """A matmul inside an update."""

    leaf: int  # the index of its kernel among the leaves of params.update
    product: jax.ShapeDtypeStruct  # of one step


def matmuls(cell: Cell, params: Params, *arguments: PyTree) -> tuple[Matmul, ...]:
    """The matmuls of `cell.update(params.update, *arguments)` whose kernels are leaves of `params.update`."""
    deferred: list[Matmul] = []

    def traced(update_params, *arguments):
        places = _places(update_params)

        def recorder(kernel, x):
            if id(kernel) not in places:
                return None
            product = base.dot(kernel, x)
            deferred.append(Matmul(places[id(kernel)], jax.ShapeDtypeStruct(product.shape, product.dtype)))
            return product

        with base.recording(recorder):
            return cell.update(update_params, *arguments)

    jax.eval_shape(traced, params.update, *arguments)
    return tuple(deferred)


def vjp(cell: Cell, deferred: Sequence[Matmul], update_params: PyTree, *arguments: PyTree):
    """`jax.vjp(cell.update, ...)` without the gradients of the matmuls' kernels.

    Args:
      cell: the cell.
      deferred: from `matmuls`.
      update_params: `params.update`.
      *arguments: the other arguments of `cell.update`.

    Returns:
      The new state; its pullback, to the cotangents of `(other leaves, products, *arguments)`; and the input
      of each matmul.
    """
    leaves, structure = jax.tree.flatten(update_params)
    kernels = {matmul.leaf for matmul in deferred}

    def update(others, added, *arguments):
        others = iter(others)
        merged = [leaf if k in kernels else next(others) for k, leaf in enumerate(leaves)]
        update_params = jax.tree.unflatten(structure, merged)
        places = _places(update_params)
        inputs: list[jax.Array] = []

        def recorder(kernel, x):
            if places.get(id(kernel)) not in kernels:
                return None
            inputs.append(x)
            return base.dot(kernel, x) + added[len(inputs) - 1]

        with base.recording(recorder):
            return cell.update(update_params, *arguments), inputs

    added = [jnp.zeros(matmul.product.shape, matmul.product.dtype) for matmul in deferred]
    new, pullback, inputs = jax.vjp(
        update, unspared(deferred, update_params), added, *arguments, has_aux=True
    )
    return new, pullback, inputs


def unspared(deferred: Sequence[Matmul], update_params: PyTree) -> list[jax.Array]:
    """The leaves whose gradients are accumulated in the loop: all but the kernels of the matmuls."""
    kernels = {matmul.leaf for matmul in deferred}
    return [leaf for k, leaf in enumerate(jax.tree.leaves(update_params)) if k not in kernels]


def gradients(deferred, update_params: PyTree, others: list, inputs: list, d_products: list) -> PyTree:
    """The gradients of `update_params`: `others` from the loop, the kernels' from what the loop emitted.

    Args:
      deferred: the matmuls, from `matmuls`.
      update_params: the parameters, as they are stored.
      others: gradients of all leaves but the kernels.
      inputs: the input of each matmul, `[T, *batch, n]`.
      d_products: the cotangent of each product, `[T, *batch, m]`.
    """
    leaves, structure = jax.tree.flatten(update_params)
    others = iter(others)
    kernels = {matmul.leaf for matmul in deferred}
    total = [None if k in kernels else next(others) for k in range(len(leaves))]
    for matmul, x, d_product in zip(deferred, inputs, d_products, strict=True):
        (d_kernel,) = jax.vjp(lambda kernel, x=x: base.dot(kernel, x), leaves[matmul.leaf])[1](d_product)
        before = total[matmul.leaf]
        total[matmul.leaf] = d_kernel if before is None else before + d_kernel
    return jax.tree.unflatten(structure, total)


def _places(tree: PyTree) -> dict[int, int]:
    return {id(leaf): k for k, leaf in enumerate(jax.tree.leaves(tree))}
