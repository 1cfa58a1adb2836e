"""Memory promised to the scans at work in this process, so that several do not plan with the same free memory."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from volseg.errors import ResourceError

T = TypeVar("T")

_changed = threading.Condition()
_promised: list[int] = []


def _forget() -> None:
    """In a forked process no scan of the parent is at work, and none of its threads gives the lock back."""
    global _changed
    _changed = threading.Condition()
    _promised.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def promised(plan: Callable[[int], tuple[T, int]]) -> Iterator[T]:
    """Plan memory, and hold it for as long as the context.

    What does not fit beside the scans at work waits until one of them ends. They count as a whole, although they may
    have taken part of their memory already: so a scan may wait too long, but none is promised what is not there.

    Args:
        plan: from the bytes that others were promised to a plan and its bytes.

    Yields:
        The plan.

    Raises:
        ResourceError: the plan does not fit even while nothing else is at work.
    """
    with _changed:
        while True:
            others = sum(_promised)
            try:
                found, size = plan(others)
                break
            except ResourceError:
                if not others:
                    raise
                _changed.wait()
        _promised.append(size)
    try:
        yield found
    finally:
        with _changed:
            _promised.remove(size)
            _changed.notify_all()
