"""The 3-D convolution, made faster where it predicts on a CPU."""

import torch
from torch import Tensor, nn

from volseg.networks import winograd
from volseg.networks.maps import empty_maps, is_plain_inference

# Outputs with as many values are made a few planes at a time, into memory of `empty_maps`.
LARGE, PLANES = 1 << 22, 16


class Conv(nn.Conv3d):
    """`nn.Conv3d` with padding by half the kernel; see `is_plain_inference` for when it takes a faster way."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W)."""
        if not is_plain_inference(x):
            return super().forward(x)
        same = self.kernel_size == (3, 3, 3) and self.stride == (1, 1, 1)
        if same and winograd.pays(x):
            out = winograd.convolve(x, self.weight)
            return out if self.bias is None else out.add_(self.bias.view(-1, 1, 1, 1))
        large = len(x) * self.out_channels * x.shape[2:].numel() >= LARGE
        # Of one channel it cannot be told whether it comes last, so the output would come in another format.
        return self._by_planes(x) if same and (large or x.shape[1] == 1) else self._whole(x)

    def _whole(self, x: Tensor) -> Tensor:
        """By oneDNN, because torch leaves small inputs, and those of one channel, to a kernel six times as slow."""
        padding = [size // 2 for size in self.kernel_size]
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, 1)

    def _by_planes(self, x: Tensor) -> Tensor:
        """A 3 x 3 x 3 convolution of stride 1 into memory of ours."""
        depth = x.shape[2]
        out = empty_maps(len(x), self.out_channels, x.shape[2:])
        for start in range(0, depth, PLANES):
            first, stop = max(start - 1, 0), min(start + PLANES, depth)
            out[:, :, start:stop] = self._whole(x[:, :, first : stop + 1])[:, :, start - first : stop - first]
        return out
