"""What differs between Linux, macOS and Windows: locks of files, the memory of the machine and of a process, cores.

Nothing here is needed at import: a part that a system lacks is replaced, or its answer is "unknown".
"""

import ctypes
import getpass
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, EDEADLK, ENOMEM
from pathlib import Path
from typing import NamedTuple

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

_ROOT = Path("/")
# What errors say that have no type of their own: of torch, of threads, and of libraries that are loaded.
_NO_MEMORY = (
    "can't allocate memory",
    "annot allocate memory",
    "std::bad_alloc",
    "could not create a memory object",
    "can't start new thread",
    "failed to map segment",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    # torch asks NVML for the free memory when it reports that memory ran out.
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
)
# Of version 2 and 1 of control groups: the controller, where they are mounted, the files of limits and of use, and the
# lines of memory.stat that count file pages.
_GROUPS = (
    (
        "",
        ("sys/fs/cgroup", "sys/fs/cgroup/unified"),
        ("memory.max", "memory.high"),
        "memory.current",
        ("inactive_file", "active_file"),
    ),
    (
        "memory",
        ("sys/fs/cgroup/memory",),
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)
ADDRESS_SPACE = "the limit of the address space (ulimit -v)"
# Of memory and of address space for the libraries and a small model; a build of torch for GPUs takes more space.
_BYTES_TO_START, _SPACE_TO_START = 350 << 20, 800 << 20
# Address space that a thread takes as its stack, and that glibc reserves for those that allocate memory.
_STACK, _THREADS_SPACE = 8 << 20, 256 << 20
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
        handle, sure = _open_and_lock(path)
        held = _identity(os.fstat(handle))
        _locked.add(held)
    try:
        yield sure
    finally:
        with _guard:
            _locked.discard(held)
            # Nothing was written to it, and whatever the system answers, it is closed.
            with suppress(OSError):
                os.close(handle)


def _open_and_lock(path: Path) -> tuple[int, bool]:
    """An open and locked file, and whether the file system has locks."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            sure = _lock(handle)
            with suppress(FileNotFoundError):
                # Else who held it has removed it in between, and the next one locks another file of that name.
                if os.path.samestat(os.stat(path), os.fstat(handle)):
                    return handle, sure
        except BaseException:
            os.close(handle)
            raise
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
    return _stated("proc/meminfo", "MemTotal:")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it comes from, says that memory ran out; libraries have many ways to say so."""
    seen: BaseException | None = error
    while seen is not None:
        says_so = isinstance(seen, RuntimeError | ImportError | SystemError)
        if says_so and any(words in str(seen) for words in _NO_MEMORY):
            return True
        if isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno == ENOMEM):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def missing_to_start() -> str | None:
    """What keeps torch and the other libraries from being loaded, in words; None where there is memory for them.

    Checked beforehand, because some libraries end the process where they find none.
    """
    for limit in memory_limits():
        needed = _SPACE_TO_START if limit.source == ADDRESS_SPACE else _BYTES_TO_START
        if limit.free < needed:
            least, left = needed >> 20, limit.free >> 20
            return f"volseg needs {least} MiB to start, but {limit.source} has {left} MiB left"
    return None


class MemoryLimit(NamedTuple):
    """One limit of the memory that this process can take.

    Attributes:
        total: the limit in bytes.
        free: what this process can still take before it is reached.
        source: what sets it, in words.
    """

    total: int
    free: int
    source: str


def memory_limits() -> list[MemoryLimit]:
    """All limits of this process that the system tells: of the machine, of control groups, of the shell.

    Control groups limit containers and batch jobs; those of all levels count, version 1 and 2. File pages are not
    counted as in use, because the kernel frees them when memory runs out.
    """
    return [*_machine_limit(), *_group_limits(), *_shell_limits()]


def tightest_limit() -> MemoryLimit | None:
    """The limit with the least free memory; None where the system tells none."""
    return min(memory_limits(), key=lambda one: one.free, default=None)


def usable_memory() -> int | None:
    """Bytes of memory that this process could take at most, used or free; None where the system does not tell."""
    return min((one.total for one in memory_limits()), default=None)


def _machine_limit() -> Iterator[MemoryLimit]:
    total = physical_memory()
    if total is not None:
        available = _stated("proc/meminfo", "MemAvailable:")
        swap = _stated("proc/meminfo", "SwapFree:") or 0
        yield MemoryLimit(total, total if available is None else min(total, available + swap), "this machine")


def _group_limits() -> Iterator[MemoryLimit]:
    """The limits of the control groups of this process, and of the groups around them."""
    for controller, mounted, limits, used, pages in _GROUPS:
        for folder in _groups(controller, mounted):
            for name in limits:
                limit, in_use = _number(folder / name), _number(folder / used)
                if limit is not None and in_use is not None:
                    held = max(0, in_use - sum(_stated_in(folder / "memory.stat", page) for page in pages))
                    yield MemoryLimit(limit, max(0, limit - held), "the container or job (control group)")


def _groups(controller: str, mounted: tuple[str, ...]) -> Iterator[Path]:
    """The folders of the control groups of this process, innermost first.

    A container may see its own group as the root of the hierarchy, under a path that exists outside only.
    """
    with suppress(OSError, ValueError):
        for line in (_ROOT / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller not in controllers.split(","):
                continue
            inner = Path(*(part for part in path.split("/") if part not in ("", ".", "..")))
            for root in mounted:
                yield from (_ROOT / root / inner, *(_ROOT / root / parent for parent in inner.parents))


def _shell_limits() -> Iterator[MemoryLimit]:
    """The limits of `ulimit -v` and `ulimit -d`; of the address space, threads take more than they use."""
    if resource is None:
        return
    for kind, key, source in (
        (resource.RLIMIT_AS, "VmSize:", ADDRESS_SPACE),
        (resource.RLIMIT_DATA, "VmData:", "the limit of the data segment (ulimit -d)"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            threads = _THREADS_SPACE + usable_cores() * _STACK
            yield MemoryLimit(limit, max(0, limit - (_stated("proc/self/status", key) or 0) - threads), source)


def _number(path: Path) -> int | None:
    """The number in a file; None without one, such as "max"."""
    with suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return None


def _stated_in(path: Path, key: str) -> int:
    """The value of a line "key value" of a file; 0 without one."""
    with suppress(OSError, ValueError, IndexError):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key} "):
                return int(line.split()[1])
    return 0


def free_shared_memory() -> int | None:
    """Bytes that processes of Linux can still share through /dev/shm, which containers keep small; else None."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        return shutil.disk_usage("/dev/shm").free
    return None


def resident_bytes() -> int:
    """Resident memory of this process in bytes; its peak where the system does not tell the current value."""
    if sys.platform == "win32":
        return _windows_process("working_set")
    return _stated("proc/self/status", "VmRSS:") or peak_memory_bytes()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process in bytes; 0 where the system does not tell."""
    if sys.platform == "win32":
        return _windows_process("peak_working_set")
    # VmHWM first, because `ru_maxrss` starts with the size of the parent process.
    found = _stated("proc/self/status", "VmHWM:")
    if found is not None or resource is None:
        return found or 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def _stated(path: str, key: str) -> int | None:
    """A value of a file of Linux such as "VmHWM: 12 kB", in bytes."""
    with suppress(OSError, ValueError, IndexError):
        for line in (_ROOT / path).read_text(encoding="utf-8", errors="replace").splitlines():
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
