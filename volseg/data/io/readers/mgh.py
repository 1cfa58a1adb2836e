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
    the end      parameters of the scan and tags may follow the voxels, and are not used. Bytes that are neither are
                 rejected if they may be voxels (`volseg.data.io.readers.streams.are_voxels`); else a warning
"""

import io
import struct
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from volseg.data.io.checks import wrong_content
from volseg.data.io.readers.stored import Stored
from volseg.data.io.readers.streams import (
    Spare,
    are_voxels,
    gzip_followed_by_nothing,
    more_than_declared,
    not_used,
    spare_after,
    voxels,
)
from volseg.errors import InputError

# Where the voxels begin.
_OFFSET = 284
FIELDS = struct.Struct(">i4iiih3f9f3f")
_DTYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_REJECTED = {2: "MRI_LONG", 5: "bitmap", 6: "tensor", 7: "complex", 8: "double", 9: "RGB colour"}
# Unit vectors and right angles may be off by this much; FreeSurfer stores them in float32.
_TOLERANCE = 1e-3
# After the voxels: TR, flip angle, TE, TI and the field of view, then tags.
_PARAMETERS = 20
# FreeSurfer's tags are numbered up to 44 (tags.h). A length of 8 bytes follows, except for a colour table, where its
# version or its number of entries does, and for an old transform, whose length has 4 bytes.
_LARGEST_TAG, _COLOURS, _OLD_TRANSFORM = 99, 1, 30
_COLOURS_VERSION, _MOST_COLOURS = 2**32 - 2, 2**20
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
    with gzip_followed_by_nothing(stream, source):
        fields = _fields(stream.read(_OFFSET), source)
        array, warnings = _voxels(stream, fields, largest, source)
    header = _header(fields)
    affine = np.array(header.get_affine(), dtype=np.float64)
    if not fields.good:
        warnings.append(_ASSUMED)
    return Stored(array, affine, header, source, warnings, "" if fields.good else NO_RAS)


def _voxels(stream: io.BufferedIOBase, fields: _Header, largest: int, source: str) -> tuple[np.ndarray, list[str]]:
    """The voxels of a header that is sound, and a warning of what follows them."""
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
    shape = fields.dims if fields.dims[3] > 1 else fields.dims[:3]
    dtype = np.dtype(_DTYPES[fields.kind])
    array = voxels(stream, shape, dtype, _OFFSET, largest, source)
    spare = spare_after(stream, _OFFSET + array.nbytes)
    if spare.size <= _PARAMETERS or _has_tags(spare):
        return array, []
    # Slices that were left out come before the parameters, where a file has them.
    sizes = (spare.size, spare.size - _PARAMETERS)
    if not spare.blank and any(are_voxels(size, shape, array.size, dtype) for size in sizes):
        raise more_than_declared(array.nbytes, str(array.nbytes + spare.size), source)
    return array, [not_used(spare.size)]


def _has_tags(spare: Spare) -> bool:
    """Whether tags follow the parameters of the scan: the first one has a number and a length that fits."""
    tag, short, low = (
        int.from_bytes(spare.first[at : at + 4], "big") for at in range(_PARAMETERS, _PARAMETERS + 12, 4)
    )
    if tag == _COLOURS:
        return short == _COLOURS_VERSION or 0 < short <= _MOST_COLOURS
    length = short if tag == _OLD_TRANSFORM else (short << 32) + low
    return 0 < tag <= _LARGEST_TAG and length <= spare.size - _PARAMETERS


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
