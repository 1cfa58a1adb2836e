"""NRRD and MetaImage files, which have a header of text, by their suffix."""

from pathlib import Path

from volseg.data.io.formats import ITK_SUFFIXES, NRRD_SUFFIXES, image_suffix
from volseg.data.io.readers import metaimage, nrrd
from volseg.data.io.readers.stored import Stored


def load(path: Path) -> Stored:
    """Read a file.

    Raises:
        InputError: it is not in the format of its suffix, does not state what is needed, or its voxels are missing,
            damaged or fewer than its header declares.
    """
    return nrrd.load(path) if image_suffix(path) in NRRD_SUFFIXES else metaimage.load(path)


def memory_of(path: Path) -> int:
    """The peak memory in bytes of reading a file, from its header.

    Raises:
        InputError: as `load`, for the header.
    """
    return nrrd.memory_of(path) if image_suffix(path) in NRRD_SUFFIXES else metaimage.memory_of(path)


def files_of(path: Path) -> list[Path]:
    """All files of an image: those with its voxels where the header of an NRRD or MetaImage names them, and itself.

    Raises:
        InputError: as `load`, for the header.
    """
    if image_suffix(path) not in ITK_SUFFIXES:
        return [path]
    return nrrd.files_of(path) if image_suffix(path) in NRRD_SUFFIXES else metaimage.files_of(path)
