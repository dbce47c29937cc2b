"""The documents are correct: their code runs, their names exist, and nothing public is missing."""

import dataclasses
import inspect
import os
import re
import typing
from pathlib import Path

import pytest

import lstmx
from lstmx import convert, models, regularizers, sweeps

os.environ["KERAS_BACKEND"] = "jax"  # for Keras, if this test imports it first

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "cells.md", "models.md", "training.md", "data.md", "migrating.md", "features.md", "forecasting.md",
    "sweeps.md",
)  # fmt: skip
TEXTS = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in FILES}
OTHER_SYSTEMS = {"haiku", "keras", "onnx", "onnxruntime", "torch"}


def snippets_of(text):
    """The Python blocks of each section that has any: `(title, [(line, code), ...])`; a section is a `##`."""
    sections = {}
    title = ""
    pattern = r"^## (?P<title>[^\n]*)$|^```python\n(?P<code>.*?)^```$"
    for block in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        if block["title"] is not None:
            title = block["title"]
            continue
        line = text.count("\n", 0, block.start("code"))
        sections.setdefault(title, []).append((line, block["code"]))
    return sections


def run(snippets, path="a document"):
    """Runs snippets in order, in one namespace; tracebacks show the lines of the document."""
    names = {"__name__": "snippet"}
    for line, code in snippets:
        exec(compile("\n" * line + code, str(path), "exec"), names)
    return names


def words_in_code(text):
    """The words of code spans and code blocks."""
    fenced = r"^```\w*\n.*?^```$"
    blocks = re.findall(fenced, text, re.DOTALL | re.MULTILINE)
    prose = re.sub(fenced, "", text, flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`[^`]+`|^    .*$", prose, re.MULTILINE)
    return set(re.findall(r"\w+", " ".join([*blocks, *spans])))


CELLS = [value for value in vars(lstmx).values() if dataclasses.is_dataclass(value)]
# Cells whose section has another title, and the fields that all cells share.
PARTS = {"Regularized": "Regularizers", "Stack": "Networks", "Bidirectional": "Networks"}
COMMON = {"hidden_size", "dtype", "param_dtype", "kernel_init", "recurrent_init", "bias_init"}


def systems_of(snippets):
    """The other systems that snippets import."""
    code = "".join(code for _, code in snippets)
    return sorted({*re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)} & OTHER_SYSTEMS)


SECTIONS = [
    pytest.param(name, title, marks=[pytest.mark.conformance] if systems_of(snippets) else [])
    for name in FILES
    for title, snippets in snippets_of(TEXTS[name]).items()
]


# Keras calls NumPy in a way that NumPy 2 warns about.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("name", "title"), SECTIONS)
def test_snippets_run(name, title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where they write their runs
    snippets = snippets_of(TEXTS[name])[title]
    for package in systems_of(snippets):
        pytest.importorskip(package, reason=f"the snippet needs {package}")
    run(snippets, ROOT / "docs" / name)


def test_failing_snippets_are_detected():
    sections = snippets_of(
        "# A\n\n## B\n\n```python\nx = 1\n```\n\nc\n\n```python\nassert x == 2\n```\n\n## D\n\n```bash\n```\n"
    )
    assert sections == {"B": [(5, "x = 1\n"), (11, "assert x == 2\n")]}
    with pytest.raises(AssertionError) as failure:
        run(sections["B"])
    assert failure.traceback[-1].lineno + 1 == 12


def test_all_sections_have_their_snippets():
    counts = {title: len(snippets) for title, snippets in snippets_of(TEXTS["migrating.md"]).items()}
    assert list(counts.items()) == [
        ("torch", 4),
        ("Keras 3", 3),
        ("Flax NNX", 3),
        ("Flax Linen", 2),
        ("haiku", 2),
        ("ONNX", 1),
        ("cuDNN's packed weights", 1),
    ]
    assert len(snippets_of(TEXTS["cells.md"])) == 8


def test_public_names_are_documented():
    assert {*lstmx.__all__} <= words_in_code(TEXTS["cells.md"])
    assert {*models.__all__} <= words_in_code(TEXTS["models.md"])
    assert {*sweeps.__all__} <= words_in_code(TEXTS["sweeps.md"])
    assert len(snippets_of(TEXTS["models.md"])) == 6


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_fields_are_documented(cell):
    title = PARTS.get(cell.__name__, cell.__name__)
    conventions, section = section_of(r"Conventions"), section_of(rf".*\b{title}\b.*")
    fields = {field.name for field in dataclasses.fields(cell)}
    assert fields <= words_in_code(section) | (words_in_code(conventions) & COMMON)


def section_of(title):
    return re.search(rf"^## {title}\n(?:(?!## ).*\n)*", TEXTS["cells.md"], re.MULTILINE)[0]


def test_choices_are_documented():
    choices = {
        choice
        for cell in CELLS
        for field in dataclasses.fields(cell)
        for choice in choices_of(field.type)
        if isinstance(choice, str)
    }
    assert {"coupled", "fastrnns", "after", "valid", "average", "dense"} <= choices
    assert {choice for choice in choices if f'"{choice}"' not in TEXTS["cells.md"]} == set()


def choices_of(annotation):
    """The choices in a type of the form `Literal[...] | None`."""
    for part in typing.get_args(annotation):
        yield part
        yield from choices_of(part)


def test_options_of_scan_are_documented():
    options = {*inspect.signature(lstmx.scan).parameters} - {"cell", "params", "xs"}
    section = TEXTS["cells.md"].split("## Options of scan\n")[1]
    assert options <= set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))


def test_regularizers_are_documented():
    functions = {name for name, value in functions_of(regularizers) if not name.startswith("require_")}
    assert functions >= {"locked_dropout", "embedding_dropout"}
    assert functions <= words_in_code(TEXTS["cells.md"])


@pytest.mark.parametrize("name", convert.__all__)
def test_converters_are_documented(name):
    functions = {f for f, _ in functions_of(getattr(convert, name)) if re.match("from_|to_|run$", f)}
    table = {*re.findall(rf"`{name}\.(\w+)`", TEXTS["migrating.md"])}
    assert functions
    assert table >= functions
    assert all(hasattr(getattr(convert, name), function) for function in table)


def functions_of(module):
    """Public functions that a module defines."""
    for name, value in inspect.getmembers(module, inspect.isfunction):
        if value.__module__ == module.__name__ and not name.startswith("_"):
            yield name, value


@pytest.mark.parametrize("name", FILES)
def test_links_paths_and_names_exist(name):
    text = TEXTS[name]
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / "docs" / target).is_file(), target
    for file, title in re.findall(r"\]\(([^)#]*)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", TEXTS[file or name], re.MULTILINE)
        assert title in {heading.lower().replace(" ", "-") for heading in headings}, title
    for path in re.findall(r"(?:tests|docs|lstmx|scripts)/[\w/]+\.\w+", text):
        assert (ROOT / path).is_file(), path
    for attribute in re.findall(r"\blstmx\.((?:\w+\.)*\w+)", text):
        value = lstmx
        for part in attribute.split("."):
            value = getattr(value, part)


def test_rows_of_tables_have_equal_widths():
    for name, text in TEXTS.items():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            widths = {row.count("|") for row in table.splitlines()}
            assert len(widths) == 1, (name, table)


def test_notes_of_the_features_are_complete():
    cited, given = set(), set()
    for section in TEXTS["features.md"].split("\n## ")[1:]:
        rows = [row.split("|")[2:] for row in re.findall(r"^\|.*$", section, re.MULTILINE)]
        cited_here = {int(n) for row in rows for cell in row for n in re.findall(r"^ (?:- )?(\d+) $", cell)}
        given_here = {int(n) for n in re.findall(r"^(\d+)\. ", section, re.MULTILINE)}
        assert given_here <= cited_here
        cited, given = cited | cited_here, given | given_here
    assert cited == given == set(range(1, 1 + len(given)))
