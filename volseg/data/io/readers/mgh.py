"""FreeSurfer MGH."""

import io

import nibabel as nib
import numpy as np

from volseg.data.io.readers.stored import Stored
from volseg.data.io.readers.streams import voxels_by_header
from volseg.errors import InputError


def load(stream: io.BufferedIOBase, largest: int, source: str) -> Stored:
    """Read an open file of at most `largest` bytes."""
    if stream.read(4) != b"\0\0\0\1":
        raise InputError(f"{source} is not a FreeSurfer MGH file; correct its suffix.")
    stream.seek(0)
    header = nib.MGHImage.header_class.from_fileobj(stream)
    affine = np.array(header.get_affine(), dtype=np.float64)
    return Stored(voxels_by_header(stream, header, largest, source), affine, header, source, [])
