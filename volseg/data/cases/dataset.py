"""A folder of scans with reference labels as training cases, and its split into folds.

Three layouts are recognised by the contents of the folder:

    Medical Segmentation Decathlon   dataset.json with "training": [{"image": ..., "label": ...}]
    nnU-Net v2 raw                   dataset.json with "channel_names"; imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz
    plain                            images/ and labels/ with files of equal names; optional labels.json {name: value};
                                     a label may be a DICOM segmentation or structure set (NAME.dcm), as in a Decathlon

The declaration of labels and of their codes ("label_codes" in dataset.json) is described in `volseg.data.cases.labels`.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from volseg.config import Frozen, Name, checked
from volseg.config.plan import MOST_CHANNELS
from volseg.data.cases.labels import LabelSet, parse_labels, with_codes
from volseg.data.io.formats import image_suffix, label_name, stem_of
from volseg.data.io.reading import read_label_of
from volseg.documents import read_json, read_or
from volseg.errors import InputError, Problem, UsageError
from volseg.files import access_to, is_hidden
from volseg.text import first_few, printable, shortened

logger = logging.getLogger(__name__)

Split = dict[str, list[str]]
# Characters of a dataset's name, and of its licence and its description in records.
LONGEST_NAME, LONGEST_TEXT = 400, 2000
# Characters of a path that the system could open.
LONGEST_PATH = 4096


def _in_order(names: Any) -> list[Any]:
    """The values of {"0": name, "1": name, ...} in the order of their numbers, not of the file."""
    if not isinstance(names, dict) or not names or set(names) != {str(index) for index in range(len(names))}:
        raise ValueError('expected {"0": name, "1": name, ...}, numbered from 0 without a gap')
    return [names[str(index)] for index in range(len(names))]


Channels = Annotated[tuple[Name, ...], BeforeValidator(_in_order), Field(max_length=MOST_CHANNELS)]


def _ending(text: str) -> str:
    """The end of a file's name, which must not lead into another folder or stand for any name."""
    if len(text) > 20 or not text.isprintable() or set(text) & set("/\\*?["):
        raise ValueError("expected the end of a file name such as .nii.gz")
    return text


class _Document(Frozen):
    """A part of a JSON file of a dataset; keys that training does not need are ignored."""

    model_config = ConfigDict(extra="ignore")


class _Scan(_Document):
    """One entry of a Decathlon's "training"."""

    image: str
    label: str


class _Decathlon(_Document):
    """dataset.json of the Decathlon."""

    modality: Channels = ("image",)
    training: list[_Scan]


class _NnUNet(_Document):
    """dataset.json of nnU-Net v2."""

    channel_names: Channels
    file_ending: Annotated[str, AfterValidator(_ending)] = ".nii.gz"


class _Fold(_Document):
    """One entry of splits_final.json."""

    train: list[str]
    val: list[str]


@dataclass(frozen=True)
class TrainingCase:
    """One scan with its label image.

    Args:
        name: unique in the dataset.
        images: one file per channel, or one file that holds all channels.
        label: the reference label image.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class Dataset:
    """A training dataset.

    Args:
        name: of the dataset.
        folder: its path.
        channels: their names, in order.
        labels: the labels to segment, and the ignore label.
        cases: sorted by name; whether their files exist is checked only when they are read.
        licence: as the dataset states it, or "".
        description: as the dataset states it, or "".
        problems: those that prevent training and are visible without reading an image.
    """

    name: str
    folder: Path
    channels: tuple[str, ...]
    labels: LabelSet
    cases: tuple[TrainingCase, ...]
    licence: str = ""
    description: str = ""
    problems: tuple[Problem, ...] = ()


def open_dataset(folder: Path) -> Dataset:
    """Find the cases of a training dataset; no image is read, except the label images of a plain folder without names.

    Args:
        folder: in one of the three layouts above.

    Raises:
        InputError: no such folder, none of the layouts, a dataset.json with values of the wrong type or with channels
            that are not numbered from 0, no cases, or labels that `parse_labels` rejects.
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
            dataset = _open_nnunet(folder, document, checked(_NnUNet, document, str(index), InputError))
        elif "training" in keys:
            dataset = _open_decathlon(folder, document, checked(_Decathlon, document, str(index), InputError))
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


def split_folds(dataset: Dataset, folds: int = 5) -> list[Split]:
    """The folds of a dataset, each as {"train": names, "val": names}.

    From splits_final.json in the folder if it exists, whatever its number of folds, with a warning if that differs;
    otherwise those of nnU-Net: scikit-learn's KFold of the sorted names, shuffled with random state 12345.

    Raises:
        UsageError: fewer than 2 folds.
        InputError: fewer cases than folds, or a file that `read_splits` rejects.
    """
    if folds < 2:
        raise UsageError(f"--folds is {folds}, expected at least 2. Use --fold all to train on every case.")
    path = dataset.folder / "splits_final.json"
    if path.exists():
        splits = read_splits(path, dataset)
        if len(splits) != folds:
            logger.warning("Using the %d folds of %s instead of %d", len(splits), path, folds)
        return splits
    names = sorted(case.name for case in dataset.cases)
    if len(names) < folds:
        raise InputError(
            f"{len(names)} cases cannot be split into {folds} folds. "
            "Use fewer --folds, or --fold all to train on every case."
        )
    # As scikit-learn's KFold: a shuffle by NumPy's legacy generator, then parts of which the first ones are longer.
    parts = np.array_split(np.random.RandomState(12345).permutation(len(names)), folds)
    return [_held_out(names, set(part.tolist())) for part in parts]


def _held_out(names: Sequence[str], numbers: set[int]) -> Split:
    """The fold that validates on the names of these numbers; both halves keep the order of the names."""
    return {
        "train": [name for number, name in enumerate(names) if number not in numbers],
        "val": [name for number, name in enumerate(names) if number in numbers],
    }


def read_splits(path: Path, dataset: Dataset) -> list[Split]:
    """Read folds from a JSON file.

    A fold with an empty "val" is trained without validation, like --fold all.

    Raises:
        InputError: not a list of {"train": names, "val": names}, an unknown case, a fold without a case to train on,
            or a case twice in one fold.
    """
    document = _read_json(path)
    if not isinstance(document, list) or not document:
        raise InputError(f'{path} must be a list of {{"train": [names], "val": [names]}}.')
    folds: list[Split] = [
        checked(_Fold, fold, f"{path}, fold {number},", InputError).model_dump() for number, fold in enumerate(document)
    ]
    unknown = {name for fold in folds for half in fold.values() for name in half} - {
        case.name for case in dataset.cases
    }
    if unknown:
        raise InputError(f"{path} names {len(unknown)} cases not in the dataset: {first_few(sorted(unknown))}.")
    for number, fold in enumerate(folds):
        _check_fold(fold, f"{path}, fold {number}")
    return folds


def _check_fold(fold: Split, place: str) -> None:
    """Reject a fold without training cases, or one that contains a case twice."""
    if not fold["train"]:
        raise InputError(f"{place}: train is empty. List the cases to train on.")
    for half, names in fold.items():
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(f"{place}: {half} contains {first_few(twice)} more than once. List each case once.")
    if shared := set(fold["train"]) & set(fold["val"]):
        raise InputError(f"{place}: train and val both contain {first_few(sorted(shared))}. Remove each from one.")


def choose_fold(splits: Sequence[Split], fold: int | str) -> Split:
    """One fold by its number; "all" trains on every case and validates on none.

    Raises:
        UsageError: no such fold.
    """
    if fold == "all":
        return {"train": sorted({name for split in splits for half in split.values() for name in half}), "val": []}
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        raise UsageError(
            f"There is no fold {shortened(str(fold), 100)} among {len(splits)} (splits_final.json in the dataset "
            f"overrides --folds). Give 0 to {len(splits) - 1}, or all."
        )
    return splits[fold]


def _open_decathlon(folder: Path, document: dict[str, Any], index: _Decathlon) -> Dataset:
    cases = [
        TrainingCase(stem_of(Path(scan.image)), (_inside(folder, scan.image),), _inside(folder, scan.label))
        for scan in index.training
    ]
    return _dataset(folder, document, index.modality, cases)


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


def _open_nnunet(folder: Path, document: dict[str, Any], index: _NnUNet) -> Dataset:
    ending = index.file_ending
    images = (folder / "imagesTr").glob(f"*_[0-9][0-9][0-9][0-9]{ending}")
    references = (folder / "labelsTr").glob(f"*{ending}")
    names = {path.name.removesuffix(ending)[:-5] for path in images}
    names |= {path.name.removesuffix(ending) for path in references}
    cases = [
        TrainingCase(
            name,
            tuple(folder / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(len(index.channel_names))),
            folder / "labelsTr" / f"{name}{ending}",
        )
        for name in sorted(names)
    ]
    return _dataset(folder, document, index.channel_names, cases)


def _open_plain(folder: Path) -> Dataset:
    images = [path for path in sorted((folder / "images").iterdir()) if image_suffix(path)]
    references = [path for path in sorted((folder / "labels").iterdir()) if _is_label(path)]
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
    labels = _read_json(names) if names.exists() else _labels_found(cases)
    return _dataset(folder, {"labels": labels}, ("image",), cases)


def _is_label(path: Path) -> bool:
    """Whether a file is a label image by its name: an image, or a DICOM segmentation or structure set."""
    return image_suffix(path) is not None or (path.suffix.lower() == ".dcm" and not is_hidden(path.name))


def _labels_found(cases: Sequence[TrainingCase]) -> dict[str, int]:
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


def _dataset(folder: Path, document: dict[str, Any], channels: tuple[str, ...], cases: list[TrainingCase]) -> Dataset:
    """The dataset, after the checks common to all layouts."""
    labels = parse_labels(document.get("labels", {}), document.get("regions_class_order"), str(folder))
    labels = with_codes(labels, document.get("label_codes"), str(folder))
    first = {case.name: case for case in reversed(cases)}
    return Dataset(
        # It goes into model files, which are UTF-8.
        name=printable(_text(document.get("name")) or folder.resolve().name)[:LONGEST_NAME],
        folder=folder,
        channels=channels,
        labels=labels,
        cases=tuple(first[name] for name in sorted(first)),
        licence=_text(document.get("licence", document.get("license"))),
        description=_text(document.get("description")),
        problems=tuple(_same_name(case, first[case.name]) for case in cases if case is not first[case.name]),
    )


def _text(stated: Any) -> str:
    """A text or number as the dataset states it; "" for anything else."""
    return shortened(str(stated), LONGEST_TEXT) if isinstance(stated, str | int | float) else ""


def _same_name(case: TrainingCase, first: TrainingCase) -> Problem:
    """The problem of a second case with the same name."""
    files, others = (", ".join(map(str, (*one.images, one.label))) for one in (case, first))
    return Problem(case.name, "same name", f"used by ({others}) and by ({files})", "rename or remove one of them")


def _read_json(path: Path) -> Any:
    return read_or(InputError, read_json, path, "readable JSON", "Check its permissions and its disk.")
