"""The frames of a segmentation on a grid: its own one, from the positions of its frames, or that of a scan.

The own grid has all positions from the first frame to the last one, also those whose frames were left out because they
are empty. Its slice distance is SpacingBetweenSlices where the positions are multiples of it, else the smallest gap
where all gaps are multiples of it; never a mean over gaps. A scan's grid holds frames whose voxels coincide with its
own, within a tenth of a voxel.
"""

from collections.abc import Sequence

import numpy as np

from volseg.data.grid.geometry import LPS_FROM_RAS, Geometry
from volseg.data.io.dicom.frames import Frame
from volseg.data.io.dicom.stack import SAME_PLACE_MM, affine_of, height, normal_of, stacked
from volseg.data.io.dicom_labels.overlaps import Canvas
from volseg.data.io.dicom_labels.segmentation import Segmentation, voxels_of
from volseg.errors import GridError, InputError

# Fraction of a voxel by which positions may lie beside their grid.
_OFF = 0.1
# Slices of one grid; more come from positions that mean nothing.
_MOST = 20000
_LIKE = "give the scan that it belongs to (--like, like= in Python)"


def own_grid(found: Segmentation) -> tuple[Geometry, list[str]]:
    """The grid of a segmentation by itself, and warnings.

    Raises:
        InputError: the positions of its frames do not tell one.
    """
    normal = normal_of(found.frames[0])
    slices = _one_each(found.frames, normal)
    columns, rows = slices[0].size
    if len(slices) == 1:
        _, affine, warnings = stacked(slices, found.source, untilt=True)
        return Geometry((columns, rows, 1), affine), warnings
    heights = np.array([height(frame, normal) for frame in slices])
    unit, warnings = _unit(heights, found)
    at = np.round((heights - heights[0]) / unit).astype(np.int64)
    count = int(at[-1]) + 1
    if count > _MOST:
        raise InputError(f"{found.source}: its frames lie {heights[-1] - heights[0]:g} mm apart; {_LIKE}.")
    positions = np.array([frame.position for frame in slices])
    step = (positions[-1] - positions[0]) / at[-1]
    away = np.linalg.norm(positions - positions[0] - at[:, None] * step, axis=1)
    if away.max() > _OFF * min(unit, *(found.frames[0].spacing_mm or ())):
        raise InputError(
            f"{found.source}: frame positions lie up to {away.max():.2f} mm beside an even grid of {unit:g} mm, so its "
            f"own grid is unclear; {_LIKE}."
        )
    if missing := count - len(slices):
        warnings.append(
            f"Slices without a frame between the first frame and the last, which stay empty: {missing} of {count}."
        )
    return Geometry((columns, rows, count), affine_of(slices[0], step)), warnings


def _one_each(frames: Sequence[Frame], normal: np.ndarray) -> list[Frame]:
    """One frame of each position, in order."""
    ordered = sorted(frames, key=lambda frame: height(frame, normal))
    kept = ordered[:1]
    for frame in ordered[1:]:
        if height(frame, normal) - height(kept[-1], normal) > SAME_PLACE_MM:
            kept.append(frame)
    return kept


def _unit(heights: np.ndarray, found: Segmentation) -> tuple[float, list[str]]:
    """The slice distance of the own grid, mm, and warnings."""
    gaps = np.diff(heights)
    smallest, stated = float(gaps.min()), found.between_mm or 0.0
    even = bool(gaps.max() - smallest <= _OFF * smallest)
    if stated > 0 and _are_multiples(gaps, stated):
        return stated, []
    if even and len(gaps) > 1:
        if stated <= 0:
            return smallest, []
        said = f"SpacingBetweenSlices is {stated:g} mm, but frames lie {smallest:g} mm apart; their positions count."
        return smallest, [said]
    thickness = found.thickness_mm or 0.0
    unclear = stated > 0 or (thickness > 0 and smallest > 1.5 * thickness)
    if unclear or not _are_multiples(gaps, smallest):
        against = stated if stated > 0 else thickness
        raise InputError(
            f"{found.source}: its frames lie {', '.join(f'{gap:g}' for gap in np.unique(np.round(gaps, 3))[:4])} mm "
            f"apart{f' and state slices of {against:g} mm' if against > 0 else ''}, so frames were left out and the "
            f"slice distance is unclear; {_LIKE}."
        )
    return smallest, []


def _are_multiples(gaps: np.ndarray, unit: float) -> bool:
    """Whether all gaps are whole numbers of a unit, at least one; summed up, too."""
    places = np.cumsum(gaps) / unit
    return bool(gaps.min() > 0.5 * unit and np.abs(places - np.round(places)).max() <= _OFF)


def draw_segments(found: Segmentation, geometry: Geometry, canvas: Canvas, target: str) -> list[str]:
    """Add the segments to a canvas of a grid, and return warnings.

    Args:
        found: the segmentation.
        geometry: of the grid.
        canvas: of the grid's shape.
        target: what has the grid, for messages.

    Raises:
        GridError: its voxels do not coincide with the grid's, or all lie outside.
        InputError: its pixels cannot be read.
    """
    _check_distance(found, geometry, target)
    to_voxels = np.linalg.inv(geometry.affine) @ LPS_FROM_RAS
    total = outside = 0
    for frame, segment, voxels in voxels_of(found):
        view, inside = _in_grid(frame, to_voxels, canvas.marks, found, geometry, target)
        count = int(np.count_nonzero(voxels))
        total += count
        if view is None:
            outside += count
            continue
        outside += count - int(np.count_nonzero(voxels[inside]))
        if segment is None:
            canvas.add_values(view, voxels[inside])
        else:
            canvas.add(view, voxels[inside], segment)
    if total and outside == total:
        raise GridError(
            f"{found.source}: all its {total} labelled voxels lie outside {target}",
            "give the scan that it belongs to",
            "geometry differs",
        )
    return [f"{outside} of {total} labelled voxels lie outside {target}; they are cut off."] if outside else []


def _check_distance(found: Segmentation, geometry: Geometry, target: str) -> None:
    """Reject slices that are farther apart than those of the grid, which would leave gaps between them."""
    normal = normal_of(found.frames[0])
    heights = np.array([height(frame, normal) for frame in _one_each(found.frames, normal)])
    along = LPS_FROM_RAS[:3, :3] @ (geometry.affine[:3, :3] / geometry.spacing_mm)
    distance = geometry.spacing_mm[int(np.abs(normal @ along).argmax())]
    stated = found.between_mm or 0.0
    smallest = float(np.diff(heights).min()) if len(heights) > 1 else 0.0
    if smallest > 1.5 * distance and abs(smallest - stated) <= _OFF * stated:
        raise GridError(
            f"{found.source} has slices {smallest:g} mm apart, but those of {target} are {distance:g} mm apart",
            "give the scan that it belongs to",
            "geometry differs",
        )


def _in_grid(
    frame: Frame, to_voxels: np.ndarray, marks: np.ndarray, found: Segmentation, geometry: Geometry, target: str
) -> tuple[np.ndarray | None, tuple[slice, slice]]:
    """The view (columns, rows) of a grid where a frame lies, and the part of the frame that it holds; None if none.

    Raises:
        GridError: its voxels do not coincide with the grid's.
    """
    lps = LPS_FROM_RAS @ affine_of(frame, np.zeros(3))
    columns, rows = frame.size
    in_voxels = to_voxels @ lps
    steps, first = in_voxels[:3, :2], in_voxels[:3, 3]
    whole, origin = np.round(steps), np.round(first)
    far = np.abs(steps - whole) @ (columns - 1, rows - 1) + np.abs(first - origin)
    axes = np.abs(whole).argmax(axis=0)
    if far.max() > _OFF or (np.abs(whole).sum(axis=0) != 1).any() or axes[0] == axes[1]:
        raise GridError(
            f"{found.source}: voxels of frame {frame.index + 1} lie up to {min(far.max(), 99):.2f} voxels beside those "
            f"of {target}",
            "give the scan that it belongs to, or resample it",
            "geometry differs",
        )
    (third,) = {0, 1, 2} - set(map(int, axes))
    at = int(origin[third])
    if not 0 <= at < geometry.shape[third]:
        return None, (slice(0), slice(0))
    index: list[slice | int] = [at, at, at]
    inside = []
    for axis, sign, start, size in zip(axes, whole[axes, (0, 1)], origin[axes], (columns, rows), strict=True):
        part, own = _overlap(int(start), int(sign), size, geometry.shape[axis])
        if own.stop <= own.start:
            return None, (slice(0), slice(0))
        index[axis] = part
        inside.append(own)
    view = marks[tuple(index)]
    return (view if axes[0] < axes[1] else view.T), (inside[0], inside[1])


def _overlap(start: int, sign: int, size: int, length: int) -> tuple[slice, slice]:
    """Where `size` voxels from `start` in the direction `sign` lie on an axis of `length`: there, and among them."""
    if sign > 0:
        first, stop = max(0, -start), min(size, length - start)
        return slice(start + first, start + stop), slice(first, stop)
    first, stop = max(0, start - length + 1), min(size, start + 1)
    end = start - stop
    return slice(start - first, end if end >= 0 else None, -1), slice(first, stop)
