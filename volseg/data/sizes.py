"""How large a scan will be in memory, told by its header, before any of it is read."""

import math
import zipfile
from pathlib import Path

import nibabel as nib
from nibabel.filebasedimages import ImageFileError

from volseg.data.formats import ITK_SUFFIXES, image_suffix


def stored_bytes(path: Path) -> int:
    """Bytes of a scan's voxels in memory; 0 where the file does not say, which reading it will then say of it.

    Args:
        path: as for `volseg.data.reading.read_scan`. Of DICOM, which may be compressed, the files' sizes are taken.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as packed:
                return sum(member.file_size for member in packed.infolist())
        if image_suffix(path) in ITK_SUFFIXES:
            from volseg.data.itk import size_of  # noqa: PLC0415 - SimpleITK is loaded only where it is needed

            return size_of(path)
        if image_suffix(path) is None:
            return path.stat().st_size
        voxels = nib.load(path).dataobj
        scaled = (voxels.slope, voxels.inter) != (1, 0)
        return int(math.prod(voxels.shape) * max(voxels.dtype.itemsize, 4 if scaled else 1))
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, ImageFileError):
        return 0
