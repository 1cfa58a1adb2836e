"""The 3-D convolution, faster on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volseg.networks.cpu import winograd
from volseg.networks.cpu.feature_maps import computes_bfloat16, empty_maps, plain_inference, plain_training
from volseg.networks.cpu.winograd_gradient import WinogradConv
from volseg.networks.cuda import with_stated_format

# Outputs of at least `LARGE` values are computed `PLANES` planes at a time, into memory of `empty_maps`.
LARGE, PLANES = 1 << 22, 16


class Conv(nn.Conv3d):
    """`nn.Conv3d` with padding by half the kernel, faster for inputs that `feature_maps` accepts."""

    # Winograd's filters with their key: the scheme, the type, and the memory address and version of the weight.
    _filters: tuple[tuple[winograd.Scheme, torch.dtype, int, int], winograd.Filters] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W)."""
        same = self.kernel_size == (3, 3, 3) and self.stride == (1, 1, 1)
        if x.shape[2] == 1 and self.kernel_size[0] > 1 and computes_bfloat16(x):
            return self._single_plane(x)
        if x.shape[4] <= self.stride[2] > 1 < self.kernel_size[2] and computes_bfloat16(x):
            return self._single_column(x)
        if plain_training(x):
            if same and winograd.is_faster(x):
                out: Tensor = WinogradConv.apply(x, self.weight)
                return out if self.bias is None else out + self.bias.view(-1, 1, 1, 1)
            # With one channel both memory formats are equal, and torch then returns the contiguous one.
            return super().forward(x).contiguous(memory_format=torch.channels_last_3d)
        dtype = plain_inference(x)
        if dtype is None:
            return super().forward(with_stated_format(x))
        x = x.to(dtype)
        if same and winograd.is_faster(x):
            out = winograd.convolve(x, self._winograd_filters(x.shape[2], dtype))
            return out if self.bias is None else out.add_(self.bias.view(-1, 1, 1, 1))
        weight = self.weight.to(dtype)
        if x.shape[1] == 1:
            # With one channel both memory formats are equal, and torch assumes the slow one; a second channel of zeros
            # makes it three times as fast.
            x, weight = (_with_empty_channel(one) for one in (x, weight))
        large = len(x) * self.out_channels * x.shape[2:].numel() >= LARGE
        return self._by_planes(x, weight) if same and large else self._whole(x, weight)

    def _single_plane(self, x: Tensor) -> Tensor:
        """Convolve one plane in 2-D by the central slice of the kernel: with AMX, oneDNN's 3-D kernels read beyond it.

        Seen with torch 2.13 for 1 and 3 channels in bfloat16: values up to infinity, different at each call.
        """
        weight = self.weight[:, :, self.kernel_size[0] // 2]
        out = F.conv2d(x.squeeze(2), weight, self.bias, self.stride[1:], self.padding[1:])
        return out.unsqueeze(2).contiguous(memory_format=torch.channels_last_3d)

    def _single_column(self, x: Tensor) -> Tensor:
        """Convolve to outputs of width 1 in float32: with AMX, oneDNN's strided kernels read and write beyond them.

        Seen with torch 2.13 for strides of 2 and kernels of 3 in bfloat16, whatever the channels: values up to NaN,
        different at each call, and wrong gradients of the weight.
        """
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            out = F.conv3d(x.float(), self.weight.float(), bias, self.stride, self.padding)
        return out.bfloat16().contiguous(memory_format=torch.channels_last_3d)

    def _winograd_filters(self, depth: int, dtype: torch.dtype) -> winograd.Filters:
        """The filters for the current weight, cached from window to window."""
        scheme = winograd.scheme_to_predict(depth, dtype)
        key = (scheme, dtype, self.weight.data_ptr(), self.weight._version)
        cached = self._filters
        if cached is None or cached[0] != key:
            self._filters = cached = (key, winograd.filters_of(self.weight, [scheme], dtype))
        return cached[1]

    def _whole(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve with oneDNN; for small inputs and single channels torch chooses a kernel six times as slow."""
        padding = [size // 2 for size in self.kernel_size]
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torch.mkldnn_convolution(x, weight, bias, padding, self.stride, self.dilation, 1)

    def _by_planes(self, x: Tensor, weight: Tensor) -> Tensor:
        """A 3 x 3 x 3 convolution of stride 1 into reusable memory, `PLANES` planes at a time."""
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
