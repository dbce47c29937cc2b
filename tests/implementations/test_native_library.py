"""Compiling the CPU kernels: once for a machine, and what happens where that cannot be done."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import lstmx
from lstmx.implementations import choice
from lstmx.implementations.native import library

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own; the process's kernels stay as they are."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LSTMX_CACHE_DIR", str(folder))
    monkeypatch.delenv("LSTMX_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return folder


def compiler(folder, *commands):
    """A stand-in for a compiler: a script that knows `--version`, counts other runs, then does as told."""
    path, runs = folder / "compiler", folder / "runs"
    lines = ["#!/bin/sh", 'for last; do [ "$before" = -o ] && out="$last"; before="$last"; done']
    lines += ['[ "$1" = --version ] && echo "1.0" && exit', f'echo "$@" >> {runs}', *commands]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path, lambda: runs.read_text().splitlines() if runs.exists() else []


@pytest.fixture
def works(tmp_path, monkeypatch, cache):
    """A compiler that works, and its runs."""
    path, runs = compiler(tmp_path, 'echo compiled > "$out"')
    monkeypatch.setenv("CXX", str(path))
    return runs


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_reason_to_refuse_is_a_reason_for_fused(name, monkeypatch):
    monkeypatch.setattr(library, "refusal", lambda: "is not here today")
    cell = {"lstm": lstmx.LSTM, "gru": lstmx.GRU}[name](4)
    assert lstmx.which_implementation(cell) == "fused"
    with pytest.raises(NotImplementedError, match=r'"native" is not here today; these can run it: .*fused'):
        lstmx.which_implementation(cell, "native")
    assert choice.refusal(choice.Job(lstmx.SLSTM(4)), "native") != "is not here today"


def refused():
    """Why there is no library."""
    with pytest.raises(library.UnavailableError) as caught:
        library._compiled()
    return str(caught.value)


@pytest.mark.usefixtures("works")
def test_turned_off(cache, monkeypatch):
    monkeypatch.setenv("LSTMX_NATIVE", "0")
    assert refused() == "is turned off by LSTMX_NATIVE=0"
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
def test_no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert re.search(r"needs a C\+\+ compiler, and none was found \(c\+\+, g\+\+, clang\+\+\)", refused())
    monkeypatch.setenv("CXX", "nowhere/c++ -m64")
    assert refused().endswith("none was found (nowhere/c++)")


@pytest.mark.parametrize("place", ["a file", "no home"])
@pytest.mark.usefixtures("works")
def test_no_cache(place, tmp_path, monkeypatch):
    if place == "a file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("LSTMX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    else:
        for name in ("LSTMX_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert re.match(r"has no writable cache folder \(.*\); set LSTMX_CACHE_DIR", refused())


def test_where_the_cache_is(cache, tmp_path, monkeypatch):
    assert library.cache_folder() == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    monkeypatch.delenv("LSTMX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert library.cache_folder() == tmp_path / "xdg" / "lstmx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert library.cache_folder() == tmp_path / "home" / ".cache" / "lstmx"


def test_compiled_once(cache, works, caplog):
    path = library._compiled()
    assert path.parent == cache
    assert path.read_text() == "compiled\n"
    assert re.search(r"compiling lstmx's CPU kernels, once", caplog.text)
    assert library._compiled() == path
    assert len(works()) == 1
    assert {p.suffix for p in cache.iterdir()} == {".so", ".lock"}
    command = works()[0]
    assert all(flag in command for flag in (*library.FLAGS, "ffi.cc"))
    # Neither would be right for NaN: it must reach the outputs.
    assert "-ffast-math" not in command
    assert "-Ofast" not in command


def test_what_a_library_depends_on_is_in_its_name(tmp_path, works, monkeypatch):
    first = library._compiled()
    sources = tmp_path / "kernels"
    sources.mkdir()
    for path in library.SOURCES.iterdir():
        (sources / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(library, "SOURCES", sources)
    assert library._compiled() == first
    (sources / "cells.h").write_text("// changed\n")
    names = [first, library._compiled()]
    for attribute, value in (
        ("FLAGS", (*library.FLAGS, "-g")),
        ("_instruction_set", lambda: "another"),
        ("_machine_flags", lambda: ("-march=another",)),
    ):
        monkeypatch.setattr(library, attribute, value)
        names.append(library._compiled())
    other, runs = compiler(tmp_path / "kernels", 'echo > "$out"')
    monkeypatch.setenv("CXX", str(other))
    names.append(library._compiled())
    assert len(set(names)) == len(names) == len(works()) + 1 == 6
    assert len(runs()) == 1


FAILING = """
import sys, warnings, jax, jax.numpy as jnp, lstmx
cell = lstmx.LSTM(4)
params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3))
print(lstmx.which_implementation(cell))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    _, ys = lstmx.scan(cell, params, xs)
    lstmx.step(cell, params, None, xs[0])
    print(lstmx.which_implementation(cell), lstmx.which_implementation(lstmx.GRU(4)))
    try:
        lstmx.scan(cell, params, xs, implementation="native")
    except NotImplementedError as error:
        print(error)
_, expected = lstmx.scan(cell, params, xs, implementation="reference")
print(bool(jnp.allclose(ys, expected, rtol=1e-6)))
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


def test_a_compilation_that_fails(cache, tmp_path):
    path, runs = compiler(tmp_path, 'echo "on stdout"; echo "kernels.h:1: error: no" >&2; exit 3')
    environment = {**os.environ, "CXX": str(path)}

    def run():
        command = [sys.executable, "-c", FAILING]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    expected, chosen, error, equal, *warned = run()
    (log,) = cache.glob("*.log")
    assert expected == "native"  # nothing was compiled to answer
    assert chosen == "fused fused"
    assert equal == "True"
    assert re.search(
        rf'implementation "native" did not compile: .* in {log} .*these can run it: .*fused', error
    )
    assert len(warned) == 1
    assert re.match(rf"RuntimeWarning lstmx's CPU kernels did not compile \(see {log}\)", warned[0])
    text = log.read_text()
    assert "on stdout" in text
    assert "kernels.h:1: error: no" in text
    assert text.splitlines()[0].startswith(f"{path} -std=")
    assert {p.suffix for p in cache.iterdir()} == {".log", ".lock"}

    # Another process does not try again, and says nothing but, asked for the kernels, why there are none.
    assert run() == ["fused", chosen, error, equal]
    assert len(runs()) == 1


QUESTIONS = """
import jax, jax.numpy as jnp, lstmx
from lstmx.implementations import choice, native
cell = lstmx.LSTM(4)
xs = jnp.ones((5, 2, 3))
print(lstmx.which_implementation(cell), lstmx.which_implementation(cell, "native", xs=xs))
print(native.refusal(choice.Job(cell)))
try:
    lstmx.which_implementation(cell, "associative")
except NotImplementedError as error:
    print(error)
params = cell.init(jax.random.key(0), 3)
for name in ("reference", "fused"):
    lstmx.scan(cell, params, xs, implementation=name)
    lstmx.step(cell, params, None, xs[0], implementation=name)
try:
    lstmx.scan(cell, params, xs, implementation="cudnn")
except NotImplementedError as error:
    print(error)
"""


def test_a_question_compiles_nothing(cache, tmp_path):
    path, runs = compiler(tmp_path, "exit 3")
    command = [sys.executable, "-W", "error", "-c", QUESTIONS]
    environment = {**os.environ, "CXX": str(path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    chosen, refusal, *errors = done.stdout.splitlines()
    assert (chosen, refusal) == ("native native", "None")
    assert len(errors) == 2
    assert all(re.search(r"these can run it: .*native", error) for error in errors)
    assert runs() == []
    assert list(cache.iterdir()) == []


TOGETHER = """
import sys
from lstmx.implementations.native import library
print("ready", flush=True)
sys.stdin.readline()
print(library._compiled())
"""


@pytest.mark.full
def test_two_processes_at_once_compile_once(cache, tmp_path):
    path, runs = compiler(tmp_path, "sleep 1", 'echo compiled > "$out"')
    environment = {**os.environ, "CXX": str(path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [p.stdout.readline() for p in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    (first, _), (second, _) = (p.communicate(timeout=60) for p in processes)
    assert first == second
    assert Path(first.strip()).read_text() == "compiled\n"
    assert len(runs()) == 1
    assert [p.returncode for p in processes] == [0, 0]
    assert {p.suffix for p in cache.iterdir()} == {".so", ".lock"}


@pytest.mark.usefixtures("works")
def test_a_library_that_cannot_be_loaded(cache):
    path = library._compiled()
    with pytest.warns(RuntimeWarning, match=f"cannot be loaded .*{path}.*; delete it"):
        found, reason = library._loaded.__wrapped__()
    assert found is None
    assert "cannot be loaded" in reason
