"""One label image from masks that may overlap.

A voxel of a label image has one value. So every combination of labels that occurs together has a value of its own: a
voxel of one label alone has that label's number; a combination has the number of the smallest of its labels whose
number is not in use, so that labels within labels keep their numbers; otherwise a value above all numbers. A label is
then the union of the values of its combinations, as a region of nnU-Net is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from volseg.data.io.dicom_labels.objects import LARGEST, Part
from volseg.errors import InputError
from volseg.text import first_few


class Merged(NamedTuple):
    """A label image.

    Args:
        array: (I, J, K) uint8, or uint16 if a value exceeds 255.
        values: the values of each label by its number, in ascending order; its number is always among them.
        voxels: of each label by its number.
        overlaps: pairs of labels that share voxels and neither of which contains the other, with the voxels they share.
        nested: pairs of labels of which the first contains the second.
    """

    array: np.ndarray
    values: dict[int, tuple[int, ...]]
    voxels: dict[int, int]
    overlaps: dict[tuple[int, int], int]
    nested: tuple[tuple[int, int], ...]


class Canvas:
    """Masks are added to it one by one; it keeps which labels each voxel has.

    Args:
        shape: (I, J, K).
        source: for messages.
    """

    def __init__(self, shape: tuple[int, int, int], source: str) -> None:
        # The number of the combination of each voxel; number 0 is no label. Slices, mostly along K, are contiguous.
        self.marks = np.zeros(shape, np.uint16, order="F")
        self._source = source
        self._sets: list[frozenset[int]] = [frozenset()]
        self._numbers: dict[frozenset[int], int] = {frozenset(): 0}

    def add(self, view: np.ndarray, mask: np.ndarray, label: int) -> None:
        """Add a label where `mask` is set in `view`, a view of `marks`.

        Raises:
            InputError: more combinations of labels than values.
        """
        box = _box(mask)
        view, mask = view[box], mask[box]
        found = view[mask]
        there = np.flatnonzero(np.bincount(found))
        grown = [self._number(self._sets[one] | {label}) for one in there]
        if len(there) == 1:
            view[mask] = grown[0]
        elif len(there):
            view[mask] = np.array(grown, np.uint16)[np.searchsorted(there, found)]

    def add_values(self, view: np.ndarray, values: np.ndarray) -> None:
        """Add all labels of a slice at once: `values` are their numbers, 0 for none.

        Raises:
            InputError: as `add`.
        """
        labels = [int(one) for one in np.flatnonzero(np.bincount(values.ravel())) if one]
        if view.any():
            for label in labels:
                self.add(view, values == label, label)
            return
        table = np.zeros(max(labels, default=0) + 1, np.uint16)
        for label in labels:
            table[label] = self._number(frozenset({label}))
        view[...] = table[values]

    def _number(self, labels: frozenset[int]) -> int:
        number = self._numbers.setdefault(labels, len(self._sets))
        if number > LARGEST:
            raise InputError(
                f"{self._source}: its labels overlap in more than {LARGEST} combinations, which no label image holds; "
                "export fewer of them."
            )
        if number == len(self._sets):
            self._sets.append(labels)
        return number

    def merged(self, parts: Sequence[Part]) -> Merged:
        """The label image.

        Args:
            parts: all labels that may have been added; their numbers are from 1 to 65535.

        Raises:
            InputError: more values are needed than there are.
        """
        counts = np.zeros(len(self._sets), np.int64)
        for at in range(self.marks.shape[2]):
            counts += np.bincount(self.marks[..., at].ravel(order="K"), minlength=len(counts))
        present = {labels: int(count) for labels, count in zip(self._sets, counts, strict=True) if count and labels}
        voxels = {
            part.number: sum(count for labels, count in present.items() if part.number in labels) for part in parts
        }
        value_of = self._values(list(present), voxels)
        table = np.array([value_of.get(labels, 0) for labels in self._sets], np.uint16)
        if table.max() <= 255:
            table = table.astype(np.uint8)
        values = {
            part.number: tuple(sorted({part.number} | {value_of[one] for one in present if part.number in one}))
            for part in parts
        }
        overlaps, nested = _pairs(present, voxels)
        return Merged(table[self.marks], values, voxels, overlaps, nested)

    def _values(self, present: Sequence[frozenset[int]], voxels: dict[int, int]) -> dict[frozenset[int], int]:
        """The value of each combination."""
        found = {labels: next(iter(labels)) for labels in present if len(labels) == 1}
        # All numbers are kept for their labels, also those of empty ones.
        following = max(voxels) + 1
        used = set(found.values())
        for labels in sorted((one for one in present if len(one) > 1), key=lambda one: (len(one), sorted(one))):
            free = [label for label in labels if label not in used]
            value = min(free, key=lambda label: (voxels[label], label)) if free else following
            following += not free
            used.add(value)
            found[labels] = value
        if following > LARGEST + 1:
            raise InputError(
                f"{self._source}: its labels overlap, so that the label image needs values above {LARGEST}; export "
                "fewer of them."
            )
        return found


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around a mask of a slice."""
    places = [np.flatnonzero(np.any(mask, axis=axis)) for axis in (1, 0)]
    return tuple(slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0) for at in places)


def _pairs(
    present: dict[frozenset[int], int], voxels: dict[int, int]
) -> tuple[dict[tuple[int, int], int], tuple[tuple[int, int], ...]]:
    """The pairs of labels that share voxels: those that cross, with their shared voxels, and those that are nested."""
    shared: dict[tuple[int, int], int] = {}
    for labels, count in present.items():
        ordered = sorted(labels, key=lambda label: (-voxels[label], label))
        for at, outer in enumerate(ordered):
            for inner in ordered[at + 1 :]:
                shared[outer, inner] = shared.get((outer, inner), 0) + count
    nested = tuple(pair for pair, count in shared.items() if count == voxels[pair[1]] < voxels[pair[0]])
    return {pair: count for pair, count in shared.items() if pair not in nested}, nested


def reject_overlaps(merged: Merged, parts: Sequence[Part], source: str) -> None:
    """Reject labels that overlap unless one contains the other.

    Raises:
        InputError: it names them.
    """
    if not merged.overlaps:
        return
    names = {part.number: part.name for part in parts}
    pairs = [f"{names[one]} and {names[two]} ({count} voxels)" for (one, two), count in merged.overlaps.items()]
    raise InputError(
        f"{source}: labels overlap, which one value per voxel cannot tell: {first_few(pairs)}; volseg convert writes "
        "each overlap as a value of its own, and the regions into the JSON beside it",
        "use what it writes, or export labels that do not overlap",
        "overlapping labels",
    )


def about_overlaps(merged: Merged, parts: Sequence[Part]) -> list[str]:
    """Warnings about labels that share voxels."""
    names = {part.number: part.name for part in parts}
    found = []
    if merged.nested:
        pairs = [f"{names[inner]} in {names[outer]}" for outer, inner in merged.nested]
        found.append(f"Labels within others: {first_few(pairs)}; the outer one consists of several values.")
    if merged.overlaps:
        pairs = [f"{names[one]} and {names[two]} ({count} voxels)" for (one, two), count in merged.overlaps.items()]
        found.append(f"Labels overlap: {first_few(pairs)}; each overlap has a value of its own.")
    return found
