"""What the standard requires of CT and MR files beyond pixels and geometry, so that conformance can be checked."""

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

DATE, TIME = "20260102", "030405"


def complete(data, series, number) -> None:
    """Add all required attributes to file `number` of a series, with values that are the same in every run."""
    _study(data, series)
    data.SeriesInstanceUID, data.SeriesNumber, data.SeriesDescription = series.uid(), 3, str(series)
    data.SOPInstanceUID, data.InstanceNumber = series.uid("instance", number), number + 1
    # From air to the brightest label; viewers make up a window of their own otherwise.
    window = {"WindowCenter": "600", "WindowWidth": "1300"}
    if series.kind == "classic":
        data.update(_items(**window))
        (_classic_ct if series.modality == "CT" else _classic_mr)(data)
    else:
        _enhanced(data, series, window)


def _study(data, series) -> None:
    data.SpecificCharacterSet = "ISO_IR 100"
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = (
        "Phantom^Position",
        "P-17",
        "19700203",
        "O",
    )
    data.PatientAge, data.PatientWeight, data.PatientSize = "055Y", "70", "1.8"
    # One study and one frame of reference hold all series, as those of one visit.
    data.StudyInstanceUID, data.FrameOfReferenceUID = type(series)().uid("study"), type(series)().uid("frame")
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = DATE, TIME, "17", "A17"
    data.ReferringPhysicianName, data.StudyDescription = "Referring^Doctor", "Position phantom"
    data.SeriesDate = data.AcquisitionDate = data.ContentDate = DATE
    data.SeriesTime = data.AcquisitionTime = data.ContentTime = TIME
    data.PatientPosition, data.PositionReferenceIndicator = "HFS", ""
    data.Manufacturer, data.ManufacturerModelName = "volseg", "Position phantom"
    data.DeviceSerialNumber, data.SoftwareVersions = "1", "1"
    data.InstitutionName, data.StationName, data.BodyPartExamined = "volseg", "Phantom", "ABDOMEN"


def _classic_ct(data) -> None:
    data.ImageType, data.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType, data.KVP = "-1024", "1", "HU", "120"


def _classic_mr(data) -> None:
    data.ImageType, data.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "OTHER"], 1
    data.ScanningSequence, data.SequenceVariant, data.ScanOptions = "SE", "NONE", ""
    data.MRAcquisitionType, data.RepetitionTime, data.EchoTime, data.EchoTrainLength = "2D", "500", "15", "1"
    data.MagneticFieldStrength, data.FlipAngle = "1.5", "90"


def _enhanced(data, series, window) -> None:
    """Derived rather than original, since the standard asks original frames for all of an acquisition."""
    is_ct = series.modality == "CT"
    for name in ("AcquisitionDate", "AcquisitionTime"):
        del data[name]
    data.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    data.AcquisitionContextSequence = Sequence()
    data.BurnedInAnnotation, data.LossyImageCompression, data.PresentationLUTShape = "NO", "00", "IDENTITY"
    shared = data.SharedFunctionalGroupsSequence[0]
    shared.FrameAnatomySequence = [_items(FrameLaterality="U", AnatomicRegionSequence=[_code("818981001", "Abdomen")])]
    shared.FrameVOILUTSequence = [_items(**window)]
    scaling = {
        "RescaleIntercept": "-1024" if is_ct else "0",
        "RescaleSlope": "1",
        "RescaleType": "HU" if is_ct else "US",
    }
    shared.PixelValueTransformationSequence = [_items(**scaling)]
    described = _items(
        PixelPresentation="MONOCHROME", VolumetricProperties="VOLUME", VolumeBasedCalculationTechnique="NONE"
    )
    if not is_ct:
        described.ComplexImageComponent, described.AcquisitionContrast = "MAGNITUDE", "T1"
        data.ResonantNucleus, data.MagneticFieldStrength, data.ContentQualification = "1H", "1.5", "RESEARCH"
        data.KSpaceFiltering, data.ApplicableSafetyStandardAgency = "NONE", "IEC"
        data.AcquisitionDateTime, data.AcquisitionDuration = DATE + TIME, 60.0
    else:
        data.ContentQualification = "RESEARCH"
        shared.IrradiationEventIdentificationSequence = [_items(IrradiationEventUID=series.uid("irradiation"))]
    data.update(described)
    frame_type = _items(FrameType=data.ImageType)
    frame_type.update(described)
    setattr(shared, "CTImageFrameTypeSequence" if is_ct else "MRImageFrameTypeSequence", [frame_type])
    _dimensions(data, series.uid("dimensions"))


def _dimensions(data, uid) -> None:
    """One dimension, the position in the stack, in the order of the frames."""
    organisation = _items(DimensionOrganizationUID=uid)
    data.DimensionOrganizationSequence = [organisation]
    pointers = {"DimensionIndexPointer": tag_for_keyword("InStackPositionNumber")}
    group = {"FunctionalGroupPointer": tag_for_keyword("FrameContentSequence")}
    data.DimensionIndexSequence = [_items(DimensionOrganizationUID=uid, **pointers, **group)]
    for number, frame in enumerate(data.PerFrameFunctionalGroupsSequence, 1):
        content = _items(StackID="1", InStackPositionNumber=number, DimensionIndexValues=[number])
        frame.FrameContentSequence = [content]


def _items(**values) -> Dataset:
    found = Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def _code(value, meaning) -> Dataset:
    return _items(CodeValue=value, CodingSchemeDesignator="SCT", CodeMeaning=meaning)
