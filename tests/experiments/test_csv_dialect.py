"""Delimiters of CSV files, byte order marks, and lines of text; the examples of these modules."""

import doctest
import io

import pytest

from experiments.datasets import compressed, csv_dialect
from experiments.datasets.csv_dialect import text_delimiter
from experiments.tasks import text_lines


@pytest.mark.parametrize("module", [compressed, csv_dialect, text_lines])
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_of_a_file_have_no_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "lines.txt"
    path.write_bytes("caf\u00e9\r\n\x85 two\n".encode(encoding))
    lines = list(text_lines.read_lines(path))
    assert [line.decode() for line in lines] == ["caf\u00e9\r\n", "\x85 two\n"]
    stream = io.BytesIO(path.read_bytes())
    if encoding == "utf-16":
        with pytest.raises(ValueError, match="the standard input is UTF-16; convert it first"):
            list(text_lines.read_lines(stream))
    else:
        assert list(text_lines.read_lines(stream)) == lines
