"""The spatial half of augmentation as one step: crop, rotate, scale and mirror in a single resampling.

Arrays are (C, D, H, W). Only the box that a patch needs is read, so the volumes may be files of whole cases.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple_rep

from volseg.config import AugmentationConfig, Plan, Triple

# From this ratio of spacings on, turning out of the plane would mix voxels that are far apart (nnU-Net's rule).
ANISOTROPY = 3.0
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Warp:
    """A rotation, a scaling and mirror images about the centre of a patch.

    Args:
        angles: radians about D, H and W, in this order; positive about D turns H towards W.
        scales: along D, H and W of the case; above 1 things appear larger.
        mirrored: whether D, H and W of the patch are reversed.
    """

    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    mirrored: tuple[bool, bool, bool] = (False, False, False)

    @property
    def exact(self) -> bool:
        """Whether voxels only change places, so that nothing is interpolated."""
        return not any(self.angles) and self.scales == (1.0, 1.0, 1.0)

    def matrix(self, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """From an offset to the patch's centre to one in the case, both in voxels: 3 x 3 float64."""
        turn = np.eye(3)
        for axis, angle in enumerate(self.angles):
            turn = _rotation(axis, angle) @ turn
        spacing = np.array(spacing_mm)
        mirror = np.where(self.mirrored, -1.0, 1.0)
        # The picture turns by `turn`, so looking up where a voxel comes from turns the other way.
        matrix: np.ndarray = turn.T / (np.array(self.scales) * spacing)[:, None] * spacing * mirror
        return matrix


def is_strongly_anisotropic(spacing_mm: tuple[float, float, float]) -> bool:
    """Whether a grid is so coarse along one axis that augmentation stays in the plane."""
    return max(spacing_mm) > ANISOTROPY * min(spacing_mm)


def draw_warp(rng: np.random.RandomState, config: AugmentationConfig, plan: Plan) -> Warp:
    """Draw a warp: rotation about all axes, or about D by up to 180 degrees for a strongly anisotropic plan."""
    in_plane = is_strongly_anisotropic(plan.spacing_mm)
    largest = np.radians([180.0, 0.0, 0.0] if in_plane else [config.rotation_degrees] * 3)
    angles, scale = np.zeros(3), 1.0
    if rng.random_sample() < config.rotation:
        angles = rng.uniform(-largest, largest)
    if rng.random_sample() < config.scaling:
        scale = float(rng.uniform(*config.scaling_range))
    mirrored = (rng.random_sample(3) < config.mirror) & np.isin(range(3), plan.mirror_axes)
    return Warp(
        angles=(float(angles[0]), float(angles[1]), float(angles[2])),
        scales=(1.0 if in_plane else scale, scale, scale),
        mirrored=(bool(mirrored[0]), bool(mirrored[1]), bool(mirrored[2])),
    )


def sampling_grid(whole: Triple, centre: Triple, size: Triple, matrix: np.ndarray) -> tuple[Box, torch.Tensor]:
    """Where the voxels of a warped patch lie in a case.

    Args:
        whole: (D, H, W) of the case.
        centre: the case voxel that the unwarped patch has at index size // 2.
        size: (D, H, W) of the patch.
        matrix: of `Warp.matrix`.

    Returns:
        The part of the case that the patch needs, and the points (1, *size, 3) in it, as `grid_sample` counts them.
    """
    half = (np.array(size) - 1) / 2
    middle = np.array(centre) - np.array(size) // 2 + half
    reach = np.abs(matrix) @ half
    start = np.clip(np.floor(middle - reach).astype(int), 0, np.array(whole) - 1)
    stop = np.clip(np.ceil(middle + reach).astype(int) + 1, start + 1, whole)
    # grid_sample counts each axis from -1 to 1, outer voxel edges included, and wants W, H, D.
    scale = 2 / (stop - start)
    columns = (scale[:, None] * matrix)[::-1]
    first = (scale * (middle - start + 0.5) - 1)[::-1]
    along = [np.outer(np.arange(n) - (n - 1) / 2, columns[:, axis]) for axis, n in enumerate(size)]
    d, h, w = (torch.from_numpy(points.astype(np.float32)) for points in (along[0] + first, along[1], along[2]))
    box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
    return box, (d[:, None, None] + h[:, None] + w)[None]


def warped_patch(volume: np.ndarray, box: Box, grid: torch.Tensor, nearest: bool) -> torch.Tensor:
    """Resample a patch out of a volume; zero beyond the volume's edge.

    Args:
        volume: (C, D, H, W), any real dtype.
        box: the part of the volume to read, of `sampling_grid`.
        grid: the points to sample in it, of `sampling_grid`.
        nearest: take the nearest voxel instead of interpolating linearly.

    Returns:
        (C, *size) in the volume's dtype.
    """
    part = torch.from_numpy(np.array(volume[(slice(None), *box)]))
    mode = "nearest" if nearest else "bilinear"
    patch = F.grid_sample(part[None].float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return patch[0].to(part.dtype)


def exact_patch(volume: np.ndarray, centre: Triple, size: Triple, mirrored: tuple[bool, bool, bool]) -> torch.Tensor:
    """Copy a patch out of a volume, voxel for voxel; zero beyond the volume's edge.

    Args:
        volume: (C, D, H, W), any real dtype.
        centre: the case voxel that the patch has at index size // 2, before it is mirrored.
        size: (D, H, W) of the patch.
        mirrored: whether D, H and W of the patch are reversed.

    Returns:
        (C, *size) in the volume's dtype.
    """
    whole, shape = np.array(volume.shape[1:]), np.array(size)
    start = np.array(centre) - shape // 2
    low, high = np.clip(start, 0, whole), np.clip(start + shape, 0, whole)
    part = np.asarray(volume[(slice(None), *map(slice, low, high))])
    patch = np.zeros((len(part), *size), dtype=part.dtype)
    patch[(slice(None), *map(slice, low - start, high - start))] = part
    return torch.from_numpy(patch).flip([1 + axis for axis in range(3) if mirrored[axis]])


class RandAffinePatchd(Randomizable, MapTransform):  # type: ignore[misc]
    """Cut the plan's patch out of whole cases, rotated, scaled and mirrored in one go.

    Rotations are true in millimetres. The dict's entry "centre", a (D, H, W) voxel, says where the patch lies
    and is used up; without it, it is the middle of the case. Where nothing is rotated or scaled, the patch is an
    exact copy.

    Args:
        keys: entries (C, D, H, W) on one grid: tensors, arrays, or what gives arrays by slices, such as an image of
            the cache, of which only what is needed is read.
        plan: patch size, spacing and mirror axes.
        config: probabilities and ranges.
        mode: "bilinear" or "nearest", one for each key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        plan: Plan,
        config: AugmentationConfig,
        mode: str | Sequence[str] = "bilinear",
    ) -> None:
        MapTransform.__init__(self, keys)
        self.plan = plan
        self.config = config
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.warp = Warp()

    def randomize(self, data: Any = None) -> None:  # noqa: ARG002 - MONAI's interface
        """Draw the next warp."""
        self.warp = draw_warp(self.R, self.config, self.plan)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A dict with the patches as plain tensors in place of the cases."""
        self.randomize()
        out = dict(data)
        size = self.plan.patch_size
        whole = out[self.keys[0]].shape[1:]
        centre = out.pop("centre", tuple(length // 2 for length in whole))
        if self.warp.exact:
            return out | {key: exact_patch(out[key], centre, size, self.warp.mirrored) for key in self.keys}
        box, grid = sampling_grid(whole, centre, size, self.warp.matrix(self.plan.spacing_mm))
        for key, mode in zip(self.keys, self.mode, strict=True):
            out[key] = warped_patch(out[key], box, grid, mode == "nearest")
        return out


def _rotation(axis: int, angle: float) -> np.ndarray:
    """The 3 x 3 rotation about one axis that turns the next axis towards the one after it."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[one, one] = rotation[two, two] = np.cos(angle)
    rotation[two, one] = np.sin(angle)
    rotation[one, two] = -np.sin(angle)
    return rotation
