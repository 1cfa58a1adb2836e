"""The DICOM objects that hold labels: which file is one, what it calls its labels, and what it refers to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydicom.dataset import Dataset

from volseg.data.io.dicom.header import STORAGE, Header, is_scan_class, read_header, sop_class_of
from volseg.data.io.dicom.values import described, element, items, text, texts
from volseg.errors import InputError
from volseg.text import first_few

SEGMENTATION, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
# What they are called in messages and records.
KINDS = {SEGMENTATION: "DICOM SEG", LABEL_MAP: "DICOM SEG", STRUCTURES: "RTSTRUCT"}
_MODIFIERS = ("SegmentedPropertyTypeModifierCodeSequence", "AnatomicRegionModifierSequence")
# Values of a label image that stand for a label.
LARGEST = 65535


@dataclass(frozen=True)
class Part:
    """A segment of a segmentation, or a structure (ROI) of a structure set.

    Args:
        number: its SegmentNumber or ROINumber.
        name: its SegmentLabel or ROIName; unique in its object.
        codes: "category", "type" and "region", and their modifiers ("modifier", that of the type; "region_modifier"; a
            second one "modifier_2"), each with value, scheme and meaning, as far as they are stated.
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
    """The only segmentation or structure set among files given with their names; None if there are none, or scans.

    Pictures, such as the secondary capture of a result, are no scans.

    Raises:
        InputError: there are several.
    """
    classes = {path: sop_class_of(path, _whole(name, names, source)) for path, name in names.items()}
    if any(_is_scan(path, names[path], sop_class) for path, sop_class in classes.items()):
        return None
    found = [path for path, sop_class in classes.items() if sop_class in KINDS]
    if len(found) > 1:
        listed = first_few([f"{names[path]} ({KINDS[classes[path]]})" for path in found])
        raise InputError(
            f"{source} contains {len(found)} segmentations or structure sets: {listed}; give one file (--debug "
            "shows the names)."
        )
    return found[0] if found else None


def label_files(names: Mapping[Path, str]) -> list[str]:
    """The segmentations and structure sets among files, each by its name for messages and its kind."""
    kinds = {name: KINDS.get(sop_class_of(path, name), "") for path, name in names.items()}
    return [f"{name} ({kind})" for name, kind in kinds.items() if kind]


def _whole(name: str, names: Mapping[Path, str], source: str) -> str:
    """A file and its input, for messages; one name where they are the same."""
    return source if len(names) == 1 else f"{source}: {name}"


def _is_scan(path: Path, name: str, sop_class: str) -> bool:
    """Whether a file may be a slice of a scan; a secondary capture may if it states a place."""
    if not sop_class.startswith(STORAGE) or not is_scan_class(sop_class):
        return False
    if not sop_class.startswith(f"{STORAGE}7"):
        return True
    header = read_header(path, name)
    places = ("ImagePositionPatient", "PerFrameFunctionalGroupsSequence")
    return isinstance(header, Header) and any(element(header.data, place) is not None for place in places)


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
    """The codes in code sequences by a name for each sequence, and their modifiers, such as a side."""
    found = {}
    for name, sequence in sequences.items():
        if codes := items(data, sequence):
            found[name] = _code(codes[0])
            modifiers = [one for inner in _MODIFIERS for one in items(codes[0], inner)]
            start = "modifier" if name == "type" else f"{name}_modifier"
            found |= {f"{start}_{at}" if at > 1 else start: _code(modifier) for at, modifier in enumerate(modifiers, 1)}
    return found


def _code(data: Dataset) -> dict[str, str]:
    stated = {
        "value": text(data, "CodeValue"),
        "scheme": text(data, "CodingSchemeDesignator"),
        "meaning": described(data, "CodeMeaning"),
    }
    return {key: value for key, value in stated.items() if value}


def uids(data: Iterable[Dataset], name: str) -> frozenset[str]:
    """The values of a UID in several datasets."""
    return frozenset(uid for one in data for uid in texts(one, name))
