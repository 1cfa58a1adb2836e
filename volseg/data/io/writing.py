"""Label images onto disk, on exactly the grid of the scan they belong to, checked before they appear."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from volseg.data.io.checks import is_sheared
from volseg.data.io.formats import ITK_SUFFIXES, MGH_SUFFIXES, image_suffix
from volseg.data.io.reading import Scan
from volseg.errors import InputError, UsageError, VolsegError
from volseg.files import whole_file

_NIFTI_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "sform_code", "srow_x", "srow_y", "srow_z"),
)
_MGH_FIELDS = ("goodRASFlag", "delta", "Mdc", "Pxyz_c")
_TOLERANCE_MM = 1e-4


def write_labels(labels: np.ndarray, scan: Scan, path: Path) -> None:
    """Write labels in the format of `path`'s suffix; the file appears whole or not at all.

    Args:
        labels: (I, J, K) unsigned integers on the scan's stored grid. Stored as uint8, or uint16 where a
            value exceeds 255 (int32 in MGH, of which older readers know no uint16).
        scan: gives the grid; NIfTI to NIfTI keeps sform, qform, their codes and the units bit by bit.
        path: ends in .nii, .nii.gz, .mgz, .mgh, .nrrd or .mha.

    Raises:
        UsageError: the suffix is none of these.
        InputError: the format cannot hold the grid.
        ResourceError: the disk refused the bytes.
        VolsegError: what was written is not on the scan's grid; then nothing appears.
    """
    path = Path(path)
    suffix = image_suffix(path)
    if suffix is None or suffix in (".nhdr", ".mhd"):
        raise UsageError(f"Labels are written as .nii.gz, .nii, .mgz, .mgh, .nrrd or .mha, found {path.name}.")
    if suffix in MGH_SUFFIXES and is_sheared(scan.geometry.affine):
        raise InputError(f"{scan.source} has a sheared grid, which {suffix} cannot hold; write .nii.gz instead.")
    if labels.dtype != np.uint8:
        labels = labels.astype(np.uint8 if labels.max(initial=0) <= 255 else np.uint16)
    with whole_file(path) as temporary:
        if suffix in ITK_SUFFIXES:
            _write_itk(labels, scan, temporary, suffix)
        else:
            image = _mgh_image(labels, scan) if suffix in MGH_SUFFIXES else _nifti_image(labels, scan)
            _write_nibabel(image, scan, temporary, suffix)


def _nifti_image(labels: np.ndarray, scan: Scan) -> Any:
    """A NIfTI image of the scan's version, in little-endian order, with nothing of its header but the grid."""
    kind = nib.Nifti2Image if isinstance(scan.header, nib.Nifti2Header) else nib.Nifti1Image
    header = kind.header_class(endianness="<")
    header.set_data_dtype(labels.dtype)
    if _same_format(header, scan.header):
        _place(header, scan.header)
        return kind(labels, None, header)
    affine = scan.geometry.affine
    header.set_xyzt_units("mm")
    image = kind(labels, affine, header)
    image.set_sform(affine, 1)
    # A qform holds no shear; unset, it cannot contradict the sform.
    image.set_qform(affine, 0 if is_sheared(affine) else 1)
    return image


def _mgh_image(labels: np.ndarray, scan: Scan) -> Any:
    """A FreeSurfer MGH image."""
    if labels.dtype != np.uint8:
        labels = labels.astype(np.int32)
    header = nib.MGHImage.header_class()
    if not _same_format(header, scan.header):
        return nib.MGHImage(labels, scan.geometry.affine)
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(labels.shape)
    _place(header, scan.header)
    return nib.MGHImage(labels, header.get_affine(), header)


def _same_format(one: Any, two: Any) -> bool:
    """Whether both headers place voxels by the same fields; a scan that was neither NIfTI nor MGH has none."""
    return two is not None and isinstance(one, nib.Nifti1Header) == isinstance(two, nib.Nifti1Header)


def _placing(header: Any) -> dict[str, np.ndarray]:
    """Views of the header fields that place voxels in the world; of pixdim the handedness and the three sizes."""
    fields = _NIFTI_FIELDS if isinstance(header, nib.Nifti1Header) else _MGH_FIELDS
    return {field: np.atleast_1d(header[field])[:4] for field in fields}


def _place(header: Any, like: Any) -> None:
    """Take over, bit by bit, what places the voxels in the world."""
    values = _placing(like)
    for field, view in _placing(header).items():
        view[...] = values[field]


def _write_nibabel(image: Any, scan: Scan, path: Path, suffix: str) -> None:
    """Write and look at the result, without name and time in gzip's header, so that equal labels give equal bytes."""
    compressed = suffix in (".nii.gz", ".mgz")
    with open(path, "wb") as raw:
        if compressed:
            with igzip.IGzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(raw)
    with igzip.open(path) if compressed else open(path, "rb") as stream:
        written = image.header_class.from_fileobj(stream)
    affine = written.get_best_affine()
    if _same_format(written, scan.header):
        expected = _placing(scan.header)
        for field, value in _placing(written).items():
            if not np.array_equal(value, expected[field], equal_nan=True):
                raise _misplaced(f"header field {field}", scan)
        affine = scan.geometry.affine  # follows from equal fields, whatever nibabel makes of unset ones
    _verify(written.get_data_shape(), affine, scan)


def _write_itk(labels: np.ndarray, scan: Scan, path: Path, suffix: str) -> None:
    """Write and look at the result, read back whole."""
    from volseg.data.io.itk import read_file, voxels_of, write_file  # noqa: PLC0415 - loaded only where it is needed

    write_file(labels, scan.geometry.affine, path)
    array, affine = voxels_of(read_file(path, suffix))
    _verify(array.shape, affine, scan)


def _verify(shape: tuple[int, ...], affine: np.ndarray, scan: Scan) -> None:
    """Raise unless the written grid is the scan's."""
    if tuple(shape) != scan.geometry.shape:
        raise _misplaced(f"size of {' x '.join(map(str, shape))}", scan)
    if not np.abs(affine - scan.geometry.affine).max() <= _TOLERANCE_MM:
        raise _misplaced(f"affine {affine.tolist()}", scan)


def _misplaced(what: str, scan: Scan) -> VolsegError:
    """The error for a result that would not lie on its scan; a defect of volseg, never of the input."""
    return VolsegError(f"The result's {what} is not that of {scan.source}, so it was not written; please report this.")
