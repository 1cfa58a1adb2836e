"""Kinds of DICOM that readers disagree about: edits of a plain series, and what the sentence of a refusal names."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from tests.reading import dicom
from tests.reading.dicom_meaning import series_meaning
from tests.reading.right import REFUSED, Right
from tests.reading.volume import Volume, grid, sample

VOLUME = Volume(sample("u2"), grid())
Datasets = list[Dataset]


def twice(**second: Any) -> Datasets:
    """All slices, and again at the same places with other attributes."""
    again = dicom.slices(Volume(VOLUME.voxels // 2, VOLUME.affine))
    for ds in again:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID}.2"
        for name, value in second.items():
            setattr(ds, name, value)
    return dicom.slices(VOLUME) + again


def interleaved(**second: Any) -> Datasets:
    """Two sets of slices, the second half a slice distance further, as two acquisitions of one series are."""
    shifted = grid()
    shifted[:3, 3] += shifted[:3, 2] / 2
    again = dicom.slices(Volume(VOLUME.voxels, shifted))
    for ds in again:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID}.2"
        for name, value in second.items():
            setattr(ds, name, value)
    return dicom.slices(VOLUME) + again


SEVERAL = {
    "echoes": (lambda: twice(EchoTime="9.2"), ("echo", "4-d")),
    "times": (lambda: twice(TemporalPositionIdentifier=2), ("time", "4-d")),
    "acquisitions": (lambda: twice(AcquisitionNumber=2), ("acquisition", "time", "4-d")),
    "acquisitions interleaved": (lambda: interleaved(AcquisitionNumber=2), ("acquisition",)),
    "echoes interleaved": (lambda: interleaved(EchoTime="9.2"), ("echo",)),
    "magnitude and phase": (lambda: twice(ImageType=["ORIGINAL", "PRIMARY", "P", "NONE"]), ("phase", "type", "4-d")),
    "series": (lambda: twice(SeriesInstanceUID="1.2.3.4"), ("series",)),
}


def every(**values: Any) -> Callable[[int, Dataset], None]:
    def edit(_: int, ds: Dataset) -> None:
        for name, value in values.items():
            setattr(ds, name, value)

    return edit


def pixels(of: Callable[[np.ndarray], np.ndarray], **values: Any) -> Callable[[int, Dataset], None]:
    """Other stored values (uint16), described by other attributes."""

    def edit(_: int, ds: Dataset) -> None:
        ds.PixelData = of(np.frombuffer(ds.PixelData, "<u2")).astype("<u2").tobytes()
        every(**values)(0, ds)

    return edit


def short(k: int, ds: Dataset) -> None:
    if k == 2:
        ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2]


def imager(_: int, ds: Dataset) -> None:
    ds.ImagerPixelSpacing = ds.PixelSpacing
    del ds.PixelSpacing


def tilted(k: int, ds: Dataset) -> None:
    ds.ImagePositionPatient[1] = float(ds.ImagePositionPatient[1]) + k


def lut(_: int, ds: Dataset) -> None:
    table = dicom.item(ModalityLUTType="US", LUTDescriptor=[256, 0, 16])
    table.add_new("LUTData", "OW", np.arange(256, dtype="<u2")[::-1].tobytes())
    ds.ModalityLUTSequence = [table]


TWELVE = {"BitsStored": 12, "HighBit": 11}
# What the standard says of these is worked out by tests/reading/dicom_meaning.py.
DESCRIBED = {
    "12 of 16 bits": pixels(lambda values: values, **TWELVE),
    "overlay in the upper bits": pixels(lambda values: values | 0x8000, **TWELVE),
    "sign not extended": pixels(lambda values: values - 60 & 0x0FFF, PixelRepresentation=1, **TWELVE),
    "upper 12 bits": pixels(lambda values: values << 4, BitsStored=12, HighBit=15),
    "monochrome1": every(PhotometricInterpretation="MONOCHROME1"),
    "padding value": every(PixelPaddingValue=0),
    "slope per slice": lambda k, ds: every(RescaleSlope=str(1 + k / 4), RescaleIntercept="0")(k, ds),
    "one slice rescaled": lambda k, ds: every(RescaleSlope="2" if k == 1 else "1", RescaleIntercept="-7")(k, ds),
    "slope zero": every(RescaleSlope="0", RescaleIntercept="3"),
    "large intercept": every(RescaleSlope="1", RescaleIntercept="1000000"),
    "short pixel data": short,
    "imager spacing": imager,
    "spacing empty": every(PixelSpacing=None),
    "spacing zero": every(PixelSpacing=["0", "0"]),
    "orientation zero": every(ImageOrientationPatient=["0"] * 6),
    "orientation skewed": every(ImageOrientationPatient=["1", "0", "0", "0.5", "0.866", "0"]),
    "no series UID": lambda _, ds: ds.__delitem__("SeriesInstanceUID"),
    "series UID a word": every(SeriesInstanceUID="ANONYMOUS"),
    "tilt": tilted,
    "modality LUT": lut,
    "frames that are not there": every(NumberOfFrames=3),
}


def colour(_: int, ds: Dataset) -> None:
    size = ds.Rows * ds.Columns * 3
    every(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)(0, ds)
    every(BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0)(0, ds)
    ds.add_new("PixelData", "OB", bytes(size + size % 2))


def palette(_: int, ds: Dataset) -> None:
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for name in ("Red", "Green", "Blue"):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        ds.add_new(f"{name}PaletteColorLookupTableData", "OW", bytes(512))


def mosaic(_: int, ds: Dataset) -> None:
    ds.Manufacturer, ds.ImageType = "SIEMENS", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]


def gap(k: int, ds: Dataset) -> None:
    if k >= 3:
        ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2]) + 4


NAMED = {
    "colour": (colour, ("colour", "color", "rgb")),
    "palette": (palette, ("colour", "color", "palette")),
    "mosaic": (mosaic, ("mosaic",)),
    "gap": (gap, ("gap", "spaced", "missing")),
}


def kind(name: str) -> tuple[Datasets, Right]:
    """The datasets of a kind, and what is right for them."""
    if name in SEVERAL:
        return SEVERAL[name][0](), REFUSED
    datasets = dicom.slices(VOLUME)
    # pydicom says of nonsense that it is, which the reader is not to repeat.
    with pydicom.config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, ds in enumerate(datasets):
            (DESCRIBED[name] if name in DESCRIBED else NAMED[name][0])(k, ds)
    if name == "modality LUT":
        return datasets, Right((Volume(255 - VOLUME.voxels.astype(int), VOLUME.affine),))
    return datasets, series_meaning(datasets) if name in DESCRIBED else REFUSED
