"""Instance norm for channels-last tensors (B, C, D, H, W)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from volseg.errors import UsageError
from volseg.networks.cpu.feature_maps import plain_inference
from volseg.networks.kernels import BY_SAMPLE, OWN_SUMS, TORCH, kernels_of

SPATIAL = (2, 3, 4)
# Values normalised in place at a time: few enough for a processor's cache.
CHUNK = 1 << 20
# Values of neighbouring voxels that get a sum each.
SEPARATE_SUMS = 1 << 12


class InstanceNorm(nn.Module):
    """`nn.InstanceNorm3d(channels, affine=True)` with the same result and parameters, fast in channels-last format.

    torch's instance norm copies channels-last tensors to contiguous ones, which makes it two to three times as slow on
    the CPU. Its batch norm and group norm keep the format, but on the CPU their sums lose precision in large or nearly
    constant windows. So float32 on the CPU has its own implementation here. See `volseg.networks.kernels.KERNELS`.

    Args:
        channels: number of channels C.
        eps: added to the variance.
        inplace: overwrite the input where no gradient is recorded, which saves two tensors of its size.
    """

    def __init__(self, channels: int, eps: float = 1e-5, inplace: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.inplace = inplace
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Give every channel of every sample mean 0 and variance 1, then scale and shift it: (B, C, D, H, W).

        Raises:
            UsageError: a single voxel per channel, which has no variance.
        """
        if x.shape[2:].numel() == 1:
            raise UsageError(
                "Instance norm needs more than one voxel per channel, found feature maps of 1 x 1 x 1. "
                "Use a larger input, fewer stages, or another norm."
            )
        if self.inplace and plain_inference(x) == x.dtype:
            for sample in x.split(1):
                self._normalise_(sample)
            return x
        way = kernels_of(x).norms.get(x.dtype, TORCH)
        if way == OWN_SUMS:
            out: Tensor = InstanceNormFunction.apply(x, self.weight, self.bias, self.eps)
            return out
        if way == BY_SAMPLE and self.weight.dtype == torch.float32:
            out = NormBySample.apply(x, self.weight, self.bias, self.eps)
            return out  # noqa: RET504 - with a type
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)

    def _normalise_(self, x: Tensor) -> None:
        """Normalise (1, C, D, H, W) in place, a few planes at a time: each is read from memory twice, written once."""
        mean, variance = channel_statistics(x.permute(0, 2, 3, 4, 1).flatten(0, 3))
        unused = (torch.empty(0), torch.empty(0))
        for chunk in x.split(max(1, CHUNK // x[:, :, 0].numel()), dim=2):
            torch.native_batch_norm(
                chunk, self.weight, self.bias, mean, variance, False, 0.0, self.eps, out=(chunk, *unused)
            )


def channel_statistics(voxels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of (N, C) float32 or bfloat16, both (C,) float32.

    torch adds one voxel after the other, which loses precision for many voxels. So several neighbouring voxels are
    passed to it as one with more channels, and their statistics are merged in float64 by the formula of Chan, Golub and
    LeVeque 1983, Algorithms for Computing the Sample Variance.
    """
    channels = voxels.shape[1]
    group = max(1, min(SEPARATE_SUMS // channels, math.isqrt(len(voxels))))
    whole = len(voxels) // group * group
    parts = [*voxels[:whole].view(-1, group * channels).split(max(1, CHUNK // (group * channels))), voxels[whole:]]
    means, variances, counts = [], [], []
    for part in parts:
        if len(part):
            # Running statistics in float32, unused, so that the results are float32 too.
            running = torch.zeros(part.shape[1])
            maps = part.view(1, len(part), 1, -1).permute(0, 3, 1, 2)
            mean, variance = torch.batch_norm_update_stats(maps, running, running, 0.0)
            means.append(mean.view(-1, channels))
            variances.append(variance.view(-1, channels))
            counts += [len(part)] * len(means[-1])
    mean, variance = torch.cat(means).double(), torch.cat(variances).double()
    fraction = torch.tensor(counts, dtype=torch.float64)[:, None] / len(voxels)
    total_mean = (fraction * mean).sum(0)
    return total_mean.float(), (fraction * (variance + (mean - total_mean).square())).sum(0).float()


class InstanceNormFunction(torch.autograd.Function):
    """Instance norm with its own backward pass; autograd would keep five tensors as large as the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalise x (B, C, D, H, W), then scale by weight (C,) and shift by bias (C,)."""
        mean = x.mean(SPATIAL, keepdim=True)
        inverse_std = torch.rsqrt((x - mean).square_().mean(SPATIAL, keepdim=True) + eps)
        scale = inverse_std * weight.view(-1, 1, 1, 1)
        ctx.save_for_backward(x, mean, inverse_std, weight)
        return torch.addcmul(bias.view(-1, 1, 1, 1) - mean * scale, x, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients for x, weight and bias.

        With n voxels and xhat = (x - mean) * inverse_std:
        dx = weight * inverse_std * (g - sum(g) / n - xhat * sum(g * xhat) / n).
        """
        x, mean, inverse_std, weight = ctx.saved_tensors
        voxels = x.shape[2:].numel()
        d_bias = gradient.sum(SPATIAL, keepdim=True)
        d_weight = ((gradient * x).sum(SPATIAL, keepdim=True) - mean * d_bias) * inverse_std
        scale = inverse_std * weight.view(-1, 1, 1, 1)
        slope = -scale * inverse_std * d_weight / voxels
        offset = -scale * d_bias / voxels - mean * slope
        d_x = torch.addcmul(offset, x, slope).addcmul_(gradient, scale)
        return d_x, d_weight.sum(0).flatten(), d_bias.sum(0).flatten(), None


class NormBySample(torch.autograd.Function):
    """Instance norm as the batch norm of each sample by itself, with float32 sums.

    torch's batch norm has kernels for channels-last maps everywhere.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalise x (B, C, D, H, W), then scale by weight (C,) and shift by bias (C,), both float32."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        out = torch.empty_like(x)
        mean, inverse_std = weight.new_empty(2, *x.shape[:2])
        for sample, *kept in zip(x.split(1), out.split(1), mean, inverse_std, strict=True):
            torch.native_batch_norm(sample, weight, bias, None, None, True, 0.0, eps, out=kept)
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients for x, weight and bias."""
        x, weight, mean, inverse_std = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        if len(x) == 1:
            return (*_sample_gradients(gradient, x, weight, mean[0], inverse_std[0], ctx.eps), None)
        d_x, d_weight, d_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        samples = zip(gradient.split(1), x.split(1), mean, inverse_std, strict=True)
        for target, (one, sample, own_mean, own_std) in zip(d_x.split(1), samples, strict=True):
            found = _sample_gradients(one, sample, weight, own_mean, own_std, ctx.eps)
            target.copy_(found[0])
            d_weight += found[1]
            d_bias += found[2]
        return d_x, d_weight, d_bias, None


def _sample_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the norm of one sample (1, C, D, H, W) for x, weight and bias."""
    d_x, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, None, None, mean, inverse_std, True, eps, [True, True, True]
    )
    return d_x, d_weight, d_bias
