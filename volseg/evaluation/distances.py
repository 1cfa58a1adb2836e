"""Distances between the surfaces of two masks, in mm, and what is stated of them.

The policy for empty masks is that of `volseg.evaluation.overlap`, continued: where both masks are empty there is no
distance, and the values are None; where one of them is, all distances are the diagonal of the image, the longest there
is, and the normalised surface Dice is 0. So a missed label makes a mean worse, never better.

Definitions by the tool that has them (see `volseg.evaluation.surface` for the two surfaces):

    surface-distance   corners weighted by area; the percentile is the least distance within which that share of the
                       area lies
    monai              voxels; the percentile is interpolated
    metrics-reloaded   as monai; the tools differ where a mask is empty, and there volseg follows the policy above

A Hausdorff distance is the larger of its two directions. Where the surfaces share a point, its distance is 0.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from volseg.errors import GridError, UsageError
from volseg.evaluation.surface import Surface, SurfaceKind, surface_of

# Steps of at most so many of the smallest voxel edges, and as many steps, are tried before a k-d tree is built.
NEAR_VOXELS, NEAR_STEPS = 8, 2500
# Points for which steps are tried together, which takes some hundred bytes for each.
POINTS_AT_ONCE = 2**16
DEFINITIONS = ("surface-distance", "monai", "metrics-reloaded")
Spacing: TypeAlias = tuple[float, float, float]
Box: TypeAlias = tuple[slice, slice, slice]


@dataclass(frozen=True)
class SurfaceDistances:
    """The distance of each element of one surface to the nearest of the other, sorted, and the weights of the elements.

    Args:
        to_reference: (N,) float64 mm, of the elements of the prediction.
        prediction_weights: (N,) mm² or 1.
        to_prediction: (M,) float64 mm, of the elements of the reference.
        reference_weights: (M,).
        interpolated: whether a percentile is interpolated between two distances.
    """

    to_reference: np.ndarray
    prediction_weights: np.ndarray
    to_prediction: np.ndarray
    reference_weights: np.ndarray
    interpolated: bool = False

    def hausdorff(self, percentile: float = 100.0) -> float:
        """The Hausdorff distance, or its percentile, in mm: the larger of `directed_hausdorff`."""
        return max(self.directed_hausdorff(percentile))

    def directed_hausdorff(self, percentile: float = 100.0) -> tuple[float, float]:
        """The percentile of the distances from prediction to reference, and of those from reference to prediction.

        Raises:
            UsageError: the percentile does not lie between 0 and 100.
        """
        if not 0 <= percentile <= 100:
            raise UsageError(f"The percentile is {percentile}, expected a number from 0 to 100.")
        one, other = (self._percentile(*direction, percentile) for direction in self._directions)
        return one, other

    def directed_means(self) -> tuple[float, float]:
        """The mean distance from prediction to reference, and from reference to prediction, in mm."""
        one, other = (float(np.average(distances, weights=weights)) for distances, weights in self._directions)
        return one, other

    def assd(self) -> float:
        """The average symmetric surface distance in mm: the mean over the elements of both surfaces."""
        total = sum(float(weights.sum()) for _, weights in self._directions)
        return sum(float((distances * weights).sum()) for distances, weights in self._directions) / total

    def masd(self) -> float:
        """The mean average surface distance in mm: the mean of the two `directed_means`."""
        return sum(self.directed_means()) / 2

    def surface_dice(self, tolerance_mm: float) -> float:
        """The normalised surface Dice: the share of both surfaces that is within a tolerance of the other, 0 to 1.

        Raises:
            UsageError: the tolerance is negative or not a number.
        """
        if not tolerance_mm >= 0:
            raise UsageError(f"The tolerance is {tolerance_mm} mm, expected 0 or more.")
        within = sum(float(weights[distances <= tolerance_mm].sum()) for distances, weights in self._directions)
        return within / sum(float(weights.sum()) for _, weights in self._directions)

    @property
    def _directions(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return (self.to_reference, self.prediction_weights), (self.to_prediction, self.reference_weights)

    def _percentile(self, distances: np.ndarray, weights: np.ndarray, percentile: float) -> float:
        if self.interpolated:
            return float(np.percentile(distances, percentile))
        if percentile == 100:
            return float(distances[-1])
        shares = np.cumsum(weights) / weights.sum()
        return float(distances[min(int(np.searchsorted(shares, percentile / 100)), len(distances) - 1)])


def surface_distances(
    prediction: Any, reference: Any, spacing_mm: Spacing, definition: str = "surface-distance"
) -> SurfaceDistances | None:
    """The distances between the surfaces of two masks.

    Args:
        prediction: array or CPU tensor (I, J, K); every nonzero value belongs to the mask.
        reference: the same, of the same shape.
        spacing_mm: of the grid, along I, J, K.
        definition: one of `DEFINITIONS`, see above.

    Returns:
        None where both masks are empty; where one of them is, a single distance for both, the diagonal of the image.

    Raises:
        GridError: the shapes differ.
        UsageError: masks that are not (I, J, K), a spacing that is not three positive numbers, or no such definition.
    """
    masks = as_masks(prediction, reference, spacing_mm)
    if definition not in DEFINITIONS:
        raise UsageError(f"There is no surface {definition!r}; known are {', '.join(DEFINITIONS)}.")
    sizes = [bool(mask.any()) for mask in masks]
    if not any(sizes):
        return None
    if not all(sizes):
        return absent_from_one(masks[0].shape, spacing_mm)
    box = box_of(masks[0] | masks[1])
    return _between(masks[0][box], masks[1][box], spacing_mm, definition)


def absent_from_one(shape: tuple[int, ...], spacing_mm: Spacing) -> SurfaceDistances:
    """The distances where one of two masks of a shape is empty: the diagonal of the image."""
    longest = np.array([math.hypot(*(edge * step for edge, step in zip(shape, spacing_mm, strict=True)))])
    return SurfaceDistances(longest, np.ones(1), longest, np.ones(1))


def as_masks(prediction: Any, reference: Any, spacing_mm: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """Two masks (I, J, K) as bool, checked against each other and with their spacing.

    Raises:
        GridError: the shapes differ.
        UsageError: masks that are not (I, J, K), or a spacing that is not three positive numbers.
    """
    predicted, true = np.asarray(prediction) != 0, np.asarray(reference) != 0
    if predicted.shape != true.shape:
        raise GridError(f"The prediction has shape {predicted.shape}, but its reference has {true.shape}.")
    if true.ndim != 3:
        raise UsageError(f"Surfaces and lesions are of masks (I, J, K), found the shape {true.shape}.")
    if len(spacing_mm) != 3 or not all(0 < step < math.inf for step in spacing_mm):
        raise UsageError(f"The spacing is {spacing_mm}, expected the distance of voxels in mm along I, J, K.")
    return predicted, true


def box_of(mask: np.ndarray) -> Box:
    """The smallest box that holds a mask with at least one voxel."""
    planes = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    i, j, k = (slice(int(found[0]), int(found[-1]) + 1) for found in planes)
    return i, j, k


def around_boxes(boxes: list[Box]) -> Box:
    """The smallest box that holds some boxes."""
    i, j, k = (slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(3))
    return i, j, k


def _between(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing, definition: str) -> SurfaceDistances:
    """The distances between two masks that both have a voxel."""
    kind: SurfaceKind = "corners" if definition == "surface-distance" else "voxels"
    surfaces = [surface_of(mask, spacing_mm, kind) for mask in (prediction, reference)]
    shared = surfaces[0].points & surfaces[1].points
    one, other = (
        _sorted(surface, shared, far, spacing_mm) for surface, far in zip(surfaces, reversed(surfaces), strict=True)
    )
    return SurfaceDistances(*one, *other, interpolated=kind == "voxels")


def _sorted(surface: Surface, shared: np.ndarray, far: Surface, spacing_mm: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """The distances of one surface to the other, sorted, and their weights; those of shared points are 0."""
    alone = ~shared[surface.points]
    distances = np.zeros(len(alone))
    if alone.any():
        distances[alone] = _nearest(surface.points & ~shared, far.points, spacing_mm)
    weights = np.ones(len(alone)) if surface.weights is None else surface.weights
    order = np.argsort(distances)
    return distances[order], weights[order]


def _nearest(points: np.ndarray, targets: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The distance in mm from each of some points to the nearest target; both (I, J, K) bool.

    Most targets are a step or two away. So the steps to near places are tried one after the other, the shortest first,
    for all points together; the first that leads to a target is the distance. The few points left ask a k-d tree.
    """
    near = _near_steps(spacing_mm)
    margin = int(max(np.abs(steps).max() for _, steps in near))
    padded = np.pad(targets, margin)
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    found = padded.ravel()
    places = np.argwhere(points)
    here = (places + margin) @ strides
    distances = np.full(len(here), np.nan)
    for first in range(0, len(here), POINTS_AT_ONCE):
        left = np.arange(first, min(first + POINTS_AT_ONCE, len(here)))
        for distance, steps in near:
            hit = found[here[left, None] + steps @ strides].any(axis=1)
            distances[left[hit]] = distance
            left = left[~hit]
            if not len(left):
                break
    if (far := np.isnan(distances)).any():
        distances[far] = _far(places[far], np.argwhere(targets), np.array(spacing_mm))
    return distances


def _far(here: np.ndarray, there: np.ndarray, steps_mm: np.ndarray) -> np.ndarray:
    """The distance in mm from each place (N, 3) to the nearest of others (M, 3), counted in voxels."""
    from scipy.spatial import KDTree  # noqa: PLC0415 - loading scipy takes longer than most other work

    _, nearest = KDTree(there * steps_mm, leafsize=32, balanced_tree=False).query(here * steps_mm)
    # Of whole voxels apart, so that equal distances are equal numbers.
    return np.asarray(_lengths(here - there[nearest], steps_mm))


@lru_cache(maxsize=8)
def _near_steps(spacing_mm: Spacing) -> list[tuple[float, np.ndarray]]:
    """The shortest steps, by their length in mm: each with (N, 3) int64 voxels."""
    reach = max(NEAR_VOXELS * min(spacing_mm), max(spacing_mm))
    axes = [np.arange(-(most := int(reach / step)), most + 1) for step in spacing_mm]
    steps = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = _lengths(steps, np.array(spacing_mm))
    order = np.argsort(lengths, kind="stable")[: min(NEAR_STEPS, np.count_nonzero(lengths <= reach))]
    bounds = np.flatnonzero(np.diff(lengths[order])) + 1
    return [(float(lengths[group[0]]), steps[group]) for group in np.split(order, bounds)][1:]


def _lengths(steps: np.ndarray, steps_mm: np.ndarray) -> np.ndarray:
    """The length in mm of steps (N, 3) in voxels."""
    return np.asarray(np.sqrt(((steps * steps_mm) ** 2).sum(axis=1)))
