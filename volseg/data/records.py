"""Training cases as a list in Python, instead of a folder.

Each case is (image, label) or, as in MONAI, {"image": ..., "label": ...}. An image is a path, or a list of paths, one
per channel; the label is the path of a label image. Relative paths are relative to the working directory. A dictionary
may also have a "name", a "fold" and a "group", as in dataset.json of a Decathlon; without a name, a case has that of
its first image file.

A list names neither labels nor channels: the labels are label_1, label_2, ... by the values in the label images. To
name them, give what dataset.json would hold, with such a list: {"training": cases, "labels": {"Liver": 1},
"channel_names": ["CT"]}; its other keys ("name", "validation", "groups", "licence", ...) mean the same as there.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field

from volseg.config import checked
from volseg.data.cases.dataset import Dataset, TrainingCase, labels_found, make_dataset
from volseg.data.dataset_json import Decathlon, Scan, stated_folds
from volseg.errors import InputError, UsageError
from volseg.files import common_folder, given_path
from volseg.text import counted, first_few, printable

# One file, or one per channel.
Images: TypeAlias = str | Path | Sequence[str | Path]
Record: TypeAlias = tuple[Images, str | Path] | Mapping[str, Any]
Records: TypeAlias = Sequence[Record] | Mapping[str, Any]
SOURCE = "the list of cases"


class NamedScan(Scan):
    """One case of a list."""

    own_name: str | None = Field(None, alias="name")

    @property
    def name(self) -> str:
        """The name of the case."""
        return super().name if self.own_name is None else self.own_name


class _Listed(Decathlon):
    """A list of cases, with what dataset.json would say of them."""

    training: list[NamedScan]  # type: ignore[assignment]
    validation: list[NamedScan] = Field(default_factory=list)  # type: ignore[assignment]


def open_cases(dataset: Records) -> Dataset:
    """The dataset of a list of cases.

    Raises:
        InputError: a file is missing, two cases have one name, or as `volseg.data.cases.dataset.open_dataset`.
        UsageError: no such list.
    """
    listed = dataset.get("training") if isinstance(dataset, Mapping) else dataset
    if not isinstance(listed, list | tuple):
        raise UsageError(
            f"The dataset has the type {type(dataset).__name__}, expected a folder, a list of cases (image, label), or "
            '{"training": such a list, "labels": {name: value}}.'
        )
    document = dict(dataset) if isinstance(dataset, Mapping) else {}
    for half, entries in (("training", listed), ("validation", document.get("validation", ()))):
        document[half] = [_entry(one, number) for number, one in enumerate(entries)]
    channels = document.get("channel_names", document.get("modality"))
    if isinstance(channels, list | tuple):
        channels = {str(number): name for number, name in enumerate(channels)}
    document |= {"modality": channels}
    return _of_document(document)


def _of_document(document: dict[str, Any]) -> Dataset:
    index = checked(_Listed, document, "The list of cases", InputError)
    scans = [*index.training, *index.validation]
    if not scans:
        raise InputError("The list of cases is empty. Give (image, label) for each case.")
    cases = [TrainingCase(scan.name, tuple(_path(file) for file in scan.image), _path(scan.label)) for scan in scans]
    _require_names(cases)
    _require_files(cases)
    folder = common_folder([path.parent for case in cases for path in (*case.images, case.label)])
    document["name"] = document.get("name") or (folder and folder.name) or "cases"
    document.setdefault("labels", None)
    if document["labels"] is None:
        document["labels"] = labels_found(cases)
    own = {scan.name: str(scan.group) for scan in scans if scan.group is not None}
    folds = stated_folds(index.training, index.validation, SOURCE)
    annotated = {scan.name: scan.annotated for scan in scans if scan.annotated is not None}
    return make_dataset(None, document, index.channels, cases, folds, own, annotated)


def _entry(record: Any, number: int) -> dict[str, Any]:
    """A case of a list as an entry of dataset.json."""
    if isinstance(record, Mapping):
        entry = dict(record)
    elif isinstance(record, list | tuple) and len(record) == 2:
        entry = {"image": record[0], "label": record[1]}
    else:
        raise UsageError(
            f"Case {number} of the list is {printable(repr(record))[:200]}, expected (image, label) or "
            '{"image": path or paths, "label": path}.'
        )
    images = entry.get("image")
    images = [_text(one) for one in images] if isinstance(images, list | tuple) else _text(images)
    return entry | {"image": images, "label": _text(entry.get("label"))}


def _text(path: Any) -> Any:
    """A path as dataset.json has it; anything else is left to the check of the whole."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _path(stated: str) -> Path:
    return given_path(stated).absolute()


def _require_names(cases: Sequence[TrainingCase]) -> None:
    """Refuse names that no file could have, and a name of two cases."""
    seen: dict[str, TrainingCase] = {}
    for case in cases:
        if not case.name.strip(". ") or set(case.name) & set("/\\\0"):
            raise InputError(
                f"A case is named {printable(case.name)!r}, which no file can be named. Give another name."
            )
        if other := seen.get(case.name):
            raise InputError(
                f"Two cases are named {case.name}, after {other.images[0]} and {case.images[0]}. Name them: "
                '{"name": ..., "image": ..., "label": ...}.'
            )
        seen[case.name] = case


def _require_files(cases: Sequence[TrainingCase]) -> None:
    missing = [path for case in cases for path in (*case.images, case.label) if not path.exists()]
    if missing:
        raise InputError(
            f"{counted(len(missing), 'file')} of the list of cases {'is' if len(missing) == 1 else 'are'} not there: "
            f"{first_few(missing, 3)}. Relative paths are relative to the working directory."
        )
