"""FreeSurfer MGH: a writer by struct, and what a file's bytes mean by FreeSurfer's own reader."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.reading.parts import affine_of, left_out, odd_lengths, odd_values
from tests.reading.right import REFUSED, SHORT, Doubts, NonsenseError, Right
from tests.reading.volume import Volume

FIELDS = np.dtype([
    ("version", ">i4"), ("size", ">i4", 3), ("frames", ">i4"), ("type", ">i4"), ("dof", ">i4"), ("good", ">i2"),
    ("delta", ">f4", 3), ("axes", ">f4", (3, 3)), ("centre", ">f4", 3),
])  # fmt: skip
FIRST = 284
PARAMETERS = 20
# 10 came with FreeSurfer 7 and is not known to all.
DTYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
# Where goodRASFlag is 0: x (-1, 0, 0), y (0, 0, -1), z (0, 1, 0), 1 mm, the centre at 0.
CORONAL = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def header(volume: Volume) -> np.ndarray:
    """A header, as a 0-D record."""
    assert volume.affine is not None
    record = np.zeros((), FIELDS)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    dtype = volume.voxels.dtype.newbyteorder(">")
    record["version"], record["size"], record["frames"], record["good"] = 1, volume.voxels.shape, 1, 1
    record["type"] = next(code for code, kind in DTYPES.items() if np.dtype(kind) == dtype)
    record["delta"], record["axes"] = spacing, (volume.affine[:3, :3] / spacing).T
    record["centre"] = volume.affine[:3] @ [*(np.array(volume.voxels.shape) / 2), 1]
    return record


def contents(record: np.ndarray, voxels: np.ndarray) -> bytes:
    """The bytes of a file without its optional end."""
    return record.tobytes().ljust(FIRST, b"\0") + voxels.astype(voxels.dtype.newbyteorder(">")).tobytes(order="F")


def write(path: Path, volume: Volume) -> Path:
    """Write a file; gzip-compressed where its name ends in .mgz."""
    data = contents(header(volume), volume.voxels)
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.name.endswith(".mgz") else data)
    return path


def meaning(data: bytes) -> Right:
    """What the bytes of a file mean."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return SHORT
    if len(data) < FIRST:
        return SHORT
    try:
        return _meaning(np.frombuffer(data, FIELDS, 1)[0], data)
    except NonsenseError:
        return REFUSED


def _meaning(record: Any, data: bytes) -> Right:
    sizes = tuple(int(size) for size in record["size"])
    if int(record["version"]) != 1 or min(sizes) < 1 or int(record["type"]) not in DTYPES or int(record["frames"]) < 1:
        raise NonsenseError
    dtype, count = np.dtype(DTYPES[int(record["type"])]), math.prod(sizes)
    if FIRST + count * int(record["frames"]) * dtype.itemsize > len(data):
        return SHORT
    if int(record["frames"]) != 1:
        raise NonsenseError
    spare = data[FIRST + count * dtype.itemsize :]
    # 20 bytes of parameters may follow, and then tags, whose numbers are small.
    tags = spare[PARAMETERS:]
    tagged = 0 < int.from_bytes(tags[:4], "big") < 100
    slices = any(left_out(size, sizes, dtype.itemsize) for size in (len(spare), len(tags)))
    if tags and not tagged and any(spare) and slices:
        raise NonsenseError
    voxels = np.frombuffer(data, dtype, count, FIRST).reshape(sizes, order="F")
    doubts = Doubts(refusable=odd_values(voxels) or int(record["type"]) == 10)
    good = int(record["good"])
    if good > 0:
        doubts.refusable |= good != 1 or not (record["delta"] > 0).all()
        given = record["axes"].astype(float)
        doubts.refusable |= not np.allclose(given @ given.T, np.eye(3), atol=1e-3)
        axes = record["axes"].astype(float).T * record["delta"].astype(float)
        centre = record["centre"].astype(float)
    else:
        doubts.about("goodRASFlag", "orientation", "RAS")
        axes, centre = CORONAL, np.zeros(3)
    doubts.refusable |= odd_lengths(np.linalg.norm(axes, axis=0))
    affine = affine_of(axes, centre - axes @ (np.array(sizes) / 2))
    if not tagged:
        doubts.about_spare(tags)
    return doubts.right(Volume(voxels, affine))
