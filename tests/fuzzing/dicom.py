"""Mutations of DICOM: attributes of datasets and of functional groups, lists of files, cut and flipped files."""

import shutil
import zipfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from tests.fuzzing.changes import Change, cut, flipped
from tests.reading import dicom as writer
from tests.reading.dicom_meaning import enhanced_meaning, series_meaning
from tests.reading.right import REFUSED, Right
from tests.reading.volume import Volume

OPERATIONS = ("removed", "removed", "empty", "zero", "nan", "huge", "negative", "swapped", "other", "one more")
DATASET = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality",
    "ImageType", "AcquisitionNumber", "InstanceNumber", "SeriesNumber", "SamplesPerPixel", "PhotometricInterpretation",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "NumberOfFrames",
)  # fmt: skip
SLICE = (
    *DATASET, "EchoTime", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "ImageOrientationPatient",
    "ImagePositionPatient", "RescaleSlope", "RescaleIntercept",
)  # fmt: skip
GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameContentSequence": ("StackID", "InStackPositionNumber", "DimensionIndexValues", "TemporalPositionIndex"),
}
LISTS = ("gone", "doubled", "other series", "one other series", "other echo", "one other echo", "reversed")
WORDS = {"Modality": "CT", "PhotometricInterpretation": "RGB", "StackID": "2", "ImageType": "DERIVED"}
PIXELS = b"\xe0\x7f\x10\x00"


def series(name: str) -> Any:
    """A maker of folders, or of .zip files of folders, of single-frame files."""

    def make(rng: np.random.Generator, volume: Volume, folder: Path) -> tuple[Path, Change, Right]:
        slope, inter = ((None, None), (None, None), (2.0, -10.0), (0.5, 0.0))[rng.integers(4)]
        datasets = writer.slices(volume, slope, inter)
        change, choice = Change("nothing"), rng.random()
        if 0.03 <= choice < 0.65:
            change = _attribute(rng, datasets, SLICE)
            if choice > 0.55:
                change += _attribute(rng, datasets, SLICE)
        elif 0.65 <= choice < 0.8:
            datasets, change, right = _listed(rng, datasets)
        place = writer.save_folder(datasets, folder / "series")
        if choice < 0.65:
            right = series_meaning(_read_back(place))
        elif choice >= 0.8:
            change, right = _damaged(rng, place)
        if not name.endswith(".zip"):
            return place, change, right
        path = folder / name
        _zip(place, path)
        if choice < 0.03:
            data, change = cut(rng, path.read_bytes())
            path.write_bytes(data)
            right = REFUSED
        return path, change, right

    return make


def enhanced(name: str) -> Any:
    """A maker of enhanced multi-frame files."""

    def make(rng: np.random.Generator, volume: Volume, folder: Path) -> tuple[Path, Change, Right]:
        slopes = (None, [1.0] * 5, [0.5, 1.0, 1.5, 2.0, 2.5])[rng.integers(3)]
        ds = writer.frames(volume, slopes, float(rng.choice([0, -20])))
        change, choice = Change("nothing"), rng.random()
        if 0.03 <= choice < 0.8:
            change = _group(rng, ds) if choice > 0.3 else _attribute(rng, [ds], DATASET)
            if choice > 0.65:
                change += _group(rng, ds)
        path = writer.save(ds, folder / name)
        right = _meaning_of(path, lambda: enhanced_meaning(pydicom.dcmread(path)))
        if choice >= 0.8:
            change, right = _spoilt(rng, path, lambda: enhanced_meaning(pydicom.dcmread(path)), right)
        return path, change, right

    return make


def _read_back(folder: Path) -> list[Dataset]:
    with pydicom.config.disable_value_validation():
        return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def _meaning_of(path: Path, read: Callable[[], Right]) -> Right:
    """What a file means; nothing if pydicom cannot read it."""
    try:
        with pydicom.config.disable_value_validation():
            return read()
    # Whatever pydicom raises on nonsense.
    except Exception:
        return REFUSED


def _spoilt(rng: np.random.Generator, path: Path, read: Callable[[], Right], plain: Right) -> tuple[Change, Right]:
    """A file that was cut, or has other bytes before its pixels."""
    data = path.read_bytes()
    if rng.random() < 0.6:
        data, change = cut(rng, data)
        path.write_bytes(data)
        return change, Right(short=True)
    data, change = flipped(rng, data, data.rindex(PIXELS))
    path.write_bytes(data)
    right = _meaning_of(path, read)
    # A flip that pydicom stumbles over may be nothing to another reader: the plain volume stays right.
    return change, Right(right.volumes or plain.volumes, right.warn, short=True)


def _damaged(rng: np.random.Generator, folder: Path) -> tuple[Change, Right]:
    """One file of a folder cut, or with other bytes."""
    plain = series_meaning(_read_back(folder))
    files = sorted(folder.iterdir())
    chosen = files[rng.integers(len(files))]
    change, right = _spoilt(rng, chosen, lambda: series_meaning(_read_back(folder)), plain)
    return Change(f"{chosen.name} {change.what}", change.damaged, change.odd_numbers), right


def _listed(rng: np.random.Generator, datasets: list[Dataset]) -> tuple[list[Dataset], Change, Right]:
    """A list of files that is not that of one volume any more, or is in another way."""
    k = int(rng.integers(len(datasets)))
    operation = str(
        rng.choice(["gone", "doubled", "other series", "one other series", "other echo", "one other echo", "reversed"])
    )
    what = f"slice {k} {operation}" if "one" in operation or operation in ("gone", "doubled") else operation
    plain = series_meaning(datasets)
    right = REFUSED
    if operation == "gone":
        datasets = datasets[:k] + datasets[k + 1 :]
        right = series_meaning(datasets)
    elif operation == "doubled":
        datasets = [*datasets, deepcopy(datasets[k])]
        right = Right(plain.volumes)
    elif operation == "reversed":
        datasets, right = datasets[::-1], plain
    else:
        chosen = [datasets[k]] if "one" in operation else datasets
        datasets = datasets + [_copy(ds, "series" in operation) for ds in chosen]
    return datasets, Change(what), right


def _copy(ds: Dataset, series: bool) -> Dataset:
    """A slice of another series, or of another echo, at the same place."""
    copy = deepcopy(ds)
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID}.9"
    if series:
        copy.SeriesInstanceUID = f"{ds.SeriesInstanceUID}.9"
    else:
        copy.EchoTime = "9.2"
    return copy


def _zip(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"series/{file.name}")
    shutil.rmtree(folder)


def _attribute(rng: np.random.Generator, datasets: Sequence[Dataset], names: Sequence[str]) -> Change:
    """Change an attribute of all datasets, or of one."""
    name, operation = str(rng.choice(names)), str(rng.choice(OPERATIONS))
    scope, where = list(datasets), ""
    if len(datasets) > 1 and rng.random() < 0.4:
        k = int(rng.integers(len(datasets)))
        scope, where = [datasets[k]], f" of slice {k}"
    seed = int(rng.integers(2**32))
    for ds in scope:
        _set(np.random.default_rng(seed), ds, name, operation)
    if name == "PixelData" and operation not in ("removed", "empty", "zero", "one more"):
        operation = "half as long"
    return Change(f"{name}{where}: {operation}", odd_numbers=operation == "nan")


def _group(rng: np.random.Generator, ds: Dataset) -> Change:
    """Change a functional group, or an attribute in it, of all frames or of one."""
    sequence = str(rng.choice(list(GROUPS)))
    name, operation = str(rng.choice(GROUPS[sequence])), str(rng.choice(OPERATIONS))
    frames = list(ds.PerFrameFunctionalGroupsSequence)
    chosen = [*frames, *ds.SharedFunctionalGroupsSequence]
    where = ""
    if rng.random() < 0.4:
        k = int(rng.integers(len(frames)))
        chosen, where = [frames[k]], f" of frame {k}"
        _own(ds, frames, sequence)
    whole = rng.random() < 0.2
    seed = int(rng.integers(2**32))
    for groups in [one for one in chosen if sequence in one]:
        if whole:
            operation = "removed"
            del groups[sequence]
        else:
            _set(np.random.default_rng(seed), groups[sequence].value[0], name, operation)
    return Change(f"{sequence}{'' if whole else '.' + name}{where}: {operation}", odd_numbers=operation == "nan")


def _own(ds: Dataset, frames: Sequence[Dataset], sequence: str) -> None:
    """A shared group as one of each frame, which means the same."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    if sequence in shared:
        for groups in frames:
            groups[sequence] = deepcopy(shared[sequence])
        del shared[sequence]


def _set(rng: np.random.Generator, ds: Dataset, name: str, operation: str) -> None:
    """Set an attribute to what an operation makes of its value; one that is absent is added."""
    if operation == "removed":
        if name in ds:
            del ds[name]
        return
    vr = "OW" if name == "PixelData" else dictionary_VR(name)
    if name == "PixelData":
        data = bytes(ds.PixelData) if name in ds else b""
        value: Any = {"empty": b"", "zero": bytes(len(data)), "one more": data + data[:2]}.get(
            operation, data[: len(data) // 4 * 2]
        )
    else:
        value = _value(rng, ds.get(name), vr, operation, name)
    with pydicom.config.disable_value_validation():
        ds[name] = DataElement(tag_for_keyword(name), vr, value)


def _value(rng: np.random.Generator, value: Any, vr: str, operation: str, name: str) -> Any:
    if operation == "empty":
        return None
    if vr in ("UI", "CS", "SH", "LO"):
        return f"{writer.ROOT}{rng.integers(1, 10**6)}" if vr == "UI" else WORDS.get(name, "OTHER")
    several = isinstance(value, pydicom.multival.MultiValue)
    values = [float(one) for one in (value if several else [value])] if value is not None else [1.0]
    if operation == "one more":
        values = [*values, values[-1]]
    elif operation == "swapped":
        values = values[::-1]
    else:
        at = int(rng.integers(len(values)))
        values[at] = {
            "zero": 0.0, "nan": np.nan, "huge": float(rng.choice([300.0, 65535.0, 1e30])), "negative": -values[at],
            "other": values[at] * float(rng.choice([2, 0.5])),
        }[operation]  # fmt: skip
        if rng.random() < 0.3 and operation in ("zero", "nan"):
            values = [values[at]] * len(values)
    fitting = [_fitting(one, vr) for one in values]
    return fitting if len(fitting) > 1 else fitting[0]


def _fitting(value: float, vr: str) -> Any:
    """A number as a value representation can hold it."""
    if vr == "DS":
        return writer.number(value)
    low, high = {"IS": (-(2**31), 2**31 - 1), "US": (0, 2**16 - 1), "UL": (0, 2**32 - 1)}.get(vr, (0, 0))
    whole = int(np.clip(np.nan_to_num(value), low, high))
    return str(whole) if vr == "IS" else whole
