"""Ctrl-C and SIGTERM end a run between two steps, where its state is whole."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has come; a second signal interrupts at once.

    Outside the main thread Python allows no signal handlers: then the function is always False.
    """
    asked = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of signal handlers
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        logger.info("Stopping after this step; once more stops at once.")

    with _handling(ask):
        yield asked.is_set


@contextmanager
def ignore_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM go by."""
    with _handling(signal.SIG_IGN):
        yield


@contextmanager
def _handling(handle: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """Give SIGINT and SIGTERM to `handle`, where this is the main thread, which alone gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
