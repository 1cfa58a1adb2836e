"""DICOM Segmentation objects (PS3.3 A.51 and A.78).

highdicom makes the modules of the object, from a stand-in for a file of the source that holds what it requires and
nothing else: real series lack attributes that it asks for. The frames, with what they refer to, are made here
(`frames`), and what the object says of patient, study and source is filled in as for every object (`objects`).
"""

import logging
from collections.abc import Iterator
from functools import cache

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage
from pydicom.valuerep import format_number_as_ds

from volseg.config import Label
from volseg.dicom.about import About
from volseg.dicom.codes import PRIVATE_SCHEME, PRIVATE_SCHEME_NAME, codes_of
from volseg.dicom.image.frames import Frames, binary_frames, labelmap_frames, per_frame
from volseg.dicom.image.pixels import in_file_order
from volseg.dicom.image.references import put_references
from volseg.dicom.objects import Kind, describe, name_of, one_line
from volseg.dicom.source import Source
from volseg.errors import InputError
from volseg.report.colours import label_colours
from volseg.version import __version__

logger = logging.getLogger(__name__)

BINARY = Kind("segmentation", "SEG", "1.2.840.10008.5.1.4.1.1.66.4", 1)
LABELMAP = Kind("segmentation", "SEG", "1.2.840.10008.5.1.4.1.1.66.7", 1)
# More labels than this are better one label map than a binary frame for each label of a slice.
MANY_LABELS = 20
# Largest number of frames that 16 bits count, as some readers do, and of bytes that an element without undefined length
# may have (DICOM PS3.5 7.1).
_MOST_FRAMES, _MOST_BYTES = 65535, 2**32 - 2


def segmentation(labels: np.ndarray, about: About, labelmap: bool = False, empty_frames: bool = False) -> Dataset:
    """The labels as segments.

    Binary segments are numbered from 1 in the order of the model's labels, and a region is the union of its parts, so
    segments may overlap. A label map keeps the values of the label image.

    Args:
        labels: (I, J, K) unsigned integers on the grid of the source.
        about: source, labels and model.
        labelmap: one label map instead of a binary frame for each label of a slice.
        empty_frames: keep frames without a label.

    Returns:
        The object, to be written by `volseg.dicom.objects.write`.

    Raises:
        InputError: the object would have more frames or bytes than it can hold.
    """
    if not labelmap and len(about.labels) > MANY_LABELS:
        _suggest_labelmap(about.model, len(about.labels))
    kind = LABELMAP if labelmap else BINARY
    segments = _segments(about, labelmap)
    made = _modules(about, kind, segments)
    describe(made, kind, about.source, about.identity, about.model)
    put_references(made, about.source)
    _put_geometry(made, about.source)
    slices = in_file_order(labels)
    frames = (
        labelmap_frames(slices, made.BitsAllocated, empty_frames)
        if labelmap
        else binary_frames(slices, [label.stored_values for label in about.labels], empty_frames, _check_size)
    )
    _put_frames(made, frames, about)
    return made


@cache
def _suggest_labelmap(model: str, count: int) -> None:
    """Say once for a model that a label map would serve better."""
    logger.info("%s has %d labels: dicom-seg:labelmap is smaller and opens faster, where viewers know it", model, count)


def _check_size(frames: int, frame_bytes: float) -> None:
    """Reject frames that one object does not hold."""
    if frames <= _MOST_FRAMES and frames * frame_bytes <= _MOST_BYTES:
        return
    raise InputError(
        f"A BINARY segmentation of these labels has {frames} frames, {frames * frame_bytes / 2**30:.1f} GiB of pixels; "
        f"expected at most {_MOST_FRAMES} frames and 4 GiB. Use dicom-seg:labelmap, and leave out empty-frames."
    )


def _modules(about: About, kind: Kind, segments: list[SegmentDescription]) -> Dataset:
    """An object with all modules of its kind; its frames are placeholders."""
    stand_in = _stand_in(about.source)
    made = Segmentation(
        source_images=[stand_in],
        pixel_array=np.zeros((1, stand_in.Rows, stand_in.Columns), dtype=np.uint8),
        segmentation_type="LABELMAP" if kind is LABELMAP else "BINARY",
        segment_descriptions=segments,
        series_instance_uid=about.identity.uid(kind.name, "series"),
        series_number=1,
        sop_instance_uid=about.identity.uid(kind.name, "instance"),
        instance_number=1,
        manufacturer="volseg",
        manufacturer_model_name="volseg",
        software_versions=__version__,
        device_serial_number=about.model_sha256[:16],
        content_label="SEGMENTATION",
        content_description=one_line(f"Labels of {about.model}"),
        omit_empty_frames=False,
    )
    # Required, if only empty; no person made it.
    made.ContentCreatorName = None
    # Required, so what a source leaves open is 00 here (PS3.3 C.8.20.2); a picture leaves it open too.
    made.LossyImageCompression = "00"
    # Without the tables that highdicom keeps of the frames, which are replaced.
    return Dataset(made)


def _segments(about: About, labelmap: bool) -> list[SegmentDescription]:
    """The description of each label."""
    algorithm = AlgorithmIdentificationSequence(
        name=one_line(about.model),
        # Nothing else names a model beyond doubt; its 64 digits are all that fits.
        version=about.model_sha256[:64],
        family=codes.DCM.ArtificialIntelligence,
        source=f"volseg {__version__}",
    )
    colours = label_colours(about.labels)
    made = [
        _segment(label, label.value if labelmap else number, colour, about, algorithm)
        for number, (label, colour) in enumerate(zip(about.labels, colours, strict=True), start=1)
    ]
    for label, segment in zip(about.labels, made, strict=True):
        segment.SegmentDescription = _in_words(label, labelmap)
    return sorted(made, key=lambda segment: segment.segment_number)


def _segment(
    label: Label,
    number: int,
    colour: tuple[int, int, int],
    about: About,
    algorithm: AlgorithmIdentificationSequence,
) -> SegmentDescription:
    """The description of one label."""
    known = codes_of(label)
    tracking_uid, tracking_id = about.tracking(label)
    made = SegmentDescription(
        segment_number=number,
        segment_label=name_of(label),
        segmented_property_category=known.category,
        segmented_property_type=known.type,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=tracking_uid,
        tracking_id=tracking_id,
        anatomic_regions=[known.region] if known.region else None,
        display_color=CIELabColor.from_rgb(*colour),
    )
    if known.modifiers:
        made.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = _concepts(known.modifiers)
    if known.region_modifiers:
        made.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = _concepts(known.region_modifiers)
    return made


def _concepts(found: tuple[Code, ...]) -> list[CodedConcept]:
    return [CodedConcept.from_code(one) for one in found]


def _in_words(label: Label, labelmap: bool) -> str:
    """What the voxels of a segment are in the label image."""
    if not label.parts:
        return f"Voxels of value {label.value} in the label image"
    union = f"the values {', '.join(map(str, label.parts))}"
    if not labelmap:
        return f"Region of {union} in the label image; regions may overlap"
    return f"Voxels of value {label.value} in the label image, part of a region that is {union}"


def _stand_in(source: Source) -> Dataset:
    """A classic CT image with the geometry and the UIDs of a slice of the source and an empty patient."""
    one = Dataset()
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
        setattr(one, name, "")
    one.StudyDate = one.StudyTime = None
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, source.references[0].instance
    one.StudyInstanceUID, one.SeriesInstanceUID = source.study_uid, source.series_uid
    one.FrameOfReferenceUID, one.Modality = source.frame_of_reference_uid, "CT"
    one.Columns, one.Rows, _ = source.geometry.shape
    one.ImagePositionPatient = _decimals(source.positions[0])
    one.ImageOrientationPatient = _decimals(source.directions.ravel())
    one.PixelSpacing = _decimals(source.pixel_spacing_mm)
    one.SliceThickness = _decimals([source.slice_distance_mm])[0]
    return one


def _put_geometry(data: Dataset, source: Source) -> None:
    """The groups that all frames share: orientation, and pixels as thick as slices lie apart."""
    shared = data.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    measures.SliceThickness = measures.SpacingBetweenSlices = _decimals([source.slice_distance_mm])[0]
    # Each frame names its segment itself, also where there is only one.
    shared.pop("SegmentIdentificationSequence", None)
    if any(code.CodingSchemeDesignator == PRIVATE_SCHEME for code in _type_codes(data)):
        scheme = Dataset()
        scheme.CodingSchemeDesignator, scheme.CodingSchemeName = PRIVATE_SCHEME, PRIVATE_SCHEME_NAME
        scheme.CodingSchemeResponsibleOrganization = "volseg"
        data.CodingSchemeIdentificationSequence = [scheme]


def _type_codes(data: Dataset) -> Iterator[Dataset]:
    """The codes of categories and types of all segments."""
    for segment in data.SegmentSequence:
        yield segment.SegmentedPropertyCategoryCodeSequence[0]
        yield segment.SegmentedPropertyTypeCodeSequence[0]


def _put_frames(data: Dataset, frames: Frames, about: About) -> None:
    """The pixels, and the functional groups of each frame."""
    data.NumberOfFrames = len(frames.slices)
    data.SegmentsOverlap = "YES" if frames.overlap else "NO"
    data.PerFrameFunctionalGroupsSequence = per_frame(frames, about.source)
    kind = "OW" if data.BitsAllocated > 8 else "OB"
    data.add(DataElement(0x7FE00010, kind, frames.pixels))


def _decimals(values: np.ndarray | tuple[float, ...] | list[float]) -> list[str]:
    """Numbers as DICOM writes them, in at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]
