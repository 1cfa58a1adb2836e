"""Ctrl-C and SIGTERM end a run after the current step, when its state is consistent."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM has arrived; a second signal raises KeyboardInterrupt.

    Python allows signal handlers only in the main thread; in other threads the function always returns False.
    """
    requested = threading.Event()

    def request_stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of signal handlers
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        logger.info("Stopping after this step; a second Ctrl-C stops immediately.")

    with _signal_handler(request_stop):
        yield requested.is_set


@contextmanager
def ignore_signals() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM."""
    with _signal_handler(signal.SIG_IGN):
        yield


def stop_with_parent() -> None:
    """Send this process a SIGTERM when the process that started it has ended, as a launcher does that is stopped."""
    threading.Thread(target=_wait_for_end_of, args=(os.getppid(),), daemon=True).start()


def _wait_for_end_of(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _signal_handler(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """Handle SIGINT and SIGTERM with `handler` in the main thread; other threads receive no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
