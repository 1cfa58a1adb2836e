"""The surface of a mask as points with weights, in the two ways that tools have it.

`corners`: points between eight voxels of which some, but not all, belong to the mask, each weighted by the area of the
surface through it, as in google-deepmind/surface-distance (Nikolov et al. 2021, doi 10.2196/26151). The area is that of
the triangles of a marching cube, which depends on which of the eight voxels belong to the mask.

`voxels`: voxels of the mask with one of six neighbours outside of it, each of weight 1, as in MONAI and in
MetricsReloaded.

What lies beyond the image is background for both.
"""

import math
from functools import cache, lru_cache
from itertools import permutations, product
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

SurfaceKind: TypeAlias = Literal["corners", "voxels"]

# The triangles of the marching cubes, one of each kind that rotations, reflections and exchange of inside and outside
# leave: eight bits for the voxels (0, 0, 0), (0, 0, 1), ..., (1, 1, 1), and per triangle its normal, whose length is
# the area, in eighths of a voxel's face, without signs.
_TRIANGLES: dict[int, tuple[tuple[int, int, int], ...]] = {
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0), (2, 2, 0)),
    0b00000110: ((1, 1, 1), (1, 1, 1)),
    0b00000111: ((1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00001111: ((4, 0, 0), (4, 0, 0)),
    0b00010110: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    0b00010111: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    0b00011000: ((1, 1, 1), (1, 1, 1)),
    0b00011001: ((1, 1, 1), (0, 2, 2), (0, 2, 2)),
    0b00011011: ((1, 1, 1), (3, 3, 3), (0, 2, 2), (2, 0, 2)),
    0b00011110: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00111100: ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)),
    0b01101001: ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
}


class Surface(NamedTuple):
    """A surface in a box of points: which points belong to it, and the weight of each of these, in C order.

    Args:
        points: (I, J, K) bool.
        weights: (N,) float64, or None if all are 1.
    """

    points: np.ndarray
    weights: np.ndarray | None


def surface_of(mask: np.ndarray, spacing_mm: tuple[float, float, float], kind: SurfaceKind) -> Surface:
    """The surface of a mask (I, J, K) bool.

    Its points are corners (I + 1, J + 1, K + 1), weighted in mm², or voxels (I, J, K).
    """
    if kind == "voxels":
        return Surface(mask & ~_eroded(mask), None)
    codes = corner_codes(mask)
    # Neither 0 nor 255: unsigned, 0 - 1 is 255.
    points = codes - np.uint8(1) < 254
    return Surface(points, corner_areas(spacing_mm)[codes[points]])


def corner_codes(mask: np.ndarray) -> np.ndarray:
    """Which of the eight voxels around each corner belong to a mask (I, J, K): (I + 1, J + 1, K + 1) uint8.

    The voxel (0, 0, 0) of the eight is the highest bit, (0, 0, 1) the next, (1, 1, 1) the lowest.
    """
    codes: np.ndarray = np.pad(mask.view(np.uint8) if mask.dtype == bool else mask.astype(np.uint8), 1)
    for axis, bits in ((2, 1), (1, 2), (0, 4)):
        ahead = np.moveaxis(codes, axis, 0)
        codes = np.moveaxis((ahead[:-1] << bits) | ahead[1:], 0, axis)
    return np.ascontiguousarray(codes)


@lru_cache(maxsize=8)
def corner_areas(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The area of the surface through a corner in mm², by its code: (256,) float64."""
    i, j, k = spacing_mm
    # A normal along I is of a face in J and K.
    faces = np.array([j * k, i * k, i * j]) / 8
    return np.array(
        [sum(math.hypot(*(np.array(normal) * faces)) for normal in normals) for normals in _all_triangles()]
    )


@cache
def _all_triangles() -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """The triangles of all 256 codes, from those of each kind by symmetry."""
    found: dict[int, tuple[tuple[int, int, int], ...]] = {0: (), 255: ()}
    for code, normals in _TRIANGLES.items():
        bits = np.unpackbits(np.array([code], np.uint8)).reshape(2, 2, 2)
        for order, *flips in product(permutations(range(3)), (1, -1), (1, -1), (1, -1)):
            turned = bits.transpose(order)[tuple(slice(None, None, step) for step in flips)]
            turned_code = int(np.packbits(turned)[0])
            turned_normals = tuple((one[order[0]], one[order[1]], one[order[2]]) for one in normals)
            found[turned_code] = found[255 - turned_code] = turned_normals
    return tuple(found[code] for code in range(256))


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The voxels whose six neighbours all belong to a mask (I, J, K)."""
    inside = np.zeros_like(mask)
    core = mask[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for start, stop in ((0, -2), (2, None)):
            window = [slice(1, -1)] * 3
            window[axis] = slice(start, stop)
            core &= mask[tuple(window)]
    inside[1:-1, 1:-1, 1:-1] = core
    return inside
