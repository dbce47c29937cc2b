"""Memory that is kept between steps."""

import subprocess
import sys

import pytest

# Page faults of later allocations of 64 MiB, of a block in a thread, as XLA's are.
FAULTS = """
import resource, sys, threading
import numpy as np
from lstmx.training import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
counts = []
def work():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.empty(64 << 20, np.uint8).fill(1)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(max(counts[1:]))
"""


def faults(mode):
    command = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_not_mapped_again():
    # NumPy asks for huge pages, each of which is one fault.
    assert faults("keep") == 0 < faults("leave")
