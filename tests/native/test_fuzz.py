"""A few seconds of the kernels' fuzzer (its head says how to run it for longer, and with sanitizers)."""

import subprocess
from pathlib import Path

import pytest

from lstmx.implementations.native import library


@pytest.mark.full
def test_random_problems(tmp_path):
    try:
        compiler = library._compiler()
    except library.UnavailableError as reason:
        pytest.skip(f"the fuzzer {reason}")
    program = tmp_path / "fuzz"
    flags = [
        "-std=c++17",
        "-O1",
        "-fno-math-errno",
        "-ffp-contract=fast",
        "-pthread",
        *library._machine_flags(),
    ]
    source = Path(__file__).with_name("fuzz.cc")
    subprocess.run([*compiler, *flags, f"-I{library.SOURCES}", source, "-o", program], check=True)
    done = subprocess.run([program, "4", "0", "2"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all right" in done.stdout
