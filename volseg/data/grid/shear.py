"""Tilted stacks of slices, as of a CT with gantry tilt: to an upright grid for the network, and labels back to them.

In a tilted stack each slice is displaced in its own plane against the one before, so the voxel axes are sheared.
Upright, the slices lie behind each other along their normal. Everything keeps its place in the world: slices are
shifted in their plane, by linear interpolation, and never mixed.
"""

from dataclasses import dataclass

import numpy as np

from volseg.config import Triple
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.intensities import LARGE_OFFSET

# The cosine between two voxel axes above which they are not at right angles, about 0.06 degrees.
SHEARED_COSINE = 1e-3
# A displacement this close to whole voxels is whole: affines are often stored in float32.
WHOLE = 1e-3


@dataclass(frozen=True)
class Shear:
    """How the slices of a stack are displaced.

    Args:
        axis: the voxel axis along which slices follow each other.
        per_slice: displacement of each slice against the one before, in voxels along the two other axes, in order.
        degrees: angle between the step from slice to slice and the normal of the slices.
    """

    axis: int
    per_slice: tuple[float, float]
    degrees: float

    @property
    def in_plane(self) -> tuple[int, int]:
        """The two voxel axes of a slice."""
        first, second = sorted({0, 1, 2} - {self.axis})
        return first, second


def find_shear(affine: np.ndarray) -> Shear | None:
    """The shear of a grid whose slices are rectangular; None if its axes are at right angles, or no axis is a stack's.

    Slices follow each other along the last axis, if the two others are at right angles, else along an earlier one: the
    numbers do not tell where two axes could be the stack's, and files of DICOM series have it last.

    Args:
        affine: 4 x 4 to millimetres.
    """
    columns = affine[:3, :3]
    axes = columns / np.linalg.norm(columns, axis=0)
    cosines = np.abs(axes.T @ axes)
    if cosines[np.triu_indices(3, 1)].max() <= SHEARED_COSINE:
        return None
    for axis, first, second in ((2, 0, 1), (1, 0, 2), (0, 1, 2)):
        if cosines[first, second] <= SHEARED_COSINE:
            plane, step = columns[:, [first, second]], columns[:, axis]
            # The step is a part in the plane, in voxels, and a part along the normal.
            in_voxels = np.linalg.lstsq(plane, step, rcond=None)[0]
            along = float(np.linalg.norm(step - plane @ in_voxels) / np.linalg.norm(step))
            return Shear(axis, (float(in_voxels[0]), float(in_voxels[1])), float(np.degrees(np.arccos(along))))
    return None


def upright_geometry(geometry: Geometry) -> Geometry:
    """The upright grid that holds a whole stack: in-plane spacing is unchanged, the other one is along the normal."""
    shear = find_shear(geometry.affine)
    if shear is None:
        return geometry
    starts, growth = _starts(shear, geometry.shape[shear.axis])
    shape, affine = list(geometry.shape), geometry.affine.copy()
    for axis, first, per_slice, more in zip(shear.in_plane, starts[0], shear.per_slice, growth, strict=True):
        shape[axis] += more
        affine[:3, shear.axis] -= per_slice * geometry.affine[:3, axis]
        affine[:3, 3] -= first * geometry.affine[:3, axis]
    return Geometry((shape[0], shape[1], shape[2]), affine)


def upright(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Resample a stack to its upright grid: linear interpolation in each slice, which is exact for whole voxels.

    Args:
        array: (I, J, K) of any real dtype.
        affine: 4 x 4 to millimetres.

    Returns:
        The array on the grid of `upright_geometry`, float32 (float64 for a large offset), with the lowest value outside
        the slices, and its affine; both arguments as they are if there is no shear. Beyond the result, memory is that
        of a few slices.
    """
    shear = find_shear(affine)
    if shear is None:
        return array, affine
    target = upright_geometry(Geometry(_triple(array.shape), affine))
    lowest, dtype = array.min(), _exact_type(array)
    result = np.full(target.shape, lowest, dtype)
    starts, _ = _starts(shear, array.shape[shear.axis])
    stack = np.moveaxis(result, shear.axis, 0)
    for out, plane, (down, across) in zip(stack, np.moveaxis(array, shear.axis, 0), starts, strict=True):
        rows = np.full((out.shape[0], plane.shape[1]), lowest, dtype)
        _shift(plane.astype(dtype), down, rows)
        _shift(rows.T, across, out.T)
    return result, target.affine


def back(labels: np.ndarray, stored_shape: Triple, affine: np.ndarray) -> np.ndarray:
    """Labels on the upright grid of a stack to its own slices: nearest neighbour.

    Args:
        labels: (I', J', K') on the grid of `upright_geometry`.
        stored_shape: (I, J, K) of the stack.
        affine: of the stack, 4 x 4 to millimetres.

    Returns:
        (I, J, K) in the dtype and memory order of `labels`; `labels` itself if there is no shear.
    """
    shear = find_shear(affine)
    if shear is None:
        return labels
    stored = np.empty(stored_shape, labels.dtype, order="F" if labels.flags.f_contiguous else "C")
    starts, _ = _starts(shear, stored_shape[shear.axis])
    # The middle of a slice's voxel lies in this voxel of the upright grid.
    nearest = np.floor(starts + 0.5).astype(int)
    slices, stack = np.moveaxis(stored, shear.axis, 0), np.moveaxis(labels, shear.axis, 0)
    for out, plane, (row, column) in zip(slices, stack, nearest, strict=True):
        out[...] = plane[row : row + out.shape[0], column : column + out.shape[1]]
    return stored


def _starts(shear: Shear, slices: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Where each slice begins in the upright grid.

    Returns:
        (slices, 2) float64: voxels along the two axes of a slice, 0 or more; and by how many voxels the upright grid is
        larger along them.
    """
    starts = np.arange(slices)[:, None] * np.array(shear.per_slice)
    whole = np.rint(starts)
    starts = np.where(np.abs(starts - whole) < WHOLE, whole, starts)
    starts -= np.floor(starts.min(axis=0))
    growth = np.ceil(starts.max(axis=0)).astype(int)
    return starts, (int(growth[0]), int(growth[1]))


def _shift(rows: np.ndarray, start: float, out: np.ndarray) -> None:
    """Write rows to `out` from place `start` on, a fraction of a row included.

    `out` keeps its values where its rows lie outside the given ones, by more than half a row.
    """
    first, count = int(np.floor(start)), len(rows)
    weight = start - first
    if weight == 0:
        out[first : first + count] = rows
        return
    # Row `first` lies before the first row, and row `first + count` behind the last one.
    out[first + 1 : first + count] = (1 - weight) * rows[1:] + weight * rows[:-1]
    if weight < 0.5:
        out[first] = rows[0]
    else:
        out[first + count] = rows[-1]


def _exact_type(array: np.ndarray) -> type[np.floating]:
    """float32, or float64 where it would lose digits of a large offset or has no such numbers."""
    low, high = float(array.min()), float(array.max())
    largest = max(abs(low), abs(high))
    is_large = largest > LARGE_OFFSET * (high - low) or largest > float(np.finfo(np.float32).max)
    return np.float64 if is_large else np.float32


def _triple(shape: tuple[int, ...]) -> Triple:
    return shape[0], shape[1], shape[2]
