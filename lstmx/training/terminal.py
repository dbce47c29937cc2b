"""What a command says in a person's terminal: one plain line for each warning and each error.

Commands wrap all they do in `clean_errors`. What Python, libraries and threads would print besides, above all
tracebacks, is shown only on request (`debug`).
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

from lstmx.training.checkpoint import CheckpointError


@contextlib.contextmanager
def clean_errors(debug: bool = False) -> Iterator[None]:
    """Shows an error that the user can correct as one message; any other is a bug and keeps its traceback.

    Warnings are lines that begin with "warning:". Exits without a message, as if killed by the signal, if the
    reader of the output has closed it, as `| head` does.

    Args:
        debug: whether to show tracebacks and the messages of other libraries too.

    Raises:
        SystemExit: 2, after a message.

    Example:
        >>> with clean_errors(debug=True):
        ...     raise ValueError("steps must be at least 1, got 0")
        Traceback (most recent call last):
        ValueError: steps must be at least 1, got 0
    """
    with plain_messages(debug), reported_errors(debug):
        yield


@contextlib.contextmanager
def reported_errors(
    debug: bool = False, advice: Callable[[Exception], str] = lambda error: ""
) -> Iterator[None]:
    """The part of `clean_errors` that concerns errors.

    Args:
        debug: whether to show tracebacks.
        advice: what to add to the message of an error.

    Raises:
        SystemExit: 2, after a message.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # Windows has no such signal.
        raise SystemExit(128 + getattr(signal, "SIGPIPE", 13)) from None
    except (CheckpointError, ValueError, OSError) as error:
        if debug:
            raise
        fail(str(error) + advice(error))


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the process with a message on the standard error.

    Args:
        message: what is wrong, without "error:".
        code: the exit code.

    Raises:
        SystemExit: with the code.
    """
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def count_of(count: int, noun: str) -> str:
    """A number of things, in the singular where it is one.

    Example:
        >>> count_of(1, "line"), count_of(2000, "line")
        ('1 line', '2,000 lines')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


@contextlib.contextmanager
def plain_messages(debug: bool = False) -> Iterator[None]:
    """The part of `clean_errors` that concerns warnings and the messages of other libraries."""
    # orbax and tensorflow-datasets log through absl.
    others = [logging.getLogger(name) for name in ("absl", "asyncio")]
    if debug:
        for logger in others:
            logger.removeFilter(_nothing)
        yield
        return
    # Left there: threads of orbax still log a failure that has been reported while Python shuts down.
    for logger in others:
        logger.addFilter(_nothing)
    errors = sys.stderr
    sys.stderr = _WithoutForeignThreads(errors)
    own, handler = logging.getLogger("lstmx"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter())
    propagate, own.propagate = own.propagate, False
    own.addHandler(handler)
    show = warnings.showwarning

    def show_plainly(message, category, *place, **options):
        if issubclass(category, UserWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            show(message, category, *place, **options)

    warnings.showwarning = show_plainly
    try:
        yield
        # After an error it stays: the threads of the libraries end with the process.
        sys.stderr = errors
    finally:
        warnings.showwarning = show
        own.removeHandler(handler)
        own.propagate = propagate


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def _nothing(record: logging.LogRecord) -> bool:
    return False


class _WithoutForeignThreads:
    """A stream that drops what threads print that Python has not started: tracebacks from C++ libraries."""

    def __init__(self, stream) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # Python makes a dummy for such a thread.
        if isinstance(threading.current_thread(), threading._DummyThread):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
