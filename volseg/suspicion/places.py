"""Where the labels of a result lie, from a sample of its voxels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from volseg.config import Label
from volseg.data.grid.histogram import sampled, sampling_steps

# Voxels of the label image that are looked at; beyond, every n-th along each axis.
MOST_VOXELS = 1 << 22


class Places(NamedTuple):
    """Where labels lie, in voxel indices along I, J, K.

    Args:
        centres: of each label that is present, by name, (3,).
        centre: of all labels together, (3,).
        edges: of the bounding box of all labels, (3,).
    """

    centres: dict[str, np.ndarray]
    centre: np.ndarray
    edges: np.ndarray


def places_of(labels: np.ndarray, table: Sequence[Label]) -> Places | None:
    """The places of labels; None if none is present.

    Args:
        labels: (I, J, K) stored values.
        table: the labels to find; a region with all its parts.
    """
    steps = sampling_steps(labels.shape, MOST_VOXELS)
    counts, sums, profiles = _sums(sampled(labels, MOST_VOXELS))
    counts[0] = 0
    sums[:, 0] = 0
    if not counts.any():
        return None
    centres = {}
    for label in table:
        values = [value for value in label.stored_values if value < len(counts)]
        if count := counts[values].sum():
            centres[label.name] = sums[:, values].sum(1) / count * steps
    edges = np.array([np.ptp(np.flatnonzero(profile)) + 1 for profile in profiles])
    return Places(centres, sums.sum(1) / counts.sum() * steps, edges * steps)


def _sums(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Per value the number of voxels (values,) and the sums of their indices (3, values); per axis, which planes have a
    label."""
    most = int(labels.max()) + 1
    counts, sums = np.zeros(most), np.zeros((3, most))
    rows, columns = (np.arange(size, dtype=np.float64) for size in labels.shape[:2])
    profiles = [np.zeros(size, bool) for size in labels.shape]
    for index in range(labels.shape[2]):
        plane = labels[..., index]
        inside = plane != 0
        profiles[0] |= inside.any(1)
        profiles[1] |= inside.any(0)
        profiles[2][index] = inside.any()
        if not profiles[2][index]:
            continue
        flat = plane.ravel()
        here = np.bincount(flat, minlength=most)
        counts += here
        sums[0] += np.bincount(flat, np.broadcast_to(rows[:, None], plane.shape).ravel(), most)
        sums[1] += np.bincount(flat, np.broadcast_to(columns, plane.shape).ravel(), most)
        sums[2] += here * index
    return counts, sums, profiles
