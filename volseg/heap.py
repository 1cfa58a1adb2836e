"""Memory that is freed and asked for again within a moment, kept meanwhile.

glibc gives every large block back to the system when it is freed, and the system clears each page of the next one:
a third of the time of a network on a CPU, whose feature maps come and go by hundreds of megabytes a second. Blocks
above 32 MB, the most that glibc allows here, still do so; `volseg.networks.maps` asks for large pages for them.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Names and numbers of <malloc.h>, and the values glibc starts with; see mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
KEEP = {TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20, MMAP_THRESHOLD: 32 << 20}
START = {TRIM_THRESHOLD: 128 << 10, TOP_PAD: 0}

_lock = threading.Lock()
_users = 0


@contextmanager
def kept_heap() -> Iterator[None]:
    """Inside, freed memory stays with the process; afterwards what is free goes back to the system.

    It concerns the whole process, and may be entered by several threads. Afterwards glibc's settings are those it
    starts with, but for the size from which blocks are the system's own: 32 MB, to which glibc itself raises it where
    large blocks are freed. Where the C library is not glibc, nothing happens.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _set(KEEP)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _set(START)
                _trim()


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
