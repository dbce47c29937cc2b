"""What a loop emits at each step: no array twice, and none that is known outside of the loop anyway."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from lstmx.cells.base import PyTree


class Form(NamedTuple):
    """How a tree is rebuilt from emitted and known arrays."""

    structure: Any
    places: tuple[int, ...]  # of the leaves: k for emitted[k], -1 - k for known[k]


def pack(tree: PyTree, known: Sequence[jax.Array] = ()) -> tuple[list[jax.Array], Form]:
    """The leaves of a tree that must be emitted: each once, and those of `known` not at all.

    In most cells z and r are simply added, so that their cotangents are the same array, as are y and the
    state's h. A loop that emits an array twice writes it twice in each step. And a pullback contains the
    parameters of the update, which are the same in all steps.
    """
    leaves, structure = jax.tree.flatten(tree)
    places = {id(leaf): -1 - k for k, leaf in enumerate(known)}
    emitted = []
    for leaf in leaves:
        if id(leaf) not in places:
            places[id(leaf)] = len(emitted)
            emitted.append(leaf)
    return emitted, Form(structure, tuple(places[id(leaf)] for leaf in leaves))


def unpack(form: Form, emitted: Sequence[jax.Array], known: Sequence[jax.Array] = ()) -> PyTree:
    """Rebuilds the tree from the emitted arrays (of one step, or of all) and the known ones."""
    leaves = [emitted[k] if k >= 0 else known[-1 - k] for k in form.places]
    return jax.tree.unflatten(form.structure, leaves)
