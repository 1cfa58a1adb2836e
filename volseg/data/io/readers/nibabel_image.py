"""Images of nibabel that are handed over in Python."""

from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from volseg.data.io.checks import check_nifti, is_code
from volseg.data.io.readers.mgh import FIELDS, NO_RAS, is_placed
from volseg.data.io.readers.nifti import usable_header
from volseg.data.io.readers.stored import Stored, unreadable_as_input_error
from volseg.data.io.readers.streams import scaled
from volseg.errors import InputError


def stored_from_nibabel(image: Any) -> Stored:
    """Take the voxels and the placement of a nibabel spatial image.

    Raises:
        InputError: it is corrupt, or does not state how its voxels lie.
    """
    name = image.get_filename()
    source = str(name) if name else "The nibabel image"
    _require_placement(image, source)
    array = _values(image, source)
    if isinstance(image.header, nib.Nifti1Header):
        affine, warnings, unstated = check_nifti(image.header, source)
        return Stored(array, affine, usable_header(image.header, affine), source, warnings, unstated)
    header = None
    if isinstance(image, nib.MGHImage):
        _require_good_ras(image, source)
        header = image.header.copy()
    return Stored(array, np.array(image.affine, dtype=np.float64), header, source, *_assumptions(image))


def _values(image: Any, source: str) -> np.ndarray:
    """The values; those of a file that is not in memory yet are read and scaled here."""
    proxy = image.dataobj
    if isinstance(proxy, ArrayProxy) and isinstance(image.header, nib.Nifti1Header) and image.header.is_single:
        first = image.header.single_vox_offset
        if proxy.offset < first:
            raise InputError(
                f"{source}: nibabel reads its voxels from byte {proxy.offset} (vox_offset), expected {first} or more, "
                "after the header; give the path, or fix the header."
            )
    with unreadable_as_input_error(source):
        if isinstance(proxy, ArrayProxy):
            return scaled(np.asarray(proxy.get_unscaled()), float(proxy.slope), float(proxy.inter))
        return np.asarray(proxy)


def _require_placement(image: Any, source: str) -> None:
    """Reject an image without an affine, and one whose affine is nibabel's default for a format without one."""
    if isinstance(image.header, nib.Nifti1Header):
        stated = image.affine is not None or any(is_code(image.header[f"{form}_code"]) for form in ("sform", "qform"))
    else:
        stated = image.affine is not None
    if not stated:
        raise InputError(f"{source} has no affine; add one.")
    # NIfTI images are Analyze images to nibabel. SPM's have an affine of their own if there is a .mat file.
    analyze = isinstance(image.header, nib.AnalyzeHeader) and not isinstance(image.header, nib.Nifti1Header)
    if analyze and np.allclose(image.affine, image.header.get_base_affine()):
        raise InputError(
            f"{source} is an Analyze image, which does not state which side is left; give (array, affine), or convert "
            "it to NIfTI with the orientation that you know."
        )


def _require_good_ras(image: Any, source: str) -> None:
    """Reject an MGH image of a file that states no axes: nibabel supplies others than FreeSurfer."""
    if not isinstance(image.dataobj, ArrayProxy):
        return
    with unreadable_as_input_error(source), image.file_map["image"].get_prepare_fileobj("rb") as stream:
        stream.seek(0)
        placed = is_placed(stream.read(FIELDS.size))
    if not placed:
        raise InputError(
            f"{source}: {NO_RAS} in the file, and the affine of this image is nibabel's default; give the path, or "
            "(array, affine)."
        )


def _assumptions(image: Any) -> tuple[list[str], str]:
    """Warnings about what nibabel supplied where the file may state nothing, and why sizes are unstated."""
    if not isinstance(image, nib.Minc1Image):
        return [], ""
    reason = "nibabel does not tell whether the MINC file states its steps"
    return [f"The voxel sizes are those of nibabel, and {reason}; 1 mm is its default."], reason
