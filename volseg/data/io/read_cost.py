"""How much memory reading a scan takes, told by its header, before any of it is read."""

import math
import struct
import sys
import zipfile
from pathlib import Path

import nibabel as nib
from isal import igzip

from volseg.data.io.formats import ITK_SUFFIXES, image_suffix
from volseg.data.io.reading import UNREADABLE

# DICOM may be rescaled: 2 bytes a voxel in the files become 4 in SimpleITK, and 2 again in a copy beside them.
_DICOM_FACTOR = 3
# Where a header holds which bytes.
_KINDS = (
    (0, b"\0\0\0\1", nib.MGHImage.header_class),
    (344, b"n+1\0", nib.Nifti1Header),
    (4, b"n+2\0", nib.Nifti2Header),
)
# What SimpleITK and zipfile raise beside what reading meets.
_DAMAGED = (*UNREADABLE, RuntimeError, struct.error, zipfile.BadZipFile)


def reading_bytes(path: Path) -> int:
    """The most bytes that reading a scan holds at one time, which may be more than its voxels take afterwards.

    Args:
        path: as for `volseg.data.io.reading.read_scan`. Of DICOM, which may be compressed, 3 times the files' sizes.

    Returns:
        0 where the file does not say, which reading it will then say of it.
    """
    path = Path(path)
    suffix = image_suffix(path)
    try:
        if path.is_dir():
            return _DICOM_FACTOR * sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if not path.is_file():
            return 0
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as packed:
                return _DICOM_FACTOR * sum(member.file_size for member in packed.infolist())
        if suffix is None:
            return _DICOM_FACTOR * path.stat().st_size
        if suffix in ITK_SUFFIXES:
            from volseg.data.io.itk import size_of  # noqa: PLC0415 - SimpleITK is loaded only where it is needed

            return size_of(path)
        return _nibabel_bytes(path, suffix)
    except _DAMAGED:
        return 0


def _nibabel_bytes(path: Path, suffix: str) -> int:
    """The same of a NIfTI or MGH file."""
    compressed = suffix in (".nii.gz", ".mgz")
    with igzip.open(path) if compressed else open(path, "rb") as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
    kind = next((kind for at, magic, kind in _KINDS if start.startswith(magic, at)), None)
    if kind is None:
        return 0
    # Unchecked, because nibabel prints what it finds, and reading checks it again.
    header = kind(start[: kind.template_dtype.itemsize], check=False)
    shape, size = [int(length) for length in header.get_data_shape()], int(header.get_data_dtype().itemsize)
    if min(shape, default=0) < 1:
        return 0
    voxels = math.prod(shape)
    # Stored values are held until they are scaled, or in native byte order.
    if header.get_slope_inter() not in ((None, None), (1.0, 0.0)):
        return voxels * (size + max(size, 4))
    swapped = size > 1 and header.endianness != ("<" if sys.byteorder == "little" else ">")
    return voxels * size * (2 if swapped else 1)
