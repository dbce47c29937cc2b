"""The scripts as functions that tests call, for starting Python and JAX takes seconds."""

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load(name, function=None):
    """A function of a script, by default the one of its name."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function or name)


def children_seconds():
    """Processor seconds of the processes that this one started and that have ended.

    What a command takes on an idle machine: other work does not count, which wall-clock time includes.
    """
    times = os.times()
    return times.children_user + times.children_system
