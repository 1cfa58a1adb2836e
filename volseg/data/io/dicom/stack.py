"""The grid of one volume from the positions of its slices.

Slices are sorted by position, never by name or instance number. The spacing along the stack comes from the positions,
never from SliceThickness, except for a single slice.
"""

from collections.abc import Sequence

import numpy as np

from volseg.data.grid.geometry import LPS_FROM_RAS
from volseg.data.io.dicom.frames import Frame
from volseg.data.io.dicom.values import numbers
from volseg.errors import InputError
from volseg.text import first_few

# Gaps that differ from their median by this fraction are rejected, or warned of.
_UNEVEN, _UNEVEN_WARNED = 0.1, 0.01
_TILT_DEGREES = 0.5
# Largest cosine between rows and columns, and largest deviation of their lengths from 1.
_SKEWED, _LENGTH = 1e-3, 1e-2
# No scanner is so large.
_FAR_MM = 1e9
# Fraction of the slice distance by which a slice may lie beside the even grid: more is rejected, or warned of.
_OFF, _OFF_WARNED = 0.5, 0.1
# Millimetres within which two slices lie at one place.
SAME_PLACE_MM = 1e-3


def stacked(frames: Sequence[Frame], source: str, untilt: bool) -> tuple[list[Frame], np.ndarray, list[str]]:
    """The slices of one volume in order.

    Args:
        frames: of the volume, in any order.
        source: for messages.
        untilt: accept slices that are stacked off their normal, on their sheared grid.

    Returns:
        The sorted slices, their 4 x 4 affine to RAS+ millimetres, and warnings.

    Raises:
        InputError: their positions, orientations or spacings are not stated or make no stack.
    """
    for frame in frames:
        check_place(frame, source)
    first = frames[0]
    axes = axes_of(first)
    if not alike(frames):
        raise InputError(
            f"{source}: its {len(frames)} images differ in size, pixel spacing or orientation, like a localiser's; "
            "keep only the slices of one volume."
        )
    normal = np.cross(axes[:, 0], axes[:, 1])
    slices = sorted(frames, key=lambda frame: height(frame, normal))
    if len(slices) == 1:
        step = thickness_of(first, source) * normal
        warnings = [
            f"Single slice: {thickness_of(first, source):g} mm (SpacingBetweenSlices, else SliceThickness) is used as "
            "spacing. If it is one slice of a series, give its folder."
        ]
    else:
        _check_places(slices, normal, source)
        step, warnings = _step(np.array([frame.position for frame in slices]), normal, source, untilt)
    return slices, affine_of(slices[0], step), warnings


def affine_of(first: Frame, step: np.ndarray) -> np.ndarray:
    """The 4 x 4 affine to RAS+ millimetres of slices like the first, each `step` (LPS+ mm) from the one before."""
    lps = np.eye(4)
    lps[:3, :2] = axes_of(first) * _spacing(first)
    lps[:3, 2] = step
    lps[:3, 3] = first.position
    return LPS_FROM_RAS @ lps


def height(frame: Frame, normal: np.ndarray) -> float:
    """The place of a slice along the normal, mm."""
    return float(frame.position @ normal)


def normal_of(frame: Frame) -> np.ndarray:
    """The unit vector along which slices are stacked: across the rows and columns of a checked frame."""
    axes = axes_of(frame)
    return np.cross(axes[:, 0], axes[:, 1])


def check_place(frame: Frame, source: str) -> None:
    """Reject a slice whose position, orientation or spacing is not stated or makes no sense."""
    where = frame.header.among(source)
    if frame.position is None and frame.header.is_picture:
        raise InputError(
            f"{where} is a picture (Secondary Capture) and no scan: it has no place in the patient; give the series of "
            "the scan."
        )
    if frame.position is None:
        raise InputError(f"{where}: slices lack ImagePositionPatient; export the series again.")
    if frame.axes is None:
        raise InputError(f"{where}: slices lack ImageOrientationPatient (6 numbers); export the series again.")
    if frame.position.shape != (3,) or not (np.abs(frame.position) < _FAR_MM).all():
        raise InputError(
            f"{where}: ImagePositionPatient is {_listed(frame.position)}, expected 3 numbers; export the series again."
        )
    # Components above 1 have no length to compute, which might overflow; NaN fails the comparison as well.
    lengths = np.linalg.norm(frame.axes, axis=0) if (np.abs(frame.axes) < 2).all() else np.zeros(2)
    if np.abs(lengths - 1).max() > _LENGTH:
        raise InputError(
            f"{where}: ImageOrientationPatient is {_listed(frame.axes.T.ravel())}, expected two directions of length "
            "1; export the series again."
        )
    skew = float(np.degrees(np.arccos(np.clip(frame.axes[:, 0] @ frame.axes[:, 1] / lengths.prod(), -1, 1))))
    if abs(np.cos(np.radians(skew))) > _SKEWED:
        raise InputError(
            f"{where}: rows and columns of ImageOrientationPatient meet at {skew:.1f} degrees, expected a right "
            "angle; export the series again."
        )
    _check_spacing(frame, where)


def _check_spacing(frame: Frame, where: str) -> None:
    """Reject a slice whose PixelSpacing is not two positive numbers."""
    spacing = frame.spacing_mm
    if spacing and len(spacing) == 2 and all(np.isfinite(spacing)) and min(spacing) > 0:
        return
    found = "absent or empty" if not spacing else _listed(np.array(spacing[::-1]))
    imager = numbers(frame.header.data, "ImagerPixelSpacing")
    other = f" (ImagerPixelSpacing, {_listed(np.array(imager))} mm, is the size at the detector)" if imager else ""
    raise InputError(
        f"{where}: PixelSpacing is {found}, expected two positive spacings in mm{other}; the size of a pixel is "
        "unknown, so export the series again with it."
    )


def alike(frames: Sequence[Frame]) -> bool:
    """Whether checked slices have the same size, spacing and orientation."""
    axes, spacing = np.array([axes_of(frame) for frame in frames]), np.array([frame.spacing_mm for frame in frames])
    return (
        len({frame.size for frame in frames}) == 1
        and np.allclose(axes, axes[0], atol=1e-3)
        and np.allclose(spacing, spacing[0], rtol=1e-3)
    )


def axes_of(frame: Frame) -> np.ndarray:
    """The directions of a checked slice, of length 1."""
    assert frame.axes is not None
    unit: np.ndarray = frame.axes / np.linalg.norm(frame.axes, axis=0)
    return unit


def _spacing(frame: Frame) -> np.ndarray:
    return np.array(frame.spacing_mm, dtype=np.float64)


def _check_places(slices: Sequence[Frame], normal: np.ndarray, source: str) -> None:
    """Reject sorted slices of which several lie at one place."""
    distinct = 1 + int((np.diff([height(frame, normal) for frame in slices]) > SAME_PLACE_MM).sum())
    if distinct == len(slices):
        return
    folders = {frame.header.path.parent for frame in slices}
    remedy = "keep one image per position"
    if len(folders) > 1:
        remedy = f"they lie in {len(folders)} folders, which share one SeriesInstanceUID, so give one of these folders"
    raise InputError(
        f"{source}: {len(slices)} images lie at {distinct} positions, so the series is 4-D (time, echoes) or contains "
        f"duplicates, and nothing states which belong together; {remedy}."
    )


def _step(positions: np.ndarray, normal: np.ndarray, source: str, untilt: bool) -> tuple[np.ndarray, list[str]]:
    """The vector from one slice to the next, computed from sorted positions (K, 3), and warnings."""
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    uneven = np.abs(gaps - typical)
    if uneven.max() > _UNEVEN * typical:
        raise InputError(_uneven(gaps, typical, source))
    extent = positions[-1] - positions[0]
    step = extent / (len(positions) - 1)
    off = _distance_from_grid(positions, step, normal, typical, source)
    across = extent - (extent @ normal) * normal
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(across), extent @ normal)))
    if tilt > _TILT_DEGREES and not untilt:
        raise InputError(
            f"{source}: its slices are stacked {tilt:.1f} degrees off their normal (gantry tilt); add --untilt "
            "(untilt=True in Python) to segment it upright, or convert it with a tool that corrects the tilt."
        )
    warnings = []
    if uneven.max() > _UNEVEN_WARNED * typical:
        warnings.append(f"Gaps between slices vary from {gaps.min():.3f} to {gaps.max():.3f} mm; their mean is used.")
    if off > _OFF_WARNED * typical:
        warnings.append(f"The slices lie up to {off:.2f} mm beside the evenly spaced grid.")
    return step, warnings


def _uneven(gaps: np.ndarray, typical: float, source: str) -> str:
    """The sentence about uneven slices: some are missing where the odd gaps are multiples of the others."""
    found = f"{source}: its {len(gaps) + 1} slices are not evenly spaced"
    odd = np.flatnonzero(np.abs(gaps - typical) > _UNEVEN * typical)
    multiples = np.round(gaps[odd] / typical)
    if len(odd) <= len(gaps) / 2 and (multiples >= 2).all() and np.allclose(gaps[odd], multiples * typical, rtol=0.05):
        named = [f"{gaps[at]:.2f} mm after slice {at + 1}" for at in odd]
        return f"{found}: the median gap is {typical:.2f} mm, but {first_few(named)}; add the missing slices."
    sizes, counts = np.unique(np.round(gaps, 2), return_counts=True)
    named = [f"{size:.2f} mm ({count} times)" for size, count in zip(sizes, counts, strict=True)]
    return (
        f"{found}: gaps of {first_few(named)}, which no voxel grid has; reconstruct it with one slice distance, or "
        "convert it with a tool that resamples the slices."
    )


def _distance_from_grid(
    positions: np.ndarray, step: np.ndarray, normal: np.ndarray, typical: float, source: str
) -> float:
    """The largest distance along the normal, mm, of a slice from its place in the grid.

    Raises:
        InputError: it is more than half a slice distance, or slices do not lie on one line, so that no grid holds them.
    """
    expected = positions[0] + np.arange(len(positions))[:, None] * step
    away = positions - expected
    sideways = np.linalg.norm(away - (away @ normal)[:, None] * normal, axis=1)
    if sideways.max() > _UNEVEN * typical:
        at = int(sideways.argmax())
        raise InputError(
            f"{source}: slice {at + 1} is shifted by {sideways[at]:.2f} mm in its plane against the others "
            "(ImagePositionPatient), so the slices are no stack; export the series again."
        )
    along = np.abs(away @ normal)
    if along.max() > _OFF * typical:
        raise InputError(
            f"{source}: its {len(positions)} slices are not evenly spaced: slice {int(along.argmax()) + 1} lies "
            f"{along.max():.2f} mm beside the grid of the mean slice distance; reconstruct it with one slice distance, "
            "or convert it with a tool that resamples the slices."
        )
    return float(along.max())


def thickness_of(frame: Frame, source: str) -> float:
    """The thickness in millimetres of a single slice."""
    thickness = frame.thickness_mm
    if thickness is None or not np.isfinite(thickness) or thickness <= 0:
        raise InputError(f"{source}: its single slice has no slice thickness; give the whole series.")
    return thickness


def _listed(values: np.ndarray) -> str:
    return "\\".join(f"{value:g}" for value in values)
