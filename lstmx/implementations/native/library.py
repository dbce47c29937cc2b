"""The C++ kernels: compiled once for the machine, at their first use, and stored in the user's cache.

They are not an extension module that is built on installation, because `pip install` would then need a
compiler or fail, or wheels would have to be built for the oldest supported processor, and register tiles for
another instruction set are several times slower. Compiled at first use, by the machine's compiler for its own
processor, one source serves all machines, and those without a compiler use the other implementations. The
cost is one compilation of 10 to 40 seconds.

    LSTMX_NATIVE=0      never use (or compile) the kernels
    LSTMX_CACHE_DIR     the folder of the compiled library; by default XDG_CACHE_HOME/lstmx or ~/.cache/lstmx
    CXX                 the compiler; by default c++, g++ or clang++
"""

import contextlib
import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jaxlib
import numpy as np

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

SOURCES = Path(__file__).parent / "kernels"
KERNELS = ("lstm", "gru", "elman_tanh", "elman_relu")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")

_log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """Why there are no kernels on this machine, as a clause that follows 'implementation "native" '."""


def refusal() -> str | None:
    """Why the kernels cannot be used; None if they can, as far as is known without compiling them."""
    return _loaded()[1] if _loaded.cache_info().currsize else _expected()


def load() -> str | None:
    """Loads the kernels, and compiles them first if this machine does not have them yet.

    Returns:
      None, or why they cannot be used.
    """
    return _loaded()[1]


@functools.cache
def _expected() -> str | None:
    """Why there can be no library, if that is known without compiling it."""
    try:
        place = _place()
        if not place.library.exists():
            place.raise_if_failed()
    except UnavailableError as reason:
        return str(reason)
    return None


@functools.cache
def lanes() -> int:
    """The number of floats in a vector register, on which the layout of the tape depends."""
    return _require().lstmx_lanes()


def _require() -> ctypes.CDLL:
    library, reason = _loaded()
    if library is None:
        raise NotImplementedError(f'implementation "native" {reason}')
    return library


def stepper() -> Callable[..., bool]:
    """The C function `lstmx_step`."""
    return _require().lstmx_step


def packed(layer: ctypes.Structure) -> np.ndarray:
    """The weights of a layer (`stepping.StepLayer`) in the order in which the kernels read them."""
    library = _require()
    to = np.empty(library.lstmx_packed_floats(ctypes.byref(layer)), np.float32)
    library.lstmx_pack(ctypes.byref(layer), to.ctypes.data_as(ctypes.c_void_p))
    return to


def threads() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, with its kernels registered in XLA, or else None and the reason."""
    try:
        library = ctypes.CDLL(str(_compiled()))
    except UnavailableError as reason:
        return None, str(reason)
    except OSError as error:
        reason = f"has a compiled library that cannot be loaded ({error}); delete it to compile it again"
        warnings.warn(f'implementation "native" {reason}', RuntimeWarning, stacklevel=2)
        return None, reason
    library.lstmx_step.restype, library.lstmx_packed_floats.restype = ctypes.c_bool, ctypes.c_int64
    for kernel, direction in itertools.product(KERNELS, ("forward", "backward")):
        target = f"lstmx_{kernel}_{direction}"
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    return library, None


class _Place(NamedTuple):
    """Where the library is, or will be."""

    compiler: list[str]
    library: Path
    log: Path  # written if the compilation fails

    def raise_if_failed(self) -> None:
        if self.log.exists():
            raise UnavailableError(
                f"did not compile: the compiler's messages are in {self.log} (delete it to try again)"
            )


def _place() -> _Place:
    if os.environ.get("LSTMX_NATIVE") == "0":
        raise UnavailableError("is turned off by LSTMX_NATIVE=0")
    if fcntl is None:
        raise UnavailableError("is compiled only on POSIX systems")
    compiler = _compiler()
    path = cache_folder() / f"native-{_digest(compiler)}.so"
    return _Place(compiler, path, path.with_suffix(".log"))


def _compiled() -> Path:
    """The compiled library; it is compiled if it is not there."""
    place = _place()
    if not place.library.exists():
        with _locked(place.library.with_suffix(".lock")):
            if not place.library.exists() and not place.log.exists():
                _compile(*place)
        if not place.library.exists():
            place.raise_if_failed()
    return place.library


def _compiler() -> list[str]:
    named = os.environ.get("CXX", "").split()
    candidates = [named] if named else [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if shutil.which(command[0]):
            return command
    names = ", ".join(command[0] for command in candidates)
    raise UnavailableError(f"needs a C++ compiler, and none was found ({names})")


def cache_folder() -> Path:
    """The folder of compiled libraries; only this user can write to it."""
    named, parent = os.environ.get("LSTMX_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named) if named else Path(parent or Path.home() / ".cache") / "lstmx"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # there may be no home
        raise UnavailableError(f"has no writable cache folder ({error}); set LSTMX_CACHE_DIR") from error
    return folder


def _digest(compiler: list[str]) -> str:
    """A digest of everything that a compiled library depends on."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    facts = (compiler, FLAGS, _machine_flags(), jaxlib.__version__, platform.machine(), _instruction_set())
    digest.update(version + repr(facts).encode())
    return digest.hexdigest()[:16]


def _machine_flags() -> tuple[str, ...]:
    return ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64") else ("-march=native",)


def _instruction_set() -> str:
    # Machines with different processors may share a home directory.
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()


@contextlib.contextmanager
def _locked(path: Path):
    """Admits one process at a time; the others wait and then find the work done."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(compiler: list[str], path: Path, log: Path) -> None:
    """Compiles to a temporary file and renames it, or writes the compiler's messages to the log."""
    _log.warning("compiling lstmx's CPU kernels, once for this machine (up to a minute): %s", path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    command = [*compiler, *FLAGS, *_machine_flags(), f"-I{jax.ffi.include_dir()}"]
    command += [str(SOURCES / "ffi.cc"), "-o", temporary]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            os.replace(temporary, path)
            return
        log.write_text(" ".join(command) + "\n" + result.stdout + result.stderr)
        warnings.warn(
            f"lstmx's CPU kernels did not compile (see {log}); slower implementations are used instead",
            RuntimeWarning,
            stacklevel=2,
        )
    finally:
        Path(temporary).unlink(missing_ok=True)
