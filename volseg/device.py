"""Which device the work runs on, and what it has to offer: memory, and processes that prepare batches."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from volseg.errors import ResourceError, UsageError

ADVICE = "Free some, use a machine with more, or a smaller patch or batch."
# What torch and the libraries beneath it say where it has no type of its own for this.
NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
MOST_WORKERS = 8


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`: auto, cpu, cuda, cuda:N or mps. 'auto' takes the first GPU there is, else the CPU.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"There is no device called {name!r}. Use auto, cpu, cuda, cuda:N or mps.") from error
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= found.get(device.type, 0):
        raise UsageError(
            f"Device {name!r} is not here ({found.get(device.type, 0)} found of its kind). Use --device auto."
        )
    return device


def gpu_memory_gb(device: torch.device) -> float:
    """All the memory of a GPU of CUDA in GiB, whoever uses it; infinite where it is not known."""
    if device.type != "cuda":
        return math.inf
    return float(torch.cuda.get_device_properties(device).total_memory / 2**30)


def machine_memory_gb() -> float:
    """All the memory of this machine in GiB, whoever uses it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def batch_workers(device: torch.device, processes: int) -> int:
    """How many processes prepare batches for one of `processes` that train on this machine.

    A CPU that trains needs its cores itself, and waits for one process 1 % of the time. A GPU takes batches faster than
    one makes them; it gets a share of all cores but one, 8 at most.
    """
    if device.type == "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max((cores - 1) // processes, 1), MOST_WORKERS)


@contextmanager
def memory_errors(doing: str) -> Iterator[None]:
    """Say in one sentence that memory ran out while `doing`.

    Raises:
        ResourceError: it did.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"Out of memory while {doing}. {ADVICE}") from error
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        raise ResourceError(f"Out of memory while {doing}. {ADVICE}") from error


def free_gpu_memory(device: torch.device) -> int:
    """Bytes of a GPU of CUDA that this process can still have; what torch keeps for its next tensors is free, too."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def has_room(device: torch.device, size: int) -> bool:
    """Whether a volume of `size` bytes fits on a device beside its windows."""
    return device.type != "cuda" or size < free_gpu_memory(device) / 4
