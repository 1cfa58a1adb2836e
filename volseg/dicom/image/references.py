"""What an image that was derived from a series says of it: the files it came from, and how they were compressed."""

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from volseg.data.io.dicom.values import text, texts
from volseg.dicom.source import Reference, Source

# Its keyword in pydicom is taken by the modality of the same name.
_SEGMENTATION = Code("113076", "DCM", "Segmentation")


def put_references(data: Dataset, source: Source) -> None:
    """Refer to the files of a source, each once, and say whether any of them was compressed with loss.

    Args:
        data: the object, changed in place: ReferencedSeriesSequence, SourceImageSequence, LossyImageCompression.
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
    """What was once compressed with loss stays so, whatever is made from it (DICOM PS3.3 C.7.6.1.1.5)."""
    lossy = next((one for one in source.files if text(one, "LossyImageCompression") == "01"), None)
    data.LossyImageCompression = "00" if lossy is None else "01"
    for name in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        data.pop(name, None)
        if lossy is not None and (stated := texts(lossy, name)):
            setattr(data, name, stated)
