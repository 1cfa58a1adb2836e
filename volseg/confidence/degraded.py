"""Degraded copies of a scan: noise, blur, a truncated field of view, a wrong voxel size."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

# In the order in which copies of consecutive cases take them.
KINDS = ("noise", "blur", "truncation", "spacing")
# Standard deviations of the scan that noise has, and voxels that blur has.
NOISE, BLUR = (0.3, 2.0), (0.8, 3.5)
# The part of an axis that is cut off, and factors of a wrong voxel size.
CUT, SPACING = (0.2, 0.5), (0.5, 0.67, 1.5, 2.0)


def degraded(
    channels: Sequence[np.ndarray], reference: np.ndarray, affine: np.ndarray, kind: str, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """A degraded copy of a scan, its reference, and its affine.

    noise: Gaussian. blur: Gaussian. truncation: one end of an axis is cut off, from the scan and the reference or, as
    often, replaced by the lowest value in the scan alone. spacing: the header states a wrong size of the voxels.

    Args:
        channels: arrays (I, J, K) of real numbers.
        reference: (I, J, K) label values.
        affine: 4 x 4.
        kind: one of `KINDS`.
        rng: draws how strongly.
    """
    images = [channel.astype(np.float32) for channel in channels]
    if kind == "noise":
        strength = rng.uniform(*NOISE)
        return [one + rng.normal(0, strength * one.std(), one.shape).astype(np.float32) for one in images], *(
            reference, affine
        )  # fmt: skip
    if kind == "blur":
        sigma = rng.uniform(*BLUR)
        return [ndimage.gaussian_filter(one, sigma) for one in images], reference, affine
    if kind == "spacing":
        wrong = affine.copy()
        wrong[:3, :3] *= rng.choice(SPACING)
        return images, reference, wrong
    return _truncated(images, reference, affine, rng)


def _truncated(
    images: list[np.ndarray], reference: np.ndarray, affine: np.ndarray, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    axis, at_start, fills = int(rng.integers(3)), rng.random() < 0.5, rng.random() < 0.5
    size = reference.shape[axis]
    cut = min(size - 1, max(1, round(size * rng.uniform(*CUT))))
    lost = slice(0, cut) if at_start else slice(size - cut, size)
    if fills:
        for one in images:
            np.moveaxis(one, axis, 0)[lost] = one.min()
        return images, reference, affine
    kept = slice(cut, size) if at_start else slice(0, size - cut)
    moved = affine.copy()
    if at_start:
        moved[:3, 3] += cut * affine[:3, axis]
    images = [np.ascontiguousarray(np.moveaxis(np.moveaxis(one, axis, 0)[kept], 0, axis)) for one in images]
    return images, np.ascontiguousarray(np.moveaxis(np.moveaxis(reference, axis, 0)[kept], 0, axis)), moved
