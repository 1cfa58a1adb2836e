"""Bringing features up to the next finer stage, beside what the encoder made there."""

import torch
from torch import Tensor, nn

from volseg.config import Triple
from volseg.networks.cpu.feature_maps import empty_maps, plain_inference


class UpConv(nn.ConvTranspose3d):
    """A transposed convolution whose kernel is its stride, so that every input voxel becomes a block of its own.

    Args:
        in_channels: channels of the coarser maps.
        out_channels: channels brought up.
        stride: (D, H, W) by which the maps grow.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__(in_channels, out_channels, stride, stride)

    def concatenate(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Bring up (B, in_channels, d, h, w), and put the last of `skips`, which is taken off the list, behind it.

        Returns:
            (B, out_channels + C, D, H, W) for a skip of (B, C, D, H, W).
        """
        dtype = plain_inference(x)
        skip = skips.pop()
        if dtype is None:
            return torch.cat([self(x), skip], dim=1)
        both = empty_maps(len(x), self.out_channels + skip.shape[1], skip.shape[2:], dtype)
        both[:, self.out_channels :] = skip
        for sample, target in zip(x, both, strict=True):
            self._bring_up(sample.permute(1, 2, 3, 0), target.permute(1, 2, 3, 0)[..., : self.out_channels])
        return both

    def _bring_up(self, x: Tensor, out: Tensor) -> None:
        """(d, h, w, in_channels) into (D, H, W, out_channels), a plane at a time: nothing as large as `out` is made.

        `out` may be a part of a larger tensor.
        """
        kd, kh, kw = self.stride
        _, height, width, _ = x.shape
        weight = self.weight.permute(0, 2, 3, 4, 1).flatten(1).to(out.dtype)
        assert self.bias is not None
        bias = self.bias.to(out.dtype).repeat(kd * kh * kw)
        for plane, block in zip(x, out.split(kd), strict=True):
            blocks = torch.addmm(bias, plane.flatten(0, 1).to(out.dtype), weight).view(height, width, kd, kh, kw, -1)
            block.unflatten(1, (height, kh)).unflatten(3, (width, kw)).copy_(blocks.permute(2, 0, 3, 1, 4, 5))
