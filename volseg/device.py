"""The device to compute on, its memory, and the number of worker processes that prepare batches."""

import logging
import math
import os
import platform
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from volseg.errors import ResourceError, UsageError
from volseg.system import is_out_of_memory, tightest_limit, usable_cores, usable_memory
from volseg.text import shortened

logger = logging.getLogger(__name__)

ADVICE = "Free memory, use a machine with more of it, or reduce the patch or batch size."
# For the loop that trains, and for the thread that moves batches to the GPU.
OTHER_CORES = 2
# Of a worker: torch, MONAI and a few batches.
WORKER_BYTES = 1 << 30
# What cuDNN and cuBLAS also say when memory ran out inside them, but not only then.
_PERHAPS_NO_MEMORY = (
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "unable to find an engine to execute this computation",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_EXECUTION_FAILED",
)
# Free memory of a GPU below which these mean that it ran out: cuDNN asks for a few hundred megabytes at a time.
FULL_BYTES = 1 << 29
# Where each volume is that `empty_volume` has put on a GPU, and its bytes.
_volumes: list[tuple[torch.device, int]] = []
# Whether this process was forked from one that had loaded this module, and perhaps started PyTorch's threads.
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def limit_threads_after_fork() -> None:
    """In a forked process, compute on one thread: PyTorch's threads do not survive fork(), and it would wait for them.

    Called before anything is computed.
    """
    if _forked and torch.get_num_threads() > 1:
        logger.warning("This process was forked, so it computes on one thread; start processes by 'spawn' to use more.")
        torch.set_num_threads(1)


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`: auto, cpu, cuda, cuda:N or mps. 'auto' is the first GPU, or the CPU without one.

    Raises:
        UsageError: no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"Unknown device {shortened(str(name), 200)!r}. Use auto, cpu, cuda, cuda:N or mps."
        ) from error
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    found = counts.get(device.type, 0)
    if (device.index or 0) >= found:
        devices = f"{found} {device.type.upper()} device{'' if found == 1 else 's'}"
        raise UsageError(f"No such device: {shortened(name, 200)!r} requested, {devices} found. Use --device auto.")
    return device


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Put torch's random number generators back at the end, of the CPU and, if it is in use, of the GPU."""
    if device.type == "cuda":
        # A seed that the caller has set before waits for this.
        torch.cuda.init()
    cpu = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def seed_torch(device: torch.device, seed: int) -> None:
    """Seed the random numbers of torch; on a CPU none of those that a GPU would draw later."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def device_name(device: torch.device) -> str:
    """The model of a GPU or CPU, such as "NVIDIA H200"; of a CPU that does not tell it, the architecture."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_memory_gb(device: torch.device) -> float:
    """Total memory of a CUDA device in GiB, used or free; infinite for other devices."""
    if device.type != "cuda":
        return math.inf
    return float(torch.cuda.get_device_properties(device).total_memory / 2**30)


def machine_memory_gb() -> float:
    """Memory that this process could take at most in GiB, used or free; infinite where the system does not tell.

    The least of the machine's memory and the limits of `volseg.system.memory_limits`, such as that of a container.
    """
    found = usable_memory()
    return math.inf if found is None else found / 2**30


def batch_workers(device: torch.device, processes: int) -> int:
    """The number of workers that prepare batches for each of the `processes` that train on this machine.

    One on a CPU, where training needs the cores and waits for its only worker 1 % of the time. On a GPU, which uses
    batches faster than one worker prepares them: the cores divided by `processes` but two for each, and as many as the
    free memory holds.
    """
    if device.type == "cpu":
        return 1
    machine = tightest_limit()
    cores = usable_cores() // processes - OTHER_CORES
    fitting = cores if machine is None else machine.free // (WORKER_BYTES * processes)
    return max(1, min(cores, fitting))


@contextmanager
def memory_errors(doing: str) -> Iterator[None]:
    """Turn an out-of-memory error while `doing` something into one sentence.

    Raises:
        ResourceError: memory ran out.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise ResourceError(f"Out of memory while {doing}. {ADVICE}") from error


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in whatever words; what cuDNN says at other times too, if it is full.

    cuDNN and cuBLAS take memory of their own, and where there is none they say that a convolution is not supported, or
    that they have failed.
    """
    if isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error):
        return True
    return may_be_out_of_memory(error) and _gpu_is_full()


def may_be_out_of_memory(error: BaseException) -> bool:
    """Whether less memory may help against an error: out of memory, and what cuDNN and cuBLAS may mean by it."""
    if isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _PERHAPS_NO_MEMORY)


def _gpu_is_full() -> bool:
    """Whether a GPU is full of those that this process computes on; an error does not say which of them it was."""
    # After some errors the GPU answers nothing more.
    with suppress(RuntimeError, AssertionError):
        if torch.cuda.is_initialized():
            used = [number for number in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(number)]
            return any(torch.cuda.mem_get_info(number)[0] < FULL_BYTES for number in used)
    return False


def release_cached_memory(device: torch.device) -> None:
    """Give back the memory of a GPU that torch keeps for its next tensors, so that cuDNN can have it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def expandable_memory(device: torch.device, needed: bool) -> Iterator[None]:
    """Let torch extend its blocks of GPU memory, for tensors whose sizes change, such as those of growing patches.

    It is `expandable_segments:True` of the environment variable PYTORCH_CUDA_ALLOC_CONF. Without it, blocks that were
    freed do not fit the next, larger tensors, and stay taken. Where that variable is set, it decides alone.
    """
    configured = any(os.environ.get(name) for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    if device.type != "cuda" or not needed or configured:
        yield
        return
    # torch 2.9 moved it.
    configure = getattr(torch._C, "_accelerator_setAllocatorSettings", torch.cuda.memory._set_allocator_settings)
    configure("expandable_segments:True")
    try:
        yield
    finally:
        configure("expandable_segments:False")


def free_gpu_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that this process can still allocate, including what torch has cached."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of an array of any memory order on a device, or the array itself on the CPU.

    To a GPU through pinned memory, without waiting: torch keeps such memory, and uses it again once it was copied, so
    that the next array is prepared meanwhile.
    """
    if device.type != "cuda":
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)


def to_host(parts: Iterable[tuple[int, torch.Tensor]]) -> Iterator[tuple[int, np.ndarray]]:
    """The parts as arrays; of a GPU each one step late, so that it goes on with the next one meanwhile."""
    late: tuple[int, torch.Tensor, torch.cuda.Event] | None = None
    for first, part in parts:
        if part.device.type != "cuda":
            yield first, part.cpu().numpy()
            continue
        pinned = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        pinned.copy_(part, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(part.device))
        if late:
            late[2].synchronize()
            yield late[0], late[1].numpy()
        late = first, pinned, copied
    if late:
        late[2].synchronize()
        yield late[0], late[1].numpy()


def has_room(device: torch.device, size: int) -> bool:
    """Whether a volume of `size` bytes fits on a device together with its windows.

    All volumes that are there may together take a quarter of it: those of other scans at work, too.
    """
    if device.type != "cuda":
        return True
    there = volume_bytes(device)
    return size + there < (free_gpu_memory(device) + there) / 4


def empty_volume(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """A float32 tensor for a scan in network space, on a device that has room for it, else on the CPU."""
    if not has_room(device, 4 * math.prod(shape)):
        return torch.empty(shape)
    volume = torch.empty(shape, device=device)
    if device.type == "cuda":
        entry = device, volume.nbytes
        _volumes.append(entry)
        weakref.finalize(volume, _volumes.remove, entry).atexit = False
    return volume


def volume_bytes(device: torch.device) -> int:
    """Bytes of the volumes that `empty_volume` has put on a device, and that are still there."""
    return sum(size for place, size in tuple(_volumes) if place == device)
