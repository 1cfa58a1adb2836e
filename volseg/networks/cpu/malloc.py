"""Memory that is freed and asked for again within a moment, kept meanwhile.

glibc gives every large block back to the system when it is freed, and the system clears each page of the next one:
a third of the time of a network on a CPU, whose feature maps come and go by hundreds of megabytes a second. Blocks
above 32 MB glibc keeps only in one heap with all others, out of whose middle nothing can be given back; `reusable_block`
keeps them one by one.
"""

import ctypes
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

# Names and numbers of <malloc.h>, and the values glibc starts with; see mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
KEEP = {TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20, MMAP_THRESHOLD: 32 << 20}
KEEP_LARGE = {MMAP_MAX: 0}
START = {TRIM_THRESHOLD: 128 << 10, TOP_PAD: 0, MMAP_MAX: 65536}

_lock = threading.Lock()
_users = 0
_free: defaultdict[int, list[np.ndarray]] = defaultdict(list)


@contextmanager
def keep_freed_memory(large: bool = False) -> Iterator[None]:
    """Inside, freed memory stays with the process; afterwards what is free goes back to the system.

    It concerns the whole process, and may be entered by several threads. Afterwards glibc's settings are those it
    starts with, but for the size from which blocks are the system's own: 32 MB, to which glibc itself raises it where
    large blocks are freed. Where the C library is not glibc, nothing happens.

    Args:
        large: keep blocks above 32 MB too, for work that asks for the same ones again and again, as training does:
            up to a third more memory there, but hardly a page of it cleared after the first steps.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _set(KEEP)
        if large:
            _set(KEEP_LARGE)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _free.clear()
                _set(START)
                _trim()


def reusable_block(size: int) -> np.ndarray:
    """Uninitialised memory of `size` bytes, (size,) uint8; within `keep_freed_memory` a block of that size that is free again.

    The memory is numpy's, which asks the system for large pages, so that clearing them is quick. It is free again when
    the array and all that shares its memory are gone.
    """
    with _lock:
        block = _free[size].pop() if _free[size] else np.empty(size, np.uint8)
    handed_out = block[:]
    weakref.finalize(handed_out, _take_back, block)
    return handed_out


def _take_back(block: np.ndarray) -> None:
    # Also called by the garbage collector, wherever it runs, and so possibly while this thread holds the lock: list
    # operations are atomic.
    if _users:
        _free[block.size].append(block)


def _glibc(name: str) -> Any:
    """A function of glibc by name, None where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None


def _set(values: dict[int, int]) -> None:
    mallopt = _glibc("mallopt")
    for parameter, value in values.items() if mallopt else ():
        mallopt(parameter, value)


def _trim() -> None:
    trim = _glibc("malloc_trim")
    if trim:
        trim(0)
