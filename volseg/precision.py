"""The precision of convolutions: what a device computes natively and correctly."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch

from volseg.errors import UsageError

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CUDNN_ADVICE = "Update torch, or cuDNN to 9.15 or later."


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


class _Switch:
    """A setting of the whole process that is changed while at least one thread needs it, and then put back."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        """`change` makes the change, and returns what undoes it."""
        self._change = change
        self._lock, self._users = threading.Lock(), 0
        self._undo: Callable[[], None] = lambda: None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Change the setting meanwhile."""
        with self._lock:
            if self._users == 0:
                self._undo = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo()


@contextmanager
def exact_float32(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute in full float32 what is computed in float32, whatever the program around volseg has set.

    By default cuDNN rounds the factors of convolutions to TF32 (10 bits), and a program may allow the same of matrix
    products, on a CPU down to bfloat16. Where `dtype` is another type, only matrix products are exact: those of the
    last layer. The settings apply to the whole process, and several threads may enter.
    """
    with ExitStack() as stack:
        switches = _EXACT.get(device.type, ())
        for switch in switches if dtype == torch.float32 else switches[:1]:
            stack.enter_context(switch.on())
        yield


@contextmanager
def tuned_convolutions(device: torch.device, fixed: bool) -> Iterator[None]:
    """Let cuDNN time its kernels for each new shape, and take the fastest, while shapes are `fixed`.

    Timing takes about a second for a network, so it is not for shapes that change, or for a few convolutions.
    """
    if device.type != "cuda" or not fixed:
        yield
        return
    with _TUNED.on():
        yield


def _exact_matmul() -> Callable[[], None]:
    """No TF32 in matrix products on a GPU."""
    cuda, mkldnn = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    # The older switch of torch sets both, and torch raises an error where the older and the newer do not agree.
    undo_newer = [_newer(one) for one in (cuda, mkldnn)]
    before = _readable(torch.get_float32_matmul_precision)
    if before is not None:
        torch.set_float32_matmul_precision("highest")
    _set_exact(cuda)
    return lambda: _undo(before and partial(torch.set_float32_matmul_precision, before), *undo_newer)


def _exact_convolution() -> Callable[[], None]:
    """No TF32 in convolutions on a GPU."""
    cudnn: Any = torch.backends.cudnn
    undo_newer = [_newer(getattr(cudnn, name, None)) for name in ("conv", "rnn")]
    before = _readable(lambda: cudnn.allow_tf32)
    if before is not None:
        cudnn.allow_tf32 = False
    # The older switch is readable only while both agree.
    for name in ("conv", "rnn"):
        _set_exact(getattr(cudnn, name, None))
    return lambda: _undo(None if before is None else partial(setattr, cudnn, "allow_tf32", before), *undo_newer)


def _exact_on_cpu(name: str) -> Callable[[], None]:
    """No bfloat16 or TF32 in oneDNN's `name` of float32: "matmul" or "conv"."""
    holder = getattr(torch.backends.mkldnn, name, None)
    undo = _newer(holder)
    _set_exact(holder)
    return lambda: _undo(undo)


def _tune() -> Callable[[], None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    return partial(setattr, torch.backends.cudnn, "benchmark", before)


def _set_exact(holder: Any) -> None:
    if hasattr(holder, _NEWER):
        setattr(holder, _NEWER, "ieee")


def _newer(holder: Any) -> Callable[[], None] | None:
    """What puts back the newer switch of torch (since 2.9) for an operation; None where there is none."""
    if not hasattr(holder, _NEWER):
        return None
    before = getattr(holder, _NEWER)

    def undo() -> None:
        # What follows from a setting of more than this operation is not to become its own.
        setattr(holder, _NEWER, "none")
        if getattr(holder, _NEWER) != before:
            setattr(holder, _NEWER, before)

    return undo


def _readable(read: Callable[[], Any]) -> Any:
    """A setting of the older switches; None where torch refuses to tell it, because the program uses the newer ones."""
    try:
        return read()
    except RuntimeError:
        return None


def _undo(*steps: Callable[[], Any] | None) -> None:
    for step in steps:
        if step:
            step()


_NEWER = "fp32_precision"
# By the type of the device: for matrix products, then for convolutions.
_EXACT = {
    "cuda": (_Switch(_exact_matmul), _Switch(_exact_convolution)),
    "cpu": (_Switch(partial(_exact_on_cpu, "matmul")), _Switch(partial(_exact_on_cpu, "conv"))),
}
_TUNED = _Switch(_tune)


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
