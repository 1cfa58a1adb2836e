"""Keep freed memory in the process for reuse (glibc malloc settings).

glibc returns every large block to the system when it is freed, and the system clears each page of the next block. For a
network on a CPU, which allocates and frees hundreds of megabytes of feature maps per second, that is a third of the
time. glibc can keep blocks above 32 MB only in the common heap, which cannot return memory from its middle;
`reusable_block` keeps such blocks one by one.
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

# Names and numbers of <malloc.h>, and the initial values of glibc; see mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
KEEP = {TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20, MMAP_THRESHOLD: 32 << 20}
KEEP_LARGE = {MMAP_MAX: 0}
START = {TRIM_THRESHOLD: 128 << 10, TOP_PAD: 0, MMAP_MAX: 65536}

_lock = threading.Lock()
_users = 0
_free: defaultdict[int, list[np.ndarray]] = defaultdict(list)


@contextmanager
def keep_freed_memory(large: bool = False) -> Iterator[None]:
    """Keep freed memory in the process; at the end, return it to the system.

    The setting applies to the whole process, and several threads may enter. At the end glibc has its initial settings,
    except for the size above which blocks come directly from the system: that stays at 32 MB, to which glibc itself
    raises it when large blocks are freed. Without glibc, nothing happens.

    Args:
        large: keep blocks above 32 MB too, for work that allocates the same sizes again and again, such as training:
            up to a third more memory, but almost no pages to clear after the first steps.
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
    """Uninitialised memory of `size` bytes, (size,) uint8; within `keep_freed_memory`, a freed block of that size.

    numpy allocates it, with huge pages, which are fast to clear. The block is free again once the array and everything
    that shares its memory are gone.
    """
    with _lock:
        block = _free[size].pop() if _free[size] else np.empty(size, np.uint8)
    view = block[:]
    weakref.finalize(view, _release, block)
    return view


def _release(block: np.ndarray) -> None:
    # Without the lock: the garbage collector may call this while the thread holds it, and list operations are atomic.
    if _users:
        _free[block.size].append(block)


def _glibc(name: str) -> Any:
    """A function of glibc by name; None without glibc."""
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
