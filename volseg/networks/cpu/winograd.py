"""3 x 3 x 3 convolutions with fewer multiplications, on the CPU; see `winograd_gradient` for training.

Winograd's minimal filtering F(n, 3) computes n outputs of a 3-tap filter with n + 2 multiplications instead of 3 n. It
is applied along D: each multiplication is a 2-D convolution of whole planes, which oneDNN computes at full speed, and
the sums of planes before and after them stay in the processor's cache. Lavin and Gray 2016, Fast Algorithms for
Convolutional Neural Networks, arXiv 1509.09308, section 4.

A larger n needs fewer multiplications per plane, but loses precision above six. Inference in float32 uses n = 4 (1/2 of
the multiplications) or n = 6 (4/9), whichever fits the depth better; training also uses n = 10 (2/5). Bfloat16 is
precise enough for n = 2 only (2/3), whose sums have no weight above 1.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from volseg.networks.cpu.feature_maps import empty_maps


@dataclass(frozen=True, eq=False)
class Scheme:
    """F(n, 3): n outputs from n + 2 inputs and three taps, with n + 2 products.

    Attributes:
        from_input: (n + 2, n + 2), the sums of inputs in the products.
        from_taps: (n + 2, 3), the sums of taps in the products.
        to_output: (n, n + 2), the sums of products that are the outputs.
    """

    from_input: Tensor
    from_taps: Tensor
    to_output: Tensor

    @property
    def outputs(self) -> int:
        """The n of F(n, 3)."""
        return len(self.to_output)


def scheme_of(*points: float) -> Scheme:
    """F(n, 3) from n + 1 different points and infinity: the transposed construction of Toom and Cook.

    Barabasz, Anderson, Soodhalter and Gregg 2018, Error Analysis and Improving the Accuracy of Winograd Convolution for
    Deep Neural Networks, arXiv 1803.10986.
    """
    outputs = len(points) - 1
    from_input, from_taps = np.zeros((outputs + 2, outputs + 2)), np.zeros((outputs + 2, 3))
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        scale = np.prod([point - other for other in others])
        from_input[row, :-1] = np.poly(others)[::-1] * np.sign(scale)
        from_taps[row] = point ** np.arange(3) / abs(scale)
    from_input[-1] = np.poly(points)[::-1]
    from_taps[-1, -1] = 1
    powers = np.array(points) ** np.arange(outputs)[:, None]
    to_output = np.hstack([powers, np.eye(outputs)[:, -1:]])
    return Scheme(*(torch.from_numpy(matrix).float() for matrix in (from_input, from_taps, to_output)))


# Small points and their inverses lose the least precision.
TWO = scheme_of(0, 1, -1)
FOUR = scheme_of(0, 1, -1, 2, -2)
SIX = scheme_of(0, 1, -1, 2, -2, 1 / 2, -1 / 2)
TEN = scheme_of(0, 1, -1, 2, -2, 1 / 2, -1 / 2, 3 / 4, -3 / 4, 4 / 3, -4 / 3)
# The 2-D filters (O, C, 3, 3) of each scheme's products.
Filters: TypeAlias = dict[Scheme, list[Tensor]]
# The sample and the first plane of each tile.
Tiles: TypeAlias = list[tuple[int, int]]
# Below these sizes the plain convolution is as fast.
LEAST_CHANNELS, LEAST_PLANES = 16, 8
LEAST_VOXELS = {torch.float32: 1100, torch.bfloat16: 1500}
# Input values processed together: few enough for a processor's cache, enough for oneDNN to run at full speed.
CHUNK = {torch.float32: 1 << 22, torch.bfloat16: 1 << 21}


def is_faster(x: Tensor) -> bool:
    """Whether an input (B, C, D, H, W), float32 or bfloat16, is large enough for this convolution to be faster."""
    enough = x.shape[2:].numel() >= LEAST_VOXELS[x.dtype]
    return enough and x.shape[1] >= LEAST_CHANNELS and x.shape[2] >= LEAST_PLANES


def scheme_to_predict(depth: int, dtype: torch.dtype) -> Scheme:
    """The scheme for `depth` planes; a second one would cost more memory for its filters than it saves time."""
    if dtype == torch.bfloat16:
        return TWO
    return min(FOUR, SIX, key=lambda one: -(-depth // one.outputs) * (one.outputs + 2))


def schemes_to_train(depth: int) -> list[Scheme]:
    """The schemes that compute `depth` planes with the fewest products, largest first."""
    return [scheme for scheme, starts in _division(depth, (TEN, SIX, FOUR)) if starts]


@cache
def _division(depth: int, schemes: tuple[Scheme, ...]) -> list[tuple[Scheme, range]]:
    """The first planes of each scheme's tiles, which together cover the depth with the fewest products.

    Args:
        depth: number of planes.
        schemes: largest first. No smaller one needs more than four tiles: five are never better than larger ones.
    """
    largest, *others = schemes
    options = []
    for counts in product(range(5), repeat=len(others)):
        left = depth - sum(count * one.outputs for count, one in zip(counts, others, strict=True))
        options.append((max(0, -(-left // largest.outputs)), *counts))
    cost = [sum(count * (one.outputs + 2) for count, one in zip(counts, schemes, strict=True)) for counts in options]
    # Of equal costs, the one with smaller tiles, which are more precise.
    best = min(zip(cost, options, strict=True))[1]
    division, start = [], 0
    for count, scheme in zip(best, schemes, strict=True):
        stop = start + count * scheme.outputs
        division.append((scheme, range(start, stop, scheme.outputs)))
        start = stop
    return division


def filters_of(weight: Tensor, schemes: list[Scheme], dtype: torch.dtype) -> Filters:
    """The filters for a convolution in `dtype` by `weight` (O, C, 3, 3, 3) float32."""
    return {scheme: _filters_of(weight, scheme, dtype) for scheme in schemes}


def _filters_of(weight: Tensor, scheme: Scheme, dtype: torch.dtype) -> list[Tensor]:
    transformed = torch.einsum("kd,oidhw->koihw", scheme.from_taps, weight)
    return [one.to(dtype).contiguous(memory_format=torch.channels_last) for one in transformed]


def convolve(x: Tensor, filters: Filters) -> Tensor:
    """Convolve with stride 1 and padding 1.

    Differs from the plain convolution by about 1e-5 of the largest output in float32, with n = 10 by 5e-5; in bfloat16
    the error is twice that of the plain convolution.

    Args:
        x: (B, C, D, H, W) float32 or bfloat16, channels last.
        filters: from `filters_of`, in the same type.

    Returns:
        (B, O, D, H, W), channels last.
    """
    channels = len(next(iter(filters.values()))[0])
    out = empty_maps(len(x), channels, x.shape[2:], x.dtype)
    planes, results = (maps.permute(0, 2, 3, 4, 1) for maps in (x, out))
    if x.dtype == torch.float32:
        _by_tiles(planes, filters, results)
    else:
        for sample, result in zip(planes, results, strict=True):
            _by_two(sample, filters[TWO], result)
    return out


def _by_tiles(x: Tensor, filters: Filters, out: Tensor) -> None:
    """Convolve (B, D, H, W, C) into (B, D, H, W, O), as many tiles together as fit the cache."""
    depth = x.shape[1]
    for scheme, tiles in tiles_of(x, filters):
        sums = combined(scheme.from_input, x, tiles, -1)
        products = x.new_empty(len(sums), len(tiles), *out.shape[2:])
        for target, each, weight in zip(products, sums, filters[scheme], strict=True):
            target.copy_(_plane_conv(each, weight))
        for (b, start), tile in zip(tiles, products.flatten(2).unbind(1), strict=True):
            count = min(scheme.outputs, depth - start)
            torch.mm(scheme.to_output[:count], tile, out=out[b, start : start + count].flatten(1))


def tiles_of(x: Tensor, schemes: Iterable[Scheme]) -> Iterator[tuple[Scheme, Tiles]]:
    """The tiles of (B, D, H, W, C) in order, as many of one scheme together as fit the cache."""
    for scheme, starts in _division(x.shape[1], tuple(schemes)):
        tiles = [(b, start) for b in range(len(x)) for start in starts]
        count = max(1, CHUNK[x.dtype] // (scheme.outputs * x[0, 0].numel()))
        yield from ((scheme, tiles[first : first + count]) for first in range(0, len(tiles), count))


def combined(matrix: Tensor, x: Tensor, tiles: Tiles, offset: int) -> Tensor:
    """The sums of planes of (B, D, H, W, C) with a matrix (m, n) of weights, for T tiles: (m, T, H, W, C).

    The n planes start `offset` planes after the first of the tile; outside the volume they are 0.
    """
    rows, size = matrix.shape
    out = x.new_empty(rows, len(tiles), *x.shape[2:])
    for (b, start), sums in zip(tiles, out.flatten(2).unbind(1), strict=True):
        first = start + offset
        torch.mm(matrix, with_zeros(x[b], first, first + size).flatten(1), out=sums)
    return out


def _by_two(x: Tensor, filters: list[Tensor], out: Tensor) -> None:
    """Convolve (D, H, W, C) into (D, H, W, O), two planes at a time, as many pairs together as fit the cache.

    The sums of `TWO`, written out so that each is rounded to bfloat16 once.
    """
    depth = len(x)
    pairs = max(1, CHUNK[x.dtype] // (2 * x[0].numel()))
    for start in range(0, depth, 2 * pairs):
        stop = min(start + 2 * pairs, depth + depth % 2)
        planes = with_zeros(x, start - 1, stop + 1)
        first, second = planes[0:-2:2], planes[1:-1:2]
        third, fourth = planes[2::2], planes[3::2]
        sums = (first - third, second + third, third - second, fourth - second)
        one, two, three, four = (_plane_conv(each, weight) for each, weight in zip(sums, filters, strict=True))
        torch.add(one, two + three, out=out[start:stop:2])
        count = min(stop, depth) // 2 - start // 2
        torch.add((two - three)[:count], four[:count], out=out[start + 1 : stop : 2])


def _plane_conv(planes: Tensor, weight: Tensor) -> Tensor:
    """A 3 x 3 convolution of each of (n, H, W, C): (n, H, W, O)."""
    images = planes.permute(0, 3, 1, 2)
    return torch.mkldnn_convolution(images, weight, None, [1, 1], [1, 1], [1, 1], 1).permute(0, 2, 3, 1)


def with_zeros(planes: Tensor, start: int, stop: int) -> Tensor:
    """`planes[start:stop]` of (D, ...), with zeros outside the volume."""
    depth = len(planes)
    if start >= 0 and stop <= depth:
        return planes[start:stop]
    first, last = max(start, 0), min(stop, depth)
    part = planes.new_empty(stop - start, *planes.shape[1:])
    part[: first - start] = 0
    part[first - start : last - start] = planes[first:last]
    part[last - start :] = 0
    return part
