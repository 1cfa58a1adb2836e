"""Pictures as Secondary Capture images (DICOM PS3.3 A.8.1), which every PACS and viewer shows.

They are pages, not slices: without frame of reference and positions, so that no viewer places them in the patient.
"""

import numpy as np
from pydicom.dataset import Dataset

from volseg.data.io.dicom.values import text
from volseg.dicom.about import About
from volseg.dicom.objects import Kind, describe
from volseg.dicom.source import Source

PICTURE = Kind("picture", "OT", "1.2.840.10008.5.1.4.1.1.7", 4)
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def secondary_capture(pixels: np.ndarray, about: About) -> Dataset:
    """A picture of a result, on which no data of the patient are drawn.

    Args:
        pixels: (rows, columns, 3) uint8, red, green and blue.
        about: source and model.

    Returns:
        The object, to be written by `volseg.dicom.objects.write`.
    """
    made = Dataset()
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.ConversionType = "WSD"
    made.BurnedInAnnotation = "NO"
    # Three planes have no single orientation; the side of a paired organ is that of the source, if it states one.
    made.PatientOrientation = None
    made.Laterality = text(about.source.header, "Laterality") or None
    made.DerivationDescription = "Three planes of the scan with the outlines of its labels"
    made.SourceImageSequence = _source_images(about.source)
    for one in about.source.files:
        if text(one, _LOSSY[0]) == "01":
            # What has lost detail once stays so.
            for name in _LOSSY:
                if name in one:
                    made[name] = one[name]
            break
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.Rows, made.Columns = pixels.shape[:2]
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    made["PixelData"].VR = "OB"
    describe(made, PICTURE, about.source, about.identity, about.model)
    return made


def _source_images(source: Source) -> list[Dataset]:
    """A reference to each file of the source, with the frames that were used of a multi-frame one."""
    items = []
    for instance, frames in source.frames_by_file.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.class_by_file[instance], instance
        if frames:
            item.ReferencedFrameNumber = list(frames)
        items.append(item)
    return items
