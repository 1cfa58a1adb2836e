"""The formats of the conformance suite: how each is written, and what it can express. A new one joins by one line."""

import gzip
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom

from tests.reading import dicom, metaimage, mgh, nifti, nrrd
from tests.reading.dicom_meaning import enhanced_meaning, series_meaning
from tests.reading.right import Right
from tests.reading.volume import Volume

Edit = Callable[[Any], None]
ALL = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


@dataclass(frozen=True)
class Absent:
    """A field that a file does not state: how it is left out, and words of the warning or sentence that names it."""

    edit: Edit
    words: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """A format.

    Args:
        name: for the names of tests.
        suffix: of its files; empty for a folder.
        write: takes a path, a volume of stored values, and optionally order ("<", ">"), scaling (slope, intercept) and
            edit, which changes the header; returns the path to read.
        meaning: of what lies at a path.
        dtypes: that it can store.
        orders: byte orders.
        swapped: the dtypes in the second byte order; None for all. Readers disagree about the order of the two words of
            32-bit values in big endian DICOM.
        scaling: whether it has a slope and an intercept.
        absent: what a file may leave out.
    """

    name: str
    suffix: str
    write: Callable[..., Path]
    meaning: Callable[[Path], Right]
    dtypes: tuple[str, ...] = ALL
    orders: str = "<>"
    swapped: tuple[str, ...] | None = None
    scaling: bool = False
    absent: Mapping[str, Absent] = field(default_factory=dict)

    def parts(self, path: Path) -> list[Path]:
        """The files that can be cut short, of which the last is the one with the voxels."""
        if path.is_dir():
            return sorted(path.iterdir())
        return [path, *sorted(path.parent.glob("voxels.*"))]


def _nifti(version: int) -> Callable[..., Path]:
    def write(
        path: Path, volume: Volume, order: str = "<", scaling: tuple[float, float] = (0, 0), edit: Edit | None = None
    ) -> Path:
        record = nifti.header(volume, version, order, *scaling)
        if edit is not None:
            edit(record)
        return _compressed(path, nifti.contents(record, volume.voxels))

    return write


def _mgh(path: Path, volume: Volume, order: str = ">", edit: Edit | None = None) -> Path:
    assert order == ">"
    record = mgh.header(volume)
    if edit is not None:
        edit(record)
    return _compressed(path, mgh.contents(record, volume.voxels))


def _compressed(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data, 1) if path.suffix in (".gz", ".mgz") else data)
    return path


def _nrrd(encoding: str) -> Callable[..., Path]:
    def write(path: Path, volume: Volume, order: str = "<", edit: Edit | None = None) -> Path:
        fields = nrrd.header(volume, encoding, order)
        data = nrrd.packed(volume.voxels, encoding, order)
        return _text(path, fields, data, nrrd.contents, ("data file", ".raw"), edit)

    return write


def _metaimage(compressed: bool) -> Callable[..., Path]:
    def write(path: Path, volume: Volume, order: str = "<", edit: Edit | None = None) -> Path:
        data = metaimage.packed(volume.voxels, order)
        data = zlib.compress(data, 1) if compressed else data
        fields = metaimage.header(volume, len(data) if compressed else None, order)
        fields["ElementDataFile"] = "LOCAL"
        link = ("ElementDataFile", ".zraw" if compressed else ".raw")
        return _text(path, fields, data, metaimage.contents, link, edit)

    return write


def _text(path: Path, fields: dict, data: bytes, contents: Any, link: tuple[str, str], edit: Edit | None) -> Path:
    """Write a header of text, with the voxels behind it or in a file of their own."""
    if path.suffix in (".nhdr", ".mhd"):
        # A plain name: a line break cannot be written, and a % stands for a number.
        beside = path.with_name(f"voxels{link[1]}")
        beside.write_bytes(data)
        # The fields of MetaImage end with this one.
        fields[link[0]] = beside.name
        data = b""
    if edit is not None:
        edit(fields)
    path.write_bytes(contents(fields, data))
    return path


def _detached(path: Path) -> bytes | None:
    """The voxels of a file that has them beside it."""
    if path.suffix not in (".nhdr", ".mhd"):
        return None
    return next(path.parent.glob("voxels.*")).read_bytes()


def _series(save: Callable[..., Path]) -> Callable[..., Path]:
    def write(
        path: Path,
        volume: Volume,
        order: str = "<",
        scaling: tuple[float | None, float | None] = (None, None),
        edit: Edit | None = None,
    ) -> Path:
        with pydicom.config.disable_value_validation():
            datasets = dicom.slices(volume, *scaling, syntax="big" if order == ">" else "explicit")
        for ds in datasets if edit is not None else ():
            edit(ds)
        return save(datasets, path)

    return write


def _enhanced(
    path: Path,
    volume: Volume,
    order: str = "<",
    scaling: tuple[float, float] | None = None,
    edit: Edit | None = None,
) -> Path:
    slopes = None if scaling is None else [scaling[0]] * volume.voxels.shape[2]
    inter = 0 if scaling is None else scaling[1]
    with pydicom.config.disable_value_validation():
        ds = dicom.frames(volume, slopes, inter, syntax="big" if order == ">" else "explicit")
    if edit is not None:
        edit(ds)
    return dicom.save(ds, path)


def _series_meaning(path: Path) -> Right:
    folder = path.with_suffix("") if path.suffix == ".zip" else path
    with pydicom.config.disable_value_validation():
        return series_meaning([pydicom.dcmread(file) for file in sorted(folder.iterdir())])


def _enhanced_meaning(path: Path) -> Right:
    with pydicom.config.disable_value_validation():
        return enhanced_meaning(pydicom.dcmread(path))


def _zip(datasets: Any, path: Path) -> Path:
    return dicom.save_zip(datasets, path)


def without(*names: str) -> Edit:
    """Leave out fields or attributes."""

    def edit(header: Any) -> None:
        for name in names:
            del header[name]

    return edit


def setting(**values: Any) -> Edit:
    """Set fields of a binary header."""

    def edit(record: Any) -> None:
        for name, value in values.items():
            record[name] = value

    return edit


def _without_shared(sequence: str) -> Edit:
    def edit(ds: Any) -> None:
        del ds.SharedFunctionalGroupsSequence[0][sequence]

    return edit


def _without_own(sequence: str) -> Edit:
    def edit(ds: Any) -> None:
        for groups in ds.PerFrameFunctionalGroupsSequence:
            del groups[sequence]

    return edit


NIFTI = {
    "units": Absent(setting(xyzt_units=0), ("unit", "millimetre")),
    "forms": Absent(setting(sform_code=0, qform_code=0), ("form", "orientation")),
    "forms and voxel sizes": Absent(setting(sform_code=0, qform_code=0, pixdim=0), ("pixdim", "voxel size", "spacing")),
}
MGH = {"goodRASFlag": Absent(setting(good=0), ("goodRASFlag", "orientation"))}
NRRD = {
    "space": Absent(without("space"), ("space", "orientation")),
    "space directions": Absent(without("space directions"), ("direction", "spacing")),
    "space origin": Absent(without("space origin"), ("origin",)),
    "all of the grid": Absent(without("space", "space directions", "space origin"), ("space", "spacing", "direction")),
    "endian": Absent(without("endian"), ("endian", "byte order")),
    "sizes": Absent(without("sizes"), ("sizes",)),
    "type": Absent(without("type"), ("type",)),
    "encoding": Absent(without("encoding"), ("encoding",)),
}
METAIMAGE = {
    "ElementSpacing": Absent(without("ElementSpacing"), ("spacing",)),
    "Offset": Absent(without("Offset"), ("offset", "origin", "position")),
    "TransformMatrix": Absent(without("TransformMatrix"), ("TransformMatrix", "orientation", "direction")),
    "byte order": Absent(without("BinaryDataByteOrderMSB"), ("byte order", "endian", "ByteOrder")),
    "DimSize": Absent(without("DimSize"), ("DimSize", "size")),
    "ElementType": Absent(without("ElementType"), ("ElementType", "type")),
}
SERIES = {
    "PixelSpacing": Absent(without("PixelSpacing"), ("spacing",)),
    "ImageOrientationPatient": Absent(without("ImageOrientationPatient"), ("orientation",)),
    "ImagePositionPatient": Absent(without("ImagePositionPatient"), ("position",)),
    "SeriesInstanceUID": Absent(without("SeriesInstanceUID"), ("UID",)),
    "BitsAllocated": Absent(without("BitsAllocated"), ("BitsAllocated", "bits")),
    "Rows": Absent(without("Rows"), ("Rows", "size")),
}
ENHANCED = {
    "PixelMeasuresSequence": Absent(_without_shared("PixelMeasuresSequence"), ("spacing", "PixelMeasures")),
    "PlaneOrientationSequence": Absent(_without_shared("PlaneOrientationSequence"), ("orientation",)),
    "PlanePositionSequence": Absent(_without_own("PlanePositionSequence"), ("position",)),
    "all groups": Absent(
        without("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"), ("position", "functional group")
    ),
}
STORED = ("u1", "i1", "i2", "u2", "i4", "u4")


def _of(kind: Any) -> Callable[[Path], Right]:
    return lambda path: kind.meaning(path.read_bytes())


def _of_two(kind: Any) -> Callable[[Path], Right]:
    return lambda path: kind.meaning(path.read_bytes(), _detached(path))


FORMATS = (
    Format("nii", ".nii", _nifti(1), _of(nifti), scaling=True, absent=NIFTI),
    Format("nii.gz", ".nii.gz", _nifti(1), _of(nifti), scaling=True, absent=NIFTI),
    Format("nifti-2", ".nii", _nifti(2), _of(nifti), scaling=True, absent=NIFTI),
    Format("mgh", ".mgh", _mgh, _of(mgh), ("u1", "i2", "i4", "f4"), ">", absent=MGH),
    Format("mgz", ".mgz", _mgh, _of(mgh), ("u1", "i2", "i4", "f4"), ">", absent=MGH),
    Format("nrrd", ".nrrd", _nrrd("raw"), _of(nrrd), absent=NRRD),
    Format("nrrd gzip", ".nrrd", _nrrd("gzip"), _of(nrrd), absent=NRRD),
    Format("nhdr", ".nhdr", _nrrd("raw"), _of_two(nrrd), absent=NRRD),
    Format("mha", ".mha", _metaimage(False), _of(metaimage), absent=METAIMAGE),
    Format("mha compressed", ".mha", _metaimage(True), _of(metaimage), absent=METAIMAGE),
    Format("mhd", ".mhd", _metaimage(False), _of_two(metaimage), absent=METAIMAGE),
    Format(
        "dicom", "", _series(dicom.save_folder), _series_meaning, STORED, swapped=STORED[:4], scaling=True,
        absent=SERIES,
    ),
    Format(
        "dicom zip", ".zip", _series(_zip), _series_meaning, STORED, swapped=STORED[:4], scaling=True, absent=SERIES
    ),
    Format(
        "dicom enhanced", ".dcm", _enhanced, _enhanced_meaning, ("u1", "i2", "u2"),
        scaling=True, absent=ENHANCED,
    ),
)  # fmt: skip
