"""What an image that was derived from a series says of it: the files it came from, and how they were compressed."""

import math
import re

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import HTJ2K, JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless
from pydicom.valuerep import format_number_as_ds

from volseg.data.io.dicom.decode import is_lossy, may_be_lossy
from volseg.data.io.dicom.header import Header
from volseg.data.io.dicom.values import number, numbers, text, texts
from volseg.dicom.source import Reference, Source

# Its keyword in pydicom is taken by the modality of the same name.
_SEGMENTATION = Code("113076", "DCM", "Segmentation")
# The methods of transfer syntaxes that lose something, or may (DICOM PS3.3 C.7.6.1.1.5.1).
_METHODS = {
    JPEGBaseline8Bit: "ISO_10918_1",
    JPEGExtended12Bit: "ISO_10918_1",
    JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1",
    HTJ2K: "ISO_15444_15",
}


def put_references(data: Dataset, source: Source) -> None:
    """Refer to the files of a source, each once, and say whether any of them was compressed with loss.

    Args:
        data: the object, changed in place: ReferencedSeriesSequence, SourceImageSequence, and, where the source tells,
            LossyImageCompression with ratio and method.
        source: the series.
    """
    files = list({one.instance: one for one in source.references}.values())
    series = Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ReferencedInstanceSequence = [_reference(one) for one in files]
    data.ReferencedSeriesSequence = [series]
    data.SourceImageSequence = [_reference(one) for one in files]
    _put_compression(data, source)


def derivation(reference: Reference) -> Dataset:
    """The item of DerivationImageSequence for a frame that was made from a slice, voxel by voxel."""
    image = _reference(reference)
    if reference.frame:
        image.ReferencedFrameNumber = reference.frame
    image.SpatialLocationsPreserved = "YES"
    image.PurposeOfReferenceCodeSequence = [_item(codes.DCM.SourceImageForImageProcessingOperation)]
    made = Dataset()
    made.DerivationCodeSequence = [_item(_SEGMENTATION)]
    made.SourceImageSequence = [image]
    return made


def _reference(one: Reference) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = one.sop_class, one.instance
    return made


def _item(code: Code) -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return made


def _put_compression(data: Dataset, source: Source) -> None:
    """What was once compressed with loss stays so, whatever is made from it (DICOM PS3.3 C.7.6.1.1.5).

    A transfer syntax that loses something tells it too; one that may counts unless the file states that nothing was
    lost. A source that is not compressed and states nothing tells nothing.
    """
    headers = source.headers
    found = [one for one in headers if is_lossy(one)] or [one for one in headers if may_be_lossy(one)]
    if not found:
        if all(text(one.data, "LossyImageCompression") == "00" for one in headers):
            data.LossyImageCompression = "00"
        return
    data.LossyImageCompression = "01"
    if ratios := _ratios(found[0]):
        data.LossyImageCompressionRatio = ratios
    if methods := _methods(found[0]):
        data.LossyImageCompressionMethod = methods


def _ratios(header: Header) -> list[str]:
    """The stated ratios if all are numbers, else that of the file if its own transfer syntax loses something."""
    stated = numbers(header.data, "LossyImageCompressionRatio")
    if stated and all(math.isfinite(one) and one > 0 for one in stated):
        return [format_number_as_ds(one) for one in stated]
    sizes = [number(header.data, name) for name in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel")]
    if header.syntax not in _METHODS or header.offset is None or None in sizes:
        return []
    whole = math.prod(one or 0 for one in sizes) / 8 * header.frames
    return [format_number_as_ds(round(whole / max(header.size - header.offset, 1), 2))]


def _methods(header: Header) -> list[str]:
    """The stated methods if all are code strings, else that of the transfer syntax."""
    stated = texts(header.data, "LossyImageCompressionMethod")
    if stated and all(re.fullmatch("[A-Z0-9_ ]{1,16}", one) for one in stated):
        return stated
    return [_METHODS[UID(header.syntax)]] if header.syntax in _METHODS else []
