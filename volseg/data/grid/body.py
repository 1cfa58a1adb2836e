"""Where the body is in a scan: a box around it, found on a thinned copy. An approximation, for those who ask for it."""

import math

import cc3d
import numpy as np

from volseg.data.grid.geometry import Box
from volseg.data.grid.nonzero import nonzero_box

# Voxels looked at are this far apart, or as far as the scan's own are; what is thinner may be missed.
STEP_MM = 4.0
# Room that is left around the body on all sides.
MARGIN_MM = 10.0
# Shares of the voxels that are clipped before a threshold is looked for: metal is far from everything else.
CLIPPED = (0.005, 0.995)


def body_box(volume: np.ndarray, spacing_mm: tuple[float, float, float]) -> Box:
    """The box around the largest connected piece of voxels brighter than air, and a margin of at least `MARGIN_MM`.

    Right where the body is one piece, and the scan shows it in air that is darker than most of it, as CT and most MR
    do. What touches the body, such as a table, belongs to it. Where nothing stands out the box is the whole volume.

    Args:
        volume: (D, H, W) of any real dtype, the model's first channel.
        spacing_mm: of its voxels along D, H, W.
    """
    steps = [max(1, round(STEP_MM / spacing)) for spacing in spacing_mm]
    thin = volume[tuple(slice(None, None, step) for step in steps)].astype(np.float32, order="C")
    groups = cc3d.connected_components(thin > otsu_threshold(thin), connectivity=26)
    sizes = np.bincount(groups.ravel())
    sizes[0] = 0
    # With no voxel above the threshold this is group 0, which is everything.
    found = nonzero_box([groups == sizes.argmax()])
    d, h, w = (
        # The body may begin and end anywhere up to the next voxels that were looked at.
        (max(0, (first - 1) * step + 1 - margin), min(size, stop * step + margin))
        for (first, stop), step, size, margin in zip(
            found, steps, volume.shape, (math.ceil(MARGIN_MM / spacing) for spacing in spacing_mm), strict=True
        )
    )
    return d, h, w


def otsu_threshold(values: np.ndarray) -> float:
    """The intensity that parts values into two classes of the largest variance between them.

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
