"""Whether the voxel size in a header can be true, against voxels, extents and label volumes of the training scans.

A scan of another part of the body is larger or smaller, and one of another scanner has other voxels. A wrong size of
voxels changes both by the same factor, and then undoing it makes both usual.
"""

from collections.abc import Sequence

import numpy as np

from volseg.config import Label, ScanRanges
from volseg.data.grid.geometry import Geometry, ras_order
from volseg.inference.quality import LabelQuality
from volseg.suspicion.finding import Finding

# Beyond the range of the training scans, lengths may differ by this factor.
USUAL = 1.25
# Of labels that have a range of volumes, how many have to be outside of it on one side.
MOST = 0.8
AXES = ("left-right", "back-front", "foot-head")


def question_spacing(
    geometry: Geometry, ranges: ScanRanges | None, labels: Sequence[Label], measures: Sequence[LabelQuality]
) -> list[Finding]:
    """`spacing_suspect` if the voxel size, and with it the extent or the volumes of the labels, is that of no training
    scan by one factor.

    Args:
        geometry: of the scan, whose voxel size is stated.
        ranges: of the training scans; None: they are not known, and nothing is suspect.
        labels: of the model.
        measures: their volumes in the result, in the same order.
    """
    if ranges is None:
        return []
    spacing, extent = _lengths(geometry)
    volumes = _volume_side(labels, measures)
    suspect = [
        axis
        for axis in range(3)
        if _one_factor(_factors(spacing[axis], ranges.spacing_mm[axis]), _factors(extent[axis], ranges.extent_mm[axis]))
        or volumes == _side(_factors(spacing[axis], ranges.spacing_mm[axis])) != 0
    ]
    if not suspect:
        return []
    found, known = (
        "; ".join(f"{AXES[axis]} {voxel} and {whole}" for axis, voxel, whole in rows)
        for rows in (
            [(axis, f"{spacing[axis]:.3g} mm", f"{extent[axis]:.3g} mm") for axis in suspect],
            [(axis, _range(ranges.spacing_mm[axis]), _range(ranges.extent_mm[axis])) for axis in suspect],
        )
    )
    return [
        Finding(
            "spacing_suspect",
            f"The size of a voxel and of the scan is {found}. That of the training scans is {known}. Check the voxel "
            "size in the header: volumes follow from it.",
        )
    ]


def question_field_of_view(geometry: Geometry, ranges: ScanRanges | None) -> list[Finding]:
    """`field_of_view_suspect` if a scan covers clearly less than any training scan along an axis of the patient.

    Args:
        geometry: of the scan, whose voxel size is stated.
        ranges: of the training scans; None: they are not known, and nothing is suspect.
    """
    if ranges is None:
        return []
    _, extent = _lengths(geometry)
    small = [axis for axis in range(3) if _side(_factors(extent[axis], ranges.extent_mm[axis])) == -1]
    if not small:
        return []
    found = "; ".join(
        f"{extent[axis]:.3g} mm {AXES[axis]}, the training scans at least {ranges.extent_mm[axis][0]:.3g} mm"
        for axis in small
    )
    return [Finding("field_of_view_suspect", f"The scan covers {found}. Labels may be cut off or miss their context.")]


def _lengths(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Voxel size and extent of a scan along R, A, S in mm, each (3,)."""
    order = list(ras_order(geometry.affine)[0])
    spacing = np.array(geometry.spacing_mm)[order]
    return spacing, spacing * np.array(geometry.shape)[order]


def _factors(value: float, limits: tuple[float, float], usual: float = USUAL) -> tuple[float, float]:
    """The factors by which a value may be too large, so that without them it is usual."""
    return value / (limits[1] * usual) if limits[1] else np.inf, value * usual / limits[0] if limits[0] else np.inf


def _side(factors: tuple[float, float]) -> int:
    """1 if a length is too large, -1 if it is too small, 0 if it is usual."""
    return 1 if factors[0] > 1 else -1 if factors[1] < 1 else 0


def _one_factor(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two lengths are too large or too small, and one factor explains both."""
    return _side(one) == _side(other) != 0 and max(one[0], other[0]) <= min(one[1], other[1])


def _volume_side(labels: Sequence[Label], measures: Sequence[LabelQuality]) -> int:
    """1 if most labels are larger than in any training case, -1 if most are smaller, else 0.

    A label at the border of the scan is cut off, so it is no evidence for being small.
    """
    sides = []
    for label, measure in zip(labels, measures, strict=True):
        if label.volume_ml_range is None or not measure.volume_ml:
            continue
        side = _side(_factors(measure.volume_ml, label.volume_ml_range, USUAL**3))
        if side == -1 and "touches_border" in measure.flags:
            continue
        sides.append(side)
    for side in (1, -1):
        if sides and sides.count(side) >= MOST * len(sides):
            return side
    return 0


def _range(limits: tuple[float, float]) -> str:
    low, high = (f"{limit:.3g}" for limit in limits)
    return f"{low} mm" if low == high else f"{low} to {high} mm"
