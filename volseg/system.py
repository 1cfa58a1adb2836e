"""What differs between Linux, macOS and Windows: locks of files, the memory of the machine and of a process, cores.

Nothing here is needed at import: a part that a system lacks is replaced, or its answer is "unknown".
"""

import ctypes
import getpass
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, EDEADLK
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # Linux, macOS
    msvcrt = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_HELD = (EAGAIN, EACCES, EDEADLK)
# Of this process, because a lock keeps only other processes out; by device and inode.
_locked: set[tuple[int, int]] = set()
_guard = threading.Lock()


@contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Lock a file, which is made if it does not exist; its content stays. However a process ends, its locks end.

    Forked processes, such as those that prepare batches, do not inherit the lock.

    Yields:
        False where the file system has no locks, so that nothing is known of other processes.

    Raises:
        BlockingIOError: another process, or another part of this one, holds the lock.
        OSError: the file cannot be opened for writing, or it is a symbolic link, which may lead anywhere.
    """
    held = (0, 0)
    # A file that is opened and closed twice in a process loses its lock, so this one looks at its own locks first.
    with _guard:
        with suppress(OSError):
            held = _identity(os.stat(path))
        if held in _locked:
            raise BlockingIOError(EAGAIN, "locked by this process", str(path))
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            sure = _lock(handle)
        except BaseException:
            os.close(handle)
            raise
        held = _identity(os.fstat(handle))
        _locked.add(held)
    try:
        yield sure
    finally:
        with _guard:
            _locked.discard(held)
            os.close(handle)


def _identity(file: os.stat_result) -> tuple[int, int]:
    return file.st_dev, file.st_ino


def _lock(handle: int) -> bool:
    """Lock an open file without waiting, see `file_lock`."""
    try:
        if fcntl is not None:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            return False
    except OSError as error:
        if error.errno in _HELD:
            raise BlockingIOError(EAGAIN, "locked by another process") from error
        return False
    return True


def sync_file(path: Path) -> int:
    """Write a file to the disk itself; its size in bytes."""
    # Windows syncs only files that are open for writing.
    with open(path, "r+b") as handle:
        os.fsync(handle.fileno())
        return os.fstat(handle.fileno()).st_size


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk itself; Windows does so without being asked."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def some_user_name() -> Iterator[None]:
    """Let `getpass.getuser` answer where the user has no name, as in a container with a user number of its own."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = "unknown"
        try:
            yield
        finally:
            os.environ.pop("LOGNAME", None)
    else:
        yield


def usable_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_memory() -> int | None:
    """Bytes of memory that the machine has, used or free; None where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory()
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _stated("/proc/meminfo", "MemTotal:")


def resident_bytes() -> int:
    """Resident memory of this process in bytes; its peak where the system does not tell the current value."""
    if sys.platform == "win32":
        return _windows_process("working_set")
    return _stated("/proc/self/status", "VmRSS:") or peak_memory_bytes()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process in bytes; 0 where the system does not tell."""
    if sys.platform == "win32":
        return _windows_process("peak_working_set")
    # VmHWM first, because `ru_maxrss` starts with the size of the parent process.
    found = _stated("/proc/self/status", "VmHWM:")
    if found is not None or resource is None:
        return found or 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def _stated(path: str, key: str) -> int | None:
    """A value of a file of Linux such as "VmHWM: 12 kB", in bytes."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API, sysinfoapi.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "free", "pages", "pages_free", "space", "space_free", "rest")),
    )


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of the Windows API, psapi.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        *((name, ctypes.c_size_t) for name in ("peak_working_set", "working_set", "a", "b", "c", "d", "pages", "e")),
    )


def _windows_memory() -> int | None:
    status = _MemoryStatus(size=ctypes.sizeof(_MemoryStatus))
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    return status.total if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _windows_process(name: str) -> int:
    counters = _ProcessMemory(size=ctypes.sizeof(_ProcessMemory))
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    ask = kernel.K32GetProcessMemoryInfo
    ask.argtypes = (ctypes.c_void_p, ctypes.POINTER(_ProcessMemory), ctypes.c_uint32)
    return getattr(counters, name) if ask(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size) else 0
