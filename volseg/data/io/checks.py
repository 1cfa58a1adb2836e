"""Input validation: all requirements on an image, listed and checked in this one place.

Rejected, with an InputError of one sentence that names the image:

    file       missing or empty; not in the format of its suffix; gzip-compressed without .gz, or the reverse; truncated
    array      not 3-D, or 4-D (I, J, K, C) with an unexpected C (trailing axes of size 1 are dropped);
               no voxels; not one real number per voxel (complex, colour, vectors)
    geometry   affine not finite or not affine; a spacing of zero; a singular affine
    NIfTI      units of metres or microns; a pixdim in use that is not positive; a qform in use that is not a rotation;
               sform and qform (both set) with different handedness or with axes more than 45 degrees apart
    image      NaN or infinite voxels, or values that float32 cannot hold; a constant image
    label      values that are not integers, negative, above 65535, or not among the expected ones

Unusual but usable input is accepted with a warning that states the assumption:

    geometry   axes sheared, or oblique by more than 5 degrees: accepted, never resampled to straight axes;
               a spacing below 0.01 mm or above 20 mm, as if in a wrong unit: accepted unchanged
    NIfTI      no units: millimetres, and no volume in mL; neither sform nor qform: RAS+ axes with pixdim's spacing;
               sform and qform that differ, or a qform with numbers that are not finite: the sform; a code of a form
               that NIfTI does not have: the form is not set

The other fields of a NIfTI or MGH header are checked by their readers, see volseg.data.io.readers. A DICOM series has
further requirements, see volseg.data.io.dicom.
"""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from volseg.data.grid.geometry import ras_order
from volseg.data.grid.shear import SHEARED_COSINE
from volseg.data.io.formats import content_of
from volseg.errors import InputError

LARGEST_LABEL = 65535

_GZIP_MAGIC = b"\x1f\x8b"
# What a file is that merely lacks the compression which its suffix promises.
_SAME_CONTENT = {".nii.gz": "a NIfTI file", ".mgz": "a FreeSurfer MGH file"}
_OBLIQUE_DEGREES = 5.0
# Finer spacings occur in microscopy, coarser ones in whole-body localisers at most; others are metres or microns.
_PLAUSIBLE_MM = (0.01, 20.0)
# Below it, dividing by a spacing may overflow.
_ZERO_MM = 1e-100
_UNITS = {1: "metres", 3: "microns"}
# The codes of an sform or qform that is set; 0 is not set.
_CODES = range(1, 6)
NO_UNIT = "the header has no spatial unit"
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_container(start: bytes, suffix: str, source: str) -> None:
    """Reject an empty file, and one whose first bytes and suffix disagree on gzip compression."""
    if not start:
        raise InputError(f"{source} is an empty file; copy it again.")
    zipped, named = start.startswith(_GZIP_MAGIC), suffix in (".nii.gz", ".mgz")
    if named and not zipped:
        what, remedy = content_of(start) or ("not gzip-compressed", "rename it, or copy it again if corrupt")
        if what == _SAME_CONTENT[suffix]:
            what, remedy = "not gzip-compressed", "rename it, or compress it"
        raise InputError(f"{source} is {what} despite its suffix {suffix}; {remedy}.")
    if zipped and not named:
        raise InputError(f"{source} is gzip-compressed despite its suffix {suffix}; rename it.")


def wrong_content(start: bytes, expected: str, source: str) -> InputError:
    """The error for a file that begins as another format than its suffix says, named where it is known."""
    what, remedy = content_of(start) or ("", "convert it, or correct its suffix")
    return InputError(f"{source} is not {expected}{f', but {what}' * bool(what)}; {remedy}.")


def check_nifti(header: Any, source: str) -> tuple[np.ndarray, list[str], str]:
    """The affine of a NIfTI header, chosen by the rules of this module.

    Args:
        header: nibabel NIfTI-1 or NIfTI-2 header with the fields as stored, not corrected by nibabel.
        source: the image's name for messages.

    Returns:
        4 x 4 float64 affine to RAS+ millimetres, which still has to pass `check_affine`; warnings; and why the size in
        millimetres is not stated. Empty with a unit: pixdim states the size even where neither form is set.

    Raises:
        InputError: a "NIfTI" requirement of this module is not met.
    """
    warnings, unstated = _unit_warnings(header, source)
    for name in ("sform", "qform"):
        if (code := int(header[f"{name}_code"])) != 0 and not is_code(code):
            warnings.append(f"The {name}_code {code} is none of NIfTI's codes, so the {name} is not used.")
    has_sform, has_qform = is_code(header["sform_code"]), is_code(header["qform_code"])
    pixdim = header["pixdim"][1:4].astype(np.float64)
    if (has_qform or not has_sform) and not (np.isfinite(pixdim) & (pixdim > 0)).all():
        raise InputError(
            f"{source}: the voxel sizes (pixdim) are {_by_axis(pixdim)}, expected positive numbers; fix the header."
        )
    if not has_sform and not has_qform:
        warnings.append("Neither sform nor qform is set, so the orientation is unknown; RAS+ axes are assumed.")
        return np.diag([*pixdim, 1.0]), warnings, unstated
    if not has_sform:
        return _qform(header, source), warnings, unstated
    sform = np.array(header.get_sform(), dtype=np.float64)
    if has_qform:
        check_affine(sform, source)
        warnings += _compare_forms(sform, header, source)
    return sform, warnings, unstated


def is_code(code: Any) -> bool:
    """Whether an sform_code or qform_code says that the form is set."""
    return int(code) in _CODES


def qfac_of(header: Any) -> int:
    """The handedness of a NIfTI qform, which is pixdim[0]: -1, or 1 for 0 and above; 0 if it is something else."""
    qfac = float(header["pixdim"][0])
    return 1 if qfac >= 0 else -1 if qfac == -1 else 0


def check_affine(affine: np.ndarray, source: str) -> list[str]:
    """Reject an invalid affine; return warnings for implausible spacings and for sheared or oblique axes.

    Args:
        affine: array to be used as a 4 x 4 affine to RAS+ millimetres.
        source: the image's name for messages.

    Raises:
        InputError: a "geometry" requirement of this module is not met.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise InputError(
            f"{source}: the affine is not a finite 4 x 4 matrix with last row 0 0 0 1, found {affine.tolist()}; fix it."
        )
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < _ZERO_MM or not np.isfinite(spacing).all():
        raise InputError(f"{source}: a spacing is zero or infinite, found {_by_axis(spacing)} mm; fix the header.")
    axes = affine[:3, :3] / spacing
    if abs(np.linalg.det(axes)) < 1e-4:
        raise InputError(f"{source}: the affine is singular; fix the header.")
    return _spacing_warnings(spacing) + _axes_warnings(affine, axes)


def check_scan(array: np.ndarray, channels: int, source: str) -> tuple[np.ndarray, ...]:
    """The channels of an image, after the "array" and "image" checks of this module.

    Args:
        array: (I, J, K) or (I, J, K, C), any dtype.
        channels: expected number.
        source: the image's name for messages.

    Returns:
        One (I, J, K) view per channel in native byte order; bool becomes uint8, other dtypes stay.

    Raises:
        InputError: a requirement is not met.
    """
    volumes = _volumes(array, channels, source)
    for volume in volumes:
        # NaN and infinity show in the extremes, so finite data need no mask in memory.
        with np.errstate(invalid="ignore"):
            low, high = volume.min(), volume.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            count = sum(int(slab.size - np.isfinite(slab).sum()) for slab in _slabs(volume))
            raise InputError(
                f"{source} contains {count} NaN or infinite voxels", "replace them, for example by 0", "not finite"
            )
        if max(-float(low), float(high)) > _FLOAT32_MAX:
            raise InputError(
                f"{source}: the values range from {low:g} to {high:g}, beyond {_FLOAT32_MAX:.2g}, the largest that "
                "float32 and so a network can hold",
                "replace them, or scale the image",
                "too large",
            )
        if low == high:
            raise InputError(
                f"{source}: the image is constant (every voxel is {low})",
                "give another one, or leave it out",
                "constant",
            )
    return volumes


def check_volume(array: np.ndarray, source: str) -> np.ndarray:
    """A 3-D image of any content, after the "array" checks of this module, as a view in native byte order.

    Raises:
        InputError: a requirement is not met.
    """
    return _volumes(array, 1, source)[0]


def check_label(array: np.ndarray, source: str, known: Collection[int] | None = None) -> np.ndarray:
    """A label image, after the "array" and "label" checks of this module; it may be all background.

    Args:
        array: (I, J, K), any dtype.
        source: the image's name for messages.
        known: the values allowed apart from 0; None for any.

    Returns:
        (I, J, K) uint8, or uint16 if a value exceeds 255.

    Raises:
        InputError: a requirement is not met.
    """
    (volume,) = _volumes(array, 1, source)
    with np.errstate(invalid="ignore"):
        low, high = volume.min(), volume.max()
    if not (low >= 0 and high <= LARGEST_LABEL):
        raise InputError(
            f"{source}: label values range from {low} to {high}, expected 0 to {LARGEST_LABEL}",
            "fix the label image",
            "label values",
        )
    present = np.zeros(LARGEST_LABEL + 1, dtype=bool)
    for slab in _slabs(volume):
        if volume.dtype.kind == "f" and (slab != np.rint(slab)).any():
            odd = slab[slab != np.rint(slab)][0]
            raise InputError(
                f"{source}: label values must be integers, found {odd}",
                "give a label image, not a scan",
                "label values",
            )
        present[slab.astype(np.uint16)] = True
    found = [int(value) for value in np.flatnonzero(present)]
    if known is not None and (unknown := sorted(set(found) - {0, *known})):
        raise InputError(
            f"{source} contains unknown label values {unknown[:10]}, expected {sorted(known)}",
            "declare all labels, or fix the label image",
            "unknown labels",
        )
    return volume.astype(np.uint8 if high <= 255 else np.uint16, copy=False)


def is_sheared(affine: np.ndarray) -> bool:
    """Whether the voxel axes do not meet at right angles."""
    return _shear(affine) > SHEARED_COSINE


def _spacing_warnings(spacing: np.ndarray) -> list[str]:
    """A warning for voxel sizes (3,) in mm that hardly any scanner produces."""
    # Compared after rounding to the digits shown, so that 20.000001 is 20.
    shown = [float(f"{value:g}") for value in spacing]
    if _PLAUSIBLE_MM[0] <= min(shown) and max(shown) <= _PLAUSIBLE_MM[1]:
        return []
    return [f"The voxel size {_by_axis(spacing)} mm is implausible; it is used unchanged, but check the header's unit."]


def _axes_warnings(affine: np.ndarray, axes: np.ndarray) -> list[str]:
    """A warning for sheared or oblique axes, the normalised columns (3, 3) of `affine`."""
    if is_sheared(affine):
        angle = _degrees(_shear(affine))
        return [f"The image axes are sheared (they meet at {angle:.1f} degrees) and are not straightened."]
    tilt = max(_degrees(abs(axes[world, axis])) for world, axis in enumerate(ras_order(affine)[0]))
    if tilt <= _OBLIQUE_DEGREES:
        return []
    return [f"The image axes are oblique by {tilt:.0f} degrees and are not straightened."]


def _shear(affine: np.ndarray) -> float:
    """The largest cosine between two voxel axes, 0 if all meet at right angles."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes)[np.triu_indices(3, 1)].max())


def _volumes(array: np.ndarray, channels: int, source: str) -> tuple[np.ndarray, ...]:
    """The (I, J, K) channels of an array, after the "array" checks."""
    size = " x ".join(str(size) for size in array.shape)
    if array.dtype.kind not in "biuf":
        kind = f"complex ({array.dtype})" if array.dtype.kind == "c" else _structured(array.dtype)
        raise InputError(
            f"{source}: the voxels are {kind}, expected one real number per voxel; convert them, or give the scan that "
            "they were made from."
        )
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0:
        raise InputError(f"{source} is empty: its size is {size}.")
    if array.ndim not in (3, 4):
        several = ", several values per voxel such as vectors" if array.ndim > 4 else ""
        raise InputError(f"{source} is {array.ndim}-D ({size}{several}), expected a 3-D volume.")
    found = 1 if array.ndim == 3 else array.shape[3]
    if found != channels:
        several = "give one file per channel, or a 4-D file with exactly these channels"
        raise InputError(
            f"{source} is {array.ndim}-D ({size}) with {found} volume{'s' * (found > 1)}, expected {channels}; "
            f"{'choose one with --volume N, take --volume all, or give a 3-D image' if channels == 1 else several}."
        )
    array = array.astype(np.uint8 if array.dtype.kind == "b" else array.dtype.newbyteorder("="), copy=False)
    return (array,) if array.ndim == 3 else tuple(array[..., channel] for channel in range(found))


def _structured(dtype: np.dtype) -> str:
    """Voxels that are no numbers, in words."""
    names = "".join(dtype.names or ())
    return f"in colour ({names})" if names in ("RGB", "RGBA") else f"not numbers ({dtype})"


def _unit_warnings(header: Any, source: str) -> tuple[list[str], str]:
    """Warnings about the unit, and why millimetres are not stated; rejects other units."""
    unit = int(header["xyzt_units"]) & 7
    if unit in _UNITS:
        raise InputError(f"{source}: the header's spatial unit is {_UNITS[unit]}, expected millimetres; convert it.")
    return ([], "") if unit == 2 else (["The header has no spatial unit; millimetres are assumed."], NO_UNIT)


def _qform(header: Any, source: str) -> np.ndarray:
    """The affine of the qform."""
    if reason := _not_finite(header):
        raise InputError(f"{source}: the qform is not a rotation ({reason}); fix the header.")
    signed = header.copy()
    signed["pixdim"][0] = qfac_of(header)
    try:
        return np.array(signed.get_qform(), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{source}: the qform is not a rotation ({error}); fix the header.") from error


def _not_finite(header: Any) -> str:
    """What in a qform is not a number, or a handedness that is none; empty if all is usable."""
    names = [*(f"quatern_{axis}" for axis in "bcd"), *(f"qoffset_{axis}" for axis in "xyz")]
    odd = [f"{name} is {float(header[name]):g}" for name in names if not np.isfinite(header[name])]
    return ", ".join(
        odd or ["" if qfac_of(header) else f"pixdim[0] is {float(header['pixdim'][0]):g}, expected 1 or -1"]
    )


def _compare_forms(sform: np.ndarray, header: Any, source: str) -> list[str]:
    """Reject forms with contradictory axes; a warning if they differ by more than rounding errors."""
    if reason := _not_finite(header):
        return [f"The qform is not a rotation ({reason}); the sform is used."]
    qform = _qform(header, source)
    with np.errstate(all="ignore"):
        return _differences(sform, qform, source)


def _differences(sform: np.ndarray, qform: np.ndarray, source: str) -> list[str]:
    """Reject or describe the differences of two affines; a spacing of 0 or a place at 1e300 differs from any other."""
    spacings = [np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform)]
    first, second = (form[:3, :3] / spacing for form, spacing in zip((sform, qform), spacings, strict=True))
    angle = max(_degrees(float(one @ two)) for one, two in zip(first.T, second.T, strict=True))
    if angle > 45 or np.linalg.det(first) * np.linalg.det(second) < 0:
        raise InputError(
            f"{source}: sform and qform contradict each other (their axes differ by up to {angle:.0f} degrees), "
            "so left and right may be swapped; fix the header."
        )
    shift = float(np.linalg.norm(sform[:3, 3] - qform[:3, 3]))
    stretch = float(np.abs(spacings[0] / spacings[1] - 1).max())
    if angle < 0.1 and shift < 0.1 * spacings[0].min() and stretch < 1e-3:
        return []
    return [
        f"The sform and qform differ by up to {angle:.1f} degrees, {shift:.1f} mm in origin and "
        f"{100 * stretch:.1f} % in spacing; the sform is used."
    ]


def _slabs(volume: np.ndarray) -> Iterator[np.ndarray]:
    """The volume in slabs along K of about a million voxels, so that masks of them stay small."""
    thick = max(1, 2**20 // (volume.shape[0] * volume.shape[1]))
    return (volume[..., start : start + thick] for start in range(0, volume.shape[2], thick))


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def _by_axis(values: np.ndarray) -> str:
    return " x ".join(f"{value:g}" for value in values)
