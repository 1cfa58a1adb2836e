"""What is compared: pairs of label images, matched by name, and the names and values of labels."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volseg.config import checked, read_yaml
from volseg.data.cases.labels import LabelSet, parse_labels
from volseg.data.cases.sources.case_labels import ALL_LABELS, CaseLabels, stated_annotated
from volseg.data.dataset_json import Scan
from volseg.data.io.formats import SUFFIXES, image_suffix, is_dicom, label_name, without_result_files
from volseg.data.io.reading import holds_dicom_labels
from volseg.documents import DocumentError, read_json
from volseg.errors import InputError
from volseg.files import access_to, is_hidden
from volseg.text import first_few

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """The label image of one case and its reference, and which labels are annotated in that."""

    name: str
    prediction: Path
    reference: Path
    own: CaseLabels = ALL_LABELS


@dataclass(frozen=True)
class Pairs:
    """All cases to compare, sorted by name, and the names of the references without a prediction."""

    matched: tuple[Pair, ...]
    unmatched_references: tuple[str, ...] = ()


def match_pairs(predictions: Path, references: Path) -> Pairs:
    """Pair label images by their names without suffix, so that a .mha finds its .nii.gz.

    Two files are a pair whatever their names. In folders, files that are not images are skipped. A DICOM segmentation
    or structure set is a file, or the only one in a folder; in a folder of label images they count if there are no
    others, as NAME.dcm, NAME.seg.dcm, NAME.rtstruct.dcm or a folder NAME with one of them.
    A reference without a prediction is logged, but not an error: the predictions may be those of one fold.

    Args:
        predictions: a label image, or a folder of them.
        references: a label image, or a folder of them.

    Raises:
        InputError: a missing path, two images with the same name, no image, or a prediction without a reference.
    """
    with access_to(predictions):
        are_files = predictions.is_file() and references.is_file()
    if are_files:
        _check_suffix(references)
        _check_suffix(predictions)
        return Pairs((Pair(label_name(predictions), predictions, references),))
    predicted, true = _images_by_name(predictions), _images_by_name(references)
    if predictions.is_file() and len(true) == 1 and is_dicom(only := next(iter(true.values()))):
        return Pairs((Pair(label_name(predictions), predictions, only),))
    without_reference = [name for name in predicted if name not in true]
    if without_reference:
        raise InputError(
            f"{len(without_reference)} of {len(predicted)} predictions in {predictions} have no reference of the same "
            f"name in {references}: {first_few(without_reference)}. Add the references, or remove those predictions."
        )
    unmatched = tuple(name for name in true if name not in predicted)
    if unmatched:
        logger.warning("%d of %d references have no prediction: %s.", len(unmatched), len(true), first_few(unmatched))
    return Pairs(tuple(Pair(name, path, true[name]) for name, path in predicted.items()), unmatched)


def read_labels_file(path: Path) -> dict[str, Any]:
    """Read the document with the names and values of labels, see `labels_of`.

    A Decathlon dataset.json ({"labels": {"1": "Liver"}}), an nnU-Net one ({"labels": {"Liver": 1}}), regions and an
    ignore label included, or a plain mapping of names to values; JSON or YAML.

    Raises:
        InputError: not such a file.
        ConfigError: not a YAML mapping.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give the file with the names and values of labels: its dataset.json.")
    return _read_mapping(path)


def annotated_pairs(pairs: Pairs, document: Any, names: Sequence[str], source: str) -> Pairs:
    """The pairs with the labels that somebody looked for in each reference, where the document of the labels says so.

    Args:
        pairs: to compare.
        document: of one of the forms of `read_labels_file`.
        names: of the labels.
        source: the file, for messages.

    Raises:
        InputError: see `volseg.data.cases.sources.case_labels.stated_annotated`.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("labels"), Mapping):
        return pairs
    entries = [one for half in ("training", "validation") for one in document.get(half) or () if isinstance(one, dict)]
    scans = [checked(Scan, one, source, InputError) for one in entries if one.get("annotated") is not None]
    by_entry = {scan.name: scan.annotated or () for scan in scans}
    stated = document.get("annotated")
    cases = {one.name for one in pairs.matched} | set(by_entry) | set(stated if isinstance(stated, dict) else ())
    own = stated_annotated(document, by_entry, sorted(cases), names, source)
    return replace(pairs, matched=tuple(replace(one, own=own.get(one.name, one.own)) for one in pairs.matched))


def labels_of(document: Any, source: str) -> LabelSet:
    """The names and values of labels in a document of one of the forms of `read_labels_file`.

    Raises:
        InputError: labels that `parse_labels` rejects.
    """
    if not isinstance(document, Mapping):
        raise InputError(f"{source} are a {type(document).__name__}, expected a mapping of names to values.")
    inner, order = document.get("labels"), document.get("regions_class_order")
    # A label may be called "labels"; and what is only compared needs no order of regions.
    labels = document if inner is None or type(inner) is int else inner
    return parse_labels(labels, order, source, predicts=order is not None)


def _images_by_name(path: Path) -> dict[str, Path]:
    """The image at `path`, or all images in that folder, by name without suffix."""
    with access_to(path):
        if not path.exists():
            raise InputError(f"{path} does not exist. Give a label image or a folder of label images.")
        if path.is_file():
            _check_suffix(path)
            return {label_name(path): path}
        entries = sorted(entry for entry in path.iterdir() if not is_hidden(entry.name))
        # Results of one case may be there in several formats.
        files = [entry for entry in without_result_files(entries) if image_suffix(entry)]
        files = files or [entry for entry in entries if holds_dicom_labels(entry)]
    if not files:
        raise InputError(f"{path} holds no label image. Known formats: {', '.join(SUFFIXES)}.")
    images: dict[str, Path] = {}
    for file in files:
        other = images.setdefault(label_name(file), file)
        if other != file:
            raise InputError(
                f"{other} and {file} have the same name, so it is unclear which one to compare. Remove one."
            )
    return images


def _check_suffix(path: Path) -> None:
    """Reject a file whose name does not end in the suffix of an image."""
    if image_suffix(path) is None and not is_dicom(path):
        raise InputError(f"{path} does not end in the suffix of an image. Known formats: {', '.join(SUFFIXES)}.")


def _read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file. JSON has its own parser, because YAML does not allow its tabs."""
    if path.suffix.lower() != ".json":
        return read_yaml(path)
    try:
        document = read_json(path)
    except (OSError, DocumentError) as error:
        raise InputError(f"Could not read labels from {path}: {error}. Give a dataset.json or a mapping.") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}, expected a mapping of names to values.")
    return document
