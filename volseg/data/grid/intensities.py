"""Intensities in float32 without the digits that a large offset costs, and their statistics.

float32 holds 24 bits. A scan far from 0 for its range (int32 near 2**31, float64 with 1e10 added) loses its contrast
there, and one of very large or very small values overflows or vanishes. Such a scan is taken relative to a `Reference`,
computed in its own integers or in float64; normalising it then gives what the scan without the offset gives. Other
scans are converted directly.
"""

import math
from typing import NamedTuple

import numpy as np

from volseg.data.grid.resample import slabs

# Offsets up to this many spreads keep an error below 2**-24 * 64 = 4e-6 spreads in float32.
LARGE_OFFSET = 64.0
# Spreads whose squares and quotients stay normal numbers in float32.
_USUAL_SPREAD = (2.0**-100, 2.0**120)


class Reference(NamedTuple):
    """Intensities are taken as (intensity - offset) / unit.

    Args:
        offset: a number near the intensities; an int for integers, so that the difference is exact.
        unit: a power of two, so that the division is exact.
    """

    offset: int | float = 0
    unit: float = 1.0

    def values(self, planes: np.ndarray) -> np.ndarray:
        """The intensities of some planes, of any real dtype, relative to this reference: float32 in C order."""
        if self == PLAIN:
            return planes.astype(np.float32, order="C")
        if planes.dtype.kind in "iu" and isinstance(self.offset, int):
            # No intensity is below the offset, so the difference fits the unsigned type, which wraps around.
            unsigned = np.dtype(f"u{planes.dtype.itemsize}")
            lowest = unsigned.type(self.offset % 2 ** (8 * unsigned.itemsize))
            differences = np.subtract(planes.astype(unsigned), lowest)
        else:
            differences = planes.astype(np.float64) - self.offset
        values: np.ndarray = np.divide(differences, self.unit, dtype=np.float64).astype(np.float32, order="C")
        return values


# For scans that float32 represents well.
PLAIN = Reference()


def reference_for(volume: np.ndarray, mask: np.ndarray | None, centre: float, spread: float) -> Reference:
    """What to take intensities relative to.

    Args:
        volume: (D, H, W) of any real dtype.
        mask: (D, H, W) bool, where intensities count; None for everywhere.
        centre: an intensity in the middle of them.
        spread: how far they differ from it, such as the standard deviation.

    Returns:
        `PLAIN` unless float32 would lose more than a few millionths of the spread; then the lowest intensity, and a
        power of two near their range if that is extreme.
    """
    if (spread == 0 or _is_usual(spread)) and abs(centre) <= LARGE_OFFSET * spread:
        return PLAIN
    parts = (volume[planes] if mask is None else volume[planes][mask[planes]] for planes in slabs(volume.shape))
    ends = [(part.min().item(), part.max().item()) for part in parts if part.size]
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    # The spread may be 0 because the squares of tiny numbers are.
    width = highest - lowest
    return Reference(lowest, 1.0 if width == 0 or _is_usual(width) else 2.0 ** math.frexp(width)[1])


def _is_usual(spread: float) -> bool:
    """Whether squares and quotients of such numbers stay normal in float32."""
    return _USUAL_SPREAD[0] < spread < _USUAL_SPREAD[1]


def mean_and_std(volume: np.ndarray, mask: np.ndarray | None, reference: Reference = PLAIN) -> tuple[float, float]:
    """Mean and standard deviation of all voxels, or of those in the mask; 0 and 0 if the mask is empty.

    In float64, plane by plane of the oriented volume, so that the result does not depend on the file's voxel order.

    Args:
        volume: (D, H, W) of any real dtype.
        mask: (D, H, W) bool, or None.
        reference: what the intensities, and so the result, are relative to.
    """
    size = max(1, volume.size if mask is None else int(np.count_nonzero(mask)))

    def values(planes: slice) -> np.ndarray:
        part = volume[planes] if reference == PLAIN else reference.values(volume[planes])
        return np.ascontiguousarray(part) if mask is None else part[mask[planes]]

    def square_sum(planes: slice) -> float:
        return float(np.square(np.subtract(values(planes), mean, dtype=np.float64)).sum())

    mean = sum(float(values(planes).sum(dtype=np.float64)) for planes in slabs(volume.shape)) / size
    squares = (square_sum(planes) for planes in slabs(volume.shape))
    return mean, float(np.sqrt(sum(squares) / size))


def as_exact_float(values: np.ndarray) -> np.ndarray:
    """Values of any real dtype as float32, or as float64 where float32 would lose digits of a large offset.

    An empty array becomes float32.
    """
    if values.size:
        low, high = float(values.min()), float(values.max())
        if max(abs(low), abs(high)) > LARGE_OFFSET * (high - low):
            exact = values.astype(np.float64)
            if not np.array_equal(exact, exact.astype(np.float32)):
                return exact
    return values.astype(np.float32)
