"""The DICOM objects that hold labels: which file is one, what it calls its labels, and what it refers to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydicom.dataset import Dataset

from volseg.data.io.dicom.header import STORAGE, is_scan_class, sop_class_of
from volseg.data.io.dicom.values import described, items, text, texts
from volseg.errors import InputError
from volseg.text import first_few

SEGMENTATION, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
# What they are called in messages and records.
KINDS = {SEGMENTATION: "DICOM SEG", LABEL_MAP: "DICOM SEG", STRUCTURES: "RTSTRUCT"}
# Values of a label image that stand for a label.
LARGEST = 65535


@dataclass(frozen=True)
class Part:
    """A segment of a segmentation, or a structure (ROI) of a structure set.

    Args:
        number: its SegmentNumber or ROINumber.
        name: its SegmentLabel or ROIName; unique in its object.
        codes: "category" and "type", each with value, scheme and meaning, as far as they are stated.
    """

    number: int
    name: str
    codes: Mapping[str, Mapping[str, str]]


class References(NamedTuple):
    """The UIDs by which an object, or a series, says where it belongs.

    Args:
        images: SOP Instance UIDs.
        series: SeriesInstanceUIDs.
        frames: Frame of Reference UIDs.
    """

    images: frozenset[str]
    series: frozenset[str]
    frames: frozenset[str]


def label_file(names: Mapping[Path, str], source: str) -> Path | None:
    """The only segmentation or structure set among files given with their names; None if there are none, or images.

    Raises:
        InputError: there are several.
    """
    kinds: dict[Path, str] = {}
    for path in names:
        sop_class = sop_class_of(path)
        if sop_class.startswith(STORAGE) and is_scan_class(sop_class):
            return None
        if sop_class in KINDS:
            kinds[path] = KINDS[sop_class]
    if len(kinds) > 1:
        listed = first_few([f"{names[path]} ({kind})" for path, kind in kinds.items()])
        raise InputError(f"{source} contains {len(kinds)} segmentations or structure sets: {listed}; give one file.")
    return next(iter(kinds), None)


def named_parts(found: Iterable[tuple[int, str, Mapping[str, Mapping[str, str]]]], kind: str) -> tuple[Part, ...]:
    """The labels from their numbers, names and codes; one without a name of its own is called by its number, too."""
    rows = list(found)
    given = [name for _, name, _ in rows]
    numbered = [f"{name or kind} {number}" for number, name, _ in rows]
    names = [name if name and given.count(name) == 1 else other for name, other in zip(given, numbered, strict=True)]
    if len(set(names)) < len(names):
        names = numbered
    return tuple(Part(number, name, codes) for (number, _, codes), name in zip(rows, names, strict=True))


def codes_of(data: Dataset, sequences: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The codes in code sequences, by a name for each sequence."""
    found = {}
    for name, sequence in sequences.items():
        if codes := items(data, sequence):
            stated = {
                "value": text(codes[0], "CodeValue"),
                "scheme": text(codes[0], "CodingSchemeDesignator"),
                "meaning": described(codes[0], "CodeMeaning"),
            }
            found[name] = {key: value for key, value in stated.items() if value}
    return found


def uids(data: Iterable[Dataset], name: str) -> frozenset[str]:
    """The values of a UID in several datasets."""
    return frozenset(uid for one in data for uid in texts(one, name))
