"""What DICOM datasets mean by the standard (PS3.3): slices or frames, their places and values, and their stack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from tests.reading.parts import TooShortError, odd_lengths, odd_values
from tests.reading.right import REFUSED, SHORT, Doubts, NonsenseError, Right
from tests.reading.volume import LPS_RAS, Volume

# What may differ between the images of one series, in an upright scanner's volume as well: it refutes nothing.
MAY_DIFFER = ("AcquisitionNumber", "ImageType", "StudyInstanceUID", "SOPClassUID")
# What makes two volumes of one where it differs, with the words of a warning.
TELLS_APART = {
    "EchoTime": ("echo",),
    "Modality": ("modality",),
    "FrameOfReferenceUID": ("frame of reference", "FrameOfReference"),
}


@dataclass(frozen=True, eq=False)
class Frame:
    """A slice: values (columns, rows), LPS+ position and directions (2, 3), spacing of rows and columns."""

    values: np.ndarray
    position: np.ndarray
    directions: np.ndarray
    spacing: np.ndarray


def series_meaning(datasets: Sequence[Dataset]) -> Right:
    """What single-frame datasets mean together."""
    doubts = Doubts()
    try:
        _compared(datasets, doubts)
        if any("NumberOfFrames" in ds for ds in datasets):
            doubts.refusable = True
            if any(_value(ds, "NumberOfFrames") not in (None, 0, 1) for ds in datasets):
                raise TooShortError
        found = [_slice(ds, doubts) for ds in datasets]
        return doubts.right(_stack(found, doubts))
    except NonsenseError:
        return REFUSED
    except TooShortError:
        return SHORT


def enhanced_meaning(ds: Dataset) -> Right:
    """What an enhanced multi-frame dataset means."""
    doubts = Doubts()
    try:
        count = _value(ds, "NumberOfFrames")
        groups = _sequence(ds, "PerFrameFunctionalGroupsSequence")
        shared = (_sequence(ds, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
        if count is None or int(count) < 1 or int(count) != len(groups):
            raise NonsenseError
        stored = _stored(ds, int(count), doubts)
        merged = [_Groups(group, shared, doubts) for group in groups]
        if len({str(one.get("FrameContentSequence", "StackID")) for one in merged}) > 1:
            raise NonsenseError
        if len({str(one.get("FrameContentSequence", "TemporalPositionIndex")) for one in merged}) > 1:
            doubts.about("time", "temporal")
        doubts.refusable |= any(one.get("FrameContentSequence", "StackID") is None for one in merged)
        for name in ("SOPClassUID", "SeriesInstanceUID"):
            doubts.refusable |= _value(ds, name) is None
        places = {str(one.get("FrameContentSequence", "InStackPositionNumber")) for one in merged}
        doubts.refusable |= len(places) < len(merged) or "None" in places
        found = [_frame(one, stored[k], doubts) for k, one in enumerate(merged)]
        return doubts.right(_stack(found, doubts))
    except NonsenseError:
        return REFUSED
    except TooShortError:
        return SHORT


class _Groups:
    """The functional groups of a frame: its own, else the shared ones."""

    def __init__(self, own: Dataset, shared: Dataset, doubts: Doubts) -> None:
        self.own, self.shared, self.doubts = own, shared, doubts

    def get(self, sequence: str, name: str) -> Any:
        found = [(_sequence(one, sequence) or [None])[0] for one in (self.own, self.shared)]
        self.doubts.refusable |= None not in found
        chosen = found[0] if found[0] is not None else found[1]
        return None if chosen is None else _value(chosen, name)


def _frame(groups: _Groups, stored: np.ndarray, doubts: Doubts) -> Frame:
    slope = groups.get("PixelValueTransformationSequence", "RescaleSlope")
    inter = groups.get("PixelValueTransformationSequence", "RescaleIntercept")
    return Frame(
        _rescaled(stored, slope, inter, doubts),
        _numbers(groups.get("PlanePositionSequence", "ImagePositionPatient"), 3),
        _directions(groups.get("PlaneOrientationSequence", "ImageOrientationPatient"), doubts),
        _spacing(groups.get("PixelMeasuresSequence", "PixelSpacing"), None, doubts),
    )


def _slice(ds: Dataset, doubts: Doubts) -> Frame:
    slope, inter = _value(ds, "RescaleSlope"), _value(ds, "RescaleIntercept")
    return Frame(
        _rescaled(_stored(ds, 1, doubts)[0], slope, inter, doubts),
        _numbers(_value(ds, "ImagePositionPatient"), 3),
        _directions(_value(ds, "ImageOrientationPatient"), doubts),
        _spacing(_value(ds, "PixelSpacing"), _value(ds, "ImagerPixelSpacing"), doubts),
    )


def _compared(datasets: Sequence[Dataset], doubts: Doubts) -> None:
    """What has to be equal in all images of a series."""
    uids = {str(_value(ds, "SeriesInstanceUID") or "") for ds in datasets}
    if len(uids - {""}) > 1:
        raise NonsenseError
    if uids == {""}:
        doubts.refusable = True
    elif "" in uids:
        doubts.about("SeriesInstanceUID", "series")
    for name, words in TELLS_APART.items():
        values = {str(_value(ds, name) or "") for ds in datasets}
        doubts.refusable |= len(values) > 1
        if len(values - {""}) > 1:
            doubts.about(*words)
    for name in MAY_DIFFER:
        doubts.refusable |= len({str(_value(ds, name)) for ds in datasets}) > 1
    for ds in datasets:
        doubts.refusable |= any(_value(ds, name) is None for name in ("SOPClassUID", "SOPInstanceUID", "Modality"))
        doubts.refusable |= str(_value(ds, "Modality")) not in ("MR", "CT")
    doubts.refusable |= len({str(_value(ds, "SOPInstanceUID")) for ds in datasets}) < len(datasets)


def _value(ds: Dataset, name: str) -> Any:
    """The value of an attribute; None if it is absent or empty."""
    if name not in ds:
        return None
    try:
        value = ds[name].value
    except Exception as error:
        raise NonsenseError from error
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value


def _sequence(ds: Dataset, name: str) -> list[Dataset]:
    return list(_value(ds, name) or [])


def _numbers(value: Any, count: int) -> np.ndarray:
    try:
        numbers = np.array([float(one) for one in value])
    except (TypeError, ValueError) as error:
        raise NonsenseError from error
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise NonsenseError
    return numbers


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise NonsenseError from error


def _directions(value: Any, doubts: Doubts) -> np.ndarray:
    axes = _numbers(value, 6).reshape(2, 3)
    with np.errstate(all="ignore"):
        off = max(np.abs(np.linalg.norm(axes, axis=1) - 1).max(), abs(float(axes[0] @ axes[1])))
    if not off < 1e-2:
        raise NonsenseError
    doubts.refusable |= off > 1e-4
    return axes


def _spacing(value: Any, imager: Any, doubts: Doubts) -> np.ndarray:
    if value is None and imager is not None:
        doubts.about("spacing", "ImagerPixelSpacing")
        value = imager
    spacing = _numbers(value, 2)
    if spacing.min() <= 0:
        raise NonsenseError
    return spacing


def _stored(ds: Dataset, count: int, doubts: Doubts) -> np.ndarray:
    """Stored values (frames, columns, rows) as BitsStored, HighBit and PixelRepresentation describe them."""
    described = {name: _value(ds, name) for name in ("SamplesPerPixel", "PhotometricInterpretation", "HighBit")}
    doubts.refusable |= None in described.values()
    if described["SamplesPerPixel"] not in (None, 1):
        raise NonsenseError
    if described["PhotometricInterpretation"] not in (None, "MONOCHROME1", "MONOCHROME2"):
        raise NonsenseError
    rows, columns, allocated = (_number(_value(ds, name)) for name in ("Rows", "Columns", "BitsAllocated"))
    if "PixelData" not in ds:
        raise TooShortError
    if allocated not in (8, 16, 32) or min(rows, columns) < 1:
        raise NonsenseError
    if _value(ds, "ModalityLUTSequence") is not None:
        raise NonsenseError
    syntax = getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", None)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    needed = count * rows * columns * allocated // 8
    data = bytes(_value(ds, "PixelData") or b"")
    if len(data) < needed:
        raise TooShortError
    doubts.refusable |= len(data) > needed + needed % 2
    raw = np.frombuffer(data[:needed], np.dtype(f"u{allocated // 8}").newbyteorder(order))
    return _meant(ds, raw.astype(np.int64), allocated, doubts).reshape(count, rows, columns).transpose(0, 2, 1)


def _meant(ds: Dataset, raw: np.ndarray, allocated: int, doubts: Doubts) -> np.ndarray:
    stored, high, sign = (_value(ds, name) for name in ("BitsStored", "HighBit", "PixelRepresentation"))
    doubts.refusable |= None in (stored, high, sign)
    bits = allocated if stored is None else _number(stored)
    top = bits - 1 if high is None else _number(high)
    if not 1 <= bits <= allocated or not bits - 1 <= top < allocated or sign not in (None, 0, 1):
        raise NonsenseError
    doubts.refusable |= top != bits - 1
    values = (raw >> (top + 1 - bits)) & ((1 << bits) - 1)
    negative = values >= 1 << (bits - 1)
    if sign is None and negative.any():
        raise NonsenseError
    return np.where(negative, values - (1 << bits), values) if sign == 1 else values


def _rescaled(stored: np.ndarray, slope: Any, inter: Any, doubts: Doubts) -> np.ndarray:
    if slope is None and inter is None:
        return stored
    if (slope is None or inter is None) and "slope" not in doubts.warn:
        doubts.about("rescale", "slope", "intercept")
    try:
        factor, shift = float(1 if slope is None else slope), float(0 if inter is None else inter)
    except (TypeError, ValueError) as error:
        raise NonsenseError from error
    if not math.isfinite(factor) or not math.isfinite(shift) or factor == 0:
        raise NonsenseError
    return stored if (factor, shift) == (1, 0) else stored * factor + shift


def _stack(frames: Sequence[Frame], doubts: Doubts) -> Volume:
    """Frames in the order of their places."""
    first = frames[0]
    for one in frames:
        same = one.values.shape == first.values.shape and np.allclose(one.spacing, first.spacing, rtol=1e-3)
        if not same or not np.allclose(one.directions, first.directions, atol=1e-3):
            raise NonsenseError
        doubts.refusable |= not np.allclose(one.directions, first.directions, atol=1e-5)
        doubts.refusable |= not np.allclose(one.spacing, first.spacing, rtol=1e-6)
    if len(frames) < 2:
        raise NonsenseError
    normal = np.cross(*first.directions)
    ordered = sorted(frames, key=lambda one: float(one.position @ normal))
    places = np.array([one.position for one in ordered])
    gaps = np.diff(places @ normal)
    typical = float(np.median(gaps))
    if gaps.min() < 1e-3 or np.abs(gaps - typical).max() > 0.1 * typical:
        raise NonsenseError
    step = (places[-1] - places[0]) / (len(places) - 1)
    tilt = np.linalg.norm(step - (step @ normal) * normal) / (step @ normal)
    off = np.abs(places - places[0] - np.outer(np.arange(len(places)), step)).max()
    doubts.refusable |= tilt > math.radians(0.3) or off > 1e-2 * typical
    if off > 0.1 * typical:
        raise NonsenseError
    values = np.stack([one.values for one in ordered], axis=2)
    doubts.refusable |= odd_values(values)
    doubts.refusable |= odd_lengths([*first.spacing, float(np.linalg.norm(step))])
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[1]
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, places[0]
    return Volume(values, LPS_RAS @ affine)
