"""Delimiters of CSV files and byte order marks; the examples of both modules."""

import doctest

import pytest

from experiments.datasets import compressed, csv_dialect
from experiments.datasets.csv_dialect import text_delimiter


@pytest.mark.parametrize("module", [compressed, csv_dialect])
def test_docstring_examples(module):
    assert doctest.testmod(module).attempted
    assert not doctest.testmod(module).failed


@pytest.mark.parametrize(
    ("header", "columns", "delimiter"),
    [
        ("a,b", ["a", "b"], ","),
        ("a;b", ["a", "b"], ";"),
        ("a\tb\r", ["a", "b"], "\t"),
        ('"a";"x,y,z"', ["a"], ";"),
        ('"a|c";b', ["a|c", "b"], ";"),
        ("a", ["a"], ","),
        ("x;y;z", ["a"], ";"),  # an error names the columns that there are
        ("", ["a"], ","),
    ],
)
def test_the_delimiter_is_that_of_the_wanted_columns(header, columns, delimiter):
    assert text_delimiter(header + "\n1,2,3,4\n", columns) == delimiter
