"""Planar contours to masks.

A voxel belongs to a structure if its centre is inside by the even-odd rule over all contours of the structure on its
slice: a contour within another is a hole, one within the hole is inside again, and a keyhole is cut by its own two
edges, which cancel. Of centres on a contour, those at its lower ends are inside and those at the upper ends are not, so
that neighbours that share a contour never share a voxel.

Contours that run from voxel centre to voxel centre, as programs write them that trace masks by their pixels, are closed
over the voxels that they pass through: these belong to the mask that was traced.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

# Voxels by which the points of a contour may lie beside voxel centres and count as on them.
_ON_CENTRE = 0.02


def filled(contours: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """The voxels inside contours of one slice.

    Args:
        contours: (N, 2) points each, in voxels: whole numbers are centres.
        size: of the slice along the first and second axis of the points.

    Returns:
        The box of the slice around the contours, and a boolean mask of it.
    """
    low = np.floor(np.min([points.min(axis=0) for points in contours], axis=0)).astype(np.int64)
    high = np.ceil(np.max([points.max(axis=0) for points in contours], axis=0)).astype(np.int64) + 1
    first, stop = np.clip(low, 0, size), np.clip(high, 0, size)
    mask = _filled([points - first for points in contours], (int(stop[0] - first[0]), int(stop[1] - first[1])))
    return (slice(int(first[0]), int(stop[0])), slice(int(first[1]), int(stop[1]))), mask


def _filled(contours: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """As `filled`, for the whole slice."""
    columns, rows = size
    # Crossings of voxel lines along the first axis: before which voxel each of them lies.
    toggles = np.zeros((rows, columns + 1), np.int32)
    for points in contours:
        row, column = _crossings(points, rows)
        np.add.at(toggles, (row, np.clip(column, 0, columns)), 1)
    mask: np.ndarray = (np.cumsum(toggles[:, :columns], axis=1) & 1).astype(bool).T
    for points in contours:
        if is_traced(points):
            at = _passed(np.round(points).astype(np.int64))
            at = at[((at >= 0) & (at < size)).all(axis=1)]
            mask[at[:, 0], at[:, 1]] = True
    return mask


def _crossings(points: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the edges of a closed contour cross the first `rows` lines of voxel centres along the first axis.

    Returns:
        The line of each crossing, and the first voxel on it whose centre is not before the crossing.
    """
    start, end = points, np.roll(points, -1, axis=0)
    # The same ends in the same order for both directions of an edge, so that its crossings are bitwise the same.
    swapped = (start[:, 1] > end[:, 1]) | ((start[:, 1] == end[:, 1]) & (start[:, 0] > end[:, 0]))
    low, high = np.where(swapped[:, None], end, start), np.where(swapped[:, None], start, end)
    first, stop = (np.clip(np.ceil(ends[:, 1]), 0, rows).astype(np.int64) for ends in (low, high))
    counts = stop - first
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    rise = high[edge, 1] - low[edge, 1]
    column = low[edge, 0] + (row - low[edge, 1]) * (high[edge, 0] - low[edge, 0]) / rise
    return row, np.ceil(column).astype(np.int64)


def is_traced(points: np.ndarray) -> bool:
    """Whether a contour runs from voxel centre to voxel centre, along a row, a column or a diagonal."""
    nearest = np.round(points)
    if np.abs(points - nearest).max() > _ON_CENTRE:
        return False
    steps = np.abs(np.diff(nearest, axis=0, append=nearest[:1]))
    return bool(((steps.min(axis=1) == 0) | (steps[:, 0] == steps[:, 1])).all())


def _passed(corners: np.ndarray) -> np.ndarray:
    """The voxels (N, 2) on a closed contour between voxel centres."""
    closed = np.concatenate([corners, corners[:1]])
    found = [corners]
    for start, end in pairwise(closed):
        steps = int(np.abs(end - start).max())
        if steps > 1:
            found.append(start + np.arange(1, steps)[:, None] * np.sign(end - start))
    return np.concatenate(found)


def area(points: np.ndarray) -> float:
    """The area of a contour (N, 2), by the shoelace formula."""
    ahead = np.roll(points, -1, axis=0)
    return abs(float((points[:, 0] * ahead[:, 1] - ahead[:, 0] * points[:, 1]).sum())) / 2
