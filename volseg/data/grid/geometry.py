"""Where voxels lie: a grid as an immutable value, and the one recorded way into a network's grid and back.

Voxel axes are I, J, K as stored; the world is RAS+ millimetres. Network axes are D, H, W.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from volseg.config import Plan, Triple
from volseg.errors import GridError

# RAS+ to LPS+ millimetres and back: SimpleITK and DICOM point their first two axes the other way.
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# (start, stop) along D, H and W.
Box: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid in the world.

    Args:
        shape: (I, J, K) voxel counts.
        affine: 4 x 4 float64, voxel indices to RAS+ millimetres.
    """

    shape: Triple
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or affine.shape != (4, 4):
            raise GridError(f"A grid needs 3 sizes and a 4 x 4 affine, found shape {shape} and affine {affine.shape}.")
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
        """Volume of one voxel in millilitres, sheared grids included."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def axis_codes(self) -> str:
        """Anatomical directions the stored axes point to, for example 'RAS' or 'LIA'."""
        world, flipped = ras_order(self.affine)
        codes = [""] * 3
        for letter, (axis, flip) in enumerate(zip(world, flipped, strict=True)):
            codes[axis] = ("LPI" if flip else "RAS")[letter]
        return "".join(codes)

    def same_grid(self, other: "Geometry", tolerance_voxels: float = 1e-2) -> bool:
        """Whether both grids put every corner voxel at the same place, within a fraction of a voxel."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij")).reshape(3, -1)
        distance = np.linalg.norm((self.affine - other.affine)[:3] @ np.vstack([corners, np.ones(8)]), axis=0)
        return bool(distance.max() <= tolerance_voxels * min(self.spacing_mm))


def ras_order(affine: np.ndarray) -> tuple[Triple, tuple[bool, bool, bool]]:
    """For R, A and S: the stored axis that lies closest to it, and whether that axis points the other way.

    Each stored axis is used once; the assignment with the largest sum of absolute cosines wins, so a
    rotation by up to 45 degrees keeps its names.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    orders: list[Triple] = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    # Rounded, so that the last bits of an affine never decide a tie between two orders.
    best = max(orders, key=lambda order: round(sum(abs(cosines[world, axis]) for world, axis in enumerate(order)), 6))
    flips = [bool(cosines[world, axis] < 0) for world, axis in enumerate(best)]
    return best, (flips[0], flips[1], flips[2])


@dataclass(frozen=True)
class GridMap:
    """The way from a stored grid (I, J, K) to a network grid (D, H, W) and back, recorded once.

    Forward: transpose by `axes`, flip where `flips`, cut out `box`, resample to `shape`.
    Resampling uses the half-pixel convention: network index n lies at (n + 0.5) * size / shape - 0.5 in the
    cut-out, where `size` is the cut-out's voxel count; the scale is the ratio of counts.

    Args:
        stored_shape: (I, J, K).
        axes: stored axis of D, H and W.
        flips: whether D, H and W run against the stored axis.
        box: (start, stop) along D, H and W after the flips, in stored voxels.
        shape: (D, H, W) of the network grid.
        spacing_mm: of the cut-out along D, H and W, before resampling.
    """

    stored_shape: Triple
    axes: Triple
    flips: tuple[bool, bool, bool]
    box: Box
    shape: Triple
    spacing_mm: tuple[float, float, float]

    @property
    def box_shape(self) -> Triple:
        """(D, H, W) voxel counts of the cut-out before resampling."""
        sizes = [stop - start for start, stop in self.box]
        return (sizes[0], sizes[1], sizes[2])

    def into(self, array: np.ndarray) -> np.ndarray:
        """The oriented cut-out, not yet resampled, as a view; the last three axes of `array` are I, J, K."""
        view = self._oriented(array)
        d, h, w = (slice(start, stop) for start, stop in self.box)
        return view[..., d, h, w]

    def back(self, cut: np.ndarray, outside: Any = 0) -> np.ndarray:
        """A (D, H, W) array on the cut-out as a stored (I, J, K) array, `outside` where nothing was cut.

        The exact inverse of `into` inside the box.
        """
        if cut.shape != self.box_shape:
            raise GridError(f"The cut-out has shape {self.box_shape}, found {cut.shape}.")
        stored = np.full(self.stored_shape, outside, dtype=cut.dtype)
        self.into(stored)[...] = cut
        return stored

    def _oriented(self, array: np.ndarray) -> np.ndarray:
        if array.shape[-3:] != self.stored_shape:
            raise GridError(f"The scan has shape {self.stored_shape}, found an array of {array.shape}.")
        lead = array.ndim - 3
        view = array.transpose((*range(lead), *(lead + axis for axis in self.axes)))
        d, h, w = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return view[..., d, h, w]


def map_to_network(geometry: Geometry, plan: Plan, box: Box | None = None) -> GridMap:
    """The map from a stored grid to a plan's grid: oriented, its axes in the plan's order, of the plan's spacing.

    Args:
        geometry: the stored grid.
        plan: whose orientation, axes and spacing it is.
        box: what is cut out of the oriented grid, in stored voxels along D, H, W; None for all of it.
    """
    stored_axes, stored_flips = (0, 1, 2), (False, False, False)
    if plan.orientation == "ras":
        stored_axes, stored_flips = ras_order(geometry.affine)
    d, h, w = plan.axes
    axes = (stored_axes[d], stored_axes[h], stored_axes[w])
    if box is None:
        box = ((0, geometry.shape[axes[0]]), (0, geometry.shape[axes[1]]), (0, geometry.shape[axes[2]]))
    spacing = (geometry.spacing_mm[axes[0]], geometry.spacing_mm[axes[1]], geometry.spacing_mm[axes[2]])
    # In nnU-Net's order of operations, so that a half is rounded alike.
    shape = [
        max(1, round(current / new * (stop - start)))
        for current, new, (start, stop) in zip(spacing, plan.spacing_mm, box, strict=True)
    ]
    return GridMap(
        stored_shape=geometry.shape,
        axes=axes,
        flips=(stored_flips[d], stored_flips[h], stored_flips[w]),
        box=box,
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=spacing,
    )
