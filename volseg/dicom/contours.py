"""Closed contours of labels, slice by slice, by contourpy's marching squares.

The contours are the iso-lines at 0.5 of a label's 0/1 mask: they pass half-way between the centres of pixels inside and
outside and cut corners at 45 degrees. So no contour touches the centre of a pixel, and filling them by the rule of the
pixel's centre, even-odd or non-zero, gives the mask back exactly. A single pixel is a diamond around its centre; pixels
that touch at a corner alone are contours of their own.

Points are (i, j), continuous indices of columns and rows; whole numbers are centres of pixels.
"""

from collections.abc import Collection, Iterator
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


def outlines(labels: np.ndarray, values: Collection[int], keyhole: bool = True) -> Iterator[Outline]:
    """The contours of labels, by slice and then in the order of their values.

    Only the box around a label in its slice is looked at, so no second array of the labels' size is made.

    Args:
        labels: (I, J, K) unsigned integers.
        values: the labels that are wanted.
        keyhole: join each hole to the contour around it; else holes are contours of their own.
    """
    for k, plane in enumerate(_planes(labels)):
        for label, box in enumerate(find_objects(plane), start=1):
            if box is None or label not in values:
                continue
            polygons = _polygons(plane[box] == label)
            if keyhole:
                polygons = [[_joined(rings)] for rings in polygons]
            corner = (box[1].start, box[0].start)
            contours = [_without_straight_points(ring) + corner for rings in polygons for ring in rings]
            yield Outline(k, label, contours)


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

    Each hole is joined from its top (smallest j) straight up to the ring above it, which is the outer one or a hole
    whose top is higher, and so joined already.
    """
    joined, *holes = rings
    for hole in sorted(holes, key=lambda ring: (ring[:, 1].min(), ring[ring[:, 1].argmin(), 0])):
        joined = _with_hole(joined, hole)
    return joined


def _with_hole(ring: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A ring with a hole joined to it: to the hole, around it, back, and on."""
    column = hole[hole[:, 1].argmin(), 0] + _BESIDE
    edge, top = _highest(*_crossings(hole, column))
    edges, rows = _crossings(ring, column)
    above = rows < top
    at, foot = _lowest(edges[above], rows[above])
    start, end = np.array([[column, foot]]), np.array([[column, top]])
    around = np.concatenate([end, hole[edge + 1 :], hole[: edge + 1], end])
    return np.concatenate([ring[: at + 1], start, around, start, ring[at + 1 :]])


def _crossings(ring: np.ndarray, column: float) -> tuple[np.ndarray, np.ndarray]:
    """The edges of a ring, by the index of their first points, that cross i = column, and the j where they do."""
    ends = np.roll(ring, -1, axis=0)
    edges = np.flatnonzero((ring[:, 0] < column) != (ends[:, 0] < column))
    (i, j), (to_i, to_j) = ring[edges].T, ends[edges].T
    return edges, j + (column - i) / (to_i - i) * (to_j - j)


def _highest(edges: np.ndarray, rows: np.ndarray) -> tuple[int, float]:
    """The crossing of the smallest j."""
    return int(edges[rows.argmin()]), float(rows.min())


def _lowest(edges: np.ndarray, rows: np.ndarray) -> tuple[int, float]:
    """The crossing of the largest j."""
    return int(edges[rows.argmax()]), float(rows.max())


def _without_straight_points(ring: np.ndarray) -> np.ndarray:
    """A ring without the points between two edges of the same direction."""
    step = np.roll(ring, -1, axis=0) - ring
    before = np.roll(step, 1, axis=0)
    turns = step[:, 0] * before[:, 1] != step[:, 1] * before[:, 0]
    # The ends of a bridge: the way back is no straight line on.
    turns |= (step * before).sum(axis=1) < 0
    kept: np.ndarray = ring[turns]
    return kept
