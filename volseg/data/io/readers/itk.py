"""NRRD and MetaImage files, and conversion from and to SimpleITK, which uses LPS+ coordinates and K, J, I order.

Imported only when such an image is read or written, because importing SimpleITK is slow.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from volseg.data.grid.geometry import LPS_FROM_RAS
from volseg.errors import InputError, ResourceError
from volseg.files import utf8_path

_READERS = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}

# SimpleITK's C++ warnings go to standard error and bypass logging; volseg checks images itself.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


class _Voxels:
    """The memory of a SimpleITK image, which stays alive as long as an array refers to it."""

    def __init__(self, image: sitk.Image) -> None:
        self.image = image
        interface = dict(sitk.GetArrayViewFromImage(image).__array_interface__)
        # Marked writable only because PyTorch warns about read-only memory; nothing writes to it.
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def read_file(path: Path, suffix: str) -> sitk.Image:
    """Read an NRRD or MetaImage file by its suffix.

    Raises:
        InputError: it is corrupt or not in the format of its suffix.
    """
    try:
        with utf8_path(path) as readable:
            return sitk.ReadImage(str(readable), imageIO=_READERS[suffix])
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: not {suffix}, corrupt or truncated; copy it again.") from error


def size_of(path: Path) -> int:
    """The peak memory in bytes of reading a file, computed from its header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    size = int(math.prod(reader.GetSize()) * sitk.GetArrayViewFromImage(voxel).nbytes)
    # MetaImage reads all compressed voxels before it decompresses them; NRRD decompresses them in chunks.
    compressed = path.stat().st_size if path.suffix.lower() == ".mha" else size
    return size + (compressed if compressed < size else 0)


def voxels_of(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """A SimpleITK image as a NumPy array and an affine.

    Returns:
        Its voxels (I, J, K), not copied, with the components of a vector image or a fourth dimension as the last axis;
        and its 4 x 4 affine to RAS+ millimetres.
    """
    array = np.asarray(_Voxels(image))
    several = image.GetNumberOfComponentsPerPixel() > 1
    axes = tuple(reversed(range(image.GetDimension())))
    array = array.transpose((*axes, len(axes)) if several else axes)
    # The first three dimensions. A 2-D image is rejected later by its shape, so its affine does not matter.
    used = min(image.GetDimension(), 3)
    lps = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)[:used, :used]
    lps[:used, :used] = direction * np.array(image.GetSpacing()[:used])
    lps[:used, 3] = image.GetOrigin()[:used]
    return array, LPS_FROM_RAS @ lps


def write_file(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write voxels (I, J, K) with an affine to RAS+ millimetres as NRRD or MetaImage, compressed.

    Raises:
        ResourceError: SimpleITK could not write it.
    """
    lps = LPS_FROM_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array.transpose())
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    try:
        with utf8_path(path) as writable:
            sitk.WriteImage(image, str(writable), useCompression=True, compressionLevel=1)
    except RuntimeError as error:
        raise ResourceError(f"Could not write {path}. Free some space or choose another place.") from error
