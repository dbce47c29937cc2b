"""Atomic writes, and locks."""

import importlib
import os
from pathlib import Path
from typing import IO

# Far behind the content of any file that is locked.
_LOCKED_BYTE = 0x7FFFFFFF - 1


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file in one instant: after a kill or a power cut it is the old one or the new one.

    Args:
        path: the file; its folder must exist.
        content: the whole content; text is stored as UTF-8.

    Raises:
        OSError: it cannot be written; the old content is still there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "a.json"), "{}")
        ...     [entry.name for entry in Path(folder).iterdir()]
        ['a.json']
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def lock_file(file: IO) -> None:
    """Locks an open file for this process, until it is closed or the process ends.

    Args:
        file: open for writing. On Windows, which has no `fcntl`, only a byte far behind its end is locked, so
            that others can still read it.

    Raises:
        OSError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:
        msvcrt = importlib.import_module("msvcrt")  # by name: type checkers on other systems do not know it
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable: a rename is not on the disk before its folder is."""
    if os.name == "nt":  # folders cannot be opened there, and need not be
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
