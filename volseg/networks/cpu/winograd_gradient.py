"""Winograd's convolution of `volseg.networks.cpu.winograd` with its gradients, for training in float32 on the CPU.

The convolution is y = A ((G w) (B x)), bilinear in the input x and the weight w. A, G and B are the matrices of a
scheme; the product in the middle is one convolution of planes per row. The gradients use the transposed matrices and as
few multiplications: dx = B' ((G w)' (A' dy)) and dw = G' ((B x) (A' dy)).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from volseg.networks.cpu.winograd import Filters, Scheme, combined, convolve, filters_of, schemes_to_train, tiles_of


class WinogradConv(torch.autograd.Function):
    """A 3 x 3 x 3 convolution with stride 1 and padding 1.

    Differs from the plain convolution by up to 1e-4 of the largest value. For comparison, TF32, in which GPUs train,
    rounds every factor by up to 5e-4 of its value.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve x (B, C, D, H, W) float32, channels last, with weight (O, C, 3, 3, 3) float32."""
        ctx.filters = filters_of(weight, schemes_to_train(x.shape[2]), torch.float32)
        ctx.save_for_backward(x)
        return convolve(x, ctx.filters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients for x and weight."""
        (x,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        d_x = torch.empty_like(x)
        d_filters = {scheme: [torch.zeros_like(one) for one in filters] for scheme, filters in ctx.filters.items()}
        x_last, gradient_last, d_x_last = (maps.permute(0, 2, 3, 4, 1) for maps in (x, gradient, d_x))
        _add_gradients(x_last, gradient_last, d_x_last, ctx.filters, d_filters)
        return d_x, torch.stack([_d_weight(scheme, filters) for scheme, filters in d_filters.items()]).sum(0)


def _d_weight(scheme: Scheme, d_filters: list[Tensor]) -> Tensor:
    """The gradient of the weight (O, C, 3, 3, 3) from the gradients of a scheme's filters."""
    return torch.einsum("kd,koihw->oidhw", scheme.from_taps, torch.stack(d_filters))


def _add_gradients(x: Tensor, gradient: Tensor, d_x: Tensor, filters: Filters, d_filters: Filters) -> None:
    """Write the gradient of x to `d_x` (B, D, H, W, C) and add that of the filters to `d_filters`.

    Args:
        x: (B, D, H, W, C).
        gradient: of the output, (B, D, H, W, O).
        d_x: written to.
        filters: from `filters_of`.
        d_filters: like `filters`, added to.
    """
    depth = x.shape[1]
    for scheme, tiles in tiles_of(x, filters):
        sums = combined(scheme.from_input, x, tiles, -1)
        d_products = combined(scheme.to_output.T, gradient, tiles, 0)
        d_sums = torch.empty_like(sums)
        each = zip(sums, d_products, filters[scheme], d_filters[scheme], d_sums, strict=True)
        for image, d_image, weight, d_weight, d_sum in each:
            found = torch.ops.aten.convolution_backward(
                *(maps.permute(0, 3, 1, 2) for maps in (d_image, image)),
                weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False],
            )  # fmt: skip
            d_sum.copy_(found[0].permute(0, 2, 3, 1))
            d_weight += found[1]
        for (b, start), d_tile in zip(tiles, d_sums.flatten(2).unbind(1), strict=True):
            first, last = max(start - 1, 0), min(start + scheme.outputs + 1, depth)
            # The previous tile has written to the first two planes; the others are still uninitialised.
            d_x[b, start + 1 if start else 0 : last] = 0
            rows = scheme.from_input.T[first - start + 1 : last - start + 1]
            d_x[b, first:last].flatten(1).addmm_(rows, d_tile)
