"""NIfTI-1 and NIfTI-2 in one file."""

import io

import nibabel as nib
import numpy as np

from volseg.data.io.checks import check_nifti
from volseg.data.io.readers.stored import Stored
from volseg.data.io.readers.streams import scaled, voxels_by_header
from volseg.errors import InputError


def load(stream: io.BufferedIOBase, largest: int, source: str) -> Stored:
    """Read an open file of at most `largest` bytes."""
    start = stream.read(nib.Nifti2Header.sizeof_hdr)
    if start[344:348] == b"n+1\0":
        kind = nib.Nifti1Header
    elif start[4:8] == b"n+2\0":
        kind = nib.Nifti2Header
    else:
        raise InputError(f"{source} is not a single-file NIfTI image; convert it, or correct its suffix.")
    pixdim = kind(start[: kind.sizeof_hdr], check=False)["pixdim"][1:4].astype(np.float64)
    stream.seek(0)
    header = kind.from_fileobj(stream)
    affine, warnings = check_nifti(header, pixdim, source)
    slope, inter = header.get_slope_inter()
    array = voxels_by_header(stream, header, largest, source)
    values = scaled(array, 1.0 if slope is None else slope, 0.0 if inter is None else inter)
    return Stored(values, affine, header, source, warnings)
