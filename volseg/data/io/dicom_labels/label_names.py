"""The labels of DICOM objects by their names.

The number of a segment or structure is a running number in its object and means nothing outside it; its name does. So
where names and values of labels are known, a segment gets the value of the label of its name. Names match exactly, or
else without regard to case, spaces, hyphens and underscores where that leaves one candidate on each side.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from volseg.errors import InputError
from volseg.text import first_few

# The values of each label, or of each region, by name.
Table: TypeAlias = Mapping[str, tuple[int, ...]]
# Characters of a name in DICOM; writers cut longer ones.
_LONGEST = 64


@dataclass(frozen=True)
class Named:
    """The labels that a DICOM object names, as they are in a label image of it.

    Args:
        numbers: name to the number of the label.
        values: name to the values that the label consists of; its number is among them.
    """

    numbers: Mapping[str, int]
    values: Table

    def listed(self) -> str:
        """Numbers and names for a message: "1: rod, 2: ball"."""
        return first_few([f"{number}: {name}" for name, number in self.numbers.items()], 10)

    def sets(self, array: np.ndarray) -> dict[int, frozenset[str]]:
        """The names of the labels that each value in a label image stands for."""
        present = np.flatnonzero(np.bincount(array.ravel(order="K")))
        return {
            int(value): frozenset(name for name, values in self.values.items() if value in values)
            for value in present
            if value
        }


def by_name(array: np.ndarray, own: Named, table: Table, source: str) -> tuple[np.ndarray, list[str]]:
    """A label image with the values of a table, and warnings.

    Args:
        array: (I, J, K), unsigned integers.
        own: its labels.
        table: the values of the labels that are known.
        source: for messages.

    Returns:
        uint8, or uint16 if a value exceeds 255. If the table has none of the names, the array as it is with a warning.

    Raises:
        InputError: the table has some of the names, but not all of those with voxels; or it has no value for voxels of
            several labels.
    """
    matched = matching(own.numbers, table)
    if not matched:
        said = (
            f"No name in the DICOM object is among the labels ({first_few(list(table))}), so its labels are taken by "
            f"number: {own.listed()}."
        )
        return array, [said]
    sets = own.sets(array)
    unknown = sorted({name for names in sets.values() for name in names} - set(matched))
    if unknown:
        raise InputError(
            f"{source} names {first_few(unknown)}, which the labels lack ({first_few(list(table))}), though they have "
            f"{first_few(list(matched))}",
            "add what is missing to the labels, or rename or remove it in the DICOM object",
            "labels without a name",
        )
    innermost = {number: name for name, number in own.numbers.items()}
    found = {
        value: _value({matched[name] for name in names}, matched.get(innermost.get(value, "")), table, source)
        for value, names in sets.items()
    }
    return renumbered(array, found), []


def renumbered(array: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    """A label image with other values, each from 0 to 65535; those that are not listed become 0."""
    largest = max(values.values(), default=0)
    kept = np.zeros(max(int(array.max()), *values, 0) + 1, np.uint8 if largest <= 255 else np.uint16)
    for value, other in values.items():
        kept[value] = other
    return np.asfortranarray(kept[array])


def matching(names: Iterable[str], table: Iterable[str]) -> dict[str, str]:
    """The name in a table for each name that has one there."""
    own, known = list(names), list(table)
    found = {name: name for name in own if name in known}
    left = [name for name in own if name not in found]
    free = [name for name in known if name not in found]
    times = Counter(map(_key, left))
    for name in left:
        same = [other for other in free if _key(name) in (_key(other), _key(other[:_LONGEST]))]
        if len(same) == 1 and times[_key(name)] == 1:
            found[name] = same[0]
    return {name: found[name] for name in own if name in found}


def shared_table(sets: Iterable[frozenset[str]], names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Values for labels of several images, so that each combination of labels that occurs has a value of its own.

    Args:
        sets: the combinations.
        names: of all labels.
    """
    ordered = list(dict.fromkeys(names))
    values = {frozenset({name}): at for at, name in enumerate(ordered, 1)}
    for one in sorted(set(sets) - set(values), key=sorted):
        values[one] = len(values) + 1
    return {name: tuple(value for names, value in values.items() if name in names) for name in ordered}


def _value(names: set[str], innermost: str | None, table: Table, source: str) -> int:
    """The value in a table of a voxel of some labels."""
    every = sorted({value for values in table.values() for value in values})
    for value in every:
        if {name for name, values in table.items() if value in values} == names:
            return value
    # Of plain labels within each other, a voxel has one value: that of the inner one.
    if innermost is not None and len(table[innermost]) == 1:
        return table[innermost][0]
    raise InputError(
        f"{source} has voxels that are {' and '.join(sorted(names))} alone, for which the labels have no value",
        "give labels that have one, such as those in the record of volseg convert",
        "labels without a value",
    )


def _key(name: str) -> str:
    """A name without case, spaces, hyphens and underscores."""
    return "".join(one for one in name.casefold() if one not in "-_" and not one.isspace())
