"""3 x 3 x 3 convolutions with fewer multiplications, on the CPU; see `winograd_gradient` for training.

Winograd's minimal filtering F(n, 3) makes n outputs of a 3-tap filter with n + 2 multiplications instead of 3 n. Used
along D, where the multiplications are 2-D convolutions of whole planes, which the processor's library computes at full
speed; the planes in between are small sums that stay in its cache. Lavin and Gray 2016, Fast Algorithms for
Convolutional Neural Networks, arXiv 1509.09308, section 4.

In float32 four planes are made at a time, with half the multiplications. The sums of that scheme weigh planes by up to
5 and would spoil bfloat16, so there two are made, with two thirds of them, and no weight above 1.
"""

from typing import TypeAlias

import torch
from torch import Tensor

from volseg.networks.maps import empty_maps

Matrix: TypeAlias = tuple[tuple[float, ...], ...]

# F(4, 3): six input planes, three taps, and four output planes; and the six products between them.
FOUR_FROM_INPUT: Matrix = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
FOUR_FROM_TAPS: Matrix = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
FOUR_TO_OUTPUT: Matrix = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)
# F(2, 3), whose other two matrices are the sums in `_by_two`.
TWO_FROM_TAPS: Matrix = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
FROM_TAPS = {torch.float32: FOUR_FROM_TAPS, torch.bfloat16: TWO_FROM_TAPS}
# Below these sizes the plain convolution is as fast.
LEAST_CHANNELS, LEAST_PLANES = 16, 8
LEAST_VOXELS = {torch.float32: 1100, torch.bfloat16: 1500}
# Values of the input at work: few enough for a processor's cache, enough for its library to work at full speed.
AT_WORK = {torch.float32: 1 << 22, torch.bfloat16: 1 << 21}


def pays(x: Tensor) -> bool:
    """Whether an input (B, C, D, H, W), float32 or bfloat16, is large enough for this way to be faster."""
    enough = x.shape[2:].numel() >= LEAST_VOXELS[x.dtype]
    return enough and x.shape[1] >= LEAST_CHANNELS and x.shape[2] >= LEAST_PLANES


def filters_of(weight: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The 2-D filters (O, C, 3, 3) of the products for a convolution in `dtype` by `weight` (O, C, 3, 3, 3) float32."""
    transformed = torch.einsum("kd,oidhw->koihw", torch.tensor(FROM_TAPS[dtype]), weight)
    return [one.to(dtype).contiguous(memory_format=torch.channels_last) for one in transformed]


def convolve(x: Tensor, filters: list[Tensor]) -> Tensor:
    """Convolve with stride 1 and padding 1.

    Differs from the plain way by about 1e-5 of the largest output in float32; in bfloat16 its error is twice that of
    the plain way.

    Args:
        x: (B, C, D, H, W) float32 or bfloat16, channels last.
        filters: of `filters_of` in the same type.

    Returns:
        (B, O, D, H, W), channels last.
    """
    out = empty_maps(len(x), len(filters[0]), x.shape[2:], x.dtype)
    planes, results = (maps.permute(0, 2, 3, 4, 1) for maps in (x, out))
    if x.dtype == torch.float32:
        _by_four(planes, filters, results)
    else:
        for sample, result in zip(planes, results, strict=True):
            _by_two(sample, filters, result)
    return out


def _by_four(x: Tensor, filters: list[Tensor], out: Tensor) -> None:
    """Convolve (B, D, H, W, C) into (B, D, H, W, O), four planes at a time, as many fours together as are cached."""
    depth, from_input, to_output = x.shape[1], torch.tensor(FOUR_FROM_INPUT), torch.tensor(FOUR_TO_OUTPUT)
    for tiles in tiles_of(x):
        sums = combined(from_input, x, tiles, -1)
        products = torch.empty(6, len(tiles), *out.shape[2:])
        for product, each, weight in zip(products, sums, filters, strict=True):
            product.copy_(_plane_conv(each, weight))
        for (b, start), product in zip(tiles, products.flatten(2).unbind(1), strict=True):
            count = min(4, depth - start)
            torch.mm(to_output[:count], product, out=out[b, start : start + count].flatten(1))


def tiles_of(x: Tensor) -> list[list[tuple[int, int]]]:
    """The sample and the first plane of each four planes of (B, D, H, W, C), in lists that stay in the cache."""
    tiles = [(b, start) for b in range(len(x)) for start in range(0, x.shape[1], 4)]
    count = max(1, AT_WORK[x.dtype] // (4 * x[0, 0].numel()))
    return [tiles[first : first + count] for first in range(0, len(tiles), count)]


def combined(matrix: Tensor, x: Tensor, tiles: list[tuple[int, int]], offset: int) -> Tensor:
    """The six sums of planes of (B, D, H, W, C) that a matrix (6, n) makes for each of T tiles: (6, T, H, W, C).

    The n planes begin `offset` after the tile's first; beyond the volume they are 0.
    """
    size = matrix.shape[1]
    out = torch.empty(6, len(tiles), *x.shape[2:])
    for (b, start), sums in zip(tiles, out.flatten(2).unbind(1), strict=True):
        first = start + offset
        torch.mm(matrix, with_zeros(x[b], first, first + size).flatten(1), out=sums)
    return out


def _by_two(x: Tensor, filters: list[Tensor], out: Tensor) -> None:
    """Convolve (D, H, W, C) into (D, H, W, O), two planes at a time, as many pairs together as stay in the cache."""
    depth = len(x)
    pairs = max(1, AT_WORK[x.dtype] // (2 * x[0].numel()))
    for start in range(0, depth, 2 * pairs):
        stop = min(start + 2 * pairs, depth + depth % 2)
        planes = with_zeros(x, start - 1, stop + 1)
        first, second = planes[0:-2:2], planes[1:-1:2]
        third, fourth = planes[2::2], planes[3::2]
        sums = (first - third, second + third, third - second, second - fourth)
        one, two, three, four = (_plane_conv(each, weight) for each, weight in zip(sums, filters, strict=True))
        torch.add(one, two + three, out=out[start:stop:2])
        count = min(stop, depth) // 2 - start // 2
        torch.sub((two - three)[:count], four[:count], out=out[start + 1 : stop : 2])


def _plane_conv(planes: Tensor, weight: Tensor) -> Tensor:
    """A 3 x 3 convolution of each of (n, H, W, C): (n, H, W, O)."""
    images = planes.permute(0, 3, 1, 2)
    return torch.mkldnn_convolution(images, weight, None, [1, 1], [1, 1], [1, 1], 1).permute(0, 2, 3, 1)


def with_zeros(planes: Tensor, start: int, stop: int) -> Tensor:
    """`planes[start:stop]` (D, ...), zeros where that reaches beyond the volume."""
    depth = len(planes)
    if start >= 0 and stop <= depth:
        return planes[start:stop]
    first, last = max(start, 0), min(stop, depth)
    part = planes.new_empty(stop - start, *planes.shape[1:])
    part[: first - start] = 0
    part[first - start : last - start] = planes[first:last]
    part[last - start :] = 0
    return part
