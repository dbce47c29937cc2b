"""What a loop writes at each step: no array twice, and none that can be had again anyway."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from lstmx.cells.base import PyTree


class Form(NamedTuple):
    """How a tree is put together from what was emitted and what is known."""

    structure: Any
    places: tuple[int, ...]  # of the leaves: k for emitted[k], -1 - k for known[k]


def pack(tree: PyTree, known: Sequence[jax.Array] = ()) -> tuple[list[jax.Array], Form]:
    """The leaves of a tree that must be emitted: each once, those of `known` not at all.

    In most cells z and r are simply added: their cotangents are one array, and so are y and the state's h. A
    loop that emits an array twice writes it twice, each step. And a pullback holds the update's own
    parameters, which are the same in all steps.
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
    """The tree again, from what was emitted (one step of it, or all) and what is known."""
    leaves = [emitted[k] if k >= 0 else known[-1 - k] for k in form.places]
    return jax.tree.unflatten(form.structure, leaves)
