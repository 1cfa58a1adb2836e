"""Transposed-convolution upsampling with skip concatenation."""

import torch
from torch import Tensor, nn

from volseg.config import Triple
from volseg.networks.cpu.feature_maps import empty_maps, plain_inference


class UpConv(nn.ConvTranspose3d):
    """A transposed convolution whose kernel equals its stride, so that every input voxel becomes a block of voxels.

    Args:
        in_channels: channels of the coarser maps.
        out_channels: channels of the upsampled maps.
        stride: upsampling factors (D, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__(in_channels, out_channels, stride, stride)

    def concatenate(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Upsample `x` and concatenate the last skip connection, which is popped from `skips`.

        Args:
            x: (B, in_channels, d, h, w).
            skips: the last one (B, C, D, H, W).

        Returns:
            (B, out_channels + C, D, H, W), first the upsampled maps.
        """
        dtype = plain_inference(x)
        skip = skips.pop()
        if dtype is None:
            return torch.cat([self(x), skip], dim=1)
        out = empty_maps(len(x), self.out_channels + skip.shape[1], skip.shape[2:], dtype)
        out[:, self.out_channels :] = skip
        for sample, target in zip(x, out, strict=True):
            self._upsample(sample.permute(1, 2, 3, 0), target.permute(1, 2, 3, 0)[..., : self.out_channels])
        return out

    def _upsample(self, x: Tensor, out: Tensor) -> None:
        """Write (d, h, w, in_channels) upsampled to `out` (D, H, W, out_channels), perhaps a view of a larger tensor.

        One plane at a time, so that no other tensor as large as `out` is allocated.
        """
        kd, kh, kw = self.stride
        _, height, width, _ = x.shape
        weight = self.weight.permute(0, 2, 3, 4, 1).flatten(1).to(out.dtype)
        assert self.bias is not None
        bias = self.bias.to(out.dtype).repeat(kd * kh * kw)
        for plane, block in zip(x, out.split(kd), strict=True):
            blocks = torch.addmm(bias, plane.flatten(0, 1).to(out.dtype), weight).view(height, width, kd, kh, kw, -1)
            block.unflatten(1, (height, kh)).unflatten(3, (width, kw)).copy_(blocks.permute(2, 0, 3, 1, 4, 5))
