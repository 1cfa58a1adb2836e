"""Closed contours of labels, slice by slice, by contourpy's marching squares.

The contours are the iso-lines at 0.5 of a label's 0/1 mask: they pass half-way between the centres of pixels inside and
outside and cut corners at 45 degrees. So no contour touches the centre of a pixel, and filling them by the rule of the
pixel's centre, even-odd or non-zero, gives the mask back exactly. A single pixel is a diamond around its centre; pixels
that touch at a corner alone are contours of their own.

Points are (i, j), continuous indices of columns and rows; whole numbers are centres of pixels.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from contourpy import FillType, contour_generator
from scipy.ndimage import find_objects

# contourpy fills between two levels; a mask has nothing above 1.
_LEVELS = (0.5, 2.0)
# Bridges run along i = a whole number + 0.25: never through the centre of a pixel, nor through a point of an iso-line,
# all of which lie at multiples of 0.5.
_BESIDE = 0.25
# Slices that are copied at once.
_AT_ONCE = 16


class Outline(NamedTuple):
    """The contours of one label in one slice.

    Args:
        slice: its index K.
        label: its value.
        contours: each (N, 2), N >= 3, without its first point at the end; outer ones run from i to j, holes the other
            way round.
    """

    slice: int
    label: int
    contours: list[np.ndarray]


def outlines(labels: np.ndarray, parts: Mapping[int, Collection[int]], keyhole: bool = True) -> Iterator[Outline]:
    """The contours of labels, by slice and then in the order of `parts`.

    Only the box around a label in its slice is looked at, so no second array of the labels' size is made.

    Args:
        labels: (I, J, K) unsigned integers.
        parts: the labels that are wanted, each with the values of its voxels; a region is the union of several.
        keyhole: join each hole to the contour around it; else holes are contours of their own.
    """
    for k, plane in enumerate(_planes(labels)):
        boxes = {value: box for value, box in enumerate(find_objects(plane), start=1) if box}
        for label, values in parts.items():
            there = [value for value in values if value in boxes]
            if not there:
                continue
            box = _around([boxes[value] for value in there])
            polygons = _polygons(np.isin(plane[box], there))
            if keyhole:
                polygons = [[_joined(rings)] for rings in polygons]
            corner = (box[1].start, box[0].start)
            contours = [_without_straight_points(ring) + corner for rings in polygons for ring in rings]
            yield Outline(k, label, contours)


def _around(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The smallest box that holds all boxes."""
    along = zip(*boxes, strict=True)
    return tuple(slice(min(one.start for one in axis), max(one.stop for one in axis)) for axis in along)


def _planes(labels: np.ndarray) -> Iterator[np.ndarray]:
    """The slices (J, I), copied several at a time: where K runs fastest, one costs as much as several."""
    for start in range(0, labels.shape[2], _AT_ONCE):
        yield from np.ascontiguousarray(labels[:, :, start : start + _AT_ONCE].transpose(2, 1, 0))


def _polygons(mask: np.ndarray) -> list[list[np.ndarray]]:
    """The outer contour of each part of a mask (J, I), and those of its holes, as closed rings without the repeat."""
    padded = np.pad(mask.astype(np.float64), 1)
    generator = contour_generator(z=padded, name="serial", fill_type=FillType.OuterOffset)
    return [
        [points[start : stop - 1] - 1 for start, stop in pairwise(offsets)]
        for points, offsets in zip(*generator.filled(*_LEVELS), strict=True)
    ]


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """One ring from an outer one and its holes, by bridges of no width.

    Each hole is joined from its top (smallest j) straight up to the next ring there: the outer one, or a hole whose top
    is higher. An edge has one bridge at most, so each hole changes the successors of two points.
    """
    if len(rings) == 1:
        return rings[0]
    points = np.concatenate(rings)
    bounds = np.cumsum([0, *map(len, rings)])
    after = np.arange(1, len(points) + 1)
    after[bounds[1:] - 1] = bounds[:-1]
    edges, columns, rows = _crossings(points, points[after])
    place = np.zeros(len(points), dtype=np.intp)
    place[edges] = np.arange(len(edges))
    # A hole passes its top towards smaller i, so that the edge before its top is the one on the column's side.
    before = np.argsort(after)
    tops = [start + points[start:stop, 1].argmin() for start, stop in pairwise(bounds[1:])]
    ends = place[before[tops]]
    # Columns are sorted by j: what comes before an edge is the first one above it.
    feet = ends - 1
    upper = np.stack([columns[ends], rows[feet]], axis=1)
    lower = np.stack([columns[ends], rows[ends]], axis=1)
    down, turn, back, up = len(points) + np.arange(4 * len(tops)).reshape(4, -1)
    after = np.concatenate([after, turn, after[edges[ends]], up, after[edges[feet]]])
    after[edges[feet]], after[edges[ends]] = down, back
    return np.concatenate([points, upper, lower, lower, upper])[_walk(after)]


def _crossings(points: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges that bridges can meet, by the index of their first points, with i and j where they do; sorted by both.

    An edge of an iso-line lies between the centres of four pixels, so a bridge crosses it if it begins at a whole i.
    """
    left = np.minimum(points[:, 0], ends[:, 0])
    edges = np.flatnonzero((left % 1 == 0) & (points[:, 0] != ends[:, 0]))
    columns = left[edges] + _BESIDE
    (i, j), (to_i, to_j) = points[edges].T, ends[edges].T
    rows = j + (columns - i) / (to_i - i) * (to_j - j)
    order = np.lexsort((rows, columns))
    return edges[order], columns[order], rows[order]


def _walk(after: np.ndarray) -> list[int]:
    """The way from point 0 back to it."""
    successors, way = after.tolist(), [0]
    while at := successors[way[-1]]:
        way.append(at)
    return way


def _without_straight_points(ring: np.ndarray) -> np.ndarray:
    """A ring without the points between two edges of the same direction."""
    step = np.roll(ring, -1, axis=0) - ring
    before = np.roll(step, 1, axis=0)
    turns = step[:, 0] * before[:, 1] != step[:, 1] * before[:, 0]
    # The ends of a bridge: the way back is no straight line on.
    turns |= (step * before).sum(axis=1) < 0
    kept: np.ndarray = ring[turns]
    return kept
