"""Voxels from the bytes of a file, counted: an array is filled whole, or reading fails; what follows is judged."""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from gzip import BadGzipFile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal import igzip

from volseg.data.io.readers.decoding import is_whole_gzip
from volseg.errors import InputError

# The highest compression ratio of deflate. A header that declares more is corrupt, and no memory is allocated for it.
LARGEST_GZIP_RATIO = 1032
# Bytes decompressed at a time.
_CHUNK = 1 << 22
# The beginning of what follows the voxels, which tells its kind.
_FIRST = 64
# Up to this ratio of magnitude to range, each rounding in float32 is below a millionth of the range: 2**24 / 10**6.
_FLOAT32_RATIO = 16.0
# Integer types for large whole numbers, in the order of preference.
_WHOLE = tuple(np.dtype(kind) for kind in ("i4", "u4", "i8", "u8"))
# Whole numbers up to here are exact in float32 and float64.
_FLOAT32_WHOLE = 2**24
_FLOAT64_WHOLE = 2**53


class Spare(NamedTuple):
    """What follows the voxels of a file.

    Args:
        size: in bytes.
        first: its first bytes.
        blank: whether all of it is zeros, as fill is.
    """

    size: int
    first: bytes
    blank: bool


def most_bytes(path: Path, compressed: bool) -> int:
    """The most bytes that a file can have, once it is decompressed if it is a gzip stream."""
    return path.stat().st_size * (LARGEST_GZIP_RATIO if compressed else 1)


@contextlib.contextmanager
def gzip_followed_by_nothing(stream: io.BufferedIOBase, source: str) -> Iterator[None]:
    """Name the reason if reading fails because other bytes follow the end of a gzip stream, which is whole.

    Raises:
        InputError: they do.
    """
    try:
        yield
    except (EOFError, BadGzipFile) as error:
        if isinstance(stream, igzip.IGzipFile) and is_whole_gzip(stream.fileobj):
            raise InputError(f"{source}: other bytes follow the end of the gzip stream; remove them.") from error
        raise


def spare_after(stream: io.BufferedIOBase, end: int) -> Spare:
    """All that follows byte `end`, where the voxels end; the checksum of gzip is compared on the way."""
    stream.seek(end)
    first = stream.read(_FIRST)
    size, blank = len(first), not any(first)
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        blank = blank and chunk.count(0) == len(chunk)
    return Spare(size, first, blank)


def are_voxels(spare: int, shape: tuple[int, ...], count: int, dtype: np.dtype) -> bool:
    """Whether bytes after voxels may be voxels themselves, which the header left out.

    They may be if they are a whole number of slices along an axis, whose size is then too small in the header, or at
    least half as many as the voxels.

    Args:
        spare: their number.
        shape: of the image.
        count: of the voxels before them, which may be a part of the image.
        dtype: of a voxel.
    """
    size = count * dtype.itemsize
    return 2 * spare >= size or any(spare % (size // edge) == 0 for edge in shape if edge <= count)


def more_than_declared(declared: int, found: str, source: str) -> InputError:
    """The error for a file with more voxels than the header declares."""
    return InputError(
        f"{source}: the header declares {declared} bytes of voxels, found {found}, so its sizes or its type are wrong; "
        "fix the header."
    )


def not_used(spare: int, where: str = "") -> str:
    """The warning of bytes after the voxels."""
    return f"{spare} byte{'s' * (spare > 1)} after the voxels{where} are not used."


def voxels(
    stream: io.BufferedIOBase, shape: tuple[int, ...], dtype: np.dtype, offset: int, largest: int, source: str
) -> np.ndarray:
    """The unscaled values of a file, memory-mapped if it is not compressed.

    Args:
        stream: the open file.
        shape: of the voxels, the first axis fastest; all positive.
        dtype: of a voxel.
        offset: of the first voxel in bytes.
        largest: the most bytes that the file can have.
        source: its name for messages.

    Raises:
        InputError: the file ends before its last voxel.
    """
    needed = offset + math.prod(shape) * dtype.itemsize
    if needed > largest:
        raise InputError(
            f"{source} is too short: its header declares {needed} bytes, found at most {largest}; copy it again, or "
            "fix the header."
        )
    if isinstance(stream, igzip.IGzipFile):
        stream.seek(offset)
        return filled(stream, np.empty(shape, dtype, order="F"), source)
    # Mapped copy-on-write, so that PyTorch takes it as writable. A plain view of it, because memmap is a subclass.
    return np.asarray(np.memmap(stream, dtype, mode="c", offset=offset, shape=shape, order="F"))


def filled(stream: io.BufferedIOBase, array: np.ndarray, source: str) -> np.ndarray:
    """The array in Fortran order, filled chunk by chunk, so that its bytes are not in memory twice.

    Raises:
        InputError: the stream ends before its last voxel.
        EOFError: compressed bytes end in the middle.
    """
    remaining = memoryview(array.T.reshape(-1).view(np.uint8).data)
    # GzipFile itself would read into new memory and copy it; what it reads from, which has its place, does not.
    source_of_bytes = getattr(stream, "_buffer", stream)
    while remaining:
        count = source_of_bytes.readinto(remaining[:_CHUNK])
        if not count:
            raise InputError(
                f"{source} is too short: its header declares {array.nbytes} bytes of voxels, found "
                f"{array.nbytes - len(remaining)}; copy it again, or fix the header."
            )
        remaining = remaining[count:]
    return array


def scaled(array: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Values times slope plus inter; unchanged without a scaling.

    float32 (float64 stays). Where float32 would round by more than a millionth of the range of the values, because they
    are far from 0 for it: integers if stored values, slope and inter are whole and the results fit, else float64.
    """
    if (slope, inter) == (1.0, 0.0) or array.dtype.kind not in "iuf" or not array.size:
        return array
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        return _linear(array, slope, inter, np.float64)
    if array.dtype.kind != "f" and _is_ordinary(array, slope, inter):
        return _linear(array, slope, inter, np.float32)
    with np.errstate(invalid="ignore"):
        stored = array.min().item(), array.max().item()
    whole = array.dtype.kind != "f" and slope.is_integer() and inter.is_integer()
    factor, term = (int(slope), int(inter)) if whole else (slope, inter)
    ends: list[Any] = [value * factor + term for value in stored]
    magnitude = max(abs(number) for number in (*ends, *(value * factor for value in stored), term))
    # False with NaN as well, which is rejected later.
    if not magnitude > _FLOAT32_RATIO * abs(ends[1] - ends[0]) or (whole and magnitude <= _FLOAT32_WHOLE):
        return _linear(array, slope, inter, np.float32)
    kinds = [kind for kind in _WHOLE if whole and _holds(kind, ends)]
    values = _whole(array, factor, term, kinds[0]) if kinds else _linear(array, slope, inter, np.float64)
    # Beyond float32, values become infinite here, and so differ.
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    # Larger whole numbers would be compared after rounding.
    return narrow if magnitude <= _FLOAT64_WHOLE and np.array_equal(narrow, values) else values


def _is_ordinary(array: np.ndarray, slope: float, inter: float) -> bool:
    """Whether the limits of an integer type, and a few planes, already tell that float32 is precise enough."""
    limits, few = np.iinfo(array.dtype), array[..., :: 2**4]
    largest = max(-int(limits.min), int(limits.max)) * abs(slope) + abs(inter)
    if slope.is_integer() and inter.is_integer() and largest <= _FLOAT32_WHOLE:
        return True
    return bool(largest <= _FLOAT32_RATIO * abs(slope) * (few.max().item() - few.min().item()))


def _holds(kind: np.dtype, numbers: Sequence[int]) -> bool:
    """Whether an integer type holds all of some whole numbers."""
    return bool(np.iinfo(kind).min <= min(numbers) and max(numbers) <= np.iinfo(kind).max)


def _linear(array: np.ndarray, slope: float, inter: float, kind: type[np.floating]) -> np.ndarray:
    """Values times slope plus inter, all in one floating-point type."""
    # Values that overflow are infinite, which no scan may contain.
    with np.errstate(over="ignore", invalid="ignore"):
        values: np.ndarray = np.multiply(array, kind(slope), dtype=kind)
        values += kind(inter)
    return values


def _whole(array: np.ndarray, slope: Any, inter: Any, kind: np.dtype) -> np.ndarray:
    """The same in an integer type that holds the results: what wraps around on the way wraps back."""
    unsigned = np.dtype(f"u{kind.itemsize}")
    values = array.astype(unsigned)
    values *= unsigned.type(slope % 2 ** (8 * unsigned.itemsize))
    values += unsigned.type(inter % 2 ** (8 * unsigned.itemsize))
    return values.view(kind)
