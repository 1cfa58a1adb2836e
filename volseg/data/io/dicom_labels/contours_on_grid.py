"""The contours of a structure set on the grid of a scan.

Contours lie in planes of the grid: across any one of its axes, and each on a slice, at most a quarter of the slice
distance away from its centre plane (a warning says so from a twentieth). Nothing is interpolated: contours between
slices, and contours at an angle to them, are rejected, and slices between contours stay empty with a warning.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from volseg.data.grid.geometry import LPS_FROM_RAS, Geometry
from volseg.data.io.dicom_labels.contours import area, filled
from volseg.data.io.dicom_labels.overlaps import Canvas
from volseg.data.io.dicom_labels.structures import StructureSet
from volseg.errors import GridError

# Fractions of the slice distance: points of a contour across its plane, and a plane beside its slice.
_FLAT, _OFF, _OFF_WARNED = 0.1, 0.25, 0.05
_LIKE = "give the scan that they were drawn on"


class _Drawn(NamedTuple):
    """The contours of a structure in voxels: of each slice, (N, 2) points along the two other axes."""

    name: str
    number: int
    slices: dict[int, list[np.ndarray]]


def draw_structures(found: StructureSet, geometry: Geometry, canvas: Canvas, target: str) -> list[str]:
    """Add the structures to a canvas of a grid, and return warnings.

    Args:
        found: the structure set.
        geometry: of the grid.
        canvas: of the grid's shape.
        target: what has the grid, for messages.

    Raises:
        GridError: contours lie between the slices or at an angle to them, or all lie outside.
    """
    to_voxels = np.linalg.inv(geometry.affine) @ LPS_FROM_RAS
    voxels = {
        number: [points @ to_voxels[:3, :3].T + to_voxels[:3, 3] for points in contours]
        for number, contours in found.contours.items()
    }
    every = [points for contours in voxels.values() for points in contours]
    axis = _across(every, found, target)
    off = _check_planes(every, axis, found, target, geometry)
    names = {part.number: part.name for part in found.parts}
    drawn = [_on_slices(names[number], number, contours, axis) for number, contours in voxels.items()]
    warnings = [
        f"Contours lie up to {off:.2f} slice distances beside the slices of {target}; each is on the nearest."
    ] * (off > _OFF_WARNED)
    others = [one for one in range(3) if one != axis]
    size = (geometry.shape[others[0]], geometry.shape[others[1]])
    layers = np.moveaxis(canvas.marks, axis, 0)
    inside = 0
    for one in drawn:
        held, more = _draw(one, layers, size, canvas, target)
        inside += held
        warnings += more
    if not inside:
        raise GridError(f"{found.source}: all its contours lie outside {target}", _LIKE, "geometry differs")
    return warnings


def _across(every: Sequence[np.ndarray], found: StructureSet, target: str) -> int:
    """The axis of the grid that all contours lie across."""
    spread = np.array([np.ptp(points, axis=0) for points in every]).max(axis=0)
    axis = int(spread.argmin())
    if spread[axis] > _FLAT:
        raise GridError(
            f"{found.source}: its contours lie at an angle to the slices of {target} (a contour crosses "
            f"{spread[axis]:.2f} slices)",
            _LIKE,
            "geometry differs",
        )
    return axis


def _check_planes(
    every: Sequence[np.ndarray], axis: int, found: StructureSet, target: str, geometry: Geometry
) -> float:
    """The largest distance of a contour from the nearest slice, in slice distances."""
    places = np.array([points[:, axis].mean() for points in every])
    off = np.abs(places - np.round(places))
    if off.max() > _OFF:
        raise GridError(
            f"{found.source}: {int((off > _OFF).sum())} of {len(every)} contours lie between the slices of {target}, "
            f"up to {off.max() * geometry.spacing_mm[axis]:.2f} mm from the nearest, and nothing is interpolated",
            _LIKE,
            "geometry differs",
        )
    return float(off.max())


def _on_slices(name: str, number: int, contours: Sequence[np.ndarray], axis: int) -> _Drawn:
    slices: dict[int, list[np.ndarray]] = {}
    for points in contours:
        slices.setdefault(round(float(points[:, axis].mean())), []).append(np.delete(points, axis, axis=1))
    return _Drawn(name, number, slices)


def _draw(one: _Drawn, layers: np.ndarray, size: tuple[int, int], canvas: Canvas, target: str) -> tuple[int, list[str]]:
    """Add one structure; the number of its contours that lie in the grid at least in part, and warnings."""
    held = crossing = voxels = 0
    cut, left_out = 0.0, 0
    for at, contours in sorted(one.slices.items()):
        if not 0 <= at < len(layers):
            left_out += len(contours)
            continue
        kept = [points for points in contours if _meets(points, size)]
        left_out += len(contours) - len(kept)
        held += len(kept)
        cut = max([cut, *(_beyond(points, size) for points in kept)])
        if kept:
            box, mask = filled(kept, size)
            crossing += _cross(kept, size)
            voxels += int(np.count_nonzero(mask))
            canvas.add(layers[at][box], mask, one.number)
    count = sum(map(len, one.slices.values()))
    warnings = []
    if left_out:
        warnings.append(f"{one.name}: {left_out} of {count} contours lie outside {target}; they are left out.")
    if cut:
        warnings.append(f"{one.name} reaches up to {cut:.1f} voxels beyond {target}; it is cut off there.")
    if crossing:
        warnings.append(f"{one.name}: contours cross on {crossing} slices; what lies in an even number of them is out.")
    if held and not voxels:
        warnings.append(f"{one.name} has contours, but no voxel centre is inside them.")
    if gaps := _gaps(list(one.slices)):
        warnings.append(f"{one.name}: {gaps} slices between its contours have none; they stay empty.")
    return held, warnings


def _meets(points: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the bounding box of a contour reaches into a slice of a size."""
    return bool((points.max(axis=0) > -0.5).all() and (points.min(axis=0) < np.array(size) - 0.5).all())


def _beyond(points: np.ndarray, size: tuple[int, int]) -> float:
    """How far a contour reaches beyond the outer edges of a slice, in voxels."""
    beyond = np.maximum(-0.5 - points.min(axis=0), points.max(axis=0) - np.array(size) + 0.5)
    # Contours on the edge itself vary by rounding.
    return float(beyond.max()) if beyond.max() > 1e-2 else 0.0


def _cross(contours: Sequence[np.ndarray], size: tuple[int, int]) -> bool:
    """Whether contours of one slice cross, so that the even-odd rule takes voxels out that lie in two of them."""
    if len(contours) < 2:
        return False
    union = np.zeros(size, bool)
    for points in sorted(contours, key=area, reverse=True):
        box, mask = filled([points], size)
        shared = np.count_nonzero(mask & union[box])
        if 0 < shared < np.count_nonzero(mask):
            return True
        union[box] |= mask
    return False


def _gaps(slices: Sequence[int]) -> int:
    """The number of slices between the first and the last contour that have none."""
    return max(slices) - min(slices) + 1 - len(slices) if slices else 0
