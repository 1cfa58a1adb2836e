"""DICOM: single-frame series and enhanced multi-frame files by pydicom."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.reading.volume import LPS_RAS, Volume

ROOT = "1.2.826.0.1.3680043.8.498."
MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
SYNTAXES = {"explicit": ExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian, "big": ExplicitVRBigEndian}


def number(value: float) -> str:
    """A number as decimal strings (DS) have it: at most 16 characters."""
    return next(text for digits in range(15, 0, -1) if len(text := f"{value:.{digits}g}") <= 16)


def item(**values: Any) -> Dataset:
    """An item of a sequence."""
    one = Dataset()
    for name, value in values.items():
        setattr(one, name, value)
    return one


def _place(volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions as columns, spacing, and the position of the first voxel, in LPS+ millimetres."""
    assert volume.affine is not None
    affine = LPS_RAS @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return affine[:3, :3] / spacing, spacing, affine[:3, 3]


def _common(volume: Volume, uid: str, series: str, sop_class: str, syntax: str) -> Dataset:
    """What both kinds of files have, but pixels and geometry."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    ds.Modality = "CT" if sop_class in (CT, ENHANCED_CT) else "MR"
    ds.PatientName = ds.PatientID = "X"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}1", f"{ROOT}{series}"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 7, 1, 1
    ds.FrameOfReferenceUID = f"{ROOT}3"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = volume.voxels.shape[1], volume.voxels.shape[0]
    kind = volume.voxels.dtype
    ds.BitsAllocated = ds.BitsStored = kind.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(kind.kind == "i")
    return ds


def _set_pixels(ds: Dataset, pixels: np.ndarray, syntax: str) -> None:
    order = ">" if syntax == "big" else "<"
    content = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(order))).tobytes()
    ds.add_new("PixelData", "OW" if pixels.dtype.itemsize > 1 else "OB", content + b"\0" * (len(content) % 2))


def slices(
    volume: Volume,
    slope: float | None = None,
    inter: float | None = None,
    series: str = "2",
    sop_class: str = MR,
    syntax: str = "explicit",
) -> list[Dataset]:
    """One dataset per slice K of a volume that has the stored values."""
    axes, spacing, origin = _place(volume)
    datasets = []
    for k in range(volume.voxels.shape[2]):
        ds = _common(volume, f"{ROOT}{series}.{k + 1}", series, sop_class, syntax)
        ds.InstanceNumber = k + 1
        ds.EchoTime = "4.6"
        ds.PixelSpacing = [number(spacing[1]), number(spacing[0])]
        ds.SliceThickness = ds.SpacingBetweenSlices = number(spacing[2])
        ds.ImageOrientationPatient = [number(one) for one in (*axes[:, 0], *axes[:, 1])]
        ds.ImagePositionPatient = [number(one) for one in origin + axes[:, 2] * spacing[2] * k]
        if slope is not None:
            ds.RescaleSlope = number(slope)
        if inter is not None:
            ds.RescaleIntercept = number(inter)
        _set_pixels(ds, volume.voxels[:, :, k].T, syntax)
        datasets.append(ds)
    return datasets


def frames(
    volume: Volume,
    slopes: Sequence[float] | None = None,
    inter: float = 0,
    sop_class: str = ENHANCED_MR,
    syntax: str = "explicit",
) -> Dataset:
    """An enhanced multi-frame dataset of a volume that has the stored values; `slopes`: one per frame."""
    axes, spacing, origin = _place(volume)
    ds = _common(volume, f"{ROOT}2.1", "2", sop_class, syntax)
    ds.NumberOfFrames = volume.voxels.shape[2]
    ds.DimensionOrganizationType = "3D"
    measures = item(
        PixelSpacing=[number(spacing[1]), number(spacing[0])],
        SliceThickness=number(spacing[2]),
        SpacingBetweenSlices=number(spacing[2]),
    )
    turned = item(ImageOrientationPatient=[number(one) for one in (*axes[:, 0], *axes[:, 1])])
    ds.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[turned])]
    groups = []
    for k in range(volume.voxels.shape[2]):
        position = origin + axes[:, 2] * spacing[2] * k
        group = item(
            FrameContentSequence=[item(StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1])],
            PlanePositionSequence=[item(ImagePositionPatient=[number(one) for one in position])],
        )
        if slopes is not None:
            rescale = item(RescaleSlope=number(slopes[k]), RescaleIntercept=number(inter), RescaleType="US")
            group.PixelValueTransformationSequence = [rescale]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    _set_pixels(ds, volume.voxels.transpose(2, 1, 0), syntax)
    return ds


def save(ds: Dataset, path: Path) -> Path:
    """Write a dataset, valid or not."""
    with pydicom.config.disable_value_validation():
        ds.save_as(path, enforce_file_format=True)
    return path


def save_folder(datasets: Sequence[Dataset], folder: Path) -> Path:
    """Write a folder, with names that say nothing about the order."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, ds in enumerate(datasets):
        save(ds, folder / f"{k * 7 % 31:03}.dcm")
    return folder


def save_zip(datasets: Sequence[Dataset], path: Path) -> Path:
    """Write a .zip of a folder."""
    folder = save_folder(datasets, path.with_suffix(""))
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"series/{file.name}")
    return path
