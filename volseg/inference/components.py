"""The 26-connected components of label images, found slab by slab, and the removal of those that a rule drops.

A component lies in one or more slabs; what lies in one of them is called a piece. Slabs share a plane: pieces of two
slabs belong together where they share a voxel of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import cc3d
import numpy as np

from volseg.config import ComponentRule
from volseg.errors import ResourceError

SLAB_VOXELS = 1 << 22
# What `join_slabs` holds for a piece at its peak; 48 to 65 bytes were measured.
PIECE_BYTES = 72
# Affines are often stored in float32, so a component of exactly a rule's volume may seem this much smaller.
ROUNDING = 1e-6


# Of a slab that is not kept: its `pieces`, perhaps with more rows of counts, and what they `met`.
Found = tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Slab:
    """Some planes of an image and the pieces in them, of which number 0 is the background.

    Args:
        planes: where they lie along the first axis, the shared plane included.
        numbers: (planes, ., .) the number of each voxel's piece in planes that the slab before does not have.
        pieces: (2, n) int64: the value of each piece, and its voxels in these planes, perhaps none.
        met: numbers of pieces in the slab before, and of those here that share a voxel with them; each pair once.
    """

    planes: slice
    numbers: np.ndarray
    pieces: np.ndarray
    met: tuple[np.ndarray, np.ndarray]


def outermost_first(image: np.ndarray) -> np.ndarray:
    """A view of which each plane along the first axis lies in one piece, if `image` is in C or Fortran order.

    Slabs of it are read faster, and a component is one from any side.
    """
    return image.T if image.strides[0] < image.strides[2] else image


def slabs(image: np.ndarray, slab_voxels: int = SLAB_VOXELS, table: np.ndarray | None = None) -> Iterator[Slab]:
    """All slabs of an image, from its first plane to its last.

    Args:
        image: (P, Q, R) uint8 or uint16.
        slab_voxels: how many are looked at together, at least a plane.
        table: values to take instead, by stored value.
    """
    last: np.ndarray | None = None
    for planes in _spans(image, slab_voxels):
        slab = image[planes] if table is None else table[image[planes]]
        numbers, count = cc3d.connected_components(slab, connectivity=26, return_N=True)
        pieces = np.zeros((2, count + 1), np.int64)
        pieces[0][numbers] = slab
        pairs = np.zeros(0, np.int64)
        if last is not None:
            pairs = np.unique((last * (count + 1) + numbers[0])[last > 0])
            numbers = numbers[1:]
        pieces[1] = np.bincount(numbers.ravel(), minlength=count + 1)
        yield Slab(planes, numbers, pieces, (pairs // (count + 1), pairs % (count + 1)))
        last = numbers[-1].astype(np.int64)


def join(pieces: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put pieces together where `one` meets `other`.

    Args:
        pieces: (rows, n) int64: values, and counts.
        one, other: columns of pieces that belong together, pair by pair.

    Returns:
        (rows, m) int64: values and summed counts of what they become, and (n,): which of these each piece became.
    """
    if not len(one):
        return pieces, np.arange(pieces.shape[1])
    from scipy.sparse import coo_matrix  # noqa: PLC0415 - loading scipy takes longer than most scans
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415 - as above

    graph = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(pieces.shape[1],) * 2)
    count, group = connected_components(graph, directed=False)
    joined = np.zeros((len(pieces), count), np.int64)
    joined[0][group] = pieces[0]
    for total, counts in zip(joined[1:], pieces[1:], strict=True):
        np.add.at(total, group, counts)
    return joined, group


def join_slabs(found: Iterable[Found]) -> tuple[np.ndarray, np.ndarray]:
    """The components of a whole image: `join` for the pieces of all its slabs, and what they met, slab by slab.

    What is held meanwhile is up to `PIECE_BYTES` for each piece of the image, and no voxels.
    """
    pieces, pairs = [np.zeros((0, 0), np.int64)], [np.zeros((2, 0), np.int64)]
    before = start = 0
    for one, (there, here) in found:
        pieces.append(one)
        pairs.append(np.stack([before + there, start + here]))
        before, start = start, start + one.shape[1]
    return join(np.concatenate(pieces[1:], axis=1), *np.concatenate(pairs, axis=1))


def kept(components: np.ndarray, rules: Mapping[int, ComponentRule], voxel_ml: float) -> np.ndarray:
    """Which components stay: (n,) bool.

    Args:
        components: (rows, n) of one image: values, voxels, and whatever else.
        rules: by value; components of other values all stay.
        voxel_ml: volume of a voxel in millilitres.
    """
    stays = np.ones(components.shape[1], bool)
    for value, rule in rules.items():
        mine = components[0] == value
        voxels = components[1][mine]
        stays[mine] = voxels * voxel_ml >= rule.smallest_ml * (1 - ROUNDING)
        if rule.largest_only:
            stays[mine] &= voxels == voxels.max(initial=0)
    return stays


def keep_components(
    labels: np.ndarray,
    rules: Mapping[int, ComponentRule],
    voxel_ml: float,
    slab_voxels: int = SLAB_VOXELS,
    room: int | None = None,
) -> dict[int, int]:
    """Turn the components that rules drop into background, in place.

    The image is read twice: which pieces make up a large component is known only when all of them were seen.

    Args:
        labels: (I, J, K) uint8 or uint16, written to.
        rules: by label value.
        voxel_ml: volume of a voxel in millilitres.
        slab_voxels: how many are looked at together.
        room: the most bytes that may be held for pieces; None for no limit.

    Returns:
        How many voxels each value of `rules` lost.

    Raises:
        ResourceError: there is not enough room for the pieces; `labels` are as they were.
    """
    if not rules:
        return {}
    image = outermost_first(labels)
    # Pieces of other labels need not be told apart.
    table = np.zeros(np.iinfo(labels.dtype).max + 1, labels.dtype)
    table[list(rules)] = list(rules)
    found = list(_within(room, ((slab.pieces, slab.met) for slab in slabs(image, slab_voxels, table))))
    components, group = join_slabs(found)
    drops = ~kept(components, rules, voxel_ml)
    ends = np.cumsum([pieces.shape[1] for pieces, _ in found])
    for planes, dropped in zip(_spans(image, slab_voxels), np.split(drops[group], ends[:-1]), strict=True):
        if dropped.any():
            slab = image[planes]
            cleared = dropped[cc3d.connected_components(table[slab], connectivity=26)]
            # The shared plane is left to the next slab, whose pieces keep their numbers only while it is whole.
            own = slice(len(slab) - (planes.stop < len(image)))
            slab[own][cleared[own]] = 0
    values, voxels = components[:2, drops]
    return {value: int(voxels[values == value].sum()) for value in rules}


def _within(room: int | None, found: Iterable[Found]) -> Iterator[Found]:
    """The same, while `join_slabs` has room for all of it."""
    count = 0
    for pieces, met in found:
        count += pieces.shape[1]
        if room is not None and PIECE_BYTES * count > room:
            raise ResourceError(
                f"The labels fall into more than {count} pieces. To tell which of them are to be dropped takes more "
                f"than the {max(room, 0) / 2**30:.2f} GiB that --max-memory leaves. Allow more."
            )
        yield pieces, met


def _spans(image: np.ndarray, slab_voxels: int) -> Iterator[slice]:
    """The planes of each slab."""
    depth = max(1, slab_voxels // image[0].size)
    for start in range(0, len(image), depth):
        yield slice(max(start - 1, 0), min(start + depth, len(image)))
