"""The storage of a study: a journal in the sweep's folder, or a database.

Optuna's own lock of a journal is a link that a killed process leaves behind, and a line that was torn by a
kill makes the one appended to it unreadable. Here the lock belongs to an open file, which the system closes,
and whoever holds it first removes a torn line.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lstmx.training.files import lock_file


class SweepError(ValueError):
    """A sweep cannot be made, or cannot go on; the message says why."""


def optuna() -> Any:
    """The package.

    Raises:
        SweepError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise SweepError("sweeps need Optuna: pip install 'lstmx[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until this process is the only one to hold a lock, which the system drops if the process ends.

    Args:
        path: the file of the lock, which is made.
    """
    with path.open("a") as file:
        while True:
            try:
                lock_file(file)
            except OSError:
                time.sleep(0.02)
            else:
                break
        yield


class _Lock:
    """A lock as Optuna's journal wants it."""

    def __init__(self, journal: Path):
        self._journal = journal
        self._held: Any = None

    def acquire(self) -> bool:
        self._held = locked(self._journal.with_name(self._journal.name + ".lock"))
        self._held.__enter__()
        _drop_torn_line(self._journal)
        return True

    def release(self) -> None:
        self._held.__exit__(None, None, None)


def _drop_torn_line(journal: Path) -> None:
    with journal.open("r+b") as file:
        end = file.seek(0, 2)
        begin = end
        while begin and (file.seek(begin - 1), file.read(1))[1] != b"\n":
            begin -= 1
        if begin < end:
            file.truncate(begin)


def open_storage(folder: Path, url: str | None) -> Any:
    """Opens the storage, and makes it if there is none.

    Args:
        folder: the sweep's folder.
        url: a database as SQLAlchemy names it; None for `journal.log` in the folder.

    Raises:
        SweepError: the journal is damaged, or the database cannot be reached.
    """
    package = optuna()
    if url is None:
        return _open_journal(folder / "journal.log", package)
    try:
        return package.storages.RDBStorage(url)
    # SQLAlchemy, its drivers and alembic each have their own.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SweepError(
            f"the database of the sweep cannot be used ({_without_password(url)}): {reason}"
        ) from error


def _open_journal(path: Path, package: Any) -> Any:
    from optuna.storages.journal import JournalFileBackend

    path.touch()
    lock: Any = _Lock(path)
    lock.acquire()
    lock.release()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", package.exceptions.ExperimentalWarning)
        try:
            return package.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        except (ValueError, KeyError, TypeError) as error:
            raise SweepError(
                f"{path} is damaged ({error}): restore it from a copy, or begin another sweep; the runs in "
                f"{path.parent / 'trials'} are whole"
            ) from error


def _without_password(url: str) -> str:
    scheme, separator, rest = url.rpartition("@")
    return f"{scheme.split(':')[0]}://...@{rest}" if separator else url
