"""DICOM Segmentation objects (PS3.3 A.51 and A.52) by highdicom.

highdicom gets stand-ins for the files of the source, with what the placing of frames needs and nothing else: real
series lack attributes that it requires. What the object says of patient, study and source is filled in afterwards.
"""

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage

from volseg.dicom.about import About
from volseg.dicom.objects import Kind, describe
from volseg.dicom.source import Source
from volseg.version import __version__

BINARY = Kind("segmentation", "SEG", "1.2.840.10008.5.1.4.1.1.66.4", 1)
LABELMAP = Kind("segmentation", "SEG", "1.2.840.10008.5.1.4.1.1.66.7", 1)


def segmentation(labels: np.ndarray, about: About, labelmap: bool = False, empty_frames: bool = False) -> Dataset:
    """The labels as segments.

    Args:
        labels: (I, J, K) unsigned integers on the grid of the source.
        about: source, labels and model.
        labelmap: one label map instead of a binary frame for each label of a slice.
        empty_frames: keep frames without a label.

    Returns:
        The object, to be written by `volseg.dicom.objects.write`.
    """
    kind = LABELMAP if labelmap else BINARY
    frames = np.ascontiguousarray(labels.transpose(2, 1, 0))
    made = Segmentation(
        source_images=_stand_ins(about.source),
        pixel_array=frames,
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=_segments(about),
        series_instance_uid=about.identity.uid(kind.name, "series"),
        series_number=1,
        sop_instance_uid=about.identity.uid(kind.name, "instance"),
        instance_number=1,
        manufacturer="volseg",
        manufacturer_model_name="volseg",
        software_versions=__version__,
        device_serial_number=about.model_sha256[:16],
        omit_empty_frames=not empty_frames,
    )
    describe(made, kind, about.source, about.identity, about.model)
    return made


def _segments(about: About) -> list[SegmentDescription]:
    """The description of each label."""
    algorithm = AlgorithmIdentificationSequence(
        name=about.model, version=about.model_sha256[:16], family=codes.DCM.ArtificialIntelligence
    )
    return [
        SegmentDescription(
            segment_number=label.value,
            segment_label=label.name[:64],
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for label in about.labels
    ]


def _stand_ins(source: Source) -> list[Dataset]:
    """A classic CT image for each slice, with the geometry and the UIDs of the source and an empty patient."""
    made = []
    for reference, position in zip(source.references, source.positions, strict=True):
        one = Dataset()
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
            setattr(one, name, "")
        one.StudyDate = one.StudyTime = None
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, reference.instance
        one.StudyInstanceUID, one.SeriesInstanceUID = source.study_uid, source.series_uid
        one.FrameOfReferenceUID, one.Modality = source.frame_of_reference_uid, "CT"
        one.Columns, one.Rows, _ = source.geometry.shape
        one.ImagePositionPatient = [float(f"{value:.10g}") for value in position]
        one.ImageOrientationPatient = [float(f"{value:.10g}") for value in source.directions.ravel()]
        one.PixelSpacing = [float(f"{value:.10g}") for value in source.pixel_spacing_mm]
        one.SliceThickness = float(f"{source.geometry.spacing_mm[2]:.10g}")
        made.append(one)
    return made
