"""The values of labels in two label images of which one or both may name them, as DICOM does."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from volseg.data.io.dicom_labels.label_names import Named, Table, matching, renumbered, shared_table
from volseg.data.io.formats import sibling
from volseg.data.io.reading import Scan
from volseg.documents import DocumentError, read_json
from volseg.evaluation.overlap import values_in
from volseg.text import first_few


class Valued(NamedTuple):
    """A reference and a prediction whose labels have the same values in both.

    Args:
        reference: (I, J, K).
        prediction: (I, J, K), on the same grid.
        values: of each label by name.
        warnings: one sentence each.
    """

    reference: Scan
    prediction: Scan
    values: Mapping[str, int | tuple[int, ...]]
    warnings: tuple[str, ...] = ()


def with_values(reference: Scan, prediction: Scan) -> Valued:
    """Find out which values are the same label, where nothing but the two images says it.

    Two objects with names are matched by them. Of one alone, the numbers are taken as the values of the other image.
    Images without names are matched by value, as label_1, label_2, ...
    """
    if reference.named is not None and prediction.named is not None:
        return _by_names(reference, reference.named, prediction, prediction.named)
    named = reference.named or prediction.named
    found = values_in(reference.channels[0]) | values_in(prediction.channels[0])
    if named is None:
        return Valued(reference, prediction, {f"label_{value}": (value,) for value in sorted(found)})
    known = {value for values in named.values.values() for value in values}
    others = {f"label_{value}": (value,) for value in sorted(found - known)}
    said = (
        f"Only the {'reference' if reference.named else 'prediction'} has names of labels, so the values of the other "
        f"are taken for its numbers: {named.listed()}. If they are others, give --labels (labels= in Python)."
    )
    return Valued(reference, prediction, {**named.values, **others}, (said,))


def by_record(prediction: Scan, path: Path, labels: Table) -> Scan:
    """A prediction with the values of `labels`, where the record beside it names its labels and gives them others.

    Models have values of their own, such as those that were joined from several datasets.

    Args:
        prediction: (I, J, K).
        path: its file; the record of `volseg predict` is the JSON file of the same name.
        labels: name to values.
    """
    stated = _recorded_values(sibling(path, ".json"))
    differ = {name: value for name, value in stated.items() if name in labels and labels[name] != (value,)}
    if not differ:
        return prediction
    taken = {value for values in labels.values() for value in values}
    free = (value for value in range(1, 65536) if value not in taken | set(stated.values()))
    others = values_in(prediction.channels[0]) - set(stated.values())
    # What has no name in `labels` keeps having none.
    moved = {value: labels[name][0] if name in labels else next(free) for name, value in stated.items()}
    moved |= {value: next(free) if value in taken else value for value in others}
    said = (
        "The record of the prediction gives its labels other values than --labels (labels= in Python): "
        f"{first_few([f'{name} {value}' for name, value in differ.items()])}. They are matched by name."
    )
    channel = renumbered(prediction.channels[0], moved)
    return replace(prediction, channels=(channel,), warnings=(*prediction.warnings, said))


def _recorded_values(path: Path) -> dict[str, int]:
    """The name and the value of each label in the record of a result; none where there is no such record."""
    try:
        labels = read_json(path)["labels"]
        return {name: int(one["value"]) for name, one in labels.items() if 0 < one["value"] <= 65535}
    except (OSError, DocumentError, KeyError, TypeError, AttributeError, ValueError):
        return {}


def _by_names(reference: Scan, true: Named, prediction: Scan, predicted: Named) -> Valued:
    """Two images with names, with the values of one table."""
    same = matching(predicted.numbers, true.numbers)
    true_sets = true.sets(reference.channels[0])
    predicted_sets = {
        value: frozenset(same.get(name, name) for name in names)
        for value, names in predicted.sets(prediction.channels[0]).items()
    }
    names = [*true.numbers, *(same.get(name, name) for name in predicted.numbers)]
    table = shared_table([*true_sets.values(), *predicted_sets.values()], names)
    value_of = {
        frozenset(name for name, values in table.items() if value in values): value
        for value in {value for values in table.values() for value in values}
    }
    alone = [name for name in (*true.numbers, *predicted.numbers) if name not in same and name not in same.values()]
    said = f"Labels that only one of the two names: {first_few(alone)}. They are not matched by number."
    scans = [
        replace(scan, channels=(renumbered(scan.channels[0], {at: value_of[one] for at, one in sets.items()}),))
        for scan, sets in ((reference, true_sets), (prediction, predicted_sets))
    ]
    return Valued(scans[0], scans[1], table, (said,) if alone else ())
