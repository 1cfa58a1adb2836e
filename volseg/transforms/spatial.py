"""Spatial augmentation in one step: crop, rotate, scale and flip in a single resampling.

Arrays are (C, D, H, W). Only the box that a patch needs is read, so volumes may be memory-mapped files of whole cases.
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

from volseg.config import IGNORED, AugmentationConfig, Plan, Triple, exchanged_order

# Above this ratio of spacings, an out-of-plane rotation would mix voxels that are far apart (nnU-Net's rule).
ANISOTROPY = 3.0
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Warp:
    """A rotation, a scaling and flips about the centre of a patch.

    Args:
        angles: radians about D, H and W, in this order; a positive angle about D rotates H towards W.
        scales: along D, H and W of the case; above 1 structures appear larger.
        flips: whether D, H and W of the patch are reversed.
    """

    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def exact(self) -> bool:
        """Whether the patch is a copy of voxels (cropped and flipped), without interpolation."""
        return not any(self.angles) and self.scales == (1.0, 1.0, 1.0)

    def matrix(self, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """Maps offsets from the patch's centre to offsets in the case, both in voxels: 3 x 3 float64."""
        rotation = np.eye(3)
        for axis, angle in enumerate(self.angles):
            rotation = _rotation(axis, angle) @ rotation
        spacing = np.array(spacing_mm)
        signs = np.where(self.flips, -1.0, 1.0)
        # The lookup from the patch into the case uses the inverse rotation.
        matrix: np.ndarray = rotation.T / (np.array(self.scales) * spacing)[:, None] * spacing * signs
        return matrix


def is_strongly_anisotropic(spacing_mm: tuple[float, float, float]) -> bool:
    """Whether one axis is so coarse that augmentation rotates and scales only in-plane."""
    return max(spacing_mm) > ANISOTROPY * min(spacing_mm)


def augments_in_plane(plan: Plan) -> bool:
    """Whether augmentation leaves the through-plane axis as it is."""
    return plan.dimensions == 2 or is_strongly_anisotropic(plan.spacing_mm)


def random_warp(rng: np.random.RandomState, config: AugmentationConfig, plan: Plan) -> Warp:
    """A random warp: rotation about all axes, or in-plane by up to 180 degrees, see `augments_in_plane`."""
    in_plane = augments_in_plane(plan)
    largest = np.radians([180.0, 0.0, 0.0] if in_plane else [config.rotation_degrees] * 3)
    angles, scale = np.zeros(3), 1.0
    if rng.random_sample() < config.rotation:
        angles = rng.uniform(-largest, largest)
    if rng.random_sample() < config.scaling:
        scale = float(rng.uniform(*config.scaling_range))
    flips = (rng.random_sample(3) < config.mirror) & np.isin(range(3), plan.mirror_axes)
    return Warp(
        angles=(float(angles[0]), float(angles[1]), float(angles[2])),
        scales=(1.0 if in_plane else scale, scale, scale),
        flips=(bool(flips[0]), bool(flips[1]), bool(flips[2])),
    )


def sampling_grid(whole: Triple, centre: Triple, size: Triple, matrix: np.ndarray) -> tuple[Box, torch.Tensor]:
    """The positions of a warped patch's voxels in a case.

    Args:
        whole: (D, H, W) of the case.
        centre: the case voxel that the unwarped patch has at index size // 2.
        size: (D, H, W) of the patch.
        matrix: of `Warp.matrix`.

    Returns:
        The part of the case that the patch needs, and the points (1, *size, 3) in it, in `grid_sample`'s coordinates.
    """
    half = (np.array(size) - 1) / 2
    middle = np.array(centre) - np.array(size) // 2 + half
    reach = np.abs(matrix) @ half
    start = np.clip(np.floor(middle - reach).astype(int), 0, np.array(whole) - 1)
    stop = np.clip(np.ceil(middle + reach).astype(int) + 1, start + 1, whole)
    # grid_sample's coordinates run from -1 to 1 between the outer voxel edges, in the order W, H, D.
    scale = 2 / (stop - start)
    columns = (scale[:, None] * matrix)[::-1]
    first = (scale * (middle - start + 0.5) - 1)[::-1]
    along = [np.outer(np.arange(n) - (n - 1) / 2, columns[:, axis]) for axis, n in enumerate(size)]
    d, h, w = (torch.from_numpy(points.astype(np.float32)) for points in (along[0] + first, along[1], along[2]))
    box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
    return box, (d[:, None, None] + h[:, None] + w)[None]


def warped_patch(volume: np.ndarray, box: Box, grid: torch.Tensor, nearest: bool) -> torch.Tensor:
    """Resample a patch from a volume; zero outside the volume.

    Args:
        volume: (C, D, H, W), any real dtype.
        box: the part of the volume to read, from `sampling_grid`.
        grid: the points to sample in it, from `sampling_grid`.
        nearest: nearest-neighbour instead of linear interpolation.

    Returns:
        (C, *size) in the volume's dtype.
    """
    part = torch.from_numpy(np.array(volume[(slice(None), *box)]))
    mode = "nearest" if nearest else "bilinear"
    patch = F.grid_sample(part[None].float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return patch[0].to(part.dtype)


def exact_patch(volume: np.ndarray, centre: Triple, size: Triple, flips: tuple[bool, bool, bool]) -> torch.Tensor:
    """Copy a patch from a volume, voxel for voxel; zero outside the volume.

    Args:
        volume: (C, D, H, W), any real dtype.
        centre: the case voxel that the patch has at index size // 2, before it is flipped.
        size: (D, H, W) of the patch.
        flips: whether D, H and W of the patch are reversed.

    Returns:
        (C, *size) in the volume's dtype.
    """
    whole, shape = np.array(volume.shape[1:]), np.array(size)
    start = np.array(centre) - shape // 2
    low, high = np.clip(start, 0, whole), np.clip(start + shape, 0, whole)
    part = np.asarray(volume[(slice(None), *map(slice, low, high))])
    patch = np.zeros((len(part), *size), dtype=part.dtype)
    patch[(slice(None), *map(slice, low - start, high - start))] = part
    return torch.from_numpy(patch).flip([1 + axis for axis in range(3) if flips[axis]])


class RandAffinePatchd(Randomizable, MapTransform):  # type: ignore[misc]
    """Crop a patch of the plan's size from whole cases, rotated, scaled and flipped in one resampling.

    Rotations are in millimetres, not in voxels. The dict's entry "centre", a (D, H, W) voxel, is the centre of the
    patch and is removed; without it the patch is in the middle of the case. A patch without rotation and scaling is an
    exact copy. Where the plan has sides, a flip from left to right exchanges left and right labels.

    Args:
        keys: entries (C, D, H, W) on one grid: tensors, arrays, or objects whose slices are arrays, such as cached
            images, of which only the necessary part is read.
        plan: patch size, spacing and axes that may be flipped.
        config: probabilities and ranges.
        mode: "bilinear" or "nearest", one for each key; "nearest" is for class indices.
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
        # IGNORED, used as an index, selects the last entry.
        self._flipped = torch.tensor([*exchanged_order(len(plan.stored_values) + 1, plan.side_pairs), IGNORED])

    def randomize(self, data: Any = None) -> None:  # noqa: ARG002 - MONAI's interface
        """Choose the next random warp."""
        self.warp = random_warp(self.R, self.config, self.plan)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A dict with the patches as plain tensors in place of the cases."""
        self.randomize()
        out = dict(data)
        size = self.plan.patch_size
        whole = out[self.keys[0]].shape[1:]
        centre = out.pop("centre", tuple(length // 2 for length in whole))
        if not self.warp.exact:
            box, grid = sampling_grid(whole, centre, size, self.warp.matrix(self.plan.spacing_mm))
        for key, mode in zip(self.keys, self.mode, strict=True):
            nearest = mode == "nearest"
            if self.warp.exact:
                patch = exact_patch(out[key], centre, size, self.warp.flips)
            else:
                patch = warped_patch(out[key], box, grid, nearest)
            out[key] = self._exchanged(patch) if nearest else patch
        return out

    def _exchanged(self, classes: torch.Tensor) -> torch.Tensor:
        """A patch of class indices, with left and right exchanged if it is flipped along that axis."""
        sides = self.plan.sides
        if sides is None or not self.warp.flips[sides.axis]:
            return classes
        return self._flipped[classes.long()].to(classes.dtype)


def _rotation(axis: int, angle: float) -> np.ndarray:
    """The 3 x 3 rotation about one axis, which rotates the next axis towards the one after it."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[one, one] = rotation[two, two] = np.cos(angle)
    rotation[two, one] = np.sin(angle)
    rotation[one, two] = -np.sin(angle)
    return rotation
