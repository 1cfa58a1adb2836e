"""Small DICOM segmentations and structure sets of known masks, with any fault a test asks for."""

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.data.io.dicom.writers import CT, SPACING, STRAIGHT, classic, place, put, stack, write, write_all
from volseg.data.io.dicom_labels.objects import LABEL_MAP, SEGMENTATION, STRUCTURES
from volseg.data.io.dicom_labels.placing import target_series
from volseg.data.io.dicom_labels.reader import read_dicom_labels

SHAPE = (7, 5, 4)
FRAME = "1.2.9"


def series(folder, shape=SHAPE, **options):
    """A folder with a CT of counted voxels, and its target."""
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    write_all(folder, classic(array, sop_class=CT, **options))
    return folder


def blocks():
    """Two masks (I, J, K) without symmetry that do not touch."""
    one, two = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[1:3, 1:4, 1:3] = True
    one[1, 0, 1] = True
    two[4:6, 2:5, 2:4] = True
    return {1: one, 2: two}


def identified(sop_class, uid):
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, uid
    data.PatientName, data.StudyInstanceUID, data.SeriesInstanceUID = "Secret^Name", "1.2.3", f"{uid}.9"
    data.FrameOfReferenceUID = FRAME
    return data


def references(images, series_uid):
    """ReferencedSeriesSequence."""
    one = Dataset()
    one.SeriesInstanceUID = series_uid
    one.ReferencedInstanceSequence = Sequence([_instance(uid) for uid in images])
    return Sequence([one])


def _instance(uid):
    found = Dataset()
    found.ReferencedSOPClassUID, found.ReferencedSOPInstanceUID = CT, uid
    return found


def code(value, scheme, meaning):
    found = Dataset()
    found.CodeValue, found.CodingSchemeDesignator, found.CodeMeaning = value, scheme, meaning
    return Sequence([found])


def segments(numbers):
    found = []
    for number in numbers:
        one = Dataset()
        one.SegmentNumber, one.SegmentLabel, one.SegmentAlgorithmType = number, f"Part {number}", "MANUAL"
        one.SegmentedPropertyCategoryCodeSequence = code("123037004", "SCT", "Anatomical Structure")
        one.SegmentedPropertyTypeCodeSequence = code("10200004", "SCT", "Liver")
        found.append(one)
    return Sequence(found)


def frame_groups(position, axes, segment=None):
    groups = Dataset()
    for sequence, name in (("PlanePositionSequence", "ImagePositionPatient"),
                           ("PlaneOrientationSequence", "ImageOrientationPatient")):  # fmt: skip
        item = Dataset()
        put(item, name, place(position, axes)[name])
        setattr(groups, sequence, Sequence([item]))
    if segment is not None:
        item = Dataset()
        item.ReferencedSegmentNumber = segment
        groups.SegmentIdentificationSequence = Sequence([item])
    return groups


def segmentation(masks, kind="BINARY", axes=STRAIGHT, positions=None, between=SPACING[2], keep=None, change=None):
    """A segmentation of masks (I, J, K) by number; FRACTIONAL takes values from 0 to 1 and LABELMAP joins the masks.

    Args:
        keep: (number, k) -> whether that frame is written; None: those with a voxel.
        change: (dataset) -> None, the last word.
    """
    shape = next(iter(masks.values())).shape
    positions = stack(shape[2], axes) if positions is None else positions
    keep = keep or (lambda number, k: bool(np.any(masks[number][:, :, k])))
    data = identified(LABEL_MAP if kind == "LABELMAP" else SEGMENTATION, "1.2.66")
    data.Modality, data.SegmentationType = "SEG", kind
    data.SegmentSequence = segments(masks)
    data.ReferencedSeriesSequence = references([f"1.2.3.4.{k + 1}" for k in range(shape[2])], "1.2.3.4")
    if kind == "LABELMAP":
        joined = sum(number * mask.astype(np.uint8) for number, mask in masks.items())
        frames = [(None, k, joined[:, :, k].T) for k in range(shape[2])]
    else:
        frames = [(one, k, masks[one][:, :, k].T) for one in masks for k in range(shape[2]) if keep(one, k)]
    pixels = np.stack([frame for _, _, frame in frames])
    data.NumberOfFrames, data.Rows, data.Columns = len(frames), *pixels.shape[1:]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 1 if kind == "BINARY" else 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    if kind == "BINARY":
        content = np.packbits(pixels.ravel().astype(np.uint8), bitorder="little").tobytes()
    elif kind == "FRACTIONAL":
        data.MaximumFractionalValue, data.SegmentationFractionalType = 200, "PROBABILITY"
        content = np.round(200 * pixels).astype(np.uint8).tobytes()
    else:
        content = pixels.astype(np.uint8).tobytes()
    put(data, "PixelData", content + b"\0" * (len(content) % 2), "OB")
    measures = Dataset()
    put(measures, "PixelSpacing", place(positions[0], axes)["PixelSpacing"])
    put(measures, "SliceThickness", f"{SPACING[2]:g}")
    put(measures, "SpacingBetweenSlices", None if between is None else f"{between:g}")
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = [frame_groups(positions[k], axes, number) for number, k, _ in frames]
    data.PerFrameFunctionalGroupsSequence = Sequence(groups)
    if change:
        change(data)
    return data


def structures(contours, names=None, change=None, kind="CLOSED_PLANAR", images=(), series_uid="1.2.3.4"):
    """A structure set of contours (N, 3) LPS+ mm by ROINumber."""
    data = identified(STRUCTURES, "1.2.481")
    data.Modality = "RTSTRUCT"
    listed, drawn = [], []
    for number, some in contours.items():
        one = Dataset()
        one.ROINumber, one.ROIName = number, (names or {}).get(number, f"Part {number}")
        one.ReferencedFrameOfReferenceUID = FRAME
        listed.append(one)
        item = Dataset()
        item.ReferencedROINumber = number
        item.ContourSequence = Sequence([contour(points, kind) for points in some])
        drawn.append(item)
    data.StructureSetROISequence, data.ROIContourSequence = Sequence(listed), Sequence(drawn)
    frame, study, one = Dataset(), Dataset(), Dataset()
    one.SeriesInstanceUID = series_uid
    one.ContourImageSequence = Sequence([_instance(uid) for uid in images or ("1.2.3.4.1",)])
    study.RTReferencedSeriesSequence = Sequence([one])
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = FRAME, Sequence([study])
    data.ReferencedFrameOfReferenceSequence = Sequence([frame])
    if change:
        change(data)
    return data


def contour(points, kind):
    one = Dataset()
    one.ContourGeometricType, one.NumberOfContourPoints = kind, len(points)
    put(one, "ContourData", "\\".join(f"{value:.6f}" for value in np.ravel(points)))
    return one


def on_slice(points, k, axes=STRAIGHT):
    """Points (N, 2) in voxels along I and J as LPS+ mm (N, 3) on slice k of the series."""
    points = np.asarray(points, float)
    return stack(k + 1, axes)[-1] + points[:, :1] * SPACING[0] * axes[:, 0] + points[:, 1:] * SPACING[1] * axes[:, 1]


def read_labels(data, folder, like=None):
    """A dataset, written and read again, on the grid of a series if there is one."""
    path = write(data, folder / "labels" / "labels.dcm")
    return read_dicom_labels(path, None if like is None else target_series(like))
