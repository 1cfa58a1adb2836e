"""The bounding box of the body in a scan, found on a subsampled copy: an approximation, used only on request."""

import math

import numpy as np

from volseg.data.grid.connected import numbered_components
from volseg.data.grid.geometry import Box
from volseg.data.grid.intensities import reference_for
from volseg.data.grid.nonzero import nonzero_box

# Distance between sampled voxels, unless the scan's own are farther apart; thinner structures may be missed.
STEP_MM = 4.0
# Margin around the body on all sides.
MARGIN_MM = 10.0
# Intensity quantiles that values are clipped to before thresholding: metal lies far from all other intensities.
CLIPPED = (0.005, 0.995)


def body_box(volume: np.ndarray, spacing_mm: tuple[float, float, float]) -> Box:
    """The bounding box of the largest connected component of voxels brighter than air, with a margin of `MARGIN_MM`.

    Valid if the body is one component and most of it is brighter than the air around it, as in CT and most MR scans.
    Objects that touch the body, such as the table, are included. If all voxels are equal, the box is the whole volume.

    Args:
        volume: (D, H, W) of any real dtype, the model's first channel.
        spacing_mm: of its voxels along D, H, W.

    Returns:
        (start, stop) along D, H and W, at least `MARGIN_MM` outside the body but inside the volume.
    """
    steps = [max(1, round(STEP_MM / spacing)) for spacing in spacing_mm]
    sampled = volume[tuple(slice(None, None, step) for step in steps)]
    low, high = float(sampled.min()), float(sampled.max())
    sampled = reference_for(sampled, None, low, high - low).values(sampled)
    components, _ = numbered_components(sampled > otsu_threshold(sampled), 26)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    # If no voxel is above the threshold, this is component 0: the whole volume.
    found = nonzero_box([components == sizes.argmax()])
    d, h, w = (
        # The body may extend up to the next sampled voxels outside the box.
        (max(0, (first - 1) * step + 1 - margin), min(size, stop * step + margin))
        for (first, stop), step, size, margin in zip(
            found, steps, volume.shape, (math.ceil(MARGIN_MM / spacing) for spacing in spacing_mm), strict=True
        )
    )
    return d, h, w


def otsu_threshold(values: np.ndarray) -> float:
    """Otsu's threshold: the intensity that maximises the variance between the two classes that it separates.

    N. Otsu, A threshold selection method from gray-level histograms, IEEE Transactions on Systems, Man, and
    Cybernetics 9(1), 62-66, 1979; over 256 bins between the quantiles `CLIPPED`.
    """
    low, high = np.quantile(values, CLIPPED)
    if low == high:
        return float(high)
    counts, edges = np.histogram(np.clip(values, low, high), bins=256, range=(low, high))
    below, sums = np.cumsum(counts), np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    between = (sums[-1] * below / below[-1] - sums) ** 2 / np.maximum(below * (below[-1] - below), 1)
    return float(edges[1 + between[:-1].argmax()])
