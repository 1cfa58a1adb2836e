"""NIfTI-1 and NIfTI-2 in one file, from the header's own fields: nibabel would correct nonsense without a word.

What is done where a field says nothing or nonsense (units and grid: `volseg.data.io.checks.check_nifti`):

    sizeof_hdr   not used: the magic decides the version, and dim[0] the byte order
    magic        "n+1" or "n+2"; a header of a pair of files or of Analyze is rejected by name
    dim          dim[0] has to be 1 to 7, the sizes positive
    datatype     has to be known and of one number per voxel (colour and complex are rejected with the voxels)
    bitpix       if it contradicts datatype, the length of the file has to fit datatype exactly; then a warning
    vox_offset   352 or more (NIfTI-2: 544); 0: the length of the file has to fit voxels after the header exactly; then
                 a warning. Others are rejected
    extensions   not used; a warning if their sizes do not fit before vox_offset
    scl_slope    0 or NaN: values as stored; infinite or below 1.2e-38: rejected, like a scl_inter that is not finite
                 beside a slope
    the end      bytes after the voxels: rejected if they may be voxels that dim, or a wrong datatype, leaves out
                 (`volseg.data.io.readers.streams.are_voxels`); others, and zeros, are not used, with a warning
    others       dim_info, intent, cal, slice, toffset and texts: not used
"""

import io
import math
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np

from volseg.data.io.checks import check_nifti, is_code, qfac_of, wrong_content
from volseg.data.io.readers.stored import Stored
from volseg.data.io.readers.streams import (
    are_voxels,
    gzip_followed_by_nothing,
    more_than_declared,
    not_used,
    scaled,
    spare_after,
    voxels,
)
from volseg.errors import InputError

# Bytes after the header that say whether extensions follow; in a single file they are always there.
_FLAGS = 4
_COLOUR = [("R", "u1"), ("G", "u1"), ("B", "u1")]
_DTYPES: dict[int, Any] = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
    32: "c8",
    1792: "c16",
    128: _COLOUR,
    2304: [*_COLOUR, ("A", "u1")],
}
# The smallest normal number of float32. As a plain number: NumPy would compare in float32, which overflows.
_SMALLEST_SLOPE = float(np.finfo(np.float32).tiny)
_REJECTED = {0: "not stated", 1: "one bit", 1536: "float128", 2048: "complex of 256 bits"}


class _Layout(NamedTuple):
    """Where the voxels lie, and what is odd about it.

    Args:
        offset: of the first voxel in bytes.
        doubt: why the length of the file has to fit exactly; empty if it may be longer.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    warnings: list[str]
    doubt: str = ""


def load(stream: io.BufferedIOBase, largest: int, source: str) -> Stored:
    """Read an open file of at most `largest` bytes; not compressed, of exactly so many."""
    with gzip_followed_by_nothing(stream, source):
        header = _header(stream.read(nib.Nifti2Header.sizeof_hdr + _FLAGS), source)
        layout = _layout(header, source)
        slope, inter = _scaling(header, source)
        affine, warnings, unstated = check_nifti(header, source)
        warnings += layout.warnings + _extension_warnings(stream, header, layout.offset)
        array = _fitting(stream, layout, largest, source)
        warnings += _spare_warnings(stream, layout, array.nbytes, source)
    values = scaled(array, slope, inter)
    return Stored(values, affine, usable_header(header, affine), source, warnings, unstated)


def usable_header(header: Any, affine: np.ndarray) -> Any:
    """A copy of a nibabel header for results, in which no field contradicts the affine that was used.

    Only nonsense is replaced: sizes in pixdim that are not positive, its sign, and codes that NIfTI does not have.
    """
    usable = header.copy()
    sizes = usable["pixdim"][1:4].astype(np.float64)
    sound = np.isfinite(sizes) & (sizes > 0)
    # An affine that overflows is rejected later.
    with np.errstate(over="ignore", invalid="ignore"):
        usable["pixdim"][1:4] = np.where(sound, sizes, np.linalg.norm(affine[:3, :3], axis=0))
    usable["pixdim"][0] = qfac_of(header) or 1
    for name in ("sform_code", "qform_code"):
        usable[name] = int(header[name]) if is_code(header[name]) else 0
    return usable


def _header(start: bytes, source: str) -> Any:
    """The fields as stored, from the first bytes of a file."""
    if start[344:348] == b"n+1\0":
        return nib.Nifti1Header(start[: nib.Nifti1Header.sizeof_hdr], check=False)
    if start[4:8] == b"n+2\0":
        if len(start) < nib.Nifti2Header.sizeof_hdr:
            raise InputError(f"{source} is too short: it ends inside of its header; copy it again.")
        if start[8:12] not in (b"\r\n\x1a\n", b"\0\0\0\0"):
            raise InputError(
                f"{source}: line ends were converted as if it were text (its magic says so); copy it again."
            )
        return nib.Nifti2Header(start[: nib.Nifti2Header.sizeof_hdr], check=False)
    if start[344:347] == b"ni1" or start[4:7] == b"ni2":
        raise InputError(
            f"{source} is not a single-file NIfTI image: its magic says that the voxels lie in a second file; convert "
            "both to one."
        )
    if start[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c"):
        what = "it ends inside of its header" if len(start) < 348 else "it has no magic, as Analyze 7.5 files"
        raise InputError(f"{source} is not a single-file NIfTI image: {what}; export it again as NIfTI.")
    raise wrong_content(start, "a single-file NIfTI image", source)


def _layout(header: Any, source: str) -> _Layout:
    """The layout of the voxels by the fields dim, datatype, bitpix and vox_offset."""
    shape, dtype = _shape(header, source), _dtype(header, source)
    first, bits = int(header.sizeof_hdr) + _FLAGS, int(header["bitpix"])
    offset, warnings, doubts = header["vox_offset"].item(), [], []
    if not (math.isfinite(offset) and offset == int(offset) and (offset == 0 or offset >= first)):
        raise InputError(
            f"{source}: vox_offset, where the voxels begin, is {offset:g}, expected a whole number from {first}; fix "
            "the header."
        )
    if offset == 0:
        doubts.append("vox_offset, where the voxels begin, is 0")
        warnings.append(f"vox_offset is 0; the length of the file says that the voxels begin after {first} bytes.")
    if bits != 8 * dtype.itemsize:
        code = int(header["datatype"])
        doubts.append(f"bitpix is {bits}, but datatype {code} has {8 * dtype.itemsize} bits")
        warnings.append(f"bitpix is {bits}, but datatype {code} has {8 * dtype.itemsize} bits, which the length fits.")
    return _Layout(shape, dtype, int(offset) or first, warnings, " and ".join(doubts))


def _shape(header: Any, source: str) -> tuple[int, ...]:
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise InputError(f"{source}: the number of its dimensions (dim[0]) is {count}, expected 3; fix the header.")
    shape = tuple(int(size) for size in header["dim"][1 : count + 1])
    size = " x ".join(map(str, shape))
    if min(shape) < 0:
        raise InputError(f"{source}: its size (dim) is {size}, expected positive numbers; fix the header.")
    if min(shape) == 0:
        raise InputError(f"{source} is empty: its size is {size}.")
    return shape


def _dtype(header: Any, source: str) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in _DTYPES:
        name = _REJECTED.get(code, "unknown")
        raise InputError(
            f"{source}: the type of its voxels (datatype) is {code} ({name}); convert it, e.g. to float32."
        )
    dtype: np.dtype[Any] = np.dtype(_DTYPES[code]).newbyteorder(header.endianness)
    return dtype


def _scaling(header: Any, source: str) -> tuple[float, float]:
    """Slope and intercept of the values; 1 and 0 where there is no scaling."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    # A slope below the smallest normal number leaves nothing of the values; it is mostly one in another byte order.
    if not (math.isfinite(slope) and math.isfinite(inter)) or abs(slope) < _SMALLEST_SLOPE:
        raise InputError(
            f"{source}: the values are scaled by scl_slope {slope:g} and scl_inter {inter:g}, expected finite numbers "
            "and a slope that keeps differences; fix the header."
        )
    return slope, inter


def _fitting(stream: io.BufferedIOBase, layout: _Layout, largest: int, source: str) -> np.ndarray:
    """The voxels; where the header is in doubt, only if the file ends with the last of them."""
    if layout.offset > largest:
        raise InputError(
            f"{source}: vox_offset, where the voxels begin, is {layout.offset}, but the file has at most {largest} "
            "bytes; fix the header."
        )
    try:
        array = voxels(stream, layout.shape, layout.dtype, layout.offset, largest, source)
        if layout.doubt:
            stream.seek(layout.offset + array.nbytes)
            if stream.read(1):
                raise InputError("It goes on after the last voxel.")
    except InputError as error:
        if not layout.doubt:
            raise
        raise InputError(
            f"{source}: {layout.doubt}, and the length of the file does not fit voxels from byte {layout.offset} "
            "either; fix the header."
        ) from error
    return array


def _spare_warnings(stream: io.BufferedIOBase, layout: _Layout, size: int, source: str) -> list[str]:
    """A warning for bytes after the voxels; an error if they may be voxels, which zeros, being fill, are not."""
    spare = spare_after(stream, layout.offset + size)
    if not spare.blank and are_voxels(spare.size, layout.shape, math.prod(layout.shape), layout.dtype):
        raise more_than_declared(size, str(size + spare.size), source)
    return [not_used(spare.size)] if spare.size else []


def _extension_warnings(stream: io.BufferedIOBase, header: Any, offset: int) -> list[str]:
    """A warning if extensions are announced, but their sizes do not lead to the first voxel at `offset`."""
    place = int(header.sizeof_hdr)
    stream.seek(place)
    if stream.read(_FLAGS)[:1] in (b"", b"\0"):
        return []
    place += _FLAGS
    # A size counts itself and the code after it. Zeros after the last extension are padding.
    order: Literal["little", "big"] = "little" if header.endianness == "<" else "big"
    while offset - place >= 16:
        stream.seek(place)
        size = int.from_bytes(stream.read(4), order, signed=True)
        if size == 0:
            return []
        if size < 16 or size > offset - place:
            return [
                f"An extension of the header has a size of {size} bytes, but {offset - place} are left before the "
                "voxels (vox_offset); extensions are not used."
            ]
        place += size
    return []
