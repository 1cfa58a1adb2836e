"""What a report states of each label: intensity, centre of mass, longest diameter in a slice.

Slice by slice, so that beyond the scan and its labels a few slices are in memory. Axes are I columns, J rows and K
slices; lengths are millimetres.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from volseg.config import Label
from volseg.data.grid.geometry import LPS_FROM_RAS, Geometry


@dataclass(frozen=True)
class LabelNumbers:
    """What is measured of one label.

    Args:
        voxels: their number.
        mean: of the intensities of its voxels; None without voxels, like all that follow.
        deviation: their standard deviation, of all voxels (divided by their number, not by one less).
        centre_mm: LPS+ mm of the mean of the centres of its voxels.
        diameter_mm: the longest distance between two points of the label in one slice, over all slices. A voxel is a
            rectangle in its slice here, so that a single voxel has its diagonal; gaps are not excluded.
    """

    voxels: int
    mean: float | None = None
    deviation: float | None = None
    centre_mm: tuple[float, float, float] | None = None
    diameter_mm: float | None = None


@dataclass
class _Sums:
    """What is known of a label after some slices; squares are of the distances from the mean."""

    voxels: int = 0
    mean: float = 0.0
    squares: float = 0.0
    indices: np.ndarray = field(default_factory=lambda: np.zeros(3))
    diameter: float = 0.0

    def add(self, values: np.ndarray, indices: np.ndarray) -> None:
        """Add the voxels of one slice: intensities (N,) float64, and the sums of i, j and k.

        Means and squares are merged as in Chan, Golub and LeVeque (1979), which does not lose digits where the mean is
        large.
        """
        count, mean = len(values), float(values.mean())
        total = self.voxels + count
        shift = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + shift**2 * self.voxels * count / total
        self.mean += shift * count / total
        self.voxels = total
        self.indices = self.indices + indices


def measure_labels(
    labels: np.ndarray, image: np.ndarray, geometry: Geometry, table: Sequence[Label]
) -> list[LabelNumbers]:
    """Measure every label in `table`, in its order; regions with all their parts.

    Args:
        labels: (I, J, K) unsigned integers.
        image: (I, J, K), finite.
        geometry: of both.
        table: labels, including absent ones.
    """
    sums = [_Sums() for _ in table]
    plane_of = _in_plane(geometry.affine)
    for k in range(labels.shape[2]):
        cut = np.ascontiguousarray(labels[:, :, k].T)
        places = _places_by_value(cut.ravel())
        if not places:
            continue
        values = np.ascontiguousarray(image[:, :, k].T).ravel()
        for label, known in zip(table, sums, strict=True):
            parts = [places[value] for value in label.stored_values if value in places]
            if parts:
                found = parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
                _add_slice(known, values[found].astype(np.float64), found, cut.shape[1], k, plane_of)
    return [_numbers(known, geometry.affine) for known in sums]


def _places_by_value(cut: np.ndarray) -> dict[int, np.ndarray]:
    """Where each value but 0 lies in a flat slice, in ascending order."""
    places = np.flatnonzero(cut)
    if not places.size:
        return {}
    values = cut[places]
    order = np.argsort(values, kind="stable")
    places, values = places[order], values[order]
    starts = np.flatnonzero(np.diff(values)) + 1
    firsts = values[np.concatenate([[0], starts])].tolist()
    return dict(zip(firsts, np.split(places, starts), strict=True))


def _add_slice(known: _Sums, values: np.ndarray, places: np.ndarray, width: int, k: int, plane_of: np.ndarray) -> None:
    """Add what one slice holds of a label, at ascending places of the flat slice (J, I)."""
    rows, columns = np.divmod(places, width)
    known.add(values, np.array([columns.sum(), rows.sum(), k * len(places)], dtype=np.float64))
    box = np.array([columns.max() - columns.min() + 1, rows[-1] - rows[0] + 1])
    # The diagonals of a box about the label are at least as long as any distance in it.
    diagonals = (np.linalg.norm(plane_of @ (box * sign)) for sign in ((1, 1), (1, -1)))
    if max(diagonals) > known.diameter:
        known.diameter = max(known.diameter, _diameter(rows, columns, plane_of))


def _in_plane(affine: np.ndarray) -> np.ndarray:
    """(2, 2): steps in i and j as millimetres in the plane of a slice, the first axis along the rows."""
    return np.asarray(np.linalg.qr(affine[:3, :2], mode="r"))


def _diameter(rows: np.ndarray, columns: np.ndarray, plane_of: np.ndarray) -> float:
    """The longest distance in mm between corners of pixels: the two that are farthest apart lie on the convex hull."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    ends = np.append(starts[1:], len(rows)) - 1
    places = rows[starts] - rows[0]
    # The outermost corners on each line between rows.
    left = np.full(places[-1] + 2, np.inf)
    right = np.full(places[-1] + 2, -np.inf)
    for line in (places, places + 1):
        left[line] = np.minimum(left[line], columns[starts])
        right[line] = np.maximum(right[line], columns[ends] + 1)
    lines = np.flatnonzero(np.isfinite(left))
    outer = [*_outermost(left[lines], lines), *((-x, y) for x, y in _outermost(-right[lines], lines))]
    corners = np.array(outer) @ plane_of.T
    return float(np.sqrt(((corners[:, None] - corners) ** 2).sum(axis=2).max()))


def _outermost(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """The left side of the convex hull of points with ascending y, by Andrew's monotone chain (1979)."""
    chain: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) >= 0:
            chain.pop()
        chain.append(point)
    return chain


def _turn(first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]) -> float:
    """Positive if the way over three points turns from x to y, which bends it away from the left side."""
    ahead, aside = (second[0] - first[0], second[1] - first[1]), (third[0] - first[0], third[1] - first[1])
    return ahead[0] * aside[1] - ahead[1] * aside[0]


def _numbers(known: _Sums, affine: np.ndarray) -> LabelNumbers:
    """The numbers of a label after all slices."""
    if not known.voxels:
        return LabelNumbers(0)
    centre = (LPS_FROM_RAS @ affine @ [*(known.indices / known.voxels), 1.0])[:3]
    return LabelNumbers(
        known.voxels,
        known.mean,
        math.sqrt(known.squares / known.voxels),
        (float(centre[0]), float(centre[1]), float(centre[2])),
        known.diameter,
    )
