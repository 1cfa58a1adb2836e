"""The 3-D convolution, made faster on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volseg.networks.cpu import winograd
from volseg.networks.cpu.feature_maps import computes_bfloat16, empty_maps, plain_inference, plain_training
from volseg.networks.cpu.winograd_gradient import WinogradConv

# Outputs with as many values are made a few planes at a time, into memory of `empty_maps`.
LARGE, PLANES = 1 << 22, 16


class Conv(nn.Conv3d):
    """`nn.Conv3d` with padding by half the kernel; `volseg.networks.cpu.feature_maps` decides when it is computed faster."""

    # Winograd's filters, and what they were made for and of: the scheme, the type, and the weight's memory and version.
    _filters: tuple[tuple[winograd.Scheme, torch.dtype, int, int], winograd.Filters] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W)."""
        same = self.kernel_size == (3, 3, 3) and self.stride == (1, 1, 1)
        if x.shape[2] == 1 and self.kernel_size[0] > 1 and computes_bfloat16(x):
            return self._single_plane(x)
        if plain_training(x):
            if same and winograd.pays(x):
                made: Tensor = WinogradConv.apply(x, self.weight)
                return made if self.bias is None else made + self.bias.view(-1, 1, 1, 1)
            # Of one channel it cannot be told whether it comes last, and torch answers as if it did not.
            return super().forward(x).contiguous(memory_format=torch.channels_last_3d)
        dtype = plain_inference(x)
        if dtype is None:
            return super().forward(x)
        x = x.to(dtype)
        if same and winograd.pays(x):
            out = winograd.convolve(x, self._winograd_filters(x.shape[2], dtype))
            return out if self.bias is None else out.add_(self.bias.view(-1, 1, 1, 1))
        weight = self.weight.to(dtype)
        if x.shape[1] == 1:
            # Of one channel it cannot be told whether it comes last; a second one of zeros is three times as fast.
            x, weight = (_with_empty_channel(one) for one in (x, weight))
        large = len(x) * self.out_channels * x.shape[2:].numel() >= LARGE
        return self._by_planes(x, weight) if same and large else self._whole(x, weight)

    def _single_plane(self, x: Tensor) -> Tensor:
        """One plane by the middle of the kernel: with AMX, oneDNN's 3-D kernels read memory beyond the plane.

        Seen with torch 2.13 for 1 and 3 channels in bfloat16: values up to infinity, and others at each call.
        """
        weight = self.weight[:, :, self.kernel_size[0] // 2]
        out = F.conv2d(x.squeeze(2), weight, self.bias, self.stride[1:], self.padding[1:])
        return out.unsqueeze(2).contiguous(memory_format=torch.channels_last_3d)

    def _winograd_filters(self, depth: int, dtype: torch.dtype) -> winograd.Filters:
        """The filters for the weight as it is now, remembered from window to window."""
        scheme = winograd.scheme_to_predict(depth, dtype)
        made_of = (scheme, dtype, self.weight.data_ptr(), self.weight._version)
        kept = self._filters
        if kept is None or kept[0] != made_of:
            self._filters = kept = (made_of, winograd.filters_of(self.weight, [scheme], dtype))
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


def _with_empty_channel(x: Tensor) -> Tensor:
    """(B, 1, D, H, W) as (B, 2, D, H, W), channels last, the second channel 0."""
    return F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)).contiguous(memory_format=torch.channels_last_3d)
