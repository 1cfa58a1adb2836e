"""FreeSurfer MGH, as https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat describes it.

What its header says, and what is done where it says nothing or nonsense:

    version      has to be 1
    dims         four positive numbers, width, height, depth and frames; several frames are volumes
    type         uint8, int16, uint16, int32 or float32, big endian; others are rejected by name
    goodRASFlag  above 0: delta, Mdc and Pxyz_c are stated. Else they are not, whatever they hold: FreeSurfer's
                 convention is taken, with a warning
    delta        three positive voxel sizes in mm
    Mdc          three unit vectors at right angles, the directions of the axes
    Pxyz_c       the place of the middle of the image; NaN is rejected, as in Mdc
"""

import io
import struct
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from volseg.data.io.checks import wrong_content
from volseg.data.io.readers.stored import Stored
from volseg.data.io.readers.streams import voxels
from volseg.errors import InputError

# Where the voxels begin.
_OFFSET = 284
FIELDS = struct.Struct(">i4iiih3f9f3f")
_DTYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_REJECTED = {2: "MRI_LONG", 5: "bitmap", 6: "tensor", 7: "complex", 8: "double", 9: "RGB colour"}
# Unit vectors and right angles may be off by this much; FreeSurfer stores them in float32.
_TOLERANCE = 1e-3
# Why sizes are unstated, and the warning.
NO_RAS = "goodRASFlag is not set"
_ASSUMED = (
    "The header's goodRASFlag is not set, so it states neither voxel sizes nor directions nor position; FreeSurfer's "
    "convention is assumed: 1 mm, coronal slices (axes to the left, down and to the front), centre at 0."
)


class _Header(NamedTuple):
    """The fields of the file."""

    dims: tuple[int, ...]
    kind: int
    good: bool
    delta: np.ndarray
    directions: np.ndarray
    centre: np.ndarray


def load(stream: io.BufferedIOBase, largest: int, source: str) -> Stored:
    """Read an open file of at most `largest` bytes."""
    fields = _fields(stream.read(_OFFSET), source)
    if min(fields.dims) < 1:
        raise InputError(
            f"{source}: its size (dims) is {' x '.join(map(str, fields.dims))}, expected positive numbers; fix the "
            "header."
        )
    if fields.kind not in _DTYPES:
        name = _REJECTED.get(fields.kind, "unknown")
        raise InputError(
            f"{source}: the type of its voxels is {fields.kind} ({name}), expected one of {sorted(_DTYPES)} (uint8, "
            "int32, float32, int16, uint16); convert it."
        )
    if fields.good:
        _check_placement(fields, source)
    header = _header(fields)
    shape = fields.dims if fields.dims[3] > 1 else fields.dims[:3]
    array = voxels(stream, shape, np.dtype(_DTYPES[fields.kind]), _OFFSET, largest, source)
    affine = np.array(header.get_affine(), dtype=np.float64)
    return Stored(array, affine, header, source, [] if fields.good else [_ASSUMED], "" if fields.good else NO_RAS)


def is_placed(start: bytes) -> bool:
    """Whether a header, of which these are the first bytes, states where the voxels lie."""
    return bool(FIELDS.unpack_from(start)[7] > 0)


def _fields(start: bytes, source: str) -> _Header:
    """The fields of a header, of the right length and version."""
    version = int.from_bytes(start[:4], "big")
    # Text and other formats give 0, or numbers far above any version.
    if len(start) < 4 or not 0 < version < 256:
        raise wrong_content(start, "a FreeSurfer MGH file", source)
    if version != 1:
        raise InputError(f"{source} is of version {version} of FreeSurfer's MGH format, expected 1; convert it.")
    if len(start) < FIELDS.size:
        raise InputError(f"{source} is too short: it ends inside of its header; copy it again.")
    numbers = FIELDS.unpack_from(start)
    delta, directions, centre = (np.array(numbers[first:stop]) for first, stop in ((8, 11), (11, 20), (20, 23)))
    return _Header(numbers[1:5], numbers[5], is_placed(start), delta, directions.reshape(3, 3), centre)


def _check_placement(fields: _Header, source: str) -> None:
    """Reject voxel sizes, directions and a centre that are stated, but cannot be meant."""
    if not (np.isfinite(fields.delta) & (fields.delta > 0)).all():
        sizes = " x ".join(f"{size:g}" for size in fields.delta)
        raise InputError(f"{source}: the voxel sizes (delta) are {sizes}, expected positive numbers; fix the header.")
    # NaN fails the comparison as well.
    with np.errstate(over="ignore", invalid="ignore"):
        skew = np.abs(fields.directions @ fields.directions.T - np.eye(3)).max()
    if not skew <= _TOLERANCE:
        raise InputError(
            f"{source}: the directions of its axes (Mdc) are {fields.directions.round(4).tolist()}, expected unit "
            "vectors at right angles; fix the header."
        )
    if not np.isfinite(fields.centre).all():
        raise InputError(
            f"{source}: the middle of the image (Pxyz_c) is at {fields.centre.tolist()}, expected finite numbers; fix "
            "the header."
        )


def _header(fields: _Header) -> Any:
    """The nibabel header that results copy; without placement in the file, with FreeSurfer's convention."""
    header = nib.MGHImage.header_class()
    header["dims"], header["type"], header["goodRASFlag"] = fields.dims, fields.kind, 1
    if fields.good:
        header["delta"], header["Mdc"], header["Pxyz_c"] = fields.delta, fields.directions, fields.centre
    else:
        # Rows are the directions of the three axes, R A S.
        header["delta"], header["Mdc"], header["Pxyz_c"] = 1, [[-1, 0, 0], [0, 0, -1], [0, 1, 0]], 0
    return header
