"""Stopping at the end of a step on request: SIGTERM from a scheduler, or Ctrl-C."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopRequest:
    """Whether a stop was requested.

    Attributes:
        signal: number of the signal that requested it, or None.
        reason: why a program requested it, or None.
    """

    signal: int | None = None
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None or self.reason is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGTERM or SIGINT into a request; the second one ends the process at once.

    The previous handlers are restored at the end. Outside of the main thread Python allows no handlers, so
    nothing is changed there and no request ever comes.

    Example:
        >>> with stop_on_signals() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     bool(stop), stop.signal
        (True, 15)
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number, frame):
        if request:
            # os._exit: a library in the middle of a long call must not delay or swallow it.
            os.write(sys.__stderr__.fileno(), b"\nstopped at once; the last checkpoint is untouched\n")
            os._exit(128 + number)
        request.signal = number

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
