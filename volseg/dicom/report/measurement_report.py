"""Structured reports of what was measured: TID 1500 of DICOM PS3.16 by highdicom.

The SOP class is Comprehensive 3D SR (PS3.3 A.35.13): of the classes that hold numbers with references to segments, it
alone holds points in the frame of reference, which centres of mass are.

Each label has a group of measurements of its segment (TID 1411) and one of a point, its centre of mass (TID 1410), with
the same tracking UID. A label without voxels has no region, so its group is one of a whole series (TID 1501).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from volseg.config import Label
from volseg.data.io.dicom.values import text
from volseg.dicom.about import About
from volseg.dicom.codes import PRIVATE_SCHEME, PRIVATE_SCHEME_NAME, codes_of
from volseg.dicom.objects import NOT_FOR_DIAGNOSIS, Kind, describe, one_line
from volseg.dicom.report.measurements import LabelNumbers
from volseg.dicom.segmentation import BINARY, LABELMAP
from volseg.dicom.source import Source
from volseg.dicom.uids import derived_uid
from volseg.inference.quality import IN_WORDS, LabelQuality
from volseg.version import __version__

REPORT = Kind("report", "SR", "1.2.840.10008.5.1.4.1.1.88.34", 3)
_ML, _MM = Code("mL", "UCUM", "milliliter"), Code("mm", "UCUM", "millimeter")
_VOXELS = Code("{voxels}", "UCUM", "voxels")
_ARBITRARY = Code("[arb'U]", "UCUM", "arbitrary unit")
_VOXEL_COUNT = Code("voxels", PRIVATE_SCHEME, "Number of voxels")
_INTENSITY = Code("intensity", PRIVATE_SCHEME, "Intensity")
_FLAG = Code("flag", PRIVATE_SCHEME, "Quality flag")
FLAGS = {
    "empty": Code("flag-empty", PRIVATE_SCHEME, IN_WORDS["empty"]),
    "touches_border": Code("flag-border", PRIVATE_SCHEME, IN_WORDS["touches_border"]),
    "several_components": Code("flag-components", PRIVATE_SCHEME, IN_WORDS["several_components"]),
    "volume_outside_training_range": Code("flag-volume", PRIVATE_SCHEME, IN_WORDS["volume_outside_training_range"]),
    "low_confidence": Code("flag-confidence", PRIVATE_SCHEME, "expected to overlap less with the truth than usual"),
    "side_mismatch": Code("flag-side", PRIVATE_SCHEME, "left and right exchanged against the partner"),
}
_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
_SIDES = (codes.SCT.Left, codes.SCT.Right)
_ENGLISH = Code("en", "RFC5646", "English")
# By modality; CID 100 of PS3.16.
_PROCEDURES = {
    "CT": codes.LN.CTUnspecifiedBodyRegion,
    "MR": codes.LN.MRIUnspecifiedBodyRegion,
    "PT": codes.LN.PETUnspecifiedBodyRegion,
}


class SegmentReference(NamedTuple):
    """The segmentation that the measured labels are segments of.

    Args:
        sop_class, instance, series: its UIDs.
        numbers: the segment of each label; None where no segment holds the voxels of the label.
    """

    sop_class: str
    instance: str
    series: str
    numbers: tuple[int | None, ...]


def segmentation_of(about: About, labelmap: bool = False) -> SegmentReference:
    """The segmentation that `volseg.dicom.segmentation` makes of the same labels.

    A region of several values is no segment of a label map, whose segments have one value each.
    """
    kind = LABELMAP if labelmap else BINARY
    numbers: tuple[int | None, ...] = tuple(range(1, len(about.labels) + 1))
    if labelmap:
        numbers = tuple(None if _is_union(label) else label.value for label in about.labels)
    uids = [about.identity.uid(kind.name, part) for part in ("instance", "series")]
    return SegmentReference(kind.sop_class, uids[0], uids[1], numbers)


def measurement_report(
    about: About,
    measures: Sequence[LabelQuality],
    numbers: Sequence[LabelNumbers],
    segmentation: SegmentReference | None,
    notes: Iterable[str] = (),
) -> Dataset:
    """A report of what was measured, not verified by anyone.

    Args:
        about: source, labels and model.
        measures: volume and flags of each label.
        numbers: what else was measured of each.
        segmentation: where the labels are segments; None if there is none.
        notes: sentences about the result as a whole.

    Returns:
        The object, to be written by `volseg.dicom.objects.write`.
    """
    segments = [_segment(segmentation, at, about.source) if segmentation else None for at in range(len(about.labels))]
    groups = [
        group
        for label, measure, found, segment in zip(about.labels, measures, numbers, segments, strict=True)
        for group in _groups(label, measure, found, about, segment)
    ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_observer()),
        procedure_reported=_PROCEDURES.get(text(about.source.header, "Modality"), codes.SCT.ImagingProcedure),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(_ENGLISH),
    )
    content[0].ContentSequence.append(_evaluations([NOT_FOR_DIAGNOSIS, *notes]))
    # Not by highdicom's class, which asks for files with attributes that real series lack and copies the content.
    made = Dataset()
    for name in content[0].dir():
        setattr(made, name, content[0].get(name))
    made.CompletionFlag, made.VerificationFlag, made.PreliminaryFlag = "COMPLETE", "UNVERIFIED", "PRELIMINARY"
    made.PerformedProcedureCodeSequence = made.ReferencedPerformedProcedureStepSequence = None
    made.CurrentRequestedProcedureEvidenceSequence = [_evidence(about.source, segmentation)]
    made.CodingSchemeIdentificationSequence = [_private_scheme()]
    describe(made, REPORT, about.source, about.identity, about.model)
    return made


def _is_union(label: Label) -> bool:
    """Whether a label has voxels of other values than its own."""
    return set(label.stored_values) != {label.value}


def _what(label: Label) -> dict[str, Any]:
    """The finding of a group: category and code of the label, and its place with the side where it has one."""
    known = codes_of(label)
    place, modifiers = (known.region, known.region_modifiers) if known.region else (known.type, known.modifiers)
    sides = [one for one in modifiers if one in _SIDES]
    others = [one for one in modifiers if one not in _SIDES]
    site = sr.FindingSite(place, next(iter(sides), None), next(iter(others), None))
    return {
        "finding_category": known.category,
        "finding_type": known.type,
        "finding_sites": [site] if known.region or modifiers else None,
    }


def _groups(
    label: Label, measure: LabelQuality, numbers: LabelNumbers, about: About, segment: sr.ReferencedSegment | None
) -> Iterator[Any]:
    """The groups of one label."""
    source = about.source
    shared: dict[str, Any] = {
        # Those of the segment.
        "tracking_identifier": sr.TrackingIdentifier(*about.tracking(label)),
        **_what(label),
        "algorithm_id": sr.AlgorithmIdentification(
            name=one_line(about.model) or "unnamed",
            version=about.model_sha256,
            family=codes.DCM.ArtificialIntelligence,
        ),
    }
    said = {
        "measurements": list(_measurements(measure, numbers, source)),
        "qualitative_evaluations": [sr.QualitativeEvaluation(_FLAG, FLAGS[flag]) for flag in measure.flags],
    }
    if segment is None or not measure.voxels:
        images = (
            [sr.SourceImageForMeasurementGroup(*one) for one in _frames(source)] if _is_multi_frame(source) else None
        )
        group = sr.MeasurementsAndQualitativeEvaluations(**shared, **said, source_images=images)
    else:
        group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(**shared, **said, referenced_segment=segment)
    yield _with_comments(group, _comments(label, measure, segment))
    if measure.voxels and measure.volume_ml is not None:
        point = np.array([numbers.centre_mm], dtype=np.float64)
        yield sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            **shared,
            referenced_region=sr.ImageRegion3D(sr.GraphicTypeValues3D.POINT, point, source.frame_of_reference_uid),
            geometric_purpose=codes.DCM.CenterOfMass,
        )


def _measurements(measure: LabelQuality, numbers: LabelNumbers, source: Source) -> Iterator[sr.Measurement]:
    """The numbers of one label; lengths and volumes only where the size of a voxel is known."""
    yield sr.Measurement(_VOXEL_COUNT, measure.voxels, _VOXELS)
    volume_ml = measure.volume_ml if measure.voxels else 0.0
    if volume_ml is not None:
        yield sr.Measurement(codes.SCT.Volume, float(volume_ml), _ML, method=codes.IBSI.VolumeFromVoxelSummation)
    if not measure.voxels:
        return
    if volume_ml is not None and numbers.diameter_mm is not None:
        yield sr.Measurement(codes.SCT.LongAxis, numbers.diameter_mm, _MM, derivation=codes.SCT.Maximum)
    name, unit = _intensity(source)
    for value, derivation in ((numbers.mean, codes.SCT.Mean), (numbers.deviation, codes.SCT.StandardDeviation)):
        # The sum of very large intensities may be infinite.
        if value is not None and math.isfinite(value):
            yield sr.Measurement(name, value, unit, derivation=derivation)


def _intensity(source: Source) -> tuple[Code, Code]:
    """What the intensities are, and their unit: Hounsfield units for CT unless the source states another type."""
    modality = text(source.header, "Modality")
    types = {one.contrast.get("rescale type", ("HU",)) for one in source.slices}
    if modality == "CT" and types == {("HU",)}:
        return codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit
    if modality == "MR":
        return codes.DCM.MRSignalIntensity, codes.UCUM.NoUnits
    return _INTENSITY, _ARBITRARY


def _with_comments(group: Any, sentences: Iterable[str]) -> Any:
    """A group with sentences about its numbers."""
    for one in sentences:
        group[0].ContentSequence.append(_comment(one))
    return group


def _comments(label: Label, measure: LabelQuality, segment: sr.ReferencedSegment | None) -> Iterator[str]:
    """What a reader of the numbers has to know."""
    if not measure.voxels:
        yield f"Volume 0: {IN_WORDS['empty']}."
    elif measure.reason:
        yield f"No volume: {measure.reason.rstrip('.')}."
    if measure.voxels and segment is None and _is_union(label):
        values = ", ".join(map(str, label.stored_values))
        yield (
            f"The numbers are of the region of the values {values}. The label map has no segment of all of them, so "
            "none is referred to."
        )
    if "touches_border" in measure.flags:
        yield (
            "The label reaches the first or last slice, row or column of the scan, so its volume and its length are "
            "lower bounds."
        )


def _comment(sentence: str) -> sr.TextContentItem:
    """A sentence as an item."""
    return sr.TextContentItem(codes.DCM.Comment, sentence, sr.RelationshipTypeValues.CONTAINS)


def _evaluations(sentences: Iterable[str]) -> sr.ContainerContentItem:
    """What is said of the report as a whole: rows 12 and 13 of TID 1500."""
    container = sr.ContainerContentItem(_EVALUATIONS, relationship_type=sr.RelationshipTypeValues.CONTAINS)
    container.ContentSequence = sr.ContentSequence([_comment(one) for one in sentences])
    return container


def _segment(segmentation: SegmentReference, at: int, source: Source) -> sr.ReferencedSegment | None:
    """The segment of a label, with its source: the series, or the frames of multi-frame files; None without one."""
    number = segmentation.numbers[at]
    if number is None:
        return None
    many = _is_multi_frame(source)
    return sr.ReferencedSegment(
        segmentation.sop_class,
        segmentation.instance,
        number,
        source_images=[sr.SourceImageForSegmentation(*one) for one in _frames(source)] if many else None,
        source_series=None if many else sr.SourceSeriesForSegmentation(source.series_uid),
    )


def _is_multi_frame(source: Source) -> bool:
    """Whether a slice is a frame of a file, not a file."""
    return any(one.frame for one in source.references)


def _frames(source: Source) -> list[tuple[str, str, list[int] | None]]:
    """Class and instance of each file of the source, and the numbers of its frames if it has any."""
    return [
        (source.class_by_file[instance], instance, list(frames) or None)
        for instance, frames in source.frames_by_file.items()
    ]


def _observer() -> sr.ObserverContext:
    """This version of volseg as the device that measured."""
    name = f"volseg {__version__}"
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", name), name="volseg", manufacturer_name="volseg", model_name=name
    )
    return sr.ObserverContext(codes.DCM.Device, device)


def _private_scheme() -> Dataset:
    """Whose the codes of our own are."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = PRIVATE_SCHEME, PRIVATE_SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = "volseg"
    return scheme


def _evidence(source: Source, segmentation: SegmentReference | None) -> Dataset:
    """Every file that the report is about, by study and series."""
    study = Dataset()
    study.StudyInstanceUID = source.study_uid
    study.ReferencedSeriesSequence = [_series(source.series_uid, source.class_by_file)]
    if segmentation:
        files = {segmentation.instance: segmentation.sop_class}
        study.ReferencedSeriesSequence.append(_series(segmentation.series, files))
    return study


def _series(uid: str, files: Mapping[str, str]) -> Dataset:
    """A series with the SOP classes of files by their instance."""
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = uid, []
    for instance, sop_class in files.items():
        one = Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = sop_class, instance
        series.ReferencedSOPSequence.append(one)
    return series
