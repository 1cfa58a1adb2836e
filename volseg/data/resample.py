"""Separable, axis-aligned resampling in float32, slab after slab.

Tensors are (..., D, H, W). Half-pixel convention, edges clamped: target index n lies at
(n + 0.5) * source / target - 0.5, as in `torch.nn.functional.interpolate(align_corners=False)` and
`skimage.transform.resize`.
"""

from collections.abc import Callable

import torch

from volseg.config import Triple

Stencil = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# Source voxels in memory at a time: what is made of them on the way is a few times as large.
SLAB_VOXELS = 1 << 22


def linear_stencil(source: int, target: int, device: torch.device) -> Stencil:
    """For each target index: the lower and upper source index, and the weight of the upper one (float32)."""
    position = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
    lower = position.floor().long()
    upper = (lower + 1).clamp(max=source - 1)
    weight = (position - lower).to(torch.float32)
    return lower.to(device), upper.to(device), weight.to(device)


def nearest_index(source: int, target: int, device: torch.device) -> torch.Tensor:
    """For each target index the nearest source index; a half goes to the lower one."""
    # In integers, so that a half is a half: ceil((2n + 1) * source / (2 * target)) - 1.
    return ((2 * torch.arange(target, device=device) + 1) * source - 1) // (2 * target)


def resample_slabs(read: Callable[[int, int], torch.Tensor], source: Triple, target: Triple) -> torch.Tensor:
    """Resample a volume that is read a few planes at a time, by linear interpolation; constant in, constant out.

    Args:
        read: gives planes start to stop of the volume, (..., stop - start, H, W) float32.
        source: (D, H, W) of the volume.
        target: (D, H, W) of the result.

    Returns:
        (..., *target) float32. Beyond it, memory does not grow with D.
    """
    # Axes that shrink most go first, so that the intermediate volumes stay small.
    order = sorted(range(3), key=lambda axis: target[axis] / source[axis])
    stencils = [linear_stencil(source[axis], target[axis], torch.device("cpu")) for axis in range(3)]
    step = max(1, SLAB_VOXELS * target[0] // (source[0] * source[1] * source[2]))
    result: torch.Tensor | None = None
    for start in range(0, target[0], step):
        lower, upper, weight = (one[start : start + step] for one in stencils[0])
        first = int(lower[0])
        slab = read(first, int(upper[-1]) + 1)
        here = [(lower - first, upper - first, weight), *stencils[1:]]
        for axis in order:
            if source[axis] != target[axis]:
                slab = _linear_along(slab, axis - 3, here[axis])
            elif axis == 0:
                slab = slab[..., : len(lower), :, :]  # the upper neighbours have no weight
        if result is None:
            result = slab.new_empty((*slab.shape[:-3], *target))
        result[..., start : start + step, :, :] = slab
    assert result is not None
    return result


def resample_linear(volume: torch.Tensor, shape: Triple) -> torch.Tensor:
    """Resample a whole (..., D, H, W) to `shape`, see `resample_slabs`."""
    d, h, w = volume.shape[-3:]
    return resample_slabs(lambda start, stop: volume[..., start:stop, :, :].to(torch.float32), (d, h, w), shape)


def resample_nearest(volume: torch.Tensor, shape: Triple) -> torch.Tensor:
    """Resample (..., D, H, W) to `shape` taking the nearest voxel: the only way for label images."""
    for axis in range(3):
        source = volume.shape[axis - 3]
        if source != shape[axis]:
            volume = volume.index_select(axis - 3, nearest_index(source, shape[axis], volume.device))
    return volume


def _linear_along(volume: torch.Tensor, dim: int, stencil: Stencil) -> torch.Tensor:
    lower, upper, weight = (one.to(volume.device) for one in stencil)
    weight = weight.reshape(-1, *(1,) * (-dim - 1))
    return torch.lerp(volume.index_select(dim, lower), volume.index_select(dim, upper), weight)
