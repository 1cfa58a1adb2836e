"""Separable, axis-aligned resampling in float32, slab by slab.

Tensors are (..., D, H, W). Half-pixel convention, edges clamped: target index n lies at
(n + 0.5) * source / target - 0.5, as in `torch.nn.functional.interpolate(align_corners=False)` and
`skimage.transform.resize(mode="edge", anti_aliasing=False)`; results agree with the latter for every spline order.
With anti-aliasing, axes that become coarser agree with `interpolate(mode="trilinear", antialias=True)`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeAlias

import numpy as np
import torch

from volseg.config import Resampling, Triple

Stencil = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Read: TypeAlias = Callable[[int, int], torch.Tensor]

# Voxels of source or target per slab; intermediate results take a few times as much memory.
SLAB_VOXELS = 1 << 22
# Spline weights decay by a factor of 2 to 6 per voxel; smaller ones than this do not change a float32 sum.
NEGLIGIBLE = 1e-9
LINEAR = Resampling()


def linear_stencil(source: int, target: int, device: torch.device) -> Stencil:
    """For each target index: the lower and upper source index, and the weight of the upper one (float32)."""
    position = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
    lower = position.floor().long()
    upper = (lower + 1).clamp(max=source - 1)
    weight = (position - lower).to(torch.float32)
    return lower.to(device), upper.to(device), weight.to(device)


def nearest_index(source: int, target: int, device: torch.device, rule: str = "scipy") -> torch.Tensor:
    """For each target index the nearest source index, as nnU-Net has it.

    Two source voxels may be equally near, for example where 12 become 11. Then rounding errors decide, which differ
    between the two functions that nnU-Net resamples with.

    Args:
        source: number of source voxels.
        target: number of target voxels.
        device: of the result.
        rule: "scipy": as `scipy.ndimage.map_coordinates` at (n + 0.5) * (source / target) - 0.5 in float64, which takes
            the upper one of a tie without rounding errors; "torch": as `torch.nn.functional.interpolate` with mode
            "nearest-exact", which computes in float32.
    """
    if rule == "torch":
        # By torch itself, because its rounding errors depend on how it was compiled; exact below 2 ** 24 voxels.
        numbers = torch.arange(source, dtype=torch.float32).reshape(1, 1, -1, 1, 1)
        chosen = torch.nn.functional.interpolate(numbers, size=(target, 1, 1), mode="nearest-exact")
        return chosen.flatten().long().to(device)
    # In scipy's order of operations.
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5
    return (position + 0.5).floor().long().clamp(0, source - 1).to(device)


@lru_cache(maxsize=16)
def spline_matrix(source: int, target: int, order: int) -> torch.Tensor:
    """Spline interpolation along one axis as a matrix: (target, source) float32, rows sum to 1.

    Spline interpolation is linear in the voxels and separable, so scipy's result for the identity matrix describes it
    completely, including scipy's padding by 12 repeated edge voxels before the prefilter.
    """
    from scipy import ndimage  # noqa: PLC0415 - loading scipy takes longer than most scans

    zoom = (target / source, 1)
    weights = ndimage.zoom(np.eye(source), zoom, order=order, mode="nearest", grid_mode=True)
    return torch.from_numpy(weights.astype(np.float32))


@lru_cache(maxsize=16)
def area_matrix(source: int, target: int) -> torch.Tensor:
    """Anti-aliased linear interpolation to fewer voxels as a matrix: (target, source) float32, rows sum to 1.

    The weight of a source voxel falls linearly with its distance from the target voxel, to 0 at the distance of two
    neighbouring targets, so that all voxels count. (Linear interpolation between the two nearest voxels would leave
    out most of a much finer scan, and with them turn its noise into structures.)
    """
    scale = source / target
    centre = (np.arange(target) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(source) - centre[:, None]) / scale
    weights = np.maximum(1 - distance, 0)
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def separate_axis(resampling: Resampling, current_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis that is resampled separately, with `resampling.separate_order`, after the two others; None for none.

    nnU-Net's rule: 'always' takes the axis with the largest current spacing; 'anisotropic' does so if spacings differ
    by more than the given ratio, and otherwise applies the same rule to the new spacing. If several axes share the
    largest spacing, no axis is separate.

    Args:
        resampling: of a plan.
        current_spacing: before resampling, three numbers in mm.
        new_spacing: after resampling, three numbers in mm.
    """
    grids = {"never": (), "always": (current_spacing,), "anisotropic": (current_spacing, new_spacing)}
    for spacing in grids[resampling.separate]:
        largest = max(spacing)
        if resampling.separate == "always" or largest / min(spacing) > resampling.anisotropy:
            # In an oblique affine, columns of equal voxel size may differ by rounding errors.
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

    Above order 1, values are clipped to the range of the volume, because splines overshoot; with a separate axis, each
    slice across it is clipped to its own range before that axis is resampled. Up to order 1, a constant volume stays
    constant, bit for bit, but for rounding errors of anti-aliasing.

    Args:
        read: returns planes start to stop of the volume, (..., stop - start, H, W) float32.
        source: (D, H, W) of the volume.
        target: (D, H, W) of the result.
        resampling: orders of the splines.
        separate: the axis that is resampled last and separately, see `separate_axis`.
        out: (..., *target) float32 to write the result to; None to allocate it.

    Returns:
        (..., *target) float32. Beyond it, memory does not grow with D.
    """
    orders = [resampling.separate_order if axis == separate else resampling.order for axis in range(3)]
    steps = [_step(source[axis], target[axis], orders[axis], resampling) for axis in range(3)]
    limits = _limits(read, source, separate) if resampling.order > 1 and source != target else None
    # In-plane axes before D, so that each plane is resampled once; the one that shrinks most first.
    in_plane = sorted({1, 2} - {separate}, key=lambda axis: target[axis] / source[axis])

    def planes_of(start: int, stop: int) -> torch.Tensor:
        planes = read(start, stop)
        for axis in in_plane:
            planes = steps[axis].along(planes, axis - 3)
        return limits.clip(planes, slice(start, stop)) if limits and separate == 0 else planes

    planes, result = _Planes(planes_of), out
    # Neither the planes read nor the planes computed may exceed a slab.
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


def resample_classes(classes: torch.Tensor, shape: Triple, resampling: Resampling) -> torch.Tensor:
    """Resample a label image by interpolating the mask of each class; the class with the largest value wins.

    Args:
        classes: (D, H, W) class indices of any integer dtype; `IGNORED` is one of them.
        shape: (D, H, W) of the result.
        resampling: of the masks.

    Returns:
        `shape`, of the dtype of `classes`; of equally large values the lowest class wins.
    """
    d, h, w = classes.shape
    result = torch.zeros(shape, dtype=classes.dtype)
    best = torch.zeros(shape)
    for value in torch.unique(classes).tolist():
        mask = resample_slabs(partial(_mask, classes, value), (d, h, w), shape, resampling)
        larger = mask > best
        result[larger] = value
        best = torch.maximum(best, mask)
    return result


def _mask(classes: torch.Tensor, value: int, start: int, stop: int) -> torch.Tensor:
    """Planes start to stop of the mask of one class, float32."""
    return (classes[start:stop] == value).to(torch.float32)


def resample_nearest(volume: torch.Tensor, shape: Triple) -> torch.Tensor:
    """Resample (..., D, H, W) to `shape` by nearest neighbour, for label images."""
    for axis in range(3):
        source = volume.shape[axis - 3]
        if source != shape[axis]:
            volume = volume.index_select(axis - 3, nearest_index(source, shape[axis], volume.device))
    return volume


class _Same:
    """An axis that is not resampled."""

    def part(self, start: int, stop: int) -> tuple[slice, "_Same"]:
        """The source indices needed for targets start to stop, and the resampling from those alone."""
        return slice(start, stop), self

    def along(self, volume: torch.Tensor, _dim: int) -> torch.Tensor:
        """The volume with one axis, counted from the end, resampled."""
        return volume


@dataclass(frozen=True, eq=False)
class _Lerp:
    """An axis interpolated linearly between two source voxels, or copied from one."""

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
    """An axis multiplied by a (target, source) matrix."""

    matrix: torch.Tensor

    def part(self, start: int, stop: int) -> tuple[slice, "_Product"]:
        # A target that coincides with a source voxel needs that one alone, so its row may start later and end earlier
        # than its neighbours'; all rows from `start`, or up to `stop`, are considered to keep the bounds monotonic.
        relevant = self.matrix.abs() > NEGLIGIBLE
        sources = slice(int(relevant[start:].any(0).nonzero()[0]), int(relevant[:stop].any(0).nonzero()[-1]) + 1)
        return sources, _Product(self.matrix[start:stop, sources])

    def along(self, volume: torch.Tensor, dim: int) -> torch.Tensor:
        matrix = self.matrix.to(volume.device)
        if dim == -1:
            return volume @ matrix.T
        if dim == -2:
            return matrix @ volume
        return (matrix @ volume.flatten(-2)).view(*volume.shape[:-3], -1, *volume.shape[-2:])


def _step(source: int, target: int, order: int, resampling: Resampling) -> _Same | _Lerp | _Product:
    """How one axis is resampled, by a spline of an order."""
    if source == target:
        return _Same()
    if resampling.antialias and source > target:
        return _Product(area_matrix(source, target))
    if order > 1:
        return _Product(spline_matrix(source, target, order))
    device = torch.device("cpu")
    if order == 1:
        return _Lerp(*linear_stencil(source, target, device))
    index = nearest_index(source, target, device, resampling.nearest)
    return _Lerp(index, index, torch.zeros(target))


class _Planes:
    """Consecutive planes, each computed once: a slab reuses some planes of the slab before."""

    def __init__(self, compute: Read) -> None:
        self._compute = compute
        self._first = self._stop = 0
        self._held: torch.Tensor | None = None

    def take(self, first: int, stop: int) -> torch.Tensor:
        """Planes first to stop; neither may be lower than in the call before."""
        if self._held is None or first >= self._stop:
            self._held = self._compute(first, stop)
        else:
            reused = self._held[..., first - self._first :, :, :]
            self._held = torch.cat([reused, self._compute(self._stop, stop)], -3) if stop > self._stop else reused
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
    """The limits of all voxels, or of each slice across the separate axis."""
    slices = [axis - 3 for axis in range(3) if axis != separate]
    lows, highs = [], []
    for planes in slabs(source):
        slab = read(planes.start, planes.stop)
        lows.append(slab.amin(slices, keepdim=True))
        highs.append(slab.amax(slices, keepdim=True))
    low, high = torch.cat(lows, -3), torch.cat(highs, -3)
    return _Limits(low, high) if separate == 0 else _Limits(low.amin(-3, keepdim=True), high.amax(-3, keepdim=True))
