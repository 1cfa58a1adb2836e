"""What a label image says of itself: volumes, and flags where a number should not be trusted at sight.

The image is read in slabs, so that beyond it memory does not grow with the length of the scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cc3d
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from volseg.config import Channel, Label

LabelFlag: TypeAlias = Literal["empty", "touches_border", "several_components", "volume_outside_training_range"]
ScanFlag: TypeAlias = Literal["intensity_outside_training_range"]

SLAB_VOXELS = 1 << 22
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

    Slabs share a plane: a component of one slab and a component of the next are the same where they share a voxel of
    it. Remembered are the components that reach the shared plane, and of each value the two largest others.

    Args:
        labels: (I, J, K) uint8 or uint16.
        slab_voxels: how many are looked at together, at least a plane.
        table: values to count instead, by stored value.

    Returns:
        Two int64 arrays indexed by value. The second is 0 where there is no second component, and for value 0.
    """
    if labels.strides[0] < labels.strides[2]:
        labels = labels.T  # slabs that lie in one piece are read faster, and a component is one from any side
    depth = max(1, slab_voxels // labels[0].size)
    voxels = np.zeros(1 << 16, np.int64)
    # Components are (2, n) int64: values, and voxels. `held` ones reach the shared plane, where `plane` numbers them.
    closed, held, plane = np.zeros((2, 0), np.int64), np.zeros((2, 1), np.int64), np.zeros(labels.shape[1:], np.int64)
    for start in range(0, labels.shape[0], depth):
        slab = labels[max(start - 1, 0) : start + depth]
        slab = slab if table is None else table[slab]
        numbers, count = cc3d.connected_components(slab, connectivity=26, return_N=True)
        found = np.zeros((2, count + 1), np.int64)
        found[0][numbers] = slab
        found[1] = np.bincount(numbers[min(start, 1) :].ravel(), minlength=count + 1)
        np.add.at(voxels, found[0], found[1])

        linked = held[0][plane] > 0
        joined, group = _join(held, found, plane[linked], numbers[0][linked])
        reaching, inverse = np.unique(group[held.shape[1] :][numbers[-1]], return_inverse=True)
        closed = _two_largest(np.concatenate([closed, np.delete(joined, reaching, axis=1)], axis=1))
        held, plane = joined[:, reaching], inverse.reshape(plane.shape)

    second = np.zeros(1 << 16, np.int64)
    values, sizes = _two_largest(np.concatenate([closed, held], axis=1))
    again = (values[1:] == values[:-1]) & (values[1:] > 0)
    second[values[1:][again]] = sizes[1:][again]
    return voxels, second


def _join(held: np.ndarray, found: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components of `held` and `found` put together where `one` meets `other`, and which each of them became."""
    pieces = np.concatenate([held, found], axis=1)
    edges = (one, held.shape[1] + other.astype(np.int64))
    graph = coo_matrix((np.ones(len(one), bool), edges), shape=(pieces.shape[1],) * 2)
    count, group = connected_components(graph, directed=False)
    joined = np.zeros((2, count), np.int64)
    joined[0][group] = pieces[0]
    np.add.at(joined[1], group, pieces[1])
    return joined, group


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
