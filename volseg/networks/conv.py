"""The 3-D convolution, made faster where it predicts on a CPU."""

import torch
from torch import Tensor, nn

from volseg.networks import winograd
from volseg.networks.maps import empty_maps, plain_inference

# Outputs with as many values are made a few planes at a time, into memory of `empty_maps`.
LARGE, PLANES = 1 << 22, 16


class Conv(nn.Conv3d):
    """`nn.Conv3d` with padding by half the kernel; see `plain_inference` for when it takes a faster way."""

    # Winograd's filters, and what they were made of: the type, and the weight's memory and version.
    _filters: tuple[tuple[torch.dtype, int, int], list[Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W)."""
        dtype = plain_inference(x)
        if dtype is None:
            return super().forward(x)
        x = x.to(dtype)
        same = self.kernel_size == (3, 3, 3) and self.stride == (1, 1, 1)
        if same and winograd.pays(x):
            out = winograd.convolve(x, self._winograd_filters(dtype))
            return out if self.bias is None else out.add_(self.bias.view(-1, 1, 1, 1))
        weight = self.weight.to(dtype)
        large = len(x) * self.out_channels * x.shape[2:].numel() >= LARGE
        # Of one channel it cannot be told whether it comes last, so the output would come in another format.
        by_planes = same and (large or x.shape[1] == 1)
        return self._by_planes(x, weight) if by_planes else self._whole(x, weight)

    def _winograd_filters(self, dtype: torch.dtype) -> list[Tensor]:
        """The filters for the weight as it is now, remembered from window to window."""
        made_of = (dtype, self.weight.data_ptr(), self.weight._version)
        kept = self._filters
        if kept is None or kept[0] != made_of:
            self._filters = kept = (made_of, winograd.filters_of(self.weight, dtype))
        return kept[1]

    def _whole(self, x: Tensor, weight: Tensor) -> Tensor:
        """By oneDNN, because torch leaves small inputs, and those of one channel, to a kernel six times as slow."""
        padding = [size // 2 for size in self.kernel_size]
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torch.mkldnn_convolution(x, weight, bias, padding, self.stride, self.dilation, 1)

    def _by_planes(self, x: Tensor, weight: Tensor) -> Tensor:
        """A 3 x 3 x 3 convolution of stride 1 into memory of ours."""
        depth = x.shape[2]
        out = empty_maps(len(x), self.out_channels, x.shape[2:], x.dtype)
        for start in range(0, depth, PLANES):
            first, stop = max(start - 1, 0), min(start + PLANES, depth)
            part = self._whole(x[:, :, first : stop + 1], weight)
            out[:, :, start:stop] = part[:, :, start - first : stop - first]
        return out
