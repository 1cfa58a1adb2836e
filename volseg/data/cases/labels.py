"""The labels that a dataset declares: names and values, nnU-Net's regions, and the ignore label.

plain      {"TZ": 1, "PZ": 2}, or in the Decathlon's form {"1": "TZ", "2": "PZ"}
regions    {"whole": [1, 2], "core": 2} with "regions_class_order": [1, 2]: labels that may overlap. A region is the
           union of the stored values in its list; a prediction is written with its value in the order, later regions
           over earlier ones
ignore     {"ignore": 3} added to either of them, with the highest value: voxels without annotation

What a label is in DICOM objects may be stated beside them, {"TZ": {"value": ..., "scheme": "SCT", "meaning": ...}}.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from volseg.config import LabelCode, Plan, checked
from volseg.config.plan import MOST_LABELS
from volseg.data.io.checks import LARGEST_LABEL
from volseg.errors import InputError
from volseg.text import first_few, shortened, whole_number

IGNORE = "ignore"
# Characters, as in a plan.
LONGEST_NAME = 500
# Characters of what a message quotes.
SHOWN = 200


@dataclass(frozen=True)
class LabelSet:
    """The labels of a dataset.

    Args:
        values: name to the value written in predictions, without background; in ascending order, regions in theirs.
        parts: for regions, name to the stored values that each consists of; empty for plain labels.
        ignore: the value of ignored voxels, which have no annotation; None without an ignore label.
        codes: name to the code of the label, where one is stated.
    """

    values: dict[str, int]
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: int | None = None
    codes: dict[str, LabelCode] = field(default_factory=dict)

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """Name to the values of the label in label images."""
        return self.parts or {name: (value,) for name, value in self.values.items()}

    @property
    def table(self) -> dict[str, tuple[int, ...]]:
        """Name to values in label images, those of the ignore label included."""
        return with_ignore(self.stored, self.ignore)

    @property
    def known(self) -> set[int]:
        """All values that label images may contain, apart from 0."""
        return {value for values in self.table.values() for value in values}


def parse_labels(labels: Any, order: Any, source: str, predicts: bool = True) -> LabelSet:
    """Parse the labels of a file, in one of the forms above.

    Args:
        labels: the mapping of names to values.
        order: nnU-Net's regions_class_order; None if it is missing.
        source: the file, for messages.
        predicts: whether `LabelSet.values` is needed; else regions need no order, and have no values.

    Raises:
        InputError: not such a mapping, an invalid value, two labels with one value, no foreground label, regions
            without a matching order, or an ignore label that is not the highest.
    """
    if not isinstance(labels, Mapping):
        raise InputError(f"'labels' in {source} is a {type(labels).__name__}; expected a mapping of names to values.")
    stored: dict[str, tuple[int, ...]] = {}
    seen: set[str] = set()
    for key, entry in labels.items():
        name, values = _entry(key, entry, source)
        if len(name) > LONGEST_NAME or len(stored) >= MOST_LABELS:
            raise InputError(
                f"{source} has more than {MOST_LABELS} labels, or one with a name of more than {LONGEST_NAME} "
                "characters; that many are not supported."
            )
        # Names that differ in blanks alone look the same wherever they are shown.
        shown = " ".join(name.split())
        if shown in seen:
            raise InputError(f"Two labels in {source} share the name '{shown}'; give each a different one.")
        seen.add(shown)
        stored[name] = values
    ignored = stored.pop(IGNORE, None)
    foreground = {name: values for name, values in stored.items() if values != (0,)}
    if not foreground:
        raise InputError(f"{source} has no foreground label. List its labels, for example {{'Liver': 1}}.")
    if any(len(values) > 1 for values in foreground.values()):
        found = LabelSet(_written_values(foreground, order, source) if predicts else {}, foreground)
    else:
        found = LabelSet({name: values[0] for name, values in sorted(foreground.items(), key=lambda item: item[1])})
    if len(set(found.values.values())) < len(found.values):
        raise InputError(
            f"Two labels in {source} share a value: {_short(str(found.values))}; give each a different one."
        )
    if ignored is None:
        return found
    highest = max(found.known)
    if len(ignored) > 1 or ignored[0] <= highest:
        raise InputError(
            f"The label 'ignore' in {source} has the value {', '.join(map(str, ignored))}. Give it a single value "
            f"above {highest}, the highest of the other labels."
        )
    return replace(found, ignore=ignored[0])


def with_ignore(stored: Mapping[str, tuple[int, ...]], ignore: int | None) -> dict[str, tuple[int, ...]]:
    """The values of labels by name, and those of the ignore label, if there is one."""
    return {**stored, **({} if ignore is None else {IGNORE: (ignore,)})}


def table_of(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The values of a plan's labels in label images by name, those of the ignore label included."""
    return with_ignore({label.name: label.stored_values for label in plan.labels}, plan.ignore)


def with_codes(labels: LabelSet, stated: Any, source: str) -> LabelSet:
    """The labels with the codes that a file states for them by name; as they are if it states none (None).

    Raises:
        InputError: not a mapping of names to codes, an invalid code, or a name that no label has.
    """
    if stated is None:
        return labels
    where = f"'label_codes' in {source}"
    if not isinstance(stated, Mapping):
        raise InputError(f"{where} is a {type(stated).__name__}; expected a mapping of names to codes.")
    unknown = [str(name) for name in stated if name not in labels.values]
    if unknown:
        raise InputError(f"{where} names {first_few(unknown)}, but the labels are {first_few(list(labels.values))}.")
    return replace(
        labels, codes={name: checked(LabelCode, one, f"{where}, {name},", InputError) for name, one in stated.items()}
    )


def _entry(key: Any, entry: Any, source: str) -> tuple[str, tuple[int, ...]]:
    """One label in the form {name: value or values} or, in the Decathlon, {value: name}."""
    if isinstance(entry, str) and (value := whole_number(key)) is not None:
        key, entry = entry, value
    values = entry if isinstance(entry, list | tuple) else [entry]
    if not values or not all(type(value) is int and 0 <= value <= LARGEST_LABEL for value in values):
        raise InputError(
            f"Label '{_short(key)}' in {source} has the value {_short(repr(entry))}, expected an integer from 0 to "
            f"{LARGEST_LABEL}, or a list of them for a region."
        )
    if 0 in values and len(values) > 1:
        raise InputError(
            f"Region '{_short(key)}' in {source} is {_short(repr(entry))}; remove 0, which is the background."
        )
    return str(key), tuple(dict.fromkeys(values))


def _short(text: object) -> str:
    """A text of a file for a message."""
    return shortened(str(text), SHOWN)


def _written_values(regions: Mapping[str, tuple[int, ...]], order: Any, source: str) -> dict[str, int]:
    """The value that each region has in predictions."""
    order = order if isinstance(order, list | tuple) else []
    if len(order) != len(regions):
        raise InputError(
            f"{source} has {len(regions)} regions, but its regions_class_order has {len(order)} values. "
            "Give one per region."
        )
    for (name, parts), value in zip(regions.items(), order, strict=True):
        if value not in parts:
            raise InputError(
                f"Region '{name}' in {source} is {_short(str(list(parts)))}, but its value in regions_class_order is "
                f"{_short(repr(value))}. "
                "Give one of the region's own values."
            )
    return dict(zip(regions, order, strict=True))
