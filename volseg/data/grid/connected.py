"""Connected components of an array."""

import cc3d
import numpy as np


def numbered_components(values: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    """Number the connected components of equal values.

    Args:
        values: (D, H, W) bool or unsigned integers, in any memory order; 0 is background.
        connectivity: 6 or 26 neighbours.

    Returns:
        The number of each voxel's component, (D, H, W), 0 in the background, and how many components there are.
    """
    # cc3d reads voxels of other arrays from wrong places. NumPy's flags leave the strides of axes of one voxel open.
    if values.strides not in [np.empty(values.shape, values.dtype, order).strides for order in ("C", "F")]:
        values = values.copy(order="C")
    if values.dtype == bool:
        # Of these it refuses a few shapes, such as (1, 5, 1).
        values = values.view(np.uint8)
    numbers, count = cc3d.connected_components(values, connectivity=connectivity, return_N=True)
    return numbers, int(count)
