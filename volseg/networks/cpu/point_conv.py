"""The 1 x 1 x 1 convolution to logits."""

import torch
from torch import Tensor, nn

from volseg.networks.cpu.feature_maps import empty_maps, plain_inference

# Voxels at a time: few enough that their float32 copy stays in a processor's cache.
ROWS = 1 << 15


class PointConv(nn.Conv3d):
    """`nn.Conv3d` with a 1 x 1 x 1 kernel, a matrix product in channels-last format."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, out_channels, D, H, W), always float32 without gradients on a CPU."""
        if plain_inference(x) is None or self.bias is None:
            return super().forward(x)
        out = empty_maps(len(x), self.out_channels, x.shape[2:], torch.float32)
        rows, results = (maps.permute(0, 2, 3, 4, 1).flatten(0, 3) for maps in (x, out))
        for part, result in zip(rows.split(ROWS), results.split(ROWS), strict=True):
            torch.addmm(self.bias, part.to(torch.float32), self.weight.flatten(1).T, out=result)
        return out
