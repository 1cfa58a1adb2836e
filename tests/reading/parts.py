"""What formats share: numbers in text, voxels that are counted after decompression, grids that span space."""

import gzip
import math
import zlib
from collections.abc import Sequence

import numpy as np

from tests.reading.right import Doubts, NonsenseError


class TooShortError(Exception):
    """Fewer bytes than the header promises, or damaged ones."""


def numbers(text: str, count: int | None = None) -> list[float]:
    """Numbers that blanks separate."""
    try:
        values = [float(one) for one in text.split()]
    except ValueError as error:
        raise NonsenseError from error
    if count is not None and len(values) != count:
        raise NonsenseError
    return values


def whole(text: str, count: int | None = None) -> list[int]:
    """Whole numbers that blanks separate, as plain digits."""
    words = text.split()
    if (count is not None and len(words) != count) or not all(one.removeprefix("-").isdigit() for one in words):
        raise NonsenseError
    return [int(one) for one in words]


def inflated(data: bytes, kind: str) -> bytes:
    """Decompressed bytes of zlib or gzip."""
    try:
        return gzip.decompress(data) if kind == "gzip" else zlib.decompressobj().decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise TooShortError from error


def array_of(data: bytes, dtype: np.dtype, shape: tuple[int, ...], doubts: Doubts) -> np.ndarray:
    """The voxels at the start of some bytes. Bytes after them may be a reason to refuse."""
    if min(shape) < 1:
        raise NonsenseError
    if math.prod(shape) * dtype.itemsize > len(data):
        raise TooShortError
    doubts.refusable |= math.prod(shape) * dtype.itemsize < len(data)
    voxels = np.frombuffer(data, dtype, math.prod(shape)).reshape(shape, order="F")
    doubts.refusable |= odd_values(voxels)
    return voxels


def left_out(spare: int, shape: tuple[int, ...], itemsize: int) -> bool:
    """Whether so many bytes after the voxels may be voxels that the header left out: half, or slices along any axis."""
    size = math.prod(shape) * itemsize
    return spare >= size / 2 or any(spare * edge % size == 0 for edge in shape)


def odd_values(voxels: np.ndarray) -> bool:
    """Whether a volume may be refused: a constant one, or values beyond float32. NaN and infinity have to be."""
    if not np.isfinite(voxels.astype(np.float64)).all():
        raise NonsenseError
    with np.errstate(all="ignore"):
        values = voxels.astype(np.float32)
        return not np.abs(values).max() < 1e30 or np.ptp(values) == 0


def affine_of(axes: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """4 x 4 of columns and an origin, which have to span space."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, origin
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(axes, axis=0)
        usable = np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.min() > 0
        if not usable or abs(np.linalg.det(axes / lengths)) < 1e-4:
            raise NonsenseError
    return affine


def odd_lengths(spacing: Sequence[float] | np.ndarray) -> bool:
    """Whether a volume may be refused for the size of its voxels in millimetres."""
    return not (min(spacing) > 1e-4 and max(spacing) < 1e4)
