"""Layers on a GPU where torch's own would change the format of channels-last feature maps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volseg.networks.kernels import kernels_of


def with_stated_format(x: Tensor) -> Tensor:
    """Maps of a single channel with the strides of channels-last ones, a view; others as they are.

    With one channel both formats are equal in memory. By the usual strides cuDNN would return contiguous maps, which
    the next layer copies.
    """
    if x.shape[1] > 1 or not kernels_of(x).cudnn:
        return x
    return x[:, 0].unsqueeze(-1).movedim(-1, 1)


class AvgPool(nn.AvgPool3d):
    """`nn.AvgPool3d(stride, ceil_mode=True)`; on a GPU first in the plane, then through it.

    There torch has kernels for channels-last maps in 2-D alone; in 3-D it copies its input.
    """

    def __init__(self, stride: tuple[int, int, int]) -> None:
        super().__init__(stride, ceil_mode=True)
        self.factors = stride

    def forward(self, x: Tensor) -> Tensor:
        """Average (B, C, D, H, W) over blocks; those that extend beyond the maps over the voxels inside."""
        if not (kernels_of(x).cudnn and x.is_contiguous(memory_format=torch.channels_last_3d)):
            return super().forward(x)
        depth, height, width = self.factors
        if height * width > 1:
            slices = F.avg_pool2d(x.transpose(1, 2).flatten(0, 1), (height, width), ceil_mode=True)
            x = slices.view(x.shape[0], x.shape[2], *slices.shape[1:]).transpose(1, 2)
        if depth > 1:
            columns = F.avg_pool2d(x.flatten(3), (depth, 1), ceil_mode=True)
            x = columns.view(*columns.shape[:3], *x.shape[3:])
        return x
