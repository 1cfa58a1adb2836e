"""Small DICOM files of a known volume, classic and enhanced, with any fault a test asks for."""

from pathlib import Path

import numpy as np
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from volseg.data.io.choice import Choice
from volseg.data.io.reading import read_scan

MR, CT, PET = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4", "2", "128"))
ENHANCED_MR, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.2.1"
# mm between columns, between rows and between slices; LPS+ of the first pixel.
SPACING, ORIGIN = (0.5, 0.75, 3.0), np.array([-10.0, 20.0, -30.0])
STRAIGHT = np.eye(3)[:, :2]
# Rows and columns (3, 2) rotated about two axes, at right angles.
ROTATED = np.array([[0.96, 0.28, 0.0], [-0.28 * 0.8, 0.96 * 0.8, 0.6]]).T
# Keyword and sequence of what enhanced files state in functional groups.
GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "ASLContext": "MRArterialSpinLabelingSequence",
    "VelocityEncodingDirection": "MRVelocityEncodingSequence",
    "VelocityEncodingMaximumValue": "MRVelocityEncodingSequence",
    "ReconstructionAlgorithm": "CTReconstructionSequence",
    "ContrastBolusAgentAdministered": "ContrastBolusUsageSequence",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "FrameType": "MRImageFrameTypeSequence",
    "ComplexImageComponent": "MRImageFrameTypeSequence",
    "StackID": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "DimensionIndexValues": "FrameContentSequence",
}


def put(data, name, value, kind=None):
    """Set an attribute by keyword or tag: None removes it, text and bytes go into the file as they are."""
    tag = Tag(name)
    if value is None:
        if tag in data:
            del data[tag]
    elif isinstance(value, str | bytes):
        content = value.encode("latin-1") if isinstance(value, str) else value
        content += (b" " if isinstance(value, str) else b"\0") * (len(content) % 2)
        data[tag] = RawDataElement(tag, kind or dictionary_VR(tag), len(content), content, 0, False, True)
    elif kind:
        data.add_new(tag, kind, value)
    else:
        setattr(data, name, value)
    return data


def normal_of(axes):
    return np.cross(axes[:, 0], axes[:, 1])


def stack(count, axes=STRAIGHT, step=SPACING[2]):
    """Positions (K, 3) of evenly spaced slices along their normal."""
    return ORIGIN + step * np.arange(count)[:, None] * normal_of(axes)


def affine_of(positions, axes=STRAIGHT, spacing=SPACING[:2]):
    """The 4 x 4 affine to RAS+ of slices at positions (K, 3)."""
    lps = np.eye(4)
    lps[:3, :2] = axes * spacing
    lps[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    lps[:3, 3] = positions[0]
    return np.diag([-1.0, -1, 1, 1]) @ lps


def described(array, sop_class):
    """What files of frames (K, J, I) state about their pixels and their series."""
    data = Dataset()
    data.SOPClassUID, data.Modality = sop_class, {CT: "CT", ENHANCED_CT: "CT", PET: "PT"}.get(sop_class, "MR")
    data.PatientName, data.StudyInstanceUID, data.SeriesInstanceUID = "Secret^Name", "1.2.3", "1.2.3.4"
    data.SeriesNumber, data.FrameOfReferenceUID, data.ImageType = 7, "1.2.9", ["ORIGINAL", "PRIMARY", "M"]
    data.Rows, data.Columns = array.shape[1:]
    data.BitsAllocated = data.BitsStored = 8 * array.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(array.dtype.kind == "i")
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    put(data, "PixelData", array.tobytes() + b"\0" * (array.nbytes % 2), "OW" if array.dtype.itemsize > 1 else "OB")
    return data


def decimals(values):
    return "\\".join(f"{value:.9g}" for value in values)


def place(position, axes=STRAIGHT, spacing=SPACING):
    return {
        "ImagePositionPatient": decimals(position),
        "ImageOrientationPatient": decimals(axes.T.ravel()),
        "PixelSpacing": decimals((spacing[1], spacing[0])),
        "SliceThickness": "9",
    }


def classic(array, positions=None, axes=STRAIGHT, sop_class=MR, change=None, **attributes):
    """A dataset per slice of (I, J, K). `change(k, data)` alters one, `attributes` are set in all."""
    positions = stack(array.shape[2], axes) if positions is None else positions
    found = []
    for k, position in enumerate(positions):
        data = described(np.ascontiguousarray(array[:, :, k].T)[None], sop_class)
        data.SOPInstanceUID, data.InstanceNumber = f"1.2.3.4.{k + 1}", k + 1
        for name, value in (place(position, axes) | attributes).items():
            put(data, name, value)
        if change:
            change(k, data)
        found.append(data)
    return found


def enhanced(array, positions=None, axes=STRAIGHT, sop_class=ENHANCED_MR, change=None, shared=(), **attributes):
    """One dataset of (I, J, K) with all geometry per frame, but for the keywords in `shared`.

    `change(k, group)` alters the functional groups of a frame before they are written (`GROUPS`: by keyword);
    `attributes` that are no functional group go into the dataset.
    """
    positions = stack(array.shape[2], axes) if positions is None else positions
    data = described(np.ascontiguousarray(array.T), sop_class)
    data.SOPInstanceUID, data.NumberOfFrames = "1.2.3.4.1", len(positions)
    grouped = {name: value for name, value in attributes.items() if name in GROUPS}
    for name, value in attributes.items():
        if name not in GROUPS:
            put(data, name, value)
    frames = []
    for k, position in enumerate(positions):
        stated = place(position, axes) | grouped
        if change:
            change(k, stated)
        frames.append(stated)
    data.SharedFunctionalGroupsSequence = Sequence([macros({name: frames[0][name] for name in shared})])
    data.PerFrameFunctionalGroupsSequence = Sequence(
        [macros({name: value for name, value in stated.items() if name not in shared}) for stated in frames]
    )
    return data


def macros(stated):
    """Functional groups of one frame, from values by keyword; a value of None is left out, its sequence stays."""
    groups = Dataset()
    for name, value in stated.items():
        sequence = GROUPS[name]
        if sequence not in groups:
            setattr(groups, sequence, Sequence([Dataset()]))
        put(groups[sequence].value[0], name, value)
    return groups


def write(data, path: Path, syntax=ExplicitVRLittleEndian, bare=False) -> Path:
    """Write a dataset; `bare` leaves out the preamble and the file meta information."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    if syntax != ExplicitVRBigEndian:
        _keep_raw(data, syntax == ImplicitVRLittleEndian)
    if bare:
        del data.file_meta
        data.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian)
    else:
        data.save_as(path, enforce_file_format=True)
    return path


def _keep_raw(data, implicit):
    """Let pydicom write raw elements as they are."""
    data.set_original_encoding(implicit, True, "iso8859")
    for element in data.values():
        if element.VR == "SQ":
            for item in element.value:
                _keep_raw(item, implicit)


def write_all(folder: Path, datasets, **options) -> Path:
    """One file per dataset, in names whose order is not that of the slices."""
    for k, data in enumerate(datasets):
        write(data, folder / f"{k * 7 % 31:02}-{k}.dcm", **options)
    return folder


def write_kind(folder: Path, kind, array, **options) -> Path:
    """A folder of one volume, by the writer `classic` or `enhanced`."""
    made = kind(array, **options)
    return write_all(folder, made if isinstance(made, list) else [made])


def read(path, **choice):
    return read_scan(path, choice=Choice(**choice))


def assert_volume(scan, array, affine=None, exact=True):
    """The voxels and the grid; slices that were stacked the other way round are the same volume."""
    found = scan.channels[0]
    assert found.shape == array.shape
    assert np.array_equal(found, array) if exact else np.allclose(found, array, rtol=1e-6)
    if affine is not None:
        np.testing.assert_allclose(scan.geometry.affine, affine, atol=1e-6)
