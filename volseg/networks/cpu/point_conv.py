"""The 1 x 1 x 1 convolution to logits, which are float32."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from volseg.networks.cpu.feature_maps import empty_maps, plain_inference
from volseg.networks.kernels import kernels_of

HALVES = (torch.bfloat16, torch.float16)


class PointConv(nn.Conv3d):
    """`nn.Conv3d` with a 1 x 1 x 1 kernel, a matrix product in channels-last format.

    Features in bfloat16 or float16, or float32 ones under autocast, give float32 logits as well: a logit in bfloat16
    has 8 bits, too few for the ties, means and probabilities that are made of it. The exception is training on a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, out_channels, D, H, W)."""
        if self.bias is None:
            return super().forward(x)
        if plain_inference(x) is not None:
            out = empty_maps(len(x), self.out_channels, x.shape[2:], torch.float32)
            _multiply(_rows(x), self.weight.flatten(1), self.bias, _rows(out), kernels_of(x).head_rows)
            return out
        if torch.is_grad_enabled() and kernels_of(x).onednn:
            # There the product in float32 takes four times as long, 5 % of a training step; the loss is float32 anyway.
            return super().forward(x)
        if self.weight.dtype == torch.float32 and (x.dtype in HALVES or _under_autocast(x)):
            logits: Tensor = Float32Product.apply(x, self.weight, self.bias)
            return logits
        return super().forward(x)


class Float32Product(torch.autograd.Function):
    """The convolution in float32 for features of any type, which are kept as they are, with or without autocast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Map x (B, A, D, H, W) to (B, K, D, H, W) float32 by weight (K, A, 1, 1, 1) and bias (K,), both float32."""
        ctx.save_for_backward(x, weight)
        out = weight.new_empty(len(x), *x.shape[2:], len(weight))
        _multiply(_rows(x), weight.flatten(1), bias, out.flatten(0, 3), kernels_of(x).head_rows)
        return out.movedim(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients for x, weight and bias."""
        x, weight = ctx.saved_tensors
        matrix, rows = weight.flatten(1), _rows(gradient)
        d_x = x.new_empty(len(x), *x.shape[2:], x.shape[1])
        d_matrix = torch.zeros_like(matrix)
        for part, features, target in _parts(kernels_of(x).head_rows, rows, _rows(x), d_x.flatten(0, 3)):
            target.copy_(part @ matrix)
            d_matrix.addmm_(part.T, features.float())
        return d_x.movedim(-1, 1), d_matrix.view_as(weight), rows.sum(0)


def _under_autocast(x: Tensor) -> bool:
    """Whether torch would compute a convolution of `x` in another type."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _multiply(rows: Tensor, matrix: Tensor, bias: Tensor, results: Tensor, count: int) -> None:
    """Write (N, A) times the transpose of (K, A) plus (K,), in float32, to (N, K), `count` rows at a time."""
    for part, result in _parts(count, rows, results):
        # With a tensor for its result it is no part of autocast.
        torch.addmm(bias, part.to(torch.float32), matrix.T, out=result)


def _parts(count: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(one.split(count) for one in tensors), strict=True)


def _rows(maps: Tensor) -> Tensor:
    """(B, C, D, H, W) as (N, C), one row a voxel: a view of channels-last maps."""
    return maps.permute(0, 2, 3, 4, 1).flatten(0, 3)
