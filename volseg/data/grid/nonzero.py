"""Where a scan is not zero: the box around it, and the region with its holes filled.

The channels of one scan are (D, H, W) arrays of one shape and any dtype, seen together: a voxel is zero where all of
them are.
"""

from collections.abc import Sequence

import cc3d
import numpy as np

from volseg.data.grid.geometry import Box
from volseg.data.grid.resample import slabs


def nonzero_box(channels: Sequence[np.ndarray]) -> Box:
    """The smallest box around all voxels that are not zero; the whole grid when there are none."""
    shape = channels[0].shape
    hit = [np.zeros(size, dtype=bool) for size in shape]
    for planes in slabs(shape):
        found = _nonzero(channels, planes)
        rows = np.any(found, axis=2)
        hit[0][planes] = rows.any(axis=1)
        hit[1] |= rows.any(axis=0)
        hit[2] |= found.any(axis=(0, 1))
    d, h, w = (_span(one) for one in hit)
    return d, h, w


def filled_nonzero(channels: Sequence[np.ndarray]) -> np.ndarray:
    """The voxels that are not zero, and the holes between them: (D, H, W) bool.

    A hole is a group of zero voxels, face to face, that nowhere reaches the border: what
    `scipy.ndimage.binary_fill_holes` fills. It may be asked of the box of `nonzero_box` alone: outside of it
    everything is zero and reaches the border of the scan straight away, and so does each zero voxel on the box's faces.

    Beyond the result, memory does not grow with D.
    """
    filled = np.ones(channels[0].shape, dtype=bool)
    parts = slabs(filled.shape)
    # To and fro, because what is outside in one slab may lead around a corner into the one before.
    while sum(_opened(filled, channels, planes) for planes in parts):
        parts.reverse()
    return filled


def _opened(filled: np.ndarray, channels: Sequence[np.ndarray], planes: slice) -> bool:
    """Take the groups of zeros that reach the outside of these planes out of `filled`; whether there were any."""
    here = filled[planes]
    groups, count = cc3d.connected_components(here & ~_nonzero(channels, planes), connectivity=6, return_N=True)
    outside = np.zeros(count + 1, dtype=bool)
    for axis in (1, 2):
        for face in (0, -1):
            outside[groups.take(face, axis=axis)] = True
    outside[groups[0] if planes.start == 0 else groups[0][~filled[planes.start - 1]]] = True
    outside[groups[-1] if planes.stop == len(filled) else groups[-1][~filled[planes.stop]]] = True
    # Group 0 is everything that is not asked about.
    outside[0] = False
    here &= ~outside[groups]
    return bool(outside.any())


def _nonzero(channels: Sequence[np.ndarray], planes: slice) -> np.ndarray:
    found: np.ndarray = channels[0][planes] != 0
    for channel in channels[1:]:
        found |= channel[planes] != 0
    return found


def _span(hit: np.ndarray) -> tuple[int, int]:
    """First and last + 1 of what is hit, or everything."""
    places = np.flatnonzero(hit)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(hit))
