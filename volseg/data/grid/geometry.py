"""The geometry of an image as an immutable value, and the mapping between image space and network space.

Voxel axes are I, J, K in the file's voxel order; the world is RAS+ millimetres. Network axes are D, H, W.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from volseg.config import Plan, Triple
from volseg.errors import GridError

# RAS+ to LPS+ millimetres and back: the first two world axes of SimpleITK and DICOM point the other way.
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_FEWER_SLICES = (
    "one covers a part of the grid of the other, as a DICOM SEG may do: convert that again with volseg convert --like "
    "SCAN, or resample it"
)

# (start, stop) along D, H and W.
Box: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Geometry:
    """The geometry of an image: its shape and its position in the world.

    Args:
        shape: (I, J, K) voxel counts.
        affine: 4 x 4 float64, voxel indices to RAS+ millimetres.

    Raises:
        GridError: the shape does not have 3 sizes, or the affine is not 4 x 4.
    """

    shape: Triple
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or affine.shape != (4, 4):
            raise GridError(f"Expected a shape of 3 sizes and a 4 x 4 affine, found {shape} and {affine.shape}.")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Geometry)
            and self.shape == other.shape
            and bool(np.array_equal(self.affine, other.affine))
        )

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along I, J, K: the norms of the affine's columns."""
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(spacing[0]), float(spacing[1]), float(spacing[2]))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL, also for sheared axes."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def axis_codes(self) -> str:
        """Anatomical directions of the voxel axes I, J, K, for example 'RAS' or 'LIA'."""
        world, flipped = ras_order(self.affine)
        codes = [""] * 3
        for letter, (axis, flip) in enumerate(zip(world, flipped, strict=True)):
            codes[axis] = ("LPI" if flip else "RAS")[letter]
        return "".join(codes)

    def same_grid(self, other: "Geometry", tolerance_voxels: float = 1e-2) -> bool:
        """Whether the shapes are equal and every corner voxel has the same position, within a fraction of a voxel."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij")).reshape(3, -1)
        distance = np.linalg.norm((self.affine - other.affine)[:3] @ np.vstack([corners, np.ones(8)]), axis=0)
        return bool(distance.max() <= tolerance_voxels * min(self.spacing_mm))

    def is_part_of(self, other: "Geometry", tolerance_voxels: float = 1e-2) -> bool:
        """Whether its voxels are some of the other's, but not all, in any order of axes and directions."""
        to_other = np.linalg.solve(other.affine, self.affine)
        whole = np.round(to_other)
        corners = np.array(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij")).reshape(3, -1)
        places = (whole @ np.vstack([corners, np.ones(8)]))[:3]
        off = np.abs((to_other - whole) @ np.vstack([corners, np.ones(8)])).max()
        inside = (places >= 0).all() and (places.max(axis=1) < other.shape).all()
        are_axes = (np.abs(whole[:3, :3]).sum(axis=0) == 1).all() and (np.abs(whole[:3, :3]).sum(axis=1) == 1).all()
        return bool(off <= tolerance_voxels and inside and are_axes and math.prod(self.shape) < math.prod(other.shape))


def ras_order(affine: np.ndarray) -> tuple[Triple, tuple[bool, bool, bool]]:
    """For R, A and S: the closest voxel axis, and whether that axis points the opposite way.

    Each voxel axis is used once. The assignment with the largest sum of absolute cosines wins, so axis names do not
    change under a rotation by less than 45 degrees.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    orders: list[Triple] = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    # Rounded, so that rounding errors of an affine never decide a tie between two orders.
    best = max(orders, key=lambda order: round(sum(abs(cosines[world, axis]) for world, axis in enumerate(order)), 6))
    flips = [bool(cosines[world, axis] < 0) for world, axis in enumerate(best)]
    return best, (flips[0], flips[1], flips[2])


@dataclass(frozen=True)
class GridMap:
    """The mapping between image space (I, J, K) and network space (D, H, W).

    Forward: transpose by `axes`, flip where `flips`, crop to `box`, resample to `shape`.
    Resampling uses the half-pixel convention: network index n lies at (n + 0.5) * size / shape - 0.5 in the
    crop, where `size` is the crop's voxel count; the scale is the ratio of counts.

    Args:
        stored_shape: (I, J, K) in image space.
        axes: the voxel axis (0, 1 or 2 for I, J or K) of D, H and W.
        flips: whether D, H and W run against their voxel axis.
        box: (start, stop) along D, H and W after the flips, in voxels of the image.
        shape: (D, H, W) in network space.
        spacing_mm: of the crop along D, H and W, before resampling.
    """

    stored_shape: Triple
    axes: Triple
    flips: tuple[bool, bool, bool]
    box: Box
    shape: Triple
    spacing_mm: tuple[float, float, float]

    @property
    def box_shape(self) -> Triple:
        """(D, H, W) voxel counts of the crop before resampling."""
        sizes = [stop - start for start, stop in self.box]
        return (sizes[0], sizes[1], sizes[2])

    @property
    def coarseness(self) -> float:
        """The volume of a voxel of network space, as a multiple of one of the scan."""
        return math.prod(self.box_shape) / math.prod(self.shape)

    def into(self, array: np.ndarray) -> np.ndarray:
        """The oriented crop, not resampled, as a view of `array`, whose last three axes are I, J, K."""
        view = self._oriented(array)
        d, h, w = (slice(start, stop) for start, stop in self.box)
        return view[..., d, h, w]

    def back(self, crop: np.ndarray, outside: Any = 0) -> np.ndarray:
        """The oriented crop (D, H, W) as an array (I, J, K) in image space, filled with `outside` around the box.

        The exact inverse of `into` inside the box.
        """
        if crop.shape != self.box_shape:
            raise GridError(f"Expected a crop of shape {self.box_shape}, found {crop.shape}.")
        stored = np.full(self.stored_shape, outside, dtype=crop.dtype)
        self.into(stored)[...] = crop
        return stored

    def _oriented(self, array: np.ndarray) -> np.ndarray:
        if array.shape[-3:] != self.stored_shape:
            raise GridError(f"Expected an array of the scan's shape {self.stored_shape}, found {array.shape}.")
        lead = array.ndim - 3
        view = array.transpose((*range(lead), *(lead + axis for axis in self.axes)))
        d, h, w = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return view[..., d, h, w]


def map_to_network(geometry: Geometry, plan: Plan, box: Box | None = None) -> GridMap:
    """The mapping from a scan to the network space of a plan: reoriented, with the plan's axis order and spacing.

    Args:
        geometry: of the scan.
        plan: sets orientation, axes and spacing.
        box: crop of the reoriented scan, in its own voxels along D, H, W; None for the whole scan.
    """
    stored_axes, stored_flips = (0, 1, 2), (False, False, False)
    if plan.orientation == "ras":
        stored_axes, stored_flips = ras_order(geometry.affine)
    d, h, w = plan.axes
    axes = (stored_axes[d], stored_axes[h], stored_axes[w])
    if box is None:
        box = ((0, geometry.shape[axes[0]]), (0, geometry.shape[axes[1]]), (0, geometry.shape[axes[2]]))
    spacing = (geometry.spacing_mm[axes[0]], geometry.spacing_mm[axes[1]], geometry.spacing_mm[axes[2]])
    # In nnU-Net's order of operations, so that halves are rounded in the same way.
    shape = [
        max(1, round(current / new * (stop - start)))
        for current, new, (start, stop) in zip(spacing, plan.spacing_of(spacing), box, strict=True)
    ]
    return GridMap(
        stored_shape=geometry.shape,
        axes=axes,
        flips=(stored_flips[d], stored_flips[h], stored_flips[w]),
        box=box,
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=spacing,
    )


def require_geometry(found: Geometry, expected: Geometry, source: str, whose: str) -> None:
    """Reject a geometry that differs from the expected one."""
    if not found.same_grid(expected):
        is_part = found.is_part_of(expected) or expected.is_part_of(found)
        raise GridError(
            f"{source} has another geometry than {whose}: {_description(found)}, expected {_description(expected)}",
            _FEWER_SLICES if is_part else "resample it",
            "geometry differs",
        )


def _description(geometry: Geometry) -> str:
    """Size, spacing, orientation and origin in a few words."""
    size = " x ".join(str(size) for size in geometry.shape)
    spacing = " x ".join(f"{spacing:.3g}" for spacing in geometry.spacing_mm)
    return f"{size} voxels of {spacing} mm, {geometry.axis_codes}, from {np.round(geometry.affine[:3, 3], 2).tolist()}"


def volume_of(voxels: float, voxel_ml: float) -> float:
    """The volume of voxels in mL, without the noise of binary fractions: 1.765, not 1.7650000000000001."""
    return float(f"{voxels * voxel_ml:.12g}")
