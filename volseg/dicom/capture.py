"""Pictures as Secondary Capture images (DICOM PS3.3 A.8.1), which every PACS and viewer shows.

They are pages, not slices: without frame of reference and positions, so that no viewer places them in the patient.
"""

import numpy as np
from pydicom.dataset import Dataset

from volseg.data.io.dicom.values import text
from volseg.dicom.about import About
from volseg.dicom.image.references import put_references
from volseg.dicom.objects import Kind, describe

PICTURE = Kind("picture", "OT", "1.2.840.10008.5.1.4.1.1.7", 4)


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
    put_references(made, about.source)
    for item in made.SourceImageSequence:
        if frames := about.source.frames_by_file[item.ReferencedSOPInstanceUID]:
            item.ReferencedFrameNumber = list(frames)
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.Rows, made.Columns = pixels.shape[:2]
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    made["PixelData"].VR = "OB"
    describe(made, PICTURE, about.source, about.identity, about.model)
    return made
