"""What every DICOM object of a result says of its patient, study, series and maker, and how it is written."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydicom.charset import convert_encodings, decode_bytes, encode_string, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian

from volseg.config import Label
from volseg.data.io.dicom.values import tag_of, texts
from volseg.dicom.identity import Identity
from volseg.dicom.source import Source
from volseg.files import whole_file
from volseg.version import __version__

# Attributes of the patient, study and clinical trial modules (DICOM PS3.3 C.7.1, C.7.2) that are copied where the
# source states them. Private attributes never are.
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_OPTIONAL = (
    *("IssuerOfPatientID", "OtherPatientIDs", "PatientBirthTime", "PatientComments", "EthnicGroup"),
    *("PatientSpeciesDescription", "PatientBreedDescription", "ResponsiblePerson", "ResponsiblePersonRole"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "QualityControlSubject"),
    *("StudyDescription", "PatientAge", "PatientSize", "PatientWeight", "AdmittingDiagnosesDescription"),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID"),
    *("ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
    *("ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription"),
)
_TEXT = ("LO", "LT", "SH", "ST", "UC", "UT", "PN")
# A UUID of our own as a UID.
_IMPLEMENTATION = "2.25.274853061826451837102574903815260417293"
# UIDs that libraries make up begin with these: highdicom's and pydicom's own roots.
_MADE_UP = ("1.2.826.0.1.3680043.10.511.3.", "1.2.826.0.1.3680043.8.498.")
RESEARCH_USE = "research use only"
NOT_FOR_DIAGNOSIS = "Research use only, not for diagnosis."


class Kind(NamedTuple):
    """A kind of object.

    Args:
        name: in the description of its series, such as "segmentation".
        modality: of its series.
        sop_class: its SOP class UID.
        number: its place among the results of one source, from 1.
    """

    name: str
    modality: str
    sop_class: str
    number: int


def describe(data: Dataset, kind: Kind, source: Source, identity: Identity, model: str) -> None:
    """Fill in what every object says: patient and study as the source states them, its series and maker, UIDs, dates.

    Values that a library has made up (UIDs, the time of day) are replaced by derived ones.

    Args:
        data: the object, changed in place.
        kind: what it is.
        source: what it is about.
        identity: where its UIDs come from.
        model: name of the model, for the description of the series.
    """
    _carry_odd_values()
    for name in (*_REQUIRED, *_OPTIONAL):
        _copy(name, source.header, data, name in _REQUIRED)
    data.SOPClassUID, data.SOPInstanceUID = kind.sop_class, identity.uid(kind.name, "instance")
    data.Modality, data.SeriesInstanceUID = kind.modality, identity.uid(kind.name, "series")
    data.SeriesNumber = series_number(source, kind)
    volume = "" if source.volume is None else f", volume {source.volume}"
    data.SeriesDescription = _shortened(f"{model}: {kind.name}", f"{volume} ({RESEARCH_USE})")
    data.InstanceNumber = 1
    data.Manufacturer = data.ManufacturerModelName = "volseg"
    data.SoftwareVersions = __version__
    data.SeriesDate, data.SeriesTime = identity.date, identity.time
    data.ContentDate, data.ContentTime = identity.date, identity.time
    for name in ("InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID"):
        if name in data:
            delattr(data, name)
    for item in data.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    _replace_made_up(data, source, identity)
    _choose_character_set(data, source)


def one_line(text: str, length: int = 64) -> str:
    """A text as one value of an LO: no backslash, which separates values, no control characters, cut to a length."""
    return "".join(one if one.isprintable() and one != "\\" else " " for one in text).strip()[:length].strip()


def name_of(label: Label) -> str:
    """The name of a label as one value; its value where nothing of the name can be shown."""
    return one_line(label.name) or f"label {label.value}"


def series_number(source: Source, kind: Kind) -> int:
    """The number of a result's series: that of the source times 100, plus the number of the kind; 9000 without one."""
    found = source.series_number
    # The largest number of an IS has 10 digits (DICOM PS3.5 6.2), the largest whole one is 2^31 - 1.
    return (9000 if found is None or found >= 2**31 // 100 else found * 100) + kind.number


def write(data: Dataset, path: Path) -> None:
    """Write an object as a DICOM file, Explicit VR Little Endian unless it says otherwise; whole or not at all.

    Raises:
        ResourceError: the file cannot be written.
    """
    syntax = data.file_meta.TransferSyntaxUID if hasattr(data, "file_meta") else ExplicitVRLittleEndian
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    data.file_meta.ImplementationVersionName = f"VOLSEG {__version__}"[:16]
    _carry_odd_values()
    with whole_file(path) as temporary, _errors_of_the_system():
        data.save_as(temporary, enforce_file_format=True)


@contextmanager
def _errors_of_the_system() -> Iterator[None]:
    """Raise what the operating system said: pydicom wraps it in an error of the same type without its number."""
    try:
        yield
    except OSError as error:
        while isinstance(error.__cause__, OSError):
            error = error.__cause__
        raise error from None


def _carry_odd_values() -> None:
    """Let pydicom take odd values of the source, such as a date that is none, as they are, without a warning.

    The filter stays, because a filter that is taken back would change those of other threads.
    """
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|volseg\.dicom)\.")


def _copy(name: str, header: Dataset, data: Dataset, required: bool) -> None:
    """Copy an attribute of the source; one that is required is there, if only empty."""
    tag = tag_of(name)
    if tag in data:
        del data[tag]
    try:
        found = header.get(tag)
    # What pydicom raises for values that it cannot convert is no value.
    except (ValueError, TypeError, NotImplementedError, OverflowError):
        found = None
    if found is not None and found.value not in (None, ""):
        data.add(found)
    elif required:
        data.add(DataElement(tag, dictionary_VR(tag), None))


def _replace_made_up(data: Dataset, source: Source, identity: Identity) -> None:
    """Replace UIDs that a library has made up, the same one everywhere by the same; but for those of the source."""
    stated = {source.study_uid, source.series_uid, source.frame_of_reference_uid}
    stated.update(one.instance for one in source.references)
    known = {uid: uid for uid in stated}
    for part in _datasets(data):
        for tag in [tag for tag in part.keys() if _kind_of(tag) == "UI"]:  # noqa: SIM118 - not converted
            value = str(part[tag].value)
            if value.startswith(_MADE_UP):
                part[tag].value = known.setdefault(value, identity.uid("made up", str(len(known) - len(stated))))


def _kind_of(tag: BaseTag) -> str:
    """The value representation of a public attribute; empty for private and unknown ones."""
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return ""


def _datasets(data: Dataset) -> Iterator[Dataset]:
    """A dataset and all items of its sequences, in order."""
    yield data
    for tag in [tag for tag in data.keys() if _kind_of(tag) == "SQ"]:  # noqa: SIM118 - not converted
        for item in data[tag].value:
            yield from _datasets(item)


def _choose_character_set(data: Dataset, source: Source) -> None:
    """Keep the character set of the source if it holds all texts of the object, else take UTF-8.

    Without any character beyond ASCII, none is needed.
    """
    if "SpecificCharacterSet" in data:
        del data.SpecificCharacterSet
    values = [value for value in _texts(data) if not value.isascii()]
    stated = texts(source.header, "SpecificCharacterSet")
    if stated and all(_holds(value, stated) for value in (*values, "A")):
        data.SpecificCharacterSet = stated
    elif values:
        data.SpecificCharacterSet = "ISO_IR 192"


def _texts(data: Dataset) -> Iterator[str]:
    """All texts of an object."""
    for part in _datasets(data):
        for tag in [tag for tag in part.keys() if _kind_of(tag) in _TEXT]:  # noqa: SIM118 - not converted
            value = part[tag].value
            for one in value if isinstance(value, list | tuple) else [value]:
                yield str(one or "")


def _holds(value: str, stated: list[str]) -> bool:
    """Whether a character set exists and a text survives in it."""
    if not all(one in python_encoding for one in stated):
        return False
    encodings = convert_encodings(stated)
    return all(decode_bytes(encode_string(one, encodings), encodings, set()) == one for one in value.split("="))


def _shortened(text: str, end: str) -> str:
    """A text with an end that is always there, in the 64 characters of an LO."""
    return one_line(text, 64 - len(end)) + end
