"""The 26-connected components of label images, found slab by slab, and the removal of those that a rule drops.

Slabs are consecutive planes of an image, and neighbouring slabs share a plane. The connected components of one slab are
its slab components; those of neighbouring slabs that share a voxel belong to the same component of the image.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from volseg.config import ComponentRule
from volseg.data.grid.connected import numbered_components
from volseg.errors import ResourceError

SLAB_VOXELS = 1 << 22
# Peak memory of `merge_slabs` for each slab component; 48 to 65 bytes were measured.
COMPONENT_BYTES = 72
# Affines are often stored in float32, so a component of exactly a rule's volume may seem this much smaller.
ROUNDING = 1e-6

# Of a slab: its `components`, perhaps with more rows of counts, and its `touching` pairs.
SlabComponents = tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Slab:
    """Some planes of an image and their slab components, of which number 0 is the background.

    Args:
        planes: the range along the first axis, including the plane shared with the previous slab.
        box: the own planes, without the shared one, and the rows and columns outside of which they are background.
        numbers: the number of each voxel's slab component in `box`.
        components: (2, n) int64: the value of each slab component, and its voxels in the own planes, perhaps none.
        touching: numbers of slab components of the previous slab, and of those here that share a voxel with them;
            each pair once.
    """

    planes: slice
    box: tuple[slice, slice, slice]
    numbers: np.ndarray
    components: np.ndarray
    touching: tuple[np.ndarray, np.ndarray]


def outermost_first(image: np.ndarray) -> np.ndarray:
    """A view whose planes along the first axis are contiguous in memory, for an image in C or Fortran order.

    Its slabs are read faster; connected components do not depend on the order of the axes.
    """
    return image.T if image.strides[0] < image.strides[2] else image


def slabs(image: np.ndarray, slab_voxels: int = SLAB_VOXELS, table: np.ndarray | None = None) -> Iterator[Slab]:
    """All slabs of an image, from its first plane to its last.

    Args:
        image: (P, Q, R) uint8 or uint16.
        slab_voxels: voxels per slab; at least one plane is read.
        table: values to use instead of the stored ones, indexed by them.
    """
    last = np.zeros(image.shape[1:], np.int64)
    start = 0
    for planes in _spans(image, slab_voxels):
        inside, slab = _without_margins(image[planes], table)
        numbers, count = numbered_components(slab, 26)
        occupied = slab != 0
        components = np.zeros((2, count + 1), np.int64)
        components[0][numbers[occupied]] = slab[occupied]
        own, start = slice(start, planes.stop), planes.stop
        pairs = np.zeros(0, np.int64)
        if own.start > 0:
            before = last[inside]
            pairs = np.unique((before * (count + 1) + numbers[0])[before > 0])
            numbers, occupied = numbers[1:], occupied[1:]
        components[1] = np.bincount(numbers[occupied], minlength=count + 1)
        components[1, 0] = (own.stop - own.start) * last.size - components[1].sum()
        yield Slab(planes, (own, *inside), numbers, components, (pairs // (count + 1), pairs % (count + 1)))
        last[...] = 0
        last[inside] = numbers[-1]


def _without_margins(slab: np.ndarray, table: np.ndarray | None) -> tuple[tuple[slice, slice], np.ndarray]:
    """The rows and columns of a slab outside of which there is only background, and their values.

    Args:
        slab: (planes, rows, columns) uint8 or uint16.
        table: values to use instead of the stored ones, indexed by them; None for those.
    """
    inside = _occupied(slab)
    values = slab[:, *inside]
    return inside, values if table is None else table[values]


def _occupied(slab: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that have values other than 0; at least one of each."""
    any_plane = np.bitwise_or.reduce(slab, axis=0)
    spans = []
    for axis in (1, 0):
        found = np.flatnonzero(np.bitwise_or.reduce(any_plane, axis=axis))
        spans.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 1))
    return spans[0], spans[1]


def merge(components: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge components that belong together.

    Args:
        components: (rows, n) int64: values, and counts.
        one, other: columns of components that belong together, pair by pair.

    Returns:
        (rows, m) int64: values and summed counts of the merged components, and (n,): the merged component of each.
    """
    if not len(one):
        return components, np.arange(components.shape[1])
    from scipy.sparse import coo_matrix  # noqa: PLC0415 - loading scipy takes longer than most scans
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415 - as above

    graph = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(components.shape[1],) * 2)
    count, group = connected_components(graph, directed=False)
    merged = np.zeros((len(components), count), np.int64)
    merged[0][group] = components[0]
    for total, counts in zip(merged[1:], components[1:], strict=True):
        np.add.at(total, group, counts)
    return merged, group


def merge_slabs(found: Iterable[SlabComponents]) -> tuple[np.ndarray, np.ndarray]:
    """The components of a whole image: `merge` for the slab components of all its slabs, in order.

    Memory is up to `COMPONENT_BYTES` for each slab component; no voxels are kept.
    """
    components, pairs = [np.zeros((0, 0), np.int64)], [np.zeros((2, 0), np.int64)]
    before = start = 0
    for slab_components, (previous, here) in found:
        components.append(slab_components)
        pairs.append(np.stack([before + previous, start + here]))
        before, start = start, start + slab_components.shape[1]
    return merge(np.concatenate(components[1:], axis=1), *np.concatenate(pairs, axis=1))


def kept(components: np.ndarray, rules: Mapping[int, ComponentRule], voxel_ml: float) -> np.ndarray:
    """Which components the rules keep: (n,) bool.

    Args:
        components: (rows, n) of one image: values, voxels, and any other rows.
        rules: by value; components of all other values are kept.
        voxel_ml: volume of a voxel in millilitres.
    """
    keeps = np.ones(components.shape[1], bool)
    for value, rule in rules.items():
        own = components[0] == value
        voxels = components[1][own]
        keeps[own] = voxels * voxel_ml >= rule.smallest_ml * (1 - ROUNDING)
        if rule.largest_only:
            keeps[own] &= voxels == voxels.max(initial=0)
    return keeps


def value_table(stored: Mapping[int, Sequence[int]]) -> np.ndarray:
    """A table for `slabs`, (65536,) uint16, from the values of a label image to those of labels; 0 for all others.

    Args:
        stored: by value of a label, the values in label images that it stands for; none of them twice.
    """
    table = np.zeros(1 << 16, np.uint16)
    for value, parts in stored.items():
        table[list(parts)] = value
    return table


def keep_components(
    labels: np.ndarray,
    rules: Mapping[int, ComponentRule],
    voxel_ml: float,
    slab_voxels: int = SLAB_VOXELS,
    max_bytes: int | None = None,
    stored: Mapping[int, Sequence[int]] | None = None,
) -> dict[int, int]:
    """Set the voxels of components that the rules drop to background, in place.

    The image is read twice, because the size of a component is known only after its last slab.

    Args:
        labels: (I, J, K) uint8 or uint16, written to.
        rules: by label value.
        voxel_ml: volume of a voxel in millilitres.
        slab_voxels: voxels per slab.
        max_bytes: memory limit for slab components; None for no limit.
        stored: by value, the values in the image that it stands for, such as the parts of a region; None: itself.

    Returns:
        The number of voxels that each of these values in the image lost.

    Raises:
        ResourceError: the slab components need more than `max_bytes`; `labels` are unchanged.
    """
    if not rules:
        return {}
    image = outermost_first(labels)
    stored = stored or {value: (value,) for value in rules}
    # Labels without a rule are background, which saves their components.
    table = value_table(stored)
    found = list(_limited(max_bytes, ((slab.components, slab.touching) for slab in slabs(image, slab_voxels, table))))
    components, group = merge_slabs(found)
    drops = ~kept(components, rules, voxel_ml)
    lost = np.zeros(len(table), np.int64)
    ends = np.cumsum([slab_components.shape[1] for slab_components, _ in found])
    for planes, dropped in zip(_spans(image, slab_voxels), np.split(drops[group], ends[:-1]), strict=True):
        if dropped.any():
            inside, slab = _without_margins(image[planes], table)
            cleared = dropped[numbered_components(slab, 26)[0]]
            # The shared plane is left to the next slab, whose components keep their numbers only while it is unchanged.
            own = slice(len(slab) - (planes.stop < len(image)))
            values = image[planes][:, *inside][own]
            lost += np.bincount(values[cleared[own]], minlength=len(lost))
            values[cleared[own]] = 0
    return {part: int(lost[part]) for parts in stored.values() for part in parts}


def _limited(max_bytes: int | None, found: Iterable[SlabComponents]) -> Iterator[SlabComponents]:
    """The same, as long as `merge_slabs` stays below the memory limit."""
    count = 0
    for components, touching in found:
        count += components.shape[1]
        if max_bytes is not None and COMPONENT_BYTES * count > max_bytes:
            raise ResourceError(
                f"The labels have more than {count} connected components, counted slab by slab. Postprocessing them "
                f"takes more memory than the {max(max_bytes, 0) / 2**30:.2f} GiB that --max-memory leaves. Raise it."
            )
        yield components, touching


def _spans(image: np.ndarray, slab_voxels: int) -> Iterator[slice]:
    """The planes of each slab."""
    depth = max(1, slab_voxels // image[0].size)
    for start in range(0, len(image), depth):
        yield slice(max(start - 1, 0), min(start + depth, len(image)))
