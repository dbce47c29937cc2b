"""The parts of lstmx that are imported when they are first used."""

import importlib

import pytest

import lstmx


@pytest.mark.parametrize("name", ["convert", "data", "forecasting", "linen", "models", "nnx", "training"])
def test_parts_are_found_by_name(name):
    # As for the first use: once imported, a part is an attribute of the package.
    assert lstmx.__getattr__(name) is importlib.import_module(f"lstmx.{name}")
    assert name in dir(lstmx)


def test_other_names_are_not_found():
    with pytest.raises(AttributeError, match="module 'lstmx' has no attribute 'forecast'"):
        lstmx.__getattr__("forecast")
