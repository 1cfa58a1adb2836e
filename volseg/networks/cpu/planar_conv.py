"""The two halves of a (2+1)D convolution, on a CPU as 2-D convolutions, which are much faster there."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volseg.networks.cuda import with_stated_format
from volseg.networks.kernels import kernels_of


class InPlaneConv(nn.Conv3d):
    """A convolution with a (1, k, k) kernel, computed in 2-D with the slices as the batch: up to 1.5 times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W) slice by slice."""
        if not kernels_of(x).by_planes:
            return super().forward(with_stated_format(x))
        slices = x.transpose(1, 2).flatten(0, 1)
        out = F.conv2d(slices, self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:])
        if x.shape[1] == 1 and x.device.type == "cpu":
            # With one channel both memory formats are equal, and torch then returns the contiguous one.
            out = out.contiguous(memory_format=torch.channels_last)
        return out.view(x.shape[0], x.shape[2], *out.shape[1:]).transpose(1, 2)


class ThroughPlaneConv(nn.Conv3d):
    """A convolution with a (k, 1, 1) kernel, computed in 2-D over (D, H * W): up to 13 times as fast on one core."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W) along D."""
        if not kernels_of(x).by_planes:
            return super().forward(with_stated_format(x))
        out = F.conv2d(x.flatten(3), self.weight[..., 0], self.bias, self.stride[:2], self.padding[:2])
        return out.view(*out.shape[:3], *x.shape[3:])
