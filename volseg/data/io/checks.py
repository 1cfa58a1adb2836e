"""What volseg asks of an image, listed and checked here and nowhere else.

Refused, with an InputError of one sentence that names the image:

    file       missing or empty; not the format its suffix says; gzip missing, or there without .gz; cut short
    array      not 3-D, or 4-D (I, J, K, C) with C other than expected (trailing sizes of 1 are dropped);
               no voxels; not real numbers (complex, colour, structured)
    grid       affine not finite or not affine; a spacing of zero; voxel axes that do not span the space
    NIfTI      units of metres or microns; a pixdim in use that is not positive; sform and qform (both set)
               with different handedness or with axes more than 45 degrees apart
    image      NaN or infinite voxels; every voxel the same
    label      values that are not whole, negative, above 65535, or not among the known ones

Odd but usable: used, with a warning that says what was assumed:

    grid       sheared, or oblique by more than 5 degrees: used as stored, never straightened;
               a spacing below 0.01 mm or above 20 mm, as of a wrong unit: used as stored
    NIfTI      no units: millimetres; neither sform nor qform: RAS+ axes of pixdim's spacing;
               sform and qform that differ: the sform

A DICOM series has requirements of its own: see volseg.data.io.dicom.
"""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from volseg.data.grid.geometry import ras_order
from volseg.errors import InputError

LARGEST_LABEL = 65535

_GZIP_MAGIC = b"\x1f\x8b"
_OBLIQUE_DEGREES = 5.0
# Finer is microscopy, coarser are whole-body localisers at most: rather metres or microns that were taken for mm.
_PLAUSIBLE_MM = (0.01, 20.0)
_SHEARED_COSINE = 1e-3
_UNITS = {1: "metres", 3: "microns"}


def check_container(start: bytes, suffix: str, source: str) -> None:
    """Refuse a file whose first bytes contradict its suffix on gzip compression, or that is empty."""
    if not start:
        raise InputError(f"{source} is an empty file.")
    zipped, named = start.startswith(_GZIP_MAGIC), suffix in (".nii.gz", ".mgz")
    if named and not zipped:
        raise InputError(f"{source} is not gzip-compressed, which {suffix} says it is: mislabelled or damaged.")
    if zipped and not named:
        raise InputError(f"{source} is gzip-compressed, which {suffix} does not say: rename it.")


def check_nifti(header: Any, pixdim: np.ndarray, source: str) -> tuple[np.ndarray, list[str]]:
    """The affine a NIfTI header states, chosen as the module's list says.

    Args:
        header: nibabel NIfTI-1 or NIfTI-2 header.
        pixdim: its three voxel sizes as they are stored; nibabel mends bad ones in `header` without a word.
        source: the image's name for messages.

    Returns:
        4 x 4 float64 affine to RAS+ millimetres, not yet checked itself, and warnings.

    Raises:
        InputError: a "NIfTI" line of the list is not met.
    """
    warnings = []
    unit = int(header["xyzt_units"]) & 7
    if unit in _UNITS:
        raise InputError(f"{source}: its header counts in {_UNITS[unit]}; convert it to millimetres.")
    if unit != 2:
        warnings.append("The header states no units: millimetres assumed.")
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if (has_qform or not has_sform) and not (np.isfinite(pixdim) & (pixdim > 0)).all():
        raise InputError(f"{source}: its voxel sizes (pixdim) are {_listed(pixdim)}, and have to be positive.")
    if not has_sform and not has_qform:
        warnings.append("Neither sform nor qform is set, so the orientation is unknown: RAS+ axes assumed.")
        return np.diag([*pixdim, 1.0]), warnings
    qform = _qform(header, source) if has_qform else None
    if not has_sform:
        assert qform is not None
        return qform, warnings
    sform = np.array(header.get_sform(), dtype=np.float64)
    if qform is not None:
        check_affine(sform, source)
        warnings += _compare_forms(sform, qform, source)
    return sform, warnings


def check_affine(affine: np.ndarray, source: str) -> list[str]:
    """Refuse an affine that describes no grid; warnings for implausible spacings, sheared and oblique ones.

    Args:
        affine: array to be used as a 4 x 4 affine to RAS+ millimetres.
        source: the image's name for messages.

    Raises:
        InputError: a "grid" line of the list is not met.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise InputError(
            f"{source}: its affine is not a finite 4 x 4 matrix that ends in 0 0 0 1, found {affine.tolist()}."
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() == 0:
        raise InputError(f"{source}: a spacing is zero, found {_listed(spacing)} mm; mend its header.")
    axes = affine[:3, :3] / spacing
    if abs(np.linalg.det(axes)) < 1e-4:
        raise InputError(f"{source}: its affine is singular, so its axes do not span the space; mend its header.")
    return _spacing_warnings(spacing) + _axes_warnings(affine, axes)


def check_scan(array: np.ndarray, channels: int, source: str) -> tuple[np.ndarray, ...]:
    """The channels of an image, once it has passed the "array" and "image" lines of the list.

    Args:
        array: (I, J, K) or (I, J, K, C), any dtype.
        channels: how many are expected.
        source: the image's name for messages.

    Returns:
        One (I, J, K) view per channel in native byte order; bool becomes uint8, other dtypes stay.

    Raises:
        InputError: a line is not met.
    """
    volumes = _volumes(array, channels, source)
    for volume in volumes:
        # NaN and infinity both show in the extremes, so finite data are looked at without a mask beside them.
        with np.errstate(invalid="ignore"):
            low, high = volume.min(), volume.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            count = sum(int(slab.size - np.isfinite(slab).sum()) for slab in _slabs(volume))
            raise InputError(
                f"{source} holds {count} NaN or infinite voxels", "replace them, for example by 0", "not finite"
            )
        if low == high:
            raise InputError(
                f"{source}: every voxel is {low}, so it holds no anatomy", "copy it again or leave it out", "constant"
            )
    return volumes


def check_label(array: np.ndarray, source: str, known: Collection[int] | None = None) -> np.ndarray:
    """A label image, once it has passed the "array" and "label" lines of the list; all background is fine.

    Args:
        array: (I, J, K), any dtype.
        source: the image's name for messages.
        known: the values it may hold beside 0; None for any.

    Returns:
        (I, J, K) uint8, or uint16 where a value exceeds 255.

    Raises:
        InputError: a line is not met.
    """
    (volume,) = _volumes(array, 1, source)
    with np.errstate(invalid="ignore"):
        low, high = volume.min(), volume.max()
    if not (low >= 0 and high <= LARGEST_LABEL):
        raise InputError(
            f"{source}: label values run from {low} to {high}, and have to be within 0 to {LARGEST_LABEL}",
            "mend the label image",
            "label values",
        )
    present = np.zeros(LARGEST_LABEL + 1, dtype=bool)
    for slab in _slabs(volume):
        if volume.dtype.kind == "f" and (slab != np.rint(slab)).any():
            odd = slab[slab != np.rint(slab)][0]
            raise InputError(
                f"{source}: label values have to be whole numbers, found {odd}",
                "give a label image, not a scan",
                "label values",
            )
        present[slab.astype(np.uint16)] = True
    found = [int(value) for value in np.flatnonzero(present)]
    if known is not None and (unknown := sorted(set(found) - {0, *known})):
        raise InputError(
            f"{source} holds unknown label values {unknown[:10]}, known are {sorted(known)}",
            "name all its labels, or mend it",
            "unknown labels",
        )
    return volume.astype(np.uint8 if high <= 255 else np.uint16, copy=False)


def is_sheared(affine: np.ndarray) -> bool:
    """Whether the voxel axes do not meet at right angles."""
    return _shear(affine) > _SHEARED_COSINE


def _spacing_warnings(spacing: np.ndarray) -> list[str]:
    """What is said of voxel sizes (3,) in mm that hardly any scanner makes."""
    # Compared as the few digits that are shown, so that 20.000001 is 20.
    shown = [float(f"{value:g}") for value in spacing]
    if _PLAUSIBLE_MM[0] <= min(shown) and max(shown) <= _PLAUSIBLE_MM[1]:
        return []
    return [f"The voxels are {_listed(spacing)} mm in size: used as stored, but is the unit right?"]


def _axes_warnings(affine: np.ndarray, axes: np.ndarray) -> list[str]:
    """What is said of axes, the unit columns (3, 3) of `affine`, that are sheared or oblique."""
    if is_sheared(affine):
        return [f"The grid is sheared, axes meet at {_degrees(_shear(affine)):.1f} degrees: used as stored."]
    tilt = max(_degrees(abs(axes[world, axis])) for world, axis in enumerate(ras_order(affine)[0]))
    return [f"The grid is oblique by {tilt:.0f} degrees: used as stored."] if tilt > _OBLIQUE_DEGREES else []


def _shear(affine: np.ndarray) -> float:
    """The largest cosine between two voxel axes, 0 where all meet at right angles."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes)[np.triu_indices(3, 1)].max())


def _volumes(array: np.ndarray, channels: int, source: str) -> tuple[np.ndarray, ...]:
    """The (I, J, K) channels of an array, after the "array" lines of the list."""
    size = " x ".join(str(size) for size in array.shape)
    if array.dtype.kind not in "biuf":
        kind = "complex" if array.dtype.kind == "c" else "colour or structured" if array.dtype.names else "not numbers"
        raise InputError(f"{source}: its voxels are {kind} ({array.dtype}); one real number per voxel is needed.")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0:
        raise InputError(f"{source} is empty: its size is {size}.")
    if array.ndim not in (3, 4):
        raise InputError(f"{source} is {array.ndim}-D ({size}); a 3-D volume is needed.")
    found = 1 if array.ndim == 3 else array.shape[3]
    if found != channels:
        raise InputError(
            f"{source} is {array.ndim}-D ({size}) with {found} volume{'s' * (found > 1)}, expected {channels}: "
            "give one file per channel, or a 4-D file with exactly the channels."
        )
    array = array.astype(np.uint8 if array.dtype.kind == "b" else array.dtype.newbyteorder("="), copy=False)
    return (array,) if array.ndim == 3 else tuple(array[..., channel] for channel in range(found))


def _qform(header: Any, source: str) -> np.ndarray:
    """The affine of the qform."""
    try:
        return np.array(header.get_qform(), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{source}: its qform holds no rotation ({error}); mend its header.") from error


def _compare_forms(sform: np.ndarray, qform: np.ndarray, source: str) -> list[str]:
    """Refuse forms that point elsewhere, warn where they differ by more than rounding."""
    spacings = [np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform)]
    first, second = (form[:3, :3] / spacing for form, spacing in zip((sform, qform), spacings, strict=True))
    angle = max(_degrees(float(one @ two)) for one, two in zip(first.T, second.T, strict=True))
    if angle > 45 or np.linalg.det(first) * np.linalg.det(second) < 0:
        raise InputError(
            f"{source}: sform and qform contradict each other, their axes are up to {angle:.0f} degrees apart, "
            "so left and right are uncertain; mend its header."
        )
    shift = float(np.linalg.norm(sform[:3, 3] - qform[:3, 3]))
    stretch = float(np.abs(spacings[0] / spacings[1] - 1).max())
    if angle < 0.1 and shift < 0.1 * spacings[0].min() and stretch < 1e-3:
        return []
    return [
        f"The sform and qform differ, by up to {angle:.1f} degrees, {shift:.1f} mm in origin and "
        f"{100 * stretch:.1f} % in spacing: the sform is taken."
    ]


def _slabs(volume: np.ndarray) -> Iterator[np.ndarray]:
    """The volume in pieces along K of about a million voxels, so that masks of them stay small."""
    thick = max(1, 2**20 // (volume.shape[0] * volume.shape[1]))
    return (volume[..., start : start + thick] for start in range(0, volume.shape[2], thick))


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def _listed(values: np.ndarray) -> str:
    return " x ".join(f"{value:g}" for value in values)
