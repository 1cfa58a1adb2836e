"""What a label image says of itself: volumes, and flags where a number should not be trusted at sight.

The image is read in slabs, so that beyond it memory does not grow with the length of the scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from volseg.config import Channel, Label
from volseg.inference.components import SLAB_VOXELS, join, outermost_first, slabs

LabelFlag: TypeAlias = Literal["empty", "touches_border", "several_components", "volume_outside_training_range"]
ScanFlag: TypeAlias = Literal["intensity_outside_training_range"]

# A second piece with less than this share of a label's voxels is taken for a speck.
COMPONENT_SHARE = 0.05


@dataclass(frozen=True)
class LabelQuality:
    """One label of one result.

    Args:
        name, value: of the label.
        voxels: how many carry it.
        volume_ml: their volume; None where it cannot be stated.
        reason: why it cannot be stated, else None.
        flags: `empty`: no voxel. `touches_border`: reaches the first or last slice of the scan along an axis, so the
            volume is a lower bound. `several_components`: the second largest of its 26-connected pieces holds at least
            a twentieth of its voxels. `volume_outside_training_range`: smaller or larger than in any training case.
    """

    name: str
    value: int
    voxels: int
    volume_ml: float | None
    reason: str | None
    flags: tuple[LabelFlag, ...]


def measure(
    labels: np.ndarray, table: Sequence[Label], voxel_ml: float, slab_voxels: int = SLAB_VOXELS
) -> list[LabelQuality]:
    """Volume and flags of every label in `table`, in its order.

    Args:
        labels: (I, J, K) stored values, uint8 or uint16.
        table: the labels to report, absent ones included; regions are measured with all their parts.
        voxel_ml: volume of a voxel in millilitres.
        slab_voxels: how many are looked at together.
    """
    # `take` would copy the whole image first where its planes do not lie as it likes.
    faces = [np.moveaxis(labels, axis, 0)[side] for axis in range(3) for side in (0, -1)]
    border = {value for face in faces for value in np.unique(face).tolist()}
    if not any(label.parts for label in table):
        voxels, second = count_components(labels, slab_voxels)
        return [
            _quality(label, int(voxels[label.value]), int(second[label.value]), label.value in border, voxel_ml)
            for label in table
        ]
    found = []
    for label in table:
        # Regions share voxels, so each needs a look of its own.
        parts = label.stored_values
        member = np.zeros(1 << 16, np.uint8)
        member[list(parts)] = 1
        voxels, second = count_components(labels, slab_voxels, member)
        found.append(_quality(label, int(voxels[1]), int(second[1]), not border.isdisjoint(parts), voxel_ml))
    return found


def scan_flags(arrays: Sequence[np.ndarray], channels: Sequence[Channel]) -> tuple[ScanFlag, ...]:
    """Flags of a scan as a whole: `intensity_outside_training_range` if the mean of a channel is below or above that
    of every training scan.

    Args:
        arrays: one (I, J, K) array per channel, as stored.
        channels: the model's, which hold the ranges.
    """
    for array, channel in zip(arrays, channels, strict=True):
        # Summed in float64 without a float64 copy of the scan.
        mean = float(array.mean(dtype=np.float64))
        if channel.mean_range and not channel.mean_range[0] <= mean <= channel.mean_range[1]:
            return ("intensity_outside_training_range",)
    return ()


def count_components(
    labels: np.ndarray, slab_voxels: int = SLAB_VOXELS, table: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For every value its voxels, and the voxels of its second largest 26-connected component.

    Remembered are the components that reach the plane shared with the next slab, and of each value the two largest
    others.

    Args:
        labels: (I, J, K) uint8 or uint16.
        slab_voxels: how many are looked at together, at least a plane.
        table: values to count instead, by stored value.

    Returns:
        Two int64 arrays indexed by value. The second is 0 where there is no second component, and for value 0.
    """
    voxels = np.zeros(1 << 16, np.int64)
    # Components are (2, n) int64: values, and voxels. `held` ones reach the shared plane; `place` says which of them
    # the pieces of the last slab belong to.
    closed, held, place = np.zeros((2, 0), np.int64), np.zeros((2, 0), np.int64), np.zeros(0, np.int64)
    for slab in slabs(outermost_first(labels), slab_voxels, table):
        np.add.at(voxels, slab.pieces[0], slab.pieces[1])
        before, here = slab.met
        known = held.shape[1]
        joined, group = join(np.concatenate([held, slab.pieces], axis=1), place[before], known + here)
        last = np.unique(slab.numbers[-1])
        reaching, inverse = np.unique(group[known:][last], return_inverse=True)
        closed = _two_largest(np.concatenate([closed, np.delete(joined, reaching, axis=1)], axis=1))
        held, place = joined[:, reaching], np.zeros(slab.pieces.shape[1], np.int64)
        place[last] = inverse

    second = np.zeros(1 << 16, np.int64)
    values, sizes = _two_largest(np.concatenate([closed, held], axis=1))
    again = (values[1:] == values[:-1]) & (values[1:] > 0)
    second[values[1:][again]] = sizes[1:][again]
    return voxels, second


def _two_largest(components: np.ndarray) -> np.ndarray:
    """The two largest components of each value, sorted by value, the larger first."""
    values, sizes = components[:, np.lexsort((-components[1], components[0]))]
    kept = np.ones(len(values), bool)
    kept[2:] = values[2:] != values[:-2]
    return np.stack([values[kept], sizes[kept]])


def _quality(label: Label, voxels: int, second: int, at_border: bool, voxel_ml: float) -> LabelQuality:
    """The findings about one label as numbers and flags."""
    if voxels == 0:
        return LabelQuality(label.name, label.value, 0, None, "no voxel was given this label", ("empty",))
    volume_ml = voxels * voxel_ml
    low, high = label.volume_ml_range or (0.0, np.inf)
    raised: dict[LabelFlag, bool] = {
        "touches_border": at_border,
        "several_components": second >= COMPONENT_SHARE * voxels,
        "volume_outside_training_range": not low <= volume_ml <= high,
    }
    flags = tuple(flag for flag, is_raised in raised.items() if is_raised)
    return LabelQuality(label.name, label.value, voxels, volume_ml, None, flags)
