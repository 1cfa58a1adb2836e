"""Write images in exactly the geometry of their scan, and verify each file before it appears."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from volseg.data.io import itk_files
from volseg.data.io.checks import is_sheared
from volseg.data.io.formats import ITK_SUFFIXES, MGH_SUFFIXES, image_suffix
from volseg.data.io.reading import Scan
from volseg.errors import InputError, UsageError, VolsegError
from volseg.files import open_to_read, whole_file

_NIFTI_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "sform_code", "srow_x", "srow_y", "srow_z"),
)
_MGH_FIELDS = ("goodRASFlag", "delta", "Mdc", "Pxyz_c")
_TOLERANCE_MM = 1e-4


def write_labels(labels: np.ndarray, scan: Scan, path: Path) -> None:
    """Write labels in the format of `path`'s suffix; the file appears whole or not at all.

    Args:
        labels: (I, J, K) unsigned integers in the scan's image space. Written as uint8, or as uint16 if a value exceeds
            255 (int32 in MGH, because older readers do not support uint16).
        scan: gives the geometry; from NIfTI to NIfTI, sform, qform, their codes and the units are kept bit by bit.
        path: ends in .nii, .nii.gz, .mgz, .mgh, .nrrd or .mha.

    Raises:
        UsageError: another suffix.
        InputError: the format cannot store the geometry.
        ResourceError: the file cannot be written, for example because the disk is full.
        VolsegError: the written file does not have the scan's geometry; it is removed.
    """
    suffix = written_suffix(Path(path), "Labels")
    if labels.dtype != np.uint8:
        labels = labels.astype(np.uint8 if labels.max(initial=0) <= 255 else np.uint16)
    if suffix in MGH_SUFFIXES and labels.dtype != np.uint8:
        labels = labels.astype(np.int32)
    _write(labels, scan, Path(path), suffix)


def write_image(scan: Scan, path: Path) -> None:
    """Write the only channel of an image with its values and geometry; the file appears whole or not at all.

    Args:
        scan: integers stay integers, in another type where the format lacks theirs; other numbers are float32, or
            float64 where that is not exact and the format has it.
        path: as for `write_labels`.

    Raises:
        UsageError: another suffix.
        InputError: the format cannot store the geometry or the values.
        ResourceError: the file cannot be written, for example because the disk is full.
        VolsegError: the written file does not have the scan's geometry; it is removed.
    """
    suffix = written_suffix(Path(path), "Images")
    (array,) = scan.channels
    _write(_storable(array, suffix, scan.source), scan, Path(path), suffix)


def write_fractions(fractions: np.ndarray, scan: Scan, path: Path) -> None:
    """Write numbers from 0 to 1 as NIfTI on a scan's grid, in steps of 1/255; the file appears whole or not at all.

    Args:
        fractions: (I, J, K) in the scan's image space. A reader gets them back, because the header states the factor.
        scan: as for `write_labels`.
        path: ends in .nii or .nii.gz.

    Raises:
        ResourceError: the file cannot be written, for example because the disk is full.
        VolsegError: the written file does not have the scan's geometry; it is removed.
    """
    steps = np.empty(fractions.shape, np.uint8, order="F")
    # Plane by plane, so that nothing else as large is in memory.
    for plane in range(fractions.shape[2]):
        steps[..., plane] = np.rint(fractions[..., plane].astype(np.float32) * 255)
    with whole_file(path) as temporary:
        image = _nifti_image(steps, scan)
        image.header.set_slope_inter(1 / 255, 0)
        _write_nibabel(image, scan, temporary, ".nii.gz" if path.name.endswith(".gz") else ".nii")


def written_suffix(path: Path, what: str) -> str:
    """The suffix of a file that can be written.

    Raises:
        UsageError: it is none of the formats' for one file; `what` names the content.
    """
    suffix = image_suffix(path)
    if suffix is None or suffix in (".nhdr", ".mhd"):
        raise UsageError(f"{what} can be written as .nii.gz, .nii, .mgz, .mgh, .nrrd or .mha, found {path.name}.")
    return suffix


def _storable(array: np.ndarray, suffix: str, source: str) -> np.ndarray:
    """The same values in a type that the format has."""
    if array.dtype.kind == "f":
        single = array.astype(np.float32, copy=False)
        if array.dtype.itemsize <= 4 or np.array_equal(single, array, equal_nan=True):
            return single
        kinds: tuple[type[np.generic], ...] = () if suffix in MGH_SUFFIXES else (np.float64,)
    elif suffix in MGH_SUFFIXES:
        kinds = (np.uint8, np.int16, np.int32)
    else:
        # 64 bits are read by few programs, and 8 signed ones by some only.
        kinds = (array.dtype.type,) if array.dtype.itemsize < 8 else (np.int32, np.uint32, array.dtype.type)
    low, high = array.min(), array.max()
    for kind in kinds:
        if array.dtype.kind == "f" or (np.iinfo(kind).min <= low and high <= np.iinfo(kind).max):  # type: ignore[type-var]
            return array.astype(kind, copy=False)
    raise InputError(
        f"{source}: values of {array.dtype} from {low:g} to {high:g} cannot be stored exactly as {suffix}; write "
        ".nii.gz instead."
    )


def _write(array: np.ndarray, scan: Scan, path: Path, suffix: str) -> None:
    """Write voxels of a type that the format has, and verify the file."""
    if suffix in MGH_SUFFIXES and is_sheared(scan.geometry.affine):
        raise InputError(f"{scan.source} has sheared axes, which {suffix} cannot store; write .nii.gz instead.")
    with whole_file(path) as temporary:
        if suffix in ITK_SUFFIXES:
            _write_itk(array, scan, temporary)
        else:
            image = _mgh_image(array, scan) if suffix in MGH_SUFFIXES else _nifti_image(array, scan)
            _write_nibabel(image, scan, temporary, suffix)


def _nifti_image(array: np.ndarray, scan: Scan) -> Any:
    """A little-endian NIfTI image of the scan's version; only the geometry is copied from the scan's header."""
    kind = nib.Nifti2Image if isinstance(scan.header, nib.Nifti2Header) else nib.Nifti1Image
    header = kind.header_class(endianness="<")
    header.set_data_dtype(array.dtype)
    if _same_format(header, scan.header):
        _copy_geometry(header, scan.header)
        return kind(array, None, header, dtype=array.dtype)
    affine = scan.geometry.affine
    header.set_xyzt_units("mm")
    image = kind(array, affine, header, dtype=array.dtype)
    image.set_sform(affine, 1)
    # A qform cannot store shear; if it is unset, it cannot contradict the sform.
    image.set_qform(affine, 0 if is_sheared(affine) else 1)
    return image


def _mgh_image(array: np.ndarray, scan: Scan) -> Any:
    """A FreeSurfer MGH image."""
    header = nib.MGHImage.header_class()
    if not _same_format(header, scan.header):
        return nib.MGHImage(array, scan.geometry.affine)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    _copy_geometry(header, scan.header)
    return nib.MGHImage(array, header.get_affine(), header)


def _same_format(one: Any, two: Any) -> bool:
    """Whether both headers have the same geometry fields; scans other than NIfTI and MGH have no header."""
    return two is not None and isinstance(one, nib.Nifti1Header) == isinstance(two, nib.Nifti1Header)


def _geometry_fields(header: Any) -> dict[str, np.ndarray]:
    """Views of the geometry fields of a header; of pixdim only the handedness and the three sizes."""
    fields = _NIFTI_FIELDS if isinstance(header, nib.Nifti1Header) else _MGH_FIELDS
    return {field: np.atleast_1d(header[field])[:4] for field in fields}


def _copy_geometry(header: Any, like: Any) -> None:
    """Copy the geometry fields of a header bit by bit."""
    values = _geometry_fields(like)
    for field, view in _geometry_fields(header).items():
        view[...] = values[field]


def _write_nibabel(image: Any, scan: Scan, path: Path, suffix: str) -> None:
    """Write and verify a file; gzip's header gets no name and no time, so that equal labels give equal bytes."""
    compressed = suffix in (".nii.gz", ".mgz")
    with open(path, "wb") as raw:
        if compressed:
            with igzip.IGzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(raw)
    with igzip.open(path) if compressed else open_to_read(path) as stream:
        written = image.header_class.from_fileobj(stream)
    affine = written.get_best_affine()
    if _same_format(written, scan.header):
        expected = _geometry_fields(scan.header)
        for field, value in _geometry_fields(written).items():
            if not np.array_equal(value, expected[field], equal_nan=True):
                raise _wrong_geometry(f"header field {field}", scan)
        affine = scan.geometry.affine  # follows from equal fields, however nibabel interprets unset ones
    _verify(written.get_data_shape(), affine, scan)


def _write_itk(array: np.ndarray, scan: Scan, path: Path) -> None:
    """Write a file and verify it by reading it again."""
    from volseg.data.io.readers.itk import write_file  # noqa: PLC0415 - loaded only where it is needed

    write_file(array, scan.geometry.affine, path)
    written = itk_files.load(path)
    _verify(written.array.shape, written.affine, scan)


def _verify(shape: tuple[int, ...], affine: np.ndarray, scan: Scan) -> None:
    """Raise an error unless the written geometry is that of the scan."""
    if tuple(shape) != scan.geometry.shape:
        raise _wrong_geometry(f"size of {' x '.join(map(str, shape))}", scan)
    if not np.abs(affine - scan.geometry.affine).max() <= _TOLERANCE_MM:
        raise _wrong_geometry(f"affine {affine.tolist()}", scan)


def _wrong_geometry(what: str, scan: Scan) -> VolsegError:
    """The error for a result whose geometry differs from its scan: a bug in volseg, never a fault of the input."""
    return VolsegError(
        f"The result's {what} differs from that of {scan.source}; nothing was written. Please report it."
    )
