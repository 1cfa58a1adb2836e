"""A folder of scans with reference labels as training cases, and its split into folds.

Three layouts are known by what the folder holds:

    Medical Segmentation Decathlon   dataset.json with "training": [{"image": ..., "label": ...}]
    nnU-Net v2 raw                   dataset.json with "channel_names"; imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz
    plain                            images/ and labels/ with scans of equal names; labels.json {name: value} or none

How labels are declared is in `volseg.data.labels`.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ConfigDict

from volseg.config import Frozen, checked
from volseg.data.formats import image_suffix, stem_of
from volseg.data.labels import LabelSet, parse_labels
from volseg.data.reading import read_label
from volseg.errors import InputError, Problem, UsageError

logger = logging.getLogger(__name__)

SHOWN = 5
Split = dict[str, list[str]]


def _in_order(names: Any) -> list[Any]:
    """The values of {"0": name, "1": name, ...}, by their numbers and not as they happen to be written."""
    if not isinstance(names, dict) or not names or set(names) != {str(index) for index in range(len(names))}:
        raise ValueError('expected {"0": name, "1": name, ...}, numbered from 0 without a gap')
    return [names[str(index)] for index in range(len(names))]


Channels = Annotated[tuple[str, ...], BeforeValidator(_in_order)]


class _Document(Frozen):
    """A part of a JSON file of a data set; keys that training does not need are left out."""

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
    file_ending: str = ".nii.gz"


class _Fold(_Document):
    """One entry of splits_final.json."""

    train: list[str]
    val: list[str]


@dataclass(frozen=True)
class TrainingCase:
    """One scan with its reference.

    Args:
        name: unique in the data set.
        images: one file per channel, or one file that holds all channels.
        label: the reference label image.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class DataSet:
    """What there is to train on.

    Args:
        name: of the data set.
        folder: where it lies.
        channels: their names, in order.
        labels: what is segmented, and which voxels nobody has labelled.
        cases: sorted by name; their files may be missing, which reading them finds.
        licence: as the data set states it, or "".
        description: as the data set states it, or "".
        problems: what keeps it from being trained on, as far as its folder tells.
    """

    name: str
    folder: Path
    channels: tuple[str, ...]
    labels: LabelSet
    cases: tuple[TrainingCase, ...]
    licence: str = ""
    description: str = ""
    problems: tuple[Problem, ...] = ()


def open_dataset(folder: Path) -> DataSet:
    """Find the cases of a training data set; no image is read, but for the label values of a plain folder.

    Args:
        folder: in one of the three layouts above.

    Raises:
        InputError: no such folder, none of the layouts, a dataset.json with values of the wrong kind or with channels
            that are not numbered from 0, no cases, or labels that `parse_labels` refuses.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the folder of a training data set.")
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
            f"{folder} is not a training data set: it holds neither dataset.json (Decathlon or nnU-Net v2 raw) "
            "nor the folders images and labels."
        )
    if not dataset.cases:
        raise InputError(f"{folder} holds no training case. Each needs a scan and a label image.")
    return dataset


def split_folds(dataset: DataSet, folds: int = 5) -> list[Split]:
    """The folds of a data set, each as {"train": names, "val": names}.

    From splits_final.json in the folder if there is one, whatever its number of folds, with a warning where that is
    another; else as nnU-Net makes them: sorted names as scikit-learn's KFold splits them with `random_state=12345`.

    Raises:
        UsageError: fewer than 2 folds.
        InputError: fewer cases than folds, or a file that `read_splits` refuses.
    """
    if folds < 2:
        raise UsageError(f"--folds is {folds}, but there have to be at least 2. Use --fold all to train on every case.")
    path = dataset.folder / "splits_final.json"
    if path.exists():
        splits = read_splits(path, dataset)
        if len(splits) != folds:
            logger.warning("The number of folds is %d, as in %s, and not %d", len(splits), path, folds)
        return splits
    names = sorted(case.name for case in dataset.cases)
    if len(names) < folds:
        raise InputError(
            f"{len(names)} cases cannot be split into {folds} folds. "
            "Give fewer --folds, or --fold all to train on every case."
        )
    # What scikit-learn's KFold does: a shuffle by numpy's legacy generator, then parts whose first ones are the longer.
    parts = np.array_split(np.random.RandomState(12345).permutation(len(names)), folds)
    return [_held_out(names, set(part.tolist())) for part in parts]


def _held_out(names: Sequence[str], numbers: set[int]) -> Split:
    """The fold that validates on the names of these numbers; both halves keep the order of the names."""
    return {
        "train": [name for number, name in enumerate(names) if number not in numbers],
        "val": [name for number, name in enumerate(names) if number in numbers],
    }


def read_splits(path: Path, dataset: DataSet) -> list[Split]:
    """Read folds from a JSON file.

    A fold may have an empty "val": it is then trained without validation, as --fold all is.

    Raises:
        InputError: not a list of {"train": names, "val": names}, an unknown case, a fold without a case to train on,
            or a case twice in one fold.
    """
    document = _read_json(path)
    if not isinstance(document, list) or not document:
        raise InputError(f'{path} has to hold a list of {{"train": [names], "val": [names]}}.')
    folds: list[Split] = [
        checked(_Fold, fold, f"{path}, fold {number},", InputError).model_dump() for number, fold in enumerate(document)
    ]
    unknown = {name for fold in folds for half in fold.values() for name in half} - {
        case.name for case in dataset.cases
    }
    if unknown:
        raise InputError(f"{path} names {len(unknown)} cases the data set does not have: {listed(sorted(unknown))}.")
    for number, fold in enumerate(folds):
        _check_fold(fold, f"{path}, fold {number}")
    return folds


def _check_fold(fold: Split, place: str) -> None:
    """Refuse a fold with no case to train on, or with a case twice."""
    if not fold["train"]:
        raise InputError(f"{place}: train is empty. Name the cases to train on.")
    for half, names in fold.items():
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(f"{place}: more than once in {half} are {listed(twice)}. Name each case once.")
    if shared := set(fold["train"]) & set(fold["val"]):
        raise InputError(f"{place}: in train and in val are {listed(sorted(shared))}.")


def choose_fold(splits: Sequence[Split], fold: int | str) -> Split:
    """One fold by its number, or with "all" every case to train on and none to validate on.

    Raises:
        UsageError: no such fold.
    """
    if fold == "all":
        return {"train": sorted({name for split in splits for half in split.values() for name in half}), "val": []}
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        raise UsageError(
            f"There is no fold {fold} among {len(splits)} (splits_final.json in the data set goes before --folds). "
            f"Give 0 to {len(splits) - 1}, or all."
        )
    return splits[fold]


def _open_decathlon(folder: Path, document: dict[str, Any], index: _Decathlon) -> DataSet:
    cases = [
        TrainingCase(stem_of(Path(scan.image)), (folder / scan.image,), folder / scan.label) for scan in index.training
    ]
    return _dataset(folder, document, index.modality, cases)


def _open_nnunet(folder: Path, document: dict[str, Any], index: _NnUNet) -> DataSet:
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


def _open_plain(folder: Path) -> DataSet:
    images, references = (
        [path for path in sorted((folder / half).iterdir()) if image_suffix(path)] for half in ("images", "labels")
    )
    partner = {stem_of(path): path for path in reversed(references)}
    # A file without a partner is a case that lacks one of this name.
    cases = [
        TrainingCase(stem_of(path), (path,), partner.get(stem_of(path), folder / "labels" / path.name))
        for path in images
    ]
    taken = {case.label for case in cases}
    cases += [
        TrainingCase(stem_of(path), (folder / "images" / path.name,), path) for path in references if path not in taken
    ]
    names = folder / "labels.json"
    labels = _read_json(names) if names.exists() else _labels_found(references)
    return _dataset(folder, {"labels": labels}, ("image",), cases)


def _labels_found(references: Sequence[Path]) -> dict[str, int]:
    """A name for each value that the label images hold, as far as they can be read."""
    found: set[int] = set()
    for path in references:
        with suppress(InputError):
            found |= {int(value) for value in np.unique(read_label(path).channels[0])}
    return {f"label_{value}": value for value in sorted(found - {0})}


def _dataset(folder: Path, document: dict[str, Any], channels: tuple[str, ...], cases: list[TrainingCase]) -> DataSet:
    """The data set, with the checks that all layouts share."""
    labels = parse_labels(document.get("labels", {}), document.get("regions_class_order"), str(folder))
    first = {case.name: case for case in reversed(cases)}
    return DataSet(
        name=str(document.get("name", folder.resolve().name)),
        folder=folder,
        channels=channels,
        labels=labels,
        cases=tuple(first[name] for name in sorted(first)),
        licence=str(document.get("licence", document.get("license", ""))),
        description=str(document.get("description", "")),
        problems=tuple(_same_name(case, first[case.name]) for case in cases if case is not first[case.name]),
    )


def _same_name(case: TrainingCase, first: TrainingCase) -> Problem:
    """The problem of a case whose name another one has."""
    files, others = (", ".join(map(str, (*one.images, one.label))) for one in (case, first))
    return Problem(case.name, "same name", f"it is {others}, and again {files}", "rename or remove one of them")


def listed(items: Sequence[Any]) -> str:
    """The first few of some items, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(str(item) for item in items[:SHOWN]) + more


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}.") from error
