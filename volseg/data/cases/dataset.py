"""A folder of scans with reference labels as training cases, and the folds and groups that it states.

Three layouts are recognised by the contents of the folder:

    Medical Segmentation Decathlon   dataset.json with "training": [{"image": ..., "label": ...}]; as in MONAI, each
                                     entry may have a "fold", or there may be a list "validation" of such entries
    nnU-Net v2 raw                   dataset.json with "channel_names"; imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz
    plain                            images/ and labels/ with files of equal names; optional labels.json {name: value};
                                     a label may be a DICOM segmentation or structure set (NAME.dcm), as in a Decathlon

"groups" in dataset.json, {case: group}, or a "group" in each entry of a Decathlon names cases that stay in one fold, as
the scans of one patient. Hidden files, such as the ._ files of macOS, are no cases.
"annotated" names the labels that somebody looked for, where that is not all of them: a list for all cases, a mapping
{case: [names]}, of which the cases that it lacks have all labels, or a list in each entry of a Decathlon.
The declaration of labels and of their codes ("label_codes" in dataset.json) is described in `volseg.data.cases.labels`.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from volseg.config import checked
from volseg.data.cases.labels import LabelSet, parse_labels, with_codes
from volseg.data.cases.sources.case_labels import ALL_LABELS, CaseLabels, stated_annotated
from volseg.data.dataset_json import Decathlon, Groups, NnUNet, Plain, shown, stated_folds
from volseg.data.folds import (
    SPLITS,
    Folds,
    Grouping,
    check_known,
    group_cases,
    own_folds,
    read_splits,
    same_folds,
    warn_of_torn_groups,
)
from volseg.data.io.formats import image_suffix, label_name, stem_of, without_result_files
from volseg.data.io.inputs import NNUNET_CHANNEL
from volseg.data.io.reading import read_label_of
from volseg.documents import read_json, read_or
from volseg.errors import InputError, Problem, UsageError
from volseg.files import access_to, is_hidden
from volseg.text import counted, first_few, printable, shortened

logger = logging.getLogger(__name__)

# Characters of a dataset's name, and of its licence and its description in records.
LONGEST_NAME, LONGEST_TEXT = 400, 2000
# Characters of a path that the system could open.
LONGEST_PATH = 4096


@dataclass(frozen=True)
class TrainingCase:
    """One scan with its label image.

    Args:
        name: unique in the dataset.
        images: one file per channel, or one file that holds all channels.
        label: the reference label image.
        own: which labels are annotated there, and how it says them; the default: all, as the dataset says.
        source: in a joined dataset, the name of the dataset that the case is from.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    own: CaseLabels = ALL_LABELS
    source: str = ""


@dataclass(frozen=True)
class Dataset:
    """A training dataset.

    Args:
        name: of the dataset.
        folder: its path; None for a list of cases.
        channels: their names, in order.
        labels: the labels to segment, and the ignore label.
        cases: sorted by name; whether their files exist is checked only when they are read.
        licence: as the dataset states it, or "".
        description: as the dataset states it, or "".
        problems: those that prevent training and are visible without reading an image.
        folds: those that dataset.json states; None if it states none.
        groups: case name to its group; only of the cases for which one is stated.
        splits: a file with folds, used instead of any in the dataset.
        parts: of a joined dataset, the datasets by name, see `volseg.data.joining`.
    """

    name: str
    folder: Path | None
    channels: tuple[str, ...]
    labels: LabelSet
    cases: tuple[TrainingCase, ...]
    licence: str = ""
    description: str = ""
    problems: tuple[Problem, ...] = ()
    folds: Folds | None = None
    groups: dict[str, str] = field(default_factory=dict)
    splits: Path | None = None
    parts: Mapping[str, "Dataset"] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of all cases, sorted."""
        return sorted(case.name for case in self.cases)


def open_dataset(folder: Path) -> Dataset:
    """Find the cases of a training dataset; no image is read, except the label images of a plain folder without names.

    Args:
        folder: in one of the three layouts above.

    Raises:
        InputError: no such folder, none of the layouts, a dataset.json with values of the wrong type or with channels
            that are not numbered from 0, no cases, folds or groups that contradict themselves, or labels that
            `parse_labels` rejects.
    """
    folder = Path(folder)
    with access_to(folder):
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}. Give the folder of a training dataset.")
    index = folder / "dataset.json"
    if index.exists():
        document = _read_json(index)
        keys = document if isinstance(document, dict) else {}
        if "channel_names" in keys:
            dataset = _open_nnunet(folder, document, checked(NnUNet, document, str(index), InputError))
        elif "training" in keys:
            dataset = _open_decathlon(folder, document, checked(Decathlon, document, str(index), InputError))
        else:
            raise InputError(f'{index} has neither "training" (Decathlon) nor "channel_names" (nnU-Net v2).')
    elif (folder / "images").is_dir() and (folder / "labels").is_dir():
        dataset = _open_plain(folder)
    else:
        raise InputError(
            f"{folder} is not a training dataset: it contains neither dataset.json (Decathlon or nnU-Net v2 raw) "
            "nor the folders images and labels."
        )
    if not dataset.cases:
        raise InputError(f"{folder} contains no training case. A case needs a scan and a label image.")
    return dataset


def split_folds(dataset: Dataset, folds: int = 5) -> Folds:
    """The folds of a dataset, each as {"train": names, "val": names}.

    From `dataset.splits`, splits_final.json in the folder or dataset.json, the first that there is, whatever its number
    of folds; otherwise those of nnU-Net, in which the cases of a group stay together, see `volseg.data.folds`. Warnings
    tell of another number than `folds`, of two sources that differ, and of groups that are torn apart.

    Raises:
        UsageError: fewer than 2 folds.
        InputError: fewer cases or groups than folds, or a file that `read_splits` rejects.
    """
    if folds < 2:
        raise UsageError(f"--folds is {folds}, expected at least 2. Use --fold all to train on every case.")
    found = folds_in_files(dataset)
    if found is None:
        return own_folds(dataset.names, grouping_of(dataset), folds)
    if len(found.splits) != folds:
        logger.warning("Using the %s of %s instead of %d", counted(len(found.splits), "fold"), found.source, folds)
    return found


def folds_in_files(dataset: Dataset) -> Folds | None:
    """The folds in a file that is given, or in one of the dataset; None if there are none.

    Raises:
        InputError: a file that `read_splits` rejects.
    """
    path = dataset.splits or (None if dataset.folder is None else dataset.folder / SPLITS)
    found = dataset.folds
    if path and (dataset.splits or path.exists()):
        found = read_splits(path, dataset.names)
        if dataset.folds and not dataset.splits and not same_folds(found, dataset.folds):
            logger.warning("Using the folds of %s, not those of %s, which differ", found.source, dataset.folds.source)
    if found:
        warn_of_torn_groups(found, grouping_of(dataset))
    return found


def grouping_of(dataset: Dataset) -> Grouping:
    """The cases of a dataset that stay in one fold."""
    return group_cases(dataset.names, dataset.groups)


def _open_decathlon(folder: Path, document: dict[str, Any], index: Decathlon) -> Dataset:
    source = str(folder / "dataset.json")
    training, validation = shown(index.training), shown(index.validation)
    stated = document.get("validation", [])
    if unlabelled := len(stated) - len(index.validation):
        logger.info('%s of "validation" in %s without a label: not used', counted(unlabelled, "scan"), source)
    scans = [*training, *validation]
    cases = [
        TrainingCase(scan.name, tuple(_inside(folder, file) for file in scan.image), _inside(folder, scan.label))
        for scan in scans
    ]
    folds = stated_folds(training, validation, source)
    own = {scan.name: str(scan.group) for scan in scans if scan.group is not None}
    annotated = {scan.name: scan.annotated for scan in scans if scan.annotated is not None}
    return make_dataset(folder, document, index.channels, cases, folds, own, annotated)


def _inside(folder: Path, stated: str) -> Path:
    """A file that dataset.json names, which has to be below the folder; links there may lead elsewhere.

    Raises:
        InputError: it is not, so a dataset from someone else could name any file of this machine.
    """
    # Of the name alone: what a link leads to is the choice of whoever made the folder here.
    parts = Path(os.path.relpath(os.path.normpath(folder.absolute() / stated), folder.absolute())).parts
    if "\0" in stated or not parts or parts[0] == os.pardir or len(stated) > LONGEST_PATH:
        raise InputError(
            f"dataset.json in {folder} names the file {shortened(printable(stated), 200)!r}, which is not in that "
            "folder. Move the file there, or put a link to it there."
        )
    return folder / stated


def _open_nnunet(folder: Path, document: dict[str, Any], index: NnUNet) -> Dataset:
    ending = index.file_ending
    images, references = _named_files(folder / "imagesTr", ending), _named_files(folder / "labelsTr", ending)
    names = {match[1] for stem in images if (match := NNUNET_CHANNEL.fullmatch(stem))} | set(references)
    if not names:
        found = [path.name for part in ("imagesTr", "labelsTr") for path in _files_in(folder / part)]
        raise InputError(
            f"{folder} contains no training case: imagesTr has no file named CASE_0000{ending} and labelsTr no "
            f'CASE{ending}, by "file_ending" in dataset.json; found {first_few(found) or "no file"}.'
        )
    cases = [
        TrainingCase(
            name,
            tuple(
                images.get(stem, folder / "imagesTr" / f"{stem}{ending}")
                for stem in (f"{name}_{channel:04d}" for channel in range(len(index.channel_names)))
            ),
            references.get(name, folder / "labelsTr" / f"{name}{ending}"),
        )
        for name in sorted(names)
    ]
    return make_dataset(folder, document, index.channel_names, cases)


def _named_files(folder: Path, ending: str) -> dict[str, Path]:
    """The files with an ending, in whatever case it is written, by their names without it."""
    files = [path for path in _files_in(folder) if path.name.lower().endswith(ending.lower())]
    # As it is stated, where a name has it in both cases.
    files.sort(key=lambda path: path.name.endswith(ending))
    return {path.name[: -len(ending)]: path for path in files}


def _files_in(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing if there is no such folder.

    Left out are hidden files and those that belong to results: labels may be results, corrected or not.
    """
    found = sorted(path for path in folder.iterdir() if not is_hidden(path.name)) if folder.is_dir() else []
    return without_result_files(found)


def _open_plain(folder: Path) -> Dataset:
    images = [path for path in _files_in(folder / "images") if image_suffix(path)]
    references = [path for path in _files_in(folder / "labels") if _is_label(path)]
    partner = {label_name(path): path for path in reversed(references)}
    # A file without a partner becomes a case whose other file is missing.
    cases = [
        TrainingCase(stem_of(path), (path,), partner.get(stem_of(path), folder / "labels" / path.name))
        for path in images
    ]
    paired = {case.label for case in cases}
    cases += [
        TrainingCase(label_name(path), (folder / "images" / path.name,), path)
        for path in references
        if path not in paired
    ]
    names = folder / "labels.json"
    labels = _read_json(names) if names.exists() else labels_found(cases)
    # Either the labels alone, or as in dataset.json.
    whole = isinstance(labels, dict) and isinstance(labels.get("labels"), dict)
    if not whole:
        return make_dataset(folder, {"labels": labels}, ("image",), cases)
    return make_dataset(folder, labels, checked(Plain, labels, str(names), InputError).channels, cases)


def _is_label(path: Path) -> bool:
    """Whether a file is a label image by its name: an image, or a DICOM segmentation or structure set."""
    return image_suffix(path) is not None or path.suffix.lower() == ".dcm"


def labels_found(cases: Sequence[TrainingCase]) -> dict[str, int]:
    """A name for each value in the label images, or the names if all are DICOM; what cannot be read is skipped."""
    found: set[int] = set()
    named: set[str] = set()
    for case in cases:
        with suppress(InputError):
            label = read_label_of(case.label, case.images[0])
            if label.named is not None:
                named |= set(label.named.numbers)
            else:
                found |= {int(value) for value in np.unique(label.channels[0])}
    if named and not found:
        return {name: value for value, name in enumerate(sorted(named), 1)}
    return {f"label_{value}": value for value in sorted(found - {0})}


def make_dataset(
    folder: Path | None,
    document: dict[str, Any],
    channels: tuple[str, ...],
    cases: list[TrainingCase],
    folds: Folds | None = None,
    own_groups: Mapping[str, str] | None = None,
    own_annotated: Mapping[str, tuple[str, ...]] | None = None,
) -> Dataset:
    """The dataset, after the checks common to all layouts.

    Args:
        folder: None for a list of cases, whose document has a name.
        document: as dataset.json.
        channels: their names.
        cases: in any order.
        folds: those that are stated.
        own_groups: those that are stated with each case.
        own_annotated: the annotated labels that are stated with each case.
    """
    source = "the list of cases" if folder is None else str(folder)
    labels = parse_labels(document.get("labels", {}), document.get("regions_class_order"), source)
    labels = with_codes(labels, document.get("label_codes"), source)
    first = {case.name: case for case in reversed(cases)}
    own = stated_annotated(document, own_annotated or {}, sorted(first), list(labels.stored), source)
    return Dataset(
        # It goes into model files, which are UTF-8.
        name=printable(_text(document.get("name")) or (folder or Path()).resolve().name)[:LONGEST_NAME],
        folder=folder,
        channels=channels,
        labels=labels,
        cases=tuple(replace(first[name], own=own.get(name, ALL_LABELS)) for name in sorted(first)),
        licence=_text(document.get("licence", document.get("license"))),
        description=_text(document.get("description")),
        problems=tuple(_same_name(case, first[case.name]) for case in cases if case is not first[case.name]),
        folds=folds,
        groups=_groups(document, own_groups or {}, set(first), source),
    )


def _groups(document: dict[str, Any], own: Mapping[str, str], names: Collection[str], source: str) -> dict[str, str]:
    """Case name to its group, where one is stated.

    Raises:
        InputError: no mapping of names to groups, one of cases that are not there, or groups stated in two ways.
    """
    stated = checked(Groups, document, source, InputError).groups
    if stated and own:
        raise InputError(f'{source} states groups twice, in "groups" and by the "group" of its cases. Remove one.')
    check_known(stated, names, f'"groups" in {source}', 'Give {"case": "group"}.')
    return {name: str(group) for name, group in (stated or own).items()}


def _text(stated: Any) -> str:
    """A text or number as the dataset states it; "" for anything else."""
    return shortened(str(stated), LONGEST_TEXT) if isinstance(stated, str | int | float) else ""


def _same_name(case: TrainingCase, first: TrainingCase) -> Problem:
    """The problem of a second case with the same name."""
    files, others = (", ".join(map(str, (*one.images, one.label))) for one in (case, first))
    return Problem(case.name, "same name", f"used by ({others}) and by ({files})", "rename or remove one of them")


def _read_json(path: Path) -> Any:
    return read_or(InputError, read_json, path, "readable JSON", "Check its permissions and its disk.")
