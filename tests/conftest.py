"""What all tests share: the import path, and double precision on request."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
# The repository, for `experiments`; and this folder, for the table of cells and the oracles.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# Data sets are prepared in a folder of the tests' own, by their subprocesses too.
_DATA = tempfile.TemporaryDirectory(prefix="lstmx-tests-")
os.environ["TFDS_DATA_DIR"] = _DATA.name

# The tests' loops are tiny, and most of their time is the compiler's, of which these flags save a third, in
# the commands that they run too. `XLA_FLAGS= pytest` compiles as users do; .ci/run does so for the tests
# marked `optimized`.
_QUICK = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):
    _QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_QUICK))

# A new shape is a new compilation: the time of an example says nothing.
hypothesis.settings.register_profile("lstmx", deadline=None, print_blob=True)
hypothesis.settings.load_profile("lstmx")


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, even in processes started in the background, which ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def double():
    """Double precision for the test."""
    with jax.enable_x64(True):
        yield


def pytest_addoption(parser):
    parser.addoption(
        "--require-systems",
        action="store_true",
        help="a test that another system is missing for fails, where it would be skipped otherwise",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fails a test that is skipped for want of a package, if it is not marked or all packages must be there.

    .ci/run installs the other systems, and then runs the tests marked `conformance`: one without the mark
    would never run.
    """
    report = yield
    if report.skipped and call.excinfo is not None and _misses_a_package(call.excinfo):
        reason = call.excinfo.value
        if item.get_closest_marker("conformance") is None:
            report.outcome, report.longrepr = "failed", f"not marked `conformance`, but skipped: {reason}"
        elif item.config.getoption("--require-systems"):
            report.outcome, report.longrepr = "failed", f"skipped: {reason}"
    return report


def pytest_runtest_teardown(item, nextitem):
    """Frees compiled programs between modules when many have piled up: all of them fill several gigabytes."""
    if (nextitem is None or nextitem.path != item.path) and _resident_bytes() > 2 * 2**30:
        jax.clear_caches()


def _resident_bytes():
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks as `full` the cases of a test marked `cross_section(n)` that the plain run leaves out."""
    tests = {}
    for item in items:
        if item.get_closest_marker("cross_section") is not None:
            tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    for cases in tests.values():
        taken = _cross_section(cases, *cases[0].get_closest_marker("cross_section").args)
        for case in cases:
            if case not in taken:
                case.add_marker(pytest.mark.full)


def _cross_section(cases, n):
    """Every n-th case; and of a product also the first case with each value that none of these has."""
    taken = cases[::n]
    if len(cases[0].callspec.params) > 1:
        for case in cases:
            if not _values([case]) <= _values(taken):
                taken.append(case)
    return taken


def _values(cases):
    """The values that parameters have in some cases of a test."""
    return {(name, id(value)) for case in cases for name, value in case.callspec.params.items()}


def _misses_a_package(excinfo):
    return any(entry.name == "importorskip" for entry in excinfo.traceback)
