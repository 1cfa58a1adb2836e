"""The precision of convolutions: what a device computes natively and correctly."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from volseg.errors import UsageError

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CUDNN_ADVICE = "Update torch, or cuDNN to 9.15 or later."

_lock = threading.Lock()
_exact_users = 0
_tf32_before: Any = None


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype convolutions run in; weights and sums stay float32 in all of them.

    'auto' is bf16 where the processor or GPU computes it natively, fp16 on older GPUs, else float32: emulated bf16 is
    up to a hundred times slower than float32, and some versions of cuDNN compute bf16 and fp16 wrongly. A warning is
    logged once if either is requested.

    Raises:
        UsageError: no such precision.
    """
    if name == "auto":
        return _best_precision(device)
    if name not in DTYPES:
        raise UsageError(f"Unknown precision {name!r}. Use auto, {', '.join(DTYPES)}.")
    if name == "bf16" and not _computes_bf16(device):
        _warn_once("This processor has no bfloat16 and emulates it, up to a hundred times slower than precision fp32.")
    if name != "fp32" and not cudnn_is_sound(device):
        _warn_once(f"This version of cuDNN may compute 3-D convolutions in {name} wrongly. {CUDNN_ADVICE}")
    return DTYPES[name]


def precision_name(dtype: torch.dtype) -> str:
    """The name of a precision: fp32, bf16 or fp16."""
    return next(name for name, one in DTYPES.items() if one == dtype)


def _best_precision(device: torch.device) -> torch.dtype:
    if not cudnn_is_sound(device):
        _warn_once(
            f"This version of cuDNN may compute 3-D convolutions in bf16 wrongly, so fp32 is used. {CUDNN_ADVICE}"
        )
        return torch.float32
    if _computes_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def cudnn_is_sound(device: torch.device) -> bool:
    """Whether 3-D convolutions in bf16 and fp16 can be trusted on a device.

    Those of cuDNN 9.8 to 9.14 are wrong or slow (pytorch issues 163539 and 166643).
    """
    return device.type != "cuda" or not 90800 <= (torch.backends.cudnn.version() or 0) < 91500


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which convolutions run in `dtype`; does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextmanager
def exact_float32(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute float32 convolutions on a GPU in full precision; by default cuDNN rounds the factors to TF32 (10 bits).

    The setting applies to the whole process, and several threads may enter. Does nothing for another dtype or device.
    """
    global _exact_users, _tf32_before
    if device.type != "cuda" or dtype != torch.float32:
        yield
        return
    # torch 2.9 moved the switch, and raises an error where both are used.
    cudnn: Any = torch.backends.cudnn
    moved = hasattr(cudnn, "conv")
    holder, switch, exact = (cudnn.conv, "fp32_precision", "ieee") if moved else (cudnn, "allow_tf32", False)
    with _lock:
        _exact_users += 1
        if _exact_users == 1:
            _tf32_before = getattr(holder, switch)
            setattr(holder, switch, exact)
    try:
        yield
    finally:
        with _lock:
            _exact_users -= 1
            if _exact_users == 0:
                setattr(holder, switch, _tf32_before)


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_computes_bf16()


def _cpu_computes_bf16() -> bool:
    # No public function for this exists in all supported versions of torch; a missing one counts as False.
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)
