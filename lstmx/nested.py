"""Parameters as nested dictionaries, the form in which Flax stores variables, and back; states as carries."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstmx.cells.base import HOW_TO_RESTORE, Params, PyTree, described, require_params_type


class Layout(NamedTuple):
    """Where each leaf of a tree stands in its nested form. Hashable."""

    structure: Any
    paths: tuple[tuple[str, ...], ...]


def layout_of(tree: PyTree) -> Layout:
    """The layout of a tree of dictionaries, tuples and named tuples."""
    leaves, structure = jax.tree.flatten_with_path(tree)
    return Layout(structure, tuple(tuple(_name(entry) for entry in path) for path, _ in leaves))


def nest(tree: PyTree, layout: Layout, leaf: Callable = lambda x: x, node: Callable = dict) -> Mapping:
    """The nested dictionaries of a tree.

    Args:
      tree: the tree.
      layout: its layout.
      leaf: applied to each leaf.
      node: makes each dictionary.

    Example:
      >>> from lstmx.cells import Params
      >>> params = Params(input={"kernel": 1}, recurrent={"kernel": 2})
      >>> nest(params, layout_of(params))
      {'input': {'kernel': 1}, 'recurrent': {'kernel': 2}}
    """
    leaves = (leaf(value) for value in jax.tree.leaves(tree))
    return from_paths(dict(zip(layout.paths, leaves, strict=True)), node)


def from_paths(leaves: Mapping[tuple[str, ...], Any], node: Callable = dict) -> Mapping:
    """Nested dictionaries from leaves by their paths.

    Args:
      leaves: the leaves.
      node: makes each dictionary.

    Example:
      >>> from_paths({("a", "b"): 1, ("c",): 2})
      {'a': {'b': 1}, 'c': 2}
    """
    branches: dict[str, Any] = {}
    for path, value in leaves.items():
        if len(path) > 1:
            branches.setdefault(path[0], {})[path[1:]] = value
    children = {name: from_paths(below, node) for name, below in branches.items()}
    names = dict.fromkeys(path[0] for path in leaves)
    return node({name: children[name] if name in children else leaves[(name,)] for name in names})


def unnest(nested: Mapping, layout: Layout, leaf: Callable = lambda x: x) -> PyTree:
    """The tree of nested dictionaries; the inverse of `nest`."""

    def find(path):
        branch = nested
        for name in path:
            branch = branch[name]
        return leaf(branch)

    return jax.tree.unflatten(layout.structure, [find(path) for path in layout.paths])


def require_params(network: Any, params: PyTree, in_features: int | None = None) -> None:
    """Checks that parameters are those of a cell or network.

    Args:
      network: the cell or network.
      params: the parameters.
      in_features: D; None for that of the parameters, if it is a cell.

    Raises:
      ValueError: if one is missing, has a wrong shape or does not belong there; it is named.
      TypeError: if one is not of a floating type, or dictionaries stand for tuples.

    Example:
      >>> import jax
      >>> from lstmx.cells import LSTM
      >>> require_params(LSTM(4), LSTM(3).init(jax.random.key(0), 5), 5)
      Traceback (most recent call last):
      ValueError: params: input/bias must have shape (16,), got (12,)
    """
    if in_features is None:
        require_params_type(network, params)
        in_features = network.input_shape(params)[-1]
    want = jax.eval_shape(lambda: network.init(jax.random.key(0), in_features))
    if isinstance(want, Params) and isinstance(params, Mapping | list):
        require_params_type(network, params)
    leaves, own_leaves = map(jax.tree.leaves_with_path, (want, params))
    shapes, found = (
        {"/".join(map(_name, path)): jnp.shape(leaf) for path, leaf in of_tree}
        for of_tree in (leaves, own_leaves)
    )
    for name, shape in shapes.items():
        if name not in found:
            raise ValueError(f"params: {name} is missing, of shape {shape}; there are {', '.join(found)}")
        if found[name] != shape:
            raise ValueError(f"params: {name} must have shape {shape}, got {found[name]}")
    for name in found.keys() - shapes.keys():
        raise ValueError(f"params: {name}, of shape {found[name]}, is not a parameter of the network")
    if {path for path, _ in leaves} != {path for path, _ in own_leaves}:
        raise TypeError(f"params: got {described(params)}, where `init` returns tuples; {HOW_TO_RESTORE}")
    for name, leaf in zip(found, jax.tree.leaves(params), strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"params: {name} must be of a floating type, got {jnp.result_type(leaf)}")


def as_carry(state: PyTree, carry: PyTree) -> PyTree:
    """A state in the structure and the types of the carry that it follows, as a loop of Flax's demands.

    Example:
      >>> import jax.numpy as jnp
      >>> as_carry([jnp.ones(2, "float32")], (jnp.zeros(2, "bfloat16"),))
      (Array([1, 1], dtype=bfloat16),)
    """
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(carry), strict=True)
    return jax.tree.unflatten(jax.tree.structure(carry), [new.astype(old.dtype) for new, old in leaves])


def _name(entry) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"cannot name {entry!r}")
