"""Quantiles of the intensities of a scan, by which a histogram is compared with those of the training scans.

They are of a sample on a regular grid, so that a large scan takes no longer than a small one. Intensities without a
unit, such as those of MR, are taken in standard deviations from their mean.
"""

import math
from collections.abc import Sequence

import numpy as np

from volseg.config import ABSOLUTE, LEVELS, Channel, Triple

MOST_VOXELS = 1 << 18


def sampling_steps(shape: Sequence[int], most: int = MOST_VOXELS) -> Triple:
    """How far sampled voxels are apart along I, J and K, so that there are at most `most`; thin axes stay whole."""
    steps = [1, 1, 1]
    counts = list(shape)
    while math.prod(counts) > most:
        axis = counts.index(max(counts))
        steps[axis] += 1
        counts[axis] = -(-shape[axis] // steps[axis])
    return (steps[0], steps[1], steps[2])


def sampled(array: np.ndarray, most: int = MOST_VOXELS) -> np.ndarray:
    """The voxels of an array (I, J, K) that `sampling_steps` says, a view."""
    return array[tuple(slice(None, None, step) for step in sampling_steps(array.shape, most))]


def intensity_quantiles(array: np.ndarray, masked: bool = False) -> tuple[float, ...]:
    """Mean and standard deviation of a sample of a scan, then its quantiles at `LEVELS`, in the scan's own unit.

    Args:
        array: (I, J, K) of any real dtype.
        masked: whether voxels of 0 are left out, as for the normalisation 'zscore_nonzero'.
    """
    values = sampled(array).astype(np.float64).ravel()
    if masked and values.any():
        values = values[values != 0]
    found = np.quantile(values, LEVELS)
    return (float(values.mean()), float(values.std()), *map(float, found))


def comparable(found: tuple[float, ...], channel: Channel) -> tuple[float, ...]:
    """The quantiles at `LEVELS` in the unit in which scans are compared: standard deviations from the mean, except
    where a channel has a unit of its own.

    Args:
        found: by `intensity_quantiles`.
        channel: of the scan.
    """
    mean, deviation, *quantiles = found
    if channel.normalisation in ABSOLUTE:
        return tuple(quantiles)
    return tuple((one - mean) / (deviation or 1.0) for one in quantiles)
