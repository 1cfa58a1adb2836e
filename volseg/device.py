"""Which device and which precision the work runs in, chosen by what computes natively."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from volseg.errors import ResourceError, UsageError

logger = logging.getLogger(__name__)

ADVICE = "Free some, use a machine with more, or a smaller patch or batch."
MOST_WORKERS = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype convolutions run in; weights and sums stay float32 in all of them.

    'auto' is bf16 where the processor or GPU computes it natively, fp16 on older GPUs, else float32:
    emulated bf16 is up to a hundred times slower than float32. Whoever asks a CPU for it is told so once.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UsageError(f"Unknown precision {name!r}. Use auto, {', '.join(DTYPES)}.")
        if name == "bf16" and device.type == "cpu" and not _cpu_computes_bf16():
            _warn_of_emulation()
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_computes_bf16() else torch.float32


def gpu_memory_gb(device: torch.device) -> float:
    """All the memory of a GPU of CUDA in GiB, whoever uses it; infinite where it is not known."""
    if device.type != "cuda":
        return math.inf
    return float(torch.cuda.get_device_properties(device).total_memory / 2**30)


def batch_workers(device: torch.device, processes: int) -> int:
    """How many processes prepare batches for one of `processes` that train on this machine.

    A CPU that trains needs its cores itself, and waits for one process 1 % of the time. A GPU takes batches faster than
    one makes them; it gets a share of all cores but one, 8 at most.
    """
    if device.type == "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max((cores - 1) // processes, 1), MOST_WORKERS)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which convolutions run in `dtype`; does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


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
        # On the CPU torch has no type of its own for this.
        if "can't allocate memory" not in str(error):
            raise
        raise ResourceError(f"Out of memory while {doing}. {ADVICE}") from error


@cache
def _warn_of_emulation() -> None:
    logger.warning("This processor has no bfloat16 and emulates it, up to a hundred times slower than precision fp32.")


def _cpu_computes_bf16() -> bool:
    # torch has no public question for this in all supported versions; a missing one means "not known", so False.
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)
