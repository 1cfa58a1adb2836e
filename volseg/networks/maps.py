"""Feature maps of networks that predict in float32 on a CPU: when they do, and where the maps lie."""

from collections.abc import Sequence

import numpy as np
import torch


def empty_maps(batch: int, channels: int, sizes: Sequence[int]) -> torch.Tensor:
    """Uninitialised float32 feature maps (B, C, D, H, W) on the CPU, channels last.

    The memory is numpy's, which asks the system for large pages, so that clearing them is quick, see `volseg.heap`; and
    for no alignment: glibc finds no place for an aligned block in the hole that one of the same size left.
    """
    return torch.from_numpy(np.empty((batch, *sizes, channels), np.float32)).permute(0, 4, 1, 2, 3)


def is_plain_inference(x: torch.Tensor) -> bool:
    """Whether an input (B, C, D, H, W) is for predicting in float32 on a CPU that oneDNN knows, channels last."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last_3d)
        and torch.backends.mkldnn.is_available()
    )
