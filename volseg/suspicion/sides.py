"""Whether labels that exist once on the left and once on the right lie on the side that their names state."""

from collections.abc import Iterable, Sequence

import numpy as np

from volseg.config import Label
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.histogram import sampled, sampling_steps
from volseg.planning.sides import left_right_pairs

# Voxels of the label image that are looked at; beyond, every n-th along each axis.
MOST_VOXELS = 1 << 22


def mismatched_sides(labels: np.ndarray, geometry: Geometry, table: Sequence[Label]) -> set[str]:
    """The names of labels that lie to the right of their right partner, and of these partners, in patient coordinates.

    Args:
        labels: (I, J, K) stored values.
        geometry: of the label image.
        table: the labels of the model; only names tell sides, such as "kidney_left" and "kidney_right".
    """
    values = {label.name: label.value for label in table if not label.parts}
    pairs = left_right_pairs(values)
    if not pairs:
        return set()
    view, steps = sampled(labels, MOST_VOXELS), sampling_steps(labels.shape, MOST_VOXELS)
    wanted = [values[name] for pair in pairs for name in pair]
    right = dict(zip(wanted, _rightness(view, np.multiply(geometry.affine[0, :3], steps), wanted), strict=True))
    # NaN, where a label is absent, is less than nothing.
    wrong = [pair for pair in pairs if right[values[pair[0]]] > right[values[pair[1]]]]
    return {name for pair in wrong for name in pair}


def _rightness(labels: np.ndarray, along: np.ndarray, values: Iterable[int]) -> list[float]:
    """How far to the right the mean of each value is, mm; NaN where it is absent.

    Args:
        labels: (I, J, K).
        along: how far to the right a step along I, J and K leads, mm.
        values: whose means are wanted.
    """
    most = int(labels.max()) + 1
    counts, sums = np.zeros(most), np.zeros(most)
    plane = along[0] * np.arange(labels.shape[0])[:, None] + along[1] * np.arange(labels.shape[1])
    for index in range(labels.shape[2]):
        flat = labels[..., index].ravel()
        here = np.bincount(flat, minlength=most)
        counts += here
        sums += np.bincount(flat, plane.ravel(), most) + here * along[2] * index
    return [float(sums[value] / counts[value]) if value < most and counts[value] else np.nan for value in values]
