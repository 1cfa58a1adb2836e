"""Quality of a result: the volume of each label, and flags that ask for a check before its numbers are used.

The image is read in slabs, so that beyond it memory does not grow with the length of the scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from volseg.config import ABSOLUTE, Channel, Label
from volseg.data.grid.geometry import volume_of
from volseg.postprocessing.components import SLAB_VOXELS, merge, outermost_first, slabs

LabelFlag: TypeAlias = Literal[
    "empty",
    "touches_border",
    "several_components",
    "volume_outside_training_range",
    "low_confidence",
    "side_mismatch",
]
ScanFlag: TypeAlias = Literal[
    "intensity_outside_training_range",
    "intensity_suspect",
    "spacing_suspect",
    "field_of_view_suspect",
    "orientation_suspect",
]

# The flags as a reader of a report or a picture sees them.
IN_WORDS: dict[LabelFlag | ScanFlag, str] = {
    "empty": "no voxel was given this label",
    "touches_border": "cut off by the edge of the scan, so the volume is a lower bound",
    "several_components": "several separate parts",
    "volume_outside_training_range": "volume outside the range of the training cases",
    "low_confidence": "expected to overlap less with the truth than usual, so its outline needs a check",
    "side_mismatch": "left and right are exchanged against the label's partner, in patient coordinates",
    "intensity_outside_training_range": "scan intensity is outside the range of the training scans",
    "intensity_suspect": "scan intensities look converted, shifted, inverted or otherwise unlike the training scans",
    "spacing_suspect": "voxel size of the scan looks wrong, and so would be all volumes",
    "field_of_view_suspect": "scan covers less than any training scan",
    "orientation_suspect": "scan looks rotated or mirrored against the orientation that its header states",
}
# A second component with less than this fraction of a label's voxels counts as noise.
COMPONENT_FRACTION = 0.05


@dataclass(frozen=True)
class LabelQuality:
    """One label of one result.

    Args:
        name, value: of the label.
        voxels: number of voxels with the label.
        volume_ml: their volume in mL; None where it cannot be stated.
        reason: why the volume cannot be stated, else None.
        flags: `empty`: no voxel. `touches_border`: reaches the first or last slice of the scan along an axis, so the
            volume is a lower bound. `several_components`: the second largest of its 26-connected components has at
            least 5 % of its voxels. `volume_outside_training_range`: smaller or larger than in any training case.
    """

    name: str
    value: int
    voxels: int
    volume_ml: float | None
    reason: str | None
    flags: tuple[LabelFlag, ...]


def measure(
    labels: np.ndarray, table: Sequence[Label], voxel_ml: float, slab_voxels: int = SLAB_VOXELS, unstated: str = ""
) -> list[LabelQuality]:
    """Volume and flags of every label in `table`, in its order.

    Args:
        labels: (I, J, K) stored values, uint8 or uint16.
        table: the labels to report, including absent ones; regions are measured with all their parts.
        voxel_ml: volume of a voxel in millilitres.
        slab_voxels: voxels per slab.
        unstated: why the size of a voxel is unknown, whatever `voxel_ml` is: then there are no volumes, and no flags
            about volumes; empty if it is known.
    """
    # `take` would first copy an image whose planes are not contiguous.
    faces = [np.moveaxis(labels, axis, 0)[side] for axis in range(3) for side in (0, -1)]
    border = {value for face in faces for value in np.unique(face).tolist()}
    if not any(label.parts for label in table):
        voxels, second = count_components(labels, slab_voxels)
        counts = [(int(voxels[one.value]), int(second[one.value]), one.value in border) for one in table]
        return [_quality(label, *count, voxel_ml, unstated) for label, count in zip(table, counts, strict=True)]
    found = []
    for label in table:
        # Regions share voxels, so each is counted by itself.
        parts = label.stored_values
        member = np.zeros(1 << 16, np.uint8)
        member[list(parts)] = 1
        voxels, second = count_components(labels, slab_voxels, member)
        at_border = not border.isdisjoint(parts)
        found.append(_quality(label, int(voxels[1]), int(second[1]), at_border, voxel_ml, unstated))
    return found


def scan_flags(arrays: Sequence[np.ndarray], channels: Sequence[Channel]) -> tuple[ScanFlag, ...]:
    """Flags of the whole scan: `intensity_outside_training_range` if the mean of a channel is below or above the means
    of all training scans.

    Only of channels whose intensities have a unit, such as HU. Those of MR depend on the scanner, and are normalised by
    each scan itself.

    Args:
        arrays: one (I, J, K) array per channel, as stored.
        channels: channels of the model, with their ranges.
    """
    for array, channel in zip(arrays, channels, strict=True):
        if channel.normalisation not in ABSOLUTE:
            continue
        # Summed in float64 without a float64 copy of the scan.
        mean = float(array.mean(dtype=np.float64))
        if channel.mean_range and not channel.mean_range[0] <= mean <= channel.mean_range[1]:
            return ("intensity_outside_training_range",)
    return ()


def count_components(
    labels: np.ndarray, slab_voxels: int = SLAB_VOXELS, table: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The number of voxels of every value, and of its second largest 26-connected component.

    Only two kinds of components are kept in memory: those that reach the plane shared with the next slab, and the two
    largest others of each value.

    Args:
        labels: (I, J, K) uint8 or uint16.
        slab_voxels: voxels per slab; at least one plane is read.
        table: values to count instead of the stored ones, indexed by them.

    Returns:
        Two int64 arrays indexed by value. The second is 0 where there is no second component, and for value 0.
    """
    voxels = np.zeros(1 << 16, np.int64)
    # Components are (2, n) int64: values, and voxels. Open ones reach the shared plane; `column` is the open component
    # of each slab component of the previous slab.
    closed, opened, column = np.zeros((2, 0), np.int64), np.zeros((2, 0), np.int64), np.zeros(0, np.int64)
    for slab in slabs(outermost_first(labels), slab_voxels, table):
        np.add.at(voxels, slab.components[0], slab.components[1])
        previous, here = slab.touching
        count = opened.shape[1]
        merged, group = merge(np.concatenate([opened, slab.components], axis=1), column[previous], count + here)
        last = np.unique(slab.numbers[-1])
        reaching, inverse = np.unique(group[count:][last], return_inverse=True)
        closed = _two_largest(np.concatenate([closed, np.delete(merged, reaching, axis=1)], axis=1))
        opened, column = merged[:, reaching], np.zeros(slab.components.shape[1], np.int64)
        column[last] = inverse

    second = np.zeros(1 << 16, np.int64)
    values, sizes = _two_largest(np.concatenate([closed, opened], axis=1))
    is_second = (values[1:] == values[:-1]) & (values[1:] > 0)
    second[values[1:][is_second]] = sizes[1:][is_second]
    return voxels, second


def _two_largest(components: np.ndarray) -> np.ndarray:
    """The two largest components of each value, sorted by value, the larger first."""
    values, sizes = components[:, np.lexsort((-components[1], components[0]))]
    keeps = np.ones(len(values), bool)
    keeps[2:] = values[2:] != values[:-2]
    return np.stack([values[keeps], sizes[keeps]])


def _quality(label: Label, voxels: int, second: int, at_border: bool, voxel_ml: float, unstated: str) -> LabelQuality:
    """The numbers and flags of one label."""
    if voxels == 0:
        reason = unstated or "no voxel was given this label"
        return LabelQuality(label.name, label.value, 0, None, reason, ("empty",))
    volume_ml = voxels * voxel_ml
    low, high = label.volume_ml_range or (0.0, np.inf)
    raised: dict[LabelFlag, bool] = {
        "touches_border": at_border,
        "several_components": second >= COMPONENT_FRACTION * voxels,
        "volume_outside_training_range": not unstated and not low <= volume_ml <= high,
    }
    flags = tuple(flag for flag, is_raised in raised.items() if is_raised)
    stated = None if unstated else volume_of(voxels, voxel_ml)
    return LabelQuality(label.name, label.value, voxels, stated, unstated or None, flags)
