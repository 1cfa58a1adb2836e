"""Winograd's convolution of `volseg.networks.winograd` with its gradients, for training in float32 on the CPU.

What it computes is y = A ((G w) (B x)), bilinear in the input x and the weight w, where A, G and B are the matrices of
F(4, 3) and the product in the middle is six convolutions of planes. So the gradients are the transposed matrices around
the gradients of those six, and take half the multiplications too: dx = B' ((G w)' (A' dy)), dw = G' ((B x) (A' dy)).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from volseg.networks.winograd import (
    FOUR_FROM_INPUT,
    FOUR_FROM_TAPS,
    FOUR_TO_OUTPUT,
    combined,
    convolve,
    filters_of,
    tiles_of,
)


class WinogradConv(torch.autograd.Function):
    """A 3 x 3 x 3 convolution with stride 1 and padding 1; differs from the plain way by about 1e-5 of the largest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve x (B, C, D, H, W) float32, channels last, with weight (O, C, 3, 3, 3) float32."""
        filters = filters_of(weight, torch.float32)
        ctx.save_for_backward(x, *filters)
        return convolve(x, filters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients for x and weight."""
        x, *filters = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        d_x = torch.zeros_like(x)
        d_filters = [torch.zeros_like(one) for one in filters]
        one, two, three = (maps.permute(0, 2, 3, 4, 1) for maps in (x, gradient, d_x))
        _add_gradients(one, two, three, filters, d_filters)
        return d_x, torch.einsum("kd,koihw->oidhw", torch.tensor(FOUR_FROM_TAPS), torch.stack(d_filters))


def _add_gradients(x: Tensor, gradient: Tensor, d_x: Tensor, filters: list[Tensor], d_filters: list[Tensor]) -> None:
    """Add the gradients to `d_x` (B, D, H, W, C) and to `d_filters`, as many tiles at once as are cached.

    Args:
        x: (B, D, H, W, C).
        gradient: of the output, (B, D, H, W, O).
        d_x: written to.
        filters: of `filters_of`.
        d_filters: like `filters`, written to.
    """
    depth, from_input, to_output = x.shape[1], torch.tensor(FOUR_FROM_INPUT), torch.tensor(FOUR_TO_OUTPUT)
    for tiles in tiles_of(x):
        sums = combined(from_input, x, tiles, -1)
        d_products = combined(to_output.T, gradient, tiles, 0)
        d_sums = torch.empty_like(sums)
        for image, d_image, weight, d_weight, d_sum in zip(sums, d_products, filters, d_filters, d_sums, strict=True):
            found = torch.ops.aten.convolution_backward(
                *(maps.permute(0, 3, 1, 2) for maps in (d_image, image)),
                weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False],
            )  # fmt: skip
            d_sum.copy_(found[0].permute(0, 2, 3, 1))
            d_weight += found[1]
        for (b, start), d_tile in zip(tiles, d_sums.flatten(2).unbind(1), strict=True):
            first, last = max(start - 1, 0), min(start + 5, depth)
            d_x[b, first:last].flatten(1).addmm_(from_input.T[first - start + 1 : last - start + 1], d_tile)
