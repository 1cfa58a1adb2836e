"""DICOM structure sets: the regions of interest and their contours.

Requirements:

    regions    StructureSetROISequence lists every region that has contours, each with a frame of reference
    contours   of type CLOSED_PLANAR or CLOSEDPLANAR_XOR with 3 numbers a point; others (points, open contours, contours
               of fewer than 3 points) are passed over with a warning
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from volseg.data.io.dicom.header import Header
from volseg.data.io.dicom.values import described, element, items, number, numbers_of, parsing, shown, text, texts
from volseg.data.io.dicom_labels.objects import LARGEST, Part, References, codes_of, named_parts, uids
from volseg.errors import InputError
from volseg.text import first_few

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_CODES = {"type": "RTROIIdentificationCodeSequence", "category": "SegmentedPropertyCategoryCodeSequence"}
# No patient is so large.
_FAR_MM = 1e6


@dataclass(frozen=True, eq=False)
class StructureSet:
    """A structure set.

    Args:
        header: of its file.
        source: for messages.
        parts: its regions of interest, with the values that they have in a label image as numbers.
        numbers: ROINumber of each part, by its value.
        references: the images, series and frames of reference that its contours refer to.
        contours: (N, 3) LPS+ mm each, by the value of their region.
        warnings: assumptions made when reading.
    """

    header: Header
    source: str
    parts: tuple[Part, ...]
    numbers: dict[int, int]
    references: References
    contours: dict[int, list[np.ndarray]]
    warnings: tuple[str, ...]


def open_structures(header: Header, source: str) -> StructureSet:
    """The regions and contours of a structure set.

    Raises:
        InputError: a requirement of this module is not met.
    """
    where = header.among(source)
    with parsing(where):
        listed = {_roi_number(item, "ROINumber", where): item for item in items(header.data, "StructureSetROISequence")}
        if not listed or len(listed) < len(items(header.data, "StructureSetROISequence")):
            found = "lists a ROINumber twice" if listed else "is absent or empty"
            raise InputError(f"{where}: StructureSetROISequence {found}; export the structure set again.")
        drawn = _drawn(header.data, where)
        if unlisted := sorted(set(drawn) - set(listed)):
            raise InputError(
                f"{where}: contours belong to ROI {unlisted[0]}, which StructureSetROISequence lacks; export the "
                "structure set again."
            )
        values, warnings = _values(listed)
        observed = _observed(header.data)
        parts = named_parts(
            ((values[roi], described(item, "ROIName"), observed.get(roi, {})) for roi, item in listed.items()),
            "structure",
        )
        contours = {}
        for roi, part in zip(listed, parts, strict=True):
            contours[part.number], more = _contours(drawn.get(roi, ()), part.name, where)
            warnings += more
        references = _references(header.data, [item for roi, item in listed.items() if contours[values[roi]]])
    if not any(contours.values()):
        raise InputError(f"{where}: no structure has a closed contour; export the structure set again.")
    numbers_by_value = {value: roi for roi, value in values.items()}
    return StructureSet(header, source, parts, numbers_by_value, references, contours, tuple(warnings))


def _roi_number(item: Dataset, name: str, where: str) -> int:
    stated = number(item, name)
    if stated is None or not stated.is_integer():
        raise InputError(
            f"{where}: a {name} is {'absent' if stated is None else shown(stated)}, expected a whole number; export "
            "the structure set again."
        )
    return int(stated)


def _drawn(data: Dataset, where: str) -> dict[int, list[Dataset]]:
    """The contours by ROINumber."""
    found: dict[int, list[Dataset]] = {}
    for item in items(data, "ROIContourSequence"):
        found.setdefault(_roi_number(item, "ReferencedROINumber", where), []).extend(items(item, "ContourSequence"))
    return found


def _values(listed: dict[int, Dataset]) -> tuple[dict[int, int], list[str]]:
    """The value of each region in a label image: its ROINumber, unless one of them is no such value."""
    if all(1 <= roi <= LARGEST for roi in listed):
        return {roi: roi for roi in listed}, []
    odd = next(roi for roi in listed if not 1 <= roi <= LARGEST)
    return {roi: at for at, roi in enumerate(sorted(listed), 1)}, [
        f"ROINumber {odd} is no value of a label (1 to {LARGEST}); the structures are numbered from 1."
    ]


def _observed(data: Dataset) -> dict[int, dict[str, dict[str, str]]]:
    """The codes of regions by ROINumber."""
    found = {}
    for item in items(data, "RTROIObservationsSequence"):
        roi = number(item, "ReferencedROINumber")
        if roi is not None and roi.is_integer() and (codes := codes_of(item, _CODES)):
            found[int(roi)] = codes
    return found


def _contours(found: Sequence[Dataset], name: str, where: str) -> tuple[list[np.ndarray], list[str]]:
    """The closed contours of a region, and warnings about the others."""
    kept: list[np.ndarray] = []
    aside: list[str] = []
    repeated = 0
    for item in found:
        points = _points(item, name, where)
        kind = text(item, "ContourGeometricType")
        if kind not in _CLOSED:
            aside.append(kind or "no ContourGeometricType")
        elif len(points) < 3:
            aside.append(f"{len(points)} points")
        elif any(np.array_equal(points, other) for other in kept):
            repeated += 1
        else:
            kept.append(points)
    warnings = []
    if aside:
        counted = [f"{aside.count(kind)} of {kind}" for kind in dict.fromkeys(aside)]
        warnings.append(f"{name}: contours passed over because they enclose nothing: {first_few(counted)}.")
    if repeated:
        warnings.append(f"{name}: {repeated} contours are there twice; each counts once.")
    if not kept:
        warnings.append(f"{name} has no closed contour, so it is empty.")
    return kept, warnings


def _points(item: Dataset, name: str, where: str) -> np.ndarray:
    """The points (N, 3) of a contour in LPS+ mm."""
    values = _numbers(item)
    if len(values) % 3:
        raise InputError(
            f"{where}: ContourData of {name} has {len(values)} numbers, which is no multiple of 3; export the "
            "structure set again."
        )
    if not (np.abs(values) < _FAR_MM).all():
        raise InputError(
            f"{where}: ContourData of {name} has numbers that are not finite or above {_FAR_MM:g} mm; export the "
            "structure set again."
        )
    stated = number(item, "NumberOfContourPoints")
    if stated is not None and stated != len(values) // 3:
        raise InputError(
            f"{where}: a contour of {name} has {len(values) // 3} points, but NumberOfContourPoints is "
            f"{shown(stated)}; copy it or export it again."
        )
    return values.reshape(-1, 3)


def _numbers(item: Dataset) -> np.ndarray:
    """ContourData: thousands of numbers in one text; NaN for what is no number."""
    found = element(item, "ContourData")
    if found is not None and isinstance(found.value, bytes) and b"_" not in found.value and found.value.strip():
        with suppress(ValueError):
            return np.array(found.value.rstrip(b" \0").split(b"\\")).astype(np.float64)
    return np.array(numbers_of(found), np.float64)


def _references(data: Dataset, drawn: Sequence[Dataset]) -> References:
    """What a structure set refers to: the frames of reference are those of the regions that are `drawn`."""
    frames = items(data, "ReferencedFrameOfReferenceSequence")
    series = [
        one
        for frame in frames
        for study in items(frame, "RTReferencedStudySequence")
        for one in items(study, "RTReferencedSeriesSequence")
    ]
    images = [image for one in series for image in items(one, "ContourImageSequence")]
    of_contours = [
        image
        for item in items(data, "ROIContourSequence")
        for contour in items(item, "ContourSequence")
        for image in items(contour, "ContourImageSequence")
    ]
    stated = frozenset(uid for item in drawn for uid in texts(item, "ReferencedFrameOfReferenceUID"))
    return References(
        uids([*images, *of_contours], "ReferencedSOPInstanceUID"),
        uids(series, "SeriesInstanceUID"),
        stated or uids(frames, "FrameOfReferenceUID") or uids([data], "FrameOfReferenceUID"),
    )
