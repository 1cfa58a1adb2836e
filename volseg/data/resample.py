"""Separable, axis-aligned resampling in float32.

Tensors are (..., D, H, W). Half-pixel convention, edges clamped: target index n lies at
(n + 0.5) * source / target - 0.5, as in `torch.nn.functional.interpolate(align_corners=False)` and
`skimage.transform.resize`.
"""

import torch

Triple = tuple[int, int, int]


def linear_stencil(source: int, target: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each target index: the lower and upper source index, and the weight of the upper one (float32)."""
    position = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
    lower = position.floor().long()
    upper = (lower + 1).clamp(max=source - 1)
    weight = (position - lower).to(torch.float32)
    return lower.to(device), upper.to(device), weight.to(device)


def nearest_index(source: int, target: int, device: torch.device) -> torch.Tensor:
    """For each target index the nearest source index; a half goes to the lower one."""
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5
    return (position - 0.5).ceil().clamp(0, source - 1).long().to(device)


def resample_linear(volume: torch.Tensor, shape: Triple) -> torch.Tensor:
    """Resample (..., D, H, W) to `shape` by linear interpolation; constant in, constant out.

    Axes that shrink most go first, so that the intermediate volumes stay small.
    """
    volume = volume.to(torch.float32)
    ratios = {axis: shape[axis] / volume.shape[axis - 3] for axis in range(3)}
    for axis in sorted(ratios, key=ratios.__getitem__):
        volume = _linear_along(volume, axis - 3, shape[axis])
    return volume


def resample_nearest(volume: torch.Tensor, shape: Triple) -> torch.Tensor:
    """Resample (..., D, H, W) to `shape` taking the nearest voxel: the only way for label images."""
    for axis in range(3):
        source = volume.shape[axis - 3]
        if source != shape[axis]:
            volume = volume.index_select(axis - 3, nearest_index(source, shape[axis], volume.device))
    return volume


def _linear_along(volume: torch.Tensor, dim: int, target: int) -> torch.Tensor:
    source = volume.shape[dim]
    if source == target:
        return volume
    lower, upper, weight = linear_stencil(source, target, volume.device)
    weight = weight.reshape(-1, *(1,) * (-dim - 1))
    return torch.lerp(volume.index_select(dim, lower), volume.index_select(dim, upper), weight)
