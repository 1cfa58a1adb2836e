"""Feature maps on the CPU: whether the faster layers support them, in which type, and memory for them."""

import math
from collections.abc import Sequence
from functools import cache

import torch

from volseg.networks.cpu.malloc import reusable_block
from volseg.networks.kernels import kernels_of

TYPES = (torch.float32, torch.bfloat16)


def empty_maps(batch: int, channels: int, sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised feature maps (B, C, D, H, W) on the CPU, channels last, in memory of `reusable_block`."""
    shape = (batch, *sizes, channels)
    memory = torch.from_numpy(reusable_block(math.prod(shape) * dtype.itemsize))
    return memory.view(dtype).view(shape).permute(0, 4, 1, 2, 3)


def plain_inference(x: torch.Tensor) -> torch.dtype | None:
    """The type in which the faster layers compute an input (B, C, D, H, W) without gradients.

    Returns:
        For a channels-last input on a CPU with oneDNN: float32, or bfloat16 under autocast where the processor has
        instructions for it. Else None.
    """
    if torch.is_grad_enabled() or x.dtype not in TYPES or not _suits_onednn(x):
        return None
    if not torch.is_autocast_enabled("cpu"):
        return torch.float32 if x.dtype == torch.float32 else None
    return torch.bfloat16 if torch.get_autocast_dtype("cpu") == torch.bfloat16 and convolves_bfloat16() else None


def plain_training(x: torch.Tensor) -> bool:
    """Whether the faster layers can train on (B, C, D, H, W): float32, channels last, on a CPU with oneDNN."""
    return (
        torch.is_grad_enabled()
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _suits_onednn(x)
    )


def computes_bfloat16(x: torch.Tensor) -> bool:
    """Whether a convolution of `x` runs in bfloat16 on the CPU."""
    under_autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.device.type == "cpu" and (x.dtype == torch.bfloat16 or under_autocast)


@cache
def convolves_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 convolutions for this processor."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _suits_onednn(x: torch.Tensor) -> bool:
    return (
        kernels_of(x).onednn
        and x.is_contiguous(memory_format=torch.channels_last_3d)
        and torch.backends.mkldnn.is_available()
    )
