"""The memory needed to read a scan, estimated from its header before its voxels are read."""

import math
import struct
import sys
from pathlib import Path

import nibabel as nib
from isal import igzip

from volseg.data.io import itk_files
from volseg.data.io.choice import ONLY, Choice
from volseg.data.io.formats import ITK_SUFFIXES, image_suffix, is_dicom
from volseg.data.io.readers.stored import UNREADABLE
from volseg.data.io.readers.streams import most_bytes
from volseg.errors import InputError
from volseg.files import open_to_read

# DICOM may be rescaled: 2 bytes per voxel in the files become 4, while the first 2, or 2 of a copy, are in memory.
_DICOM_FACTOR = 3
# (offset, magic bytes, header class).
_FORMATS = (
    (0, b"\0\0\0\1", nib.MGHImage.header_class),
    (344, b"n+1\0", nib.Nifti1Header),
    (4, b"n+2\0", nib.Nifti2Header),
)
# Errors of volseg's own readers, in addition to those of nibabel.
_CORRUPT = (*UNREADABLE, InputError, struct.error)


def reading_bytes(path: Path, choice: Choice = ONLY) -> int:
    """The peak memory in bytes of reading a scan, which may be more than its voxels take afterwards.

    Args:
        path: as for `volseg.data.io.reading.read_scan`.
        choice: which series of DICOM is read.

    Returns:
        For DICOM, 3 times the size of the series' pixels without compression. 0 for what reading rejects, such as
        an unreadable file.
    """
    path = Path(path)
    suffix = image_suffix(path)
    try:
        if not (path.is_file() or path.is_dir()):
            return 0
        if is_dicom(path):
            from volseg.data.io.dicom.reader import stored_bytes  # noqa: PLC0415 - pydicom is loaded where it is needed

            return _DICOM_FACTOR * stored_bytes(path, choice)
        if suffix is None:
            return 0
        if suffix in ITK_SUFFIXES:
            return itk_files.memory_of(path)
        return _nibabel_bytes(path, suffix)
    except _CORRUPT:
        return 0


def _nibabel_bytes(path: Path, suffix: str) -> int:
    """The peak memory of reading a NIfTI or MGH file."""
    compressed = suffix in (".nii.gz", ".mgz")
    with igzip.open(path) if compressed else open_to_read(path) as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
    kind = next((kind for at, magic, kind in _FORMATS if start.startswith(magic, at)), None)
    if kind is None:
        return 0
    # Unchecked, because nibabel prints what it finds; reading checks the header.
    header = kind(start[: kind.template_dtype.itemsize], check=False)
    shape, size = [int(length) for length in header.get_data_shape()], int(header.get_data_dtype().itemsize)
    if min(shape, default=0) < 1:
        return 0
    voxels = math.prod(shape)
    # A file that is too small for what its header declares is damaged, as reading says.
    if voxels * size > most_bytes(path, compressed):
        return 0
    # Unscaled values stay in memory until they are scaled or converted to native byte order.
    slope, inter = header.get_slope_inter()
    if (slope, inter) not in ((None, None), (1.0, 0.0)):
        # A large offset needs 64 bits, and a copy in float32 to see that.
        return voxels * (size + (12 if abs(inter) > 2**20 * abs(slope) else max(size, 4)))
    swapped = size > 1 and header.endianness != ("<" if sys.byteorder == "little" else ">")
    return voxels * size * (2 if swapped else 1)
