"""Public functions have complete types. mypy itself runs in the README's test command."""

import importlib
import inspect
import pkgutil
import tomllib
from pathlib import Path

import pytest

import lstmx

ROOT = Path(__file__).resolve().parent.parent
# Functions that only the library itself calls.
INTERNAL = "lstmx.implementations."
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lstmx.__path__, "lstmx.")
    if not f"{module.name}.".startswith(INTERNAL)
)


def functions_of(module):
    """The public functions and methods that a module defines, by name."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield from ((f"{name}.{method}", function) for method, function in methods_of(value))


def methods_of(cls):
    for name, value in vars(cls).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        written = inspect.isfunction(function) and function.__qualname__ == f"{cls.__qualname__}.{name}"
        if written and (name in ("__init__", "__call__") or not name.startswith("_")):
            yield name, function


def missing(name, function):
    """The parameters of a function that have no type, and `return` if it has none."""
    signature = inspect.signature(function)
    types = {key: parameter.annotation for key, parameter in signature.parameters.items()}
    if not name.endswith("__init__"):
        types["return"] = signature.return_annotation
    return [
        key for key, type in types.items() if type is inspect.Signature.empty and key not in ("self", "cls")
    ]


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_have_complete_types(name):
    functions = functions_of(importlib.import_module(name))
    assert {key: gaps for key, function in functions if (gaps := missing(key, function))} == {}


def test_missing_types_are_seen():
    def function(a, b: int, *, c=None): ...

    class Example:
        def __init__(self, a): ...

        @property
        def value(self): ...

    assert missing("function", function) == ["a", "c", "return"]
    assert [(name, missing(name, method)) for name, method in methods_of(Example)] == [
        ("__init__", ["a"]),
        ("value", ["return"]),
    ]


def test_the_type_checker_reads_the_library_and_a_program_that_uses_it():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert config["files"] == ["lstmx", "tests/typing"]
    # Otherwise an error that the program expects could vanish unnoticed.
    assert config["warn_unused_ignores"]
    assert (ROOT / "tests" / "typing" / "consumer.py").read_text(encoding="utf-8").count(
        "# type: ignore["
    ) > 10
