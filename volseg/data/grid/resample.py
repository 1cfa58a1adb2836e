"""Separable, axis-aligned resampling in float32, slab after slab.

Tensors are (..., D, H, W). Half-pixel convention, edges clamped: target index n lies at
(n + 0.5) * source / target - 0.5, as in `torch.nn.functional.interpolate(align_corners=False)` and
`skimage.transform.resize(mode="edge", anti_aliasing=False)`, whose results these are for every order of splines.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch

from volseg.config import Resampling, Triple

Stencil = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Read: TypeAlias = Callable[[int, int], torch.Tensor]

# Voxels of source or target in memory at a time: what is made of them on the way is a few times as large.
SLAB_VOXELS = 1 << 22
# Weights of a spline fall off by a factor of 2 to 6 a voxel; smaller ones than this change no bit of a float32 sum.
NEGLIGIBLE = 1e-9
LINEAR = Resampling()


def linear_stencil(source: int, target: int, device: torch.device) -> Stencil:
    """For each target index: the lower and upper source index, and the weight of the upper one (float32)."""
    position = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
    lower = position.floor().long()
    upper = (lower + 1).clamp(max=source - 1)
    weight = (position - lower).to(torch.float32)
    return lower.to(device), upper.to(device), weight.to(device)


def nearest_index(source: int, target: int, device: torch.device) -> torch.Tensor:
    """For each target index the nearest source index; of two as near, the upper one, as `scipy.ndimage` decides."""
    # In float64 and in scipy's order of operations, so that even a half that is missed by rounding is missed alike.
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5
    return (position + 0.5).floor().long().clamp(0, source - 1).to(device)


@lru_cache(maxsize=16)
def spline_matrix(source: int, target: int, order: int) -> torch.Tensor:
    """What spline interpolation of an order does along one axis: (target, source) float32, rows sum to 1.

    Interpolation by splines is linear in the voxels and goes axis by axis, so scipy's answer for the identity matrix
    is all there is to know about it, its padding of 12 repeated edge voxels before the prefilter included.
    """
    from scipy import ndimage  # noqa: PLC0415 - loading scipy takes longer than most scans

    zoom = (target / source, 1)
    weights = ndimage.zoom(np.eye(source), zoom, order=order, mode="nearest", grid_mode=True)
    return torch.from_numpy(weights.astype(np.float32))


def separate_axis(resampling: Resampling, current_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis that is resampled on its own, by `resampling.separate_order`, after the two others; None for no one.

    As nnU-Net decides: 'always' takes the coarsest axis of the current grid; 'anisotropic' does so where spacings
    differ by more than the given ratio, else looks at the new grid in the same way. Where several axes are the
    coarsest, there is none.

    Args:
        resampling: of a plan.
        current_spacing: of the grid that values are carried from, three numbers in mm.
        new_spacing: of the grid they are carried to.
    """
    grids = {"never": (), "always": (current_spacing,), "anisotropic": (current_spacing, new_spacing)}
    for spacing in grids[resampling.separate]:
        largest = max(spacing)
        if resampling.separate == "always" or largest / min(spacing) > resampling.anisotropy:
            # Norms of an oblique affine's columns differ in their last bits where the voxel sizes are equal.
            coarsest = [axis for axis in range(3) if math.isclose(spacing[axis], largest, rel_tol=1e-6)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_slabs(
    read: Read,
    source: Triple,
    target: Triple,
    resampling: Resampling = LINEAR,
    separate: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Resample a volume that is read a few planes at a time.

    Above order 1, values are clipped to the range of the volume, or of each slice across the separate axis before
    that axis is resampled, because splines overshoot. Up to order 1, constant in is constant out, bit for bit.

    Args:
        read: gives planes start to stop of the volume, (..., stop - start, H, W) float32.
        source: (D, H, W) of the volume.
        target: (D, H, W) of the result.
        resampling: orders of the splines.
        separate: the axis that is resampled last and on its own, see `separate_axis`.
        out: (..., *target) float32 that the result is written to; None to make one.

    Returns:
        (..., *target) float32. Beyond it, memory does not grow with D.
    """
    steps = [
        _step(source[axis], target[axis], resampling.separate_order if axis == separate else resampling.order)
        for axis in range(3)
    ]
    limits = _limits(read, source, separate) if resampling.order > 1 and source != target else None
    # In-plane axes go before D, so that each plane is resampled once; those that shrink most first.
    in_plane = sorted({1, 2} - {separate}, key=lambda axis: target[axis] / source[axis])

    def planes_of(start: int, stop: int) -> torch.Tensor:
        planes = read(start, stop)
        for axis in in_plane:
            planes = steps[axis].along(planes, axis - 3)
        return limits.clip(planes, slice(start, stop)) if limits and separate == 0 else planes

    planes, result = _Planes(planes_of), out
    # Neither the planes that are read nor those that are made may be more than a slab.
    voxels = max(source[0], target[0]) * max(source[1] * source[2], target[1] * target[2])
    count = max(1, SLAB_VOXELS * target[0] // voxels)
    for start in range(0, target[0], count):
        stop = min(start + count, target[0])
        sources, step = steps[0].part(start, stop)
        slab = step.along(planes.take(sources.start, sources.stop), -3)
        if limits and separate != 0:
            slab = limits.clip(slab)
        if separate in (1, 2):
            slab = steps[separate].along(slab, separate - 3)
        if result is None:
            result = slab.new_empty((*slab.shape[:-3], *target))
        result[..., start:stop, :, :] = slab
    assert result is not None
    return result


def slabs(shape: Sequence[int]) -> list[slice]:
    """Planes of a (D, H, W) volume, in groups of about `SLAB_VOXELS` voxels."""
    count = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    return [slice(start, min(start + count, shape[0])) for start in range(0, shape[0], count)]


def resample_linear(volume: torch.Tensor, shape: Triple) -> torch.Tensor:
    """Resample a whole (..., D, H, W) to `shape` by linear interpolation, see `resample_slabs`."""
    d, h, w = volume.shape[-3:]
    return resample_slabs(lambda start, stop: volume[..., start:stop, :, :].to(torch.float32), (d, h, w), shape)


def resample_nearest(volume: torch.Tensor, shape: Triple) -> torch.Tensor:
    """Resample (..., D, H, W) to `shape` taking the nearest voxel: the only way for label images."""
    for axis in range(3):
        source = volume.shape[axis - 3]
        if source != shape[axis]:
            volume = volume.index_select(axis - 3, nearest_index(source, shape[axis], volume.device))
    return volume


class _Same:
    """An axis that stays as it is."""

    def part(self, start: int, stop: int) -> tuple[slice, "_Same"]:
        """The source indices that targets start to stop need, and the way from those alone to them."""
        return slice(start, stop), self

    def along(self, volume: torch.Tensor, _dim: int) -> torch.Tensor:
        """The volume with one axis, counted from the end, resampled."""
        return volume


@dataclass(frozen=True, eq=False)
class _Lerp:
    """An axis whose target voxels lie between two source voxels, or on one."""

    lower: torch.Tensor
    upper: torch.Tensor
    weight: torch.Tensor

    def part(self, start: int, stop: int) -> tuple[slice, "_Lerp"]:
        lower, upper, weight = (one[start:stop] for one in (self.lower, self.upper, self.weight))
        first = int(lower[0])
        return slice(first, int(upper[-1]) + 1), _Lerp(lower - first, upper - first, weight)

    def along(self, volume: torch.Tensor, dim: int) -> torch.Tensor:
        lower, upper, weight = (one.to(volume.device) for one in (self.lower, self.upper, self.weight))
        weight = weight.reshape(-1, *(1,) * (-dim - 1))
        return torch.lerp(volume.index_select(dim, lower), volume.index_select(dim, upper), weight)


@dataclass(frozen=True, eq=False)
class _Product:
    """An axis that is multiplied by a (target, source) matrix."""

    matrix: torch.Tensor

    def part(self, start: int, stop: int) -> tuple[slice, "_Product"]:
        # A row that falls on a source voxel needs that one alone; its neighbours' bands keep the order of bands.
        weighty = self.matrix.abs() > NEGLIGIBLE
        sources = slice(int(weighty[start:].any(0).nonzero()[0]), int(weighty[:stop].any(0).nonzero()[-1]) + 1)
        return sources, _Product(self.matrix[start:stop, sources])

    def along(self, volume: torch.Tensor, dim: int) -> torch.Tensor:
        matrix = self.matrix.to(volume.device)
        if dim == -1:
            return volume @ matrix.T
        if dim == -2:
            return matrix @ volume
        return (matrix @ volume.flatten(-2)).view(*volume.shape[:-3], -1, *volume.shape[-2:])


def _step(source: int, target: int, order: int) -> _Same | _Lerp | _Product:
    """How one axis is resampled."""
    if source == target:
        return _Same()
    if order > 1:
        return _Product(spline_matrix(source, target, order))
    device = torch.device("cpu")
    if order == 1:
        return _Lerp(*linear_stencil(source, target, device))
    index = nearest_index(source, target, device)
    return _Lerp(index, index, torch.zeros(target))


class _Planes:
    """Consecutive planes, each made once: the next slab needs some of the last one's again."""

    def __init__(self, make: Read) -> None:
        self._make = make
        self._first = self._stop = 0
        self._held: torch.Tensor | None = None

    def take(self, first: int, stop: int) -> torch.Tensor:
        """Planes first to stop, neither below those of the call before."""
        if self._held is None or first >= self._stop:
            self._held = self._make(first, stop)
        else:
            known = self._held[..., first - self._first :, :, :]
            self._held = torch.cat([known, self._make(self._stop, stop)], -3) if stop > self._stop else known
        self._first, self._stop = first, max(stop, self._stop)
        return self._held[..., : stop - first, :, :]


@dataclass(frozen=True, eq=False)
class _Limits:
    """The lowest and highest value of a volume, or of each of its slices: (..., 1 or D, 1 or H, 1 or W) each."""

    low: torch.Tensor
    high: torch.Tensor

    def clip(self, volume: torch.Tensor, planes: slice = slice(None)) -> torch.Tensor:
        return volume.clamp(self.low[..., planes, :, :], self.high[..., planes, :, :])


def _limits(read: Read, source: Triple, separate: int | None) -> _Limits:
    """Those of all voxels, or of each slice across the separate axis."""
    slices = [axis - 3 for axis in range(3) if axis != separate]
    lows, highs = [], []
    for planes in slabs(source):
        slab = read(planes.start, planes.stop)
        lows.append(slab.amin(slices, keepdim=True))
        highs.append(slab.amax(slices, keepdim=True))
    low, high = torch.cat(lows, -3), torch.cat(highs, -3)
    return _Limits(low, high) if separate == 0 else _Limits(low.amin(-3, keepdim=True), high.amax(-3, keepdim=True))
