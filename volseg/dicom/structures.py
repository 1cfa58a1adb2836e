"""RT Structure Sets (DICOM PS3.3 A.19): labels as closed planar contours on the slices of the source."""

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from volseg.config import Label
from volseg.data.io.dicom.values import tag_of
from volseg.dicom.about import About
from volseg.dicom.contours import Outline, outlines
from volseg.dicom.objects import RESEARCH_USE, Kind, describe, name_of, one_line
from volseg.dicom.source import Reference, Source
from volseg.report.colours import Colour, label_colours

STRUCTURE_SET = Kind("structure set", "RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3", 2)
# Retired, and still what RT Structure Sets name a study by (PS3.3 C.8.8.5, RT Referenced Study Sequence).
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_KEYHOLE = "Holes are joined to the contour around them by a bridge of no width (keyhole)."
_XOR = "Holes are contours of their own, to be combined by exclusive or (XOR)."
# A number of a DS has 16 characters at most (PS3.5 6.2): 5 decimals leave 9 digits and a sign before the point.
_DECIMALS = 5


def structure_set(labels: np.ndarray, about: About, xor: bool = False) -> Dataset:
    """The labels as regions of interest, numbered by their values; one without voxels has no contours.

    A region of the model is the union of its parts, so regions of interest may overlap.

    Args:
        labels: (I, J, K) unsigned integers on the grid of the source.
        about: source, labels and model.
        xor: holes as contours of their own; else they are joined to the contour around them.

    Returns:
        The object, to be written by `volseg.dicom.objects.write`.
    """
    source = about.source
    frame_of_reference = source.frame_of_reference_uid
    parts = {one.value: one.stored_values for one in about.labels}
    found = sorted(outlines(labels, parts, not xor), key=attrgetter("label"))
    by_label = {value: list(group) for value, group in groupby(found, attrgetter("label"))}
    images = [_image(reference) for reference in source.references]

    data = Dataset()
    # Explicit VR limits a DS to 65534 bytes, which the contour of a large organ can exceed.
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    data.StructureSetLabel = one_line(about.model, 16)
    data.StructureSetName = one_line(f"{about.model} ({RESEARCH_USE})", 64)
    data.StructureSetDate, data.StructureSetTime = about.identity.date, about.identity.time
    data.OperatorsName = None
    data.ApprovalStatus = "UNAPPROVED"
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = frame_of_reference, None
    data.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source, frame_of_reference)]
    data.StructureSetROISequence = [_region(one, about, frame_of_reference, xor) for one in about.labels]
    data.RTROIObservationsSequence = [_observation(number, one) for number, one in enumerate(about.labels, start=1)]
    data.ROIContourSequence = [
        _contours(one, colour, by_label.get(one.value, []), source, images)
        for one, colour in zip(about.labels, label_colours(about.labels), strict=True)
    ]
    describe(data, STRUCTURE_SET, source, about.identity, about.model)
    # Structure sets have a date of their own instead (PS3.3 A.19.3).
    del data.ContentDate, data.ContentTime
    return data


def _frame_of_reference(source: Source, uid: str) -> Dataset:
    """The frame of reference with the study, the series and all images of the source."""
    series = Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ContourImageSequence = [_image(*frames) for frames in _by_file(source.references)]
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, source.study_uid
    study.RTReferencedSeriesSequence = [series]
    made = Dataset()
    made.FrameOfReferenceUID = uid
    made.RTReferencedStudySequence = [study]
    return made


def _by_file(references: Iterable[Reference]) -> Iterable[list[Reference]]:
    """The references to the frames of each file."""
    files: dict[str, list[Reference]] = {}
    for one in references:
        files.setdefault(one.instance, []).append(one)
    return files.values()


def _image(*frames: Reference) -> Dataset:
    """A reference to a file, and to frames of it if it has several."""
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = frames[0].sop_class, frames[0].instance
    if frames[0].frame:
        made.ReferencedFrameNumber = sorted(one.frame for one in frames)
    return made


def _region(label: Label, about: About, frame_of_reference: str, xor: bool) -> Dataset:
    """What a region of interest is."""
    made = Dataset()
    made.ROINumber = label.value
    made.ReferencedFrameOfReferenceUID = frame_of_reference
    made.ROIName = name_of(label)
    made.ROIDescription = _XOR if xor else _KEYHOLE
    made.ROIGenerationAlgorithm = "AUTOMATIC"
    end = f" (sha256 {about.model_sha256[:16]})"
    made.ROIGenerationDescription = one_line(about.model, 64 - len(end)) + end
    return made


def _observation(number: int, label: Label) -> Dataset:
    """The observation that each region must have: what kind of region it is, is not known."""
    made = Dataset()
    made.ObservationNumber, made.ReferencedROINumber = number, label.value
    made.RTROIInterpretedType, made.ROIInterpreter = None, None
    return made


def _contours(label: Label, colour: Colour, found: list[Outline], source: Source, images: list[Dataset]) -> Dataset:
    """The contours of a region, numbered from 1, each with its image."""
    made = Dataset()
    made.ReferencedROINumber, made.ROIDisplayColor = label.value, list(colour)
    items = [
        _contour(_in_patient(points, one.slice, source), images[one.slice]) for one in found for points in one.contours
    ]
    for number, item in enumerate(items, start=1):
        item.ContourNumber = number
    if items:
        made.ContourSequence = items
    return made


def _contour(points: np.ndarray, image: Dataset) -> Dataset:
    """A contour (N, 3) LPS+ mm."""
    made = Dataset()
    made.ContourImageSequence = Sequence([image])
    # Holes of their own have a type too, CLOSEDPLANAR_XOR, but readers that are older than it drop such contours.
    made.ContourGeometricType = "CLOSED_PLANAR"
    made.NumberOfContourPoints = len(points)
    made.add(_decimal_strings("ContourData", points))
    return made


def _in_patient(points: np.ndarray, k: int, source: Source) -> np.ndarray:
    """Points (N, 2) of a slice as LPS+ mm (N, 3): from the position that the slice itself states."""
    between_rows, between_columns = source.pixel_spacing_mm
    placed: np.ndarray = source.positions[k] + points * (between_columns, between_rows) @ source.directions
    return placed


def _decimal_strings(name: str, values: np.ndarray) -> DataElement:
    """Numbers as a DS that is text already: an object of pydicom for each of millions takes a minute and a gigabyte."""
    # Adding 0 turns -0 into 0.
    rounded = np.round(values, _DECIMALS).ravel() + 0.0
    content = "\\".join([f"{value:.{_DECIMALS}f}" for value in rounded.tolist()])
    return DataElement(tag_of(name), "DS", content, already_converted=True)
