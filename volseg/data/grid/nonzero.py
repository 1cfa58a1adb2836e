"""The nonzero region of a scan: its bounding box, and its mask with holes filled.

The channels of a scan are (D, H, W) arrays of one shape and any dtype. A voxel is zero if it is zero in all channels.
"""

from collections.abc import Sequence

import numpy as np

from volseg.data.grid.connected import numbered_components
from volseg.data.grid.geometry import Box
from volseg.data.grid.resample import slabs


def nonzero_box(channels: Sequence[np.ndarray]) -> Box:
    """The bounding box of all nonzero voxels; the whole volume if there are none."""
    shape = channels[0].shape
    occupied = [np.zeros(size, dtype=bool) for size in shape]
    for planes in slabs(shape):
        nonzero = _nonzero(channels, planes)
        rows = np.any(nonzero, axis=2)
        occupied[0][planes] = rows.any(axis=1)
        occupied[1] |= rows.any(axis=0)
        occupied[2] |= nonzero.any(axis=(0, 1))
    d, h, w = (_span(one) for one in occupied)
    return d, h, w


def filled_nonzero(channels: Sequence[np.ndarray]) -> np.ndarray:
    """The nonzero voxels and the holes in them: (D, H, W) bool.

    A hole is a face-connected component of zero voxels that does not touch the border, as in
    `scipy.ndimage.binary_fill_holes`. The result inside the box of `nonzero_box` is the same for the crop to that box:
    outside the box everything is zero and connected to the border of the scan, as are zero voxels on the box's faces.

    Beyond the result, memory does not grow with D.
    """
    filled = np.ones(channels[0].shape, dtype=bool)
    parts = slabs(filled.shape)
    # Back and forth, because a component of the background may return from one slab to the slab before.
    while sum(_remove_background(filled, channels, planes) for planes in parts):
        parts.reverse()
    return filled


def _remove_background(filled: np.ndarray, channels: Sequence[np.ndarray], planes: slice) -> bool:
    """Remove zero components of these planes that touch the background from `filled`; whether there were any."""
    part = filled[planes]
    components, count = numbered_components(part & ~_nonzero(channels, planes), 6)
    outside = np.zeros(count + 1, dtype=bool)
    for axis in (1, 2):
        for face in (0, -1):
            outside[components.take(face, axis=axis)] = True
    outside[components[0] if planes.start == 0 else components[0][~filled[planes.start - 1]]] = True
    outside[components[-1] if planes.stop == len(filled) else components[-1][~filled[planes.stop]]] = True
    # Component 0 are the nonzero voxels and the background removed before.
    outside[0] = False
    part &= ~outside[components]
    return bool(outside.any())


def _nonzero(channels: Sequence[np.ndarray], planes: slice) -> np.ndarray:
    nonzero: np.ndarray = channels[0][planes] != 0
    for channel in channels[1:]:
        nonzero |= channel[planes] != 0
    return nonzero


def _span(occupied: np.ndarray) -> tuple[int, int]:
    """(start, stop) of the True values along an axis; the whole axis if there are none."""
    indices = np.flatnonzero(occupied)
    return (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, len(occupied))
