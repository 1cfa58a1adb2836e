"""Voxels from the bytes of a file, counted: an array is filled whole, or reading fails."""

import io
import math
from typing import Any

import numpy as np
from isal import igzip
from nibabel.arrayproxy import ArrayProxy

from volseg.errors import InputError

# The highest compression ratio of deflate. A header that declares more is corrupt, and no memory is allocated for it.
LARGEST_GZIP_RATIO = 1032
# Bytes decompressed at a time.
_CHUNK = 1 << 22


def voxels_by_header(stream: io.BufferedIOBase, header: Any, largest: int, source: str) -> np.ndarray:
    """The unscaled values of a nibabel header, memory-mapped if the file is not compressed.

    Args:
        stream: the open file.
        header: nibabel header with shape, dtype and offset.
        largest: the most bytes that the file can have.
        source: its name for messages.
    """
    shape = tuple(int(size) for size in header.get_data_shape())
    dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    if min(shape, default=0) < 1:
        raise InputError(f"{source} is empty: its size is {' x '.join(map(str, shape))}.")
    needed = offset + math.prod(shape) * dtype.itemsize
    if needed > largest:
        raise InputError(
            f"{source} is truncated: its header declares {needed} bytes, found at most {largest}; copy it again."
        )
    if isinstance(stream, igzip.IGzipFile):
        stream.seek(offset)
        return filled(stream, np.empty(shape, dtype, order="F"))
    array: np.ndarray = np.asarray(ArrayProxy(stream, (shape, dtype, offset)).get_unscaled())
    return array


def filled(stream: io.BufferedIOBase, array: np.ndarray) -> np.ndarray:
    """The array in Fortran order, filled chunk by chunk, so that its bytes are not in memory twice.

    Raises:
        EOFError: the stream ends before its last voxel.
    """
    remaining = memoryview(array.T.reshape(-1).view(np.uint8).data)
    while remaining:
        count = stream.readinto(remaining[:_CHUNK])
        if not count:
            raise EOFError("it ends before its last voxel")
        remaining = remaining[count:]
    return array


def scaled(array: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Values times slope plus inter, as float32 (float64 stays); unchanged without a scaling."""
    if (slope, inter) == (1.0, 0.0) or array.dtype.kind not in "iuf":
        return array
    kind = np.float64 if array.dtype.itemsize > 4 and array.dtype.kind == "f" else np.float32
    values: np.ndarray = np.multiply(array, kind(slope), dtype=kind)
    values += kind(inter)
    return values
