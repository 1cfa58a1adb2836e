"""The frames of DICOM files: where each lies, and everything that could make two of them different volumes.

A classic file is one frame, whose attributes stand in the dataset. An enhanced file has many, whose attributes stand in
functional groups, shared or of one frame (DICOM PS3.3 C.7.6.16). Both become the same `Frame`.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from volseg.data.io.dicom.header import Header, has_groups
from volseg.data.io.dicom.values import (
    count,
    element,
    items,
    kind_of_value,
    numbers,
    only,
    parsing,
    texts,
)
from volseg.errors import InputError


class Attribute(NamedTuple):
    """An attribute by its keyword or tag in a classic file, and by sequence and keyword in functional groups."""

    classic: str | int
    sequence: str = ""
    inner: str = ""


_PLACES = {
    "position": Attribute("ImagePositionPatient", "PlanePositionSequence", "ImagePositionPatient"),
    "orientation": Attribute("ImageOrientationPatient", "PlaneOrientationSequence", "ImageOrientationPatient"),
    "spacing": Attribute("PixelSpacing", "PixelMeasuresSequence", "PixelSpacing"),
    "thickness": Attribute("SliceThickness", "PixelMeasuresSequence", "SliceThickness"),
    "between": Attribute("SpacingBetweenSlices", "PixelMeasuresSequence", "SpacingBetweenSlices"),
    "slope": Attribute("RescaleSlope", "PixelValueTransformationSequence", "RescaleSlope"),
    "intercept": Attribute("RescaleIntercept", "PixelValueTransformationSequence", "RescaleIntercept"),
}
# What differs in another image of the same anatomy: frames that differ here are never slices of one volume.
CONTRASTS = {
    "modality": Attribute("Modality"),
    "image type": Attribute("ImageType"),
    "frame type": Attribute("", "MRImageFrameTypeSequence", "FrameType"),
    "CT frame type": Attribute("", "CTImageFrameTypeSequence", "FrameType"),
    "PET frame type": Attribute("", "PETFrameTypeSequence", "FrameType"),
    "complex component": Attribute("ComplexImageComponent", "MRImageFrameTypeSequence", "ComplexImageComponent"),
    "Philips image type": Attribute(0x20051011),
    "GE image type": Attribute(0x0043102F),
    "stack": Attribute("StackID", "FrameContentSequence", "StackID"),
    "time point": Attribute("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    "echo time": Attribute("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    "echo": Attribute("EchoNumbers"),
    "inversion time": Attribute("InversionTime", "MRModifierSequence", "InversionTimes"),
    "flip angle": Attribute("FlipAngle", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "b value": Attribute("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    "Siemens b value": Attribute(0x0019100C),
    "Philips b value": Attribute(0x20011003),
    "GE b value": Attribute(0x00431039),
    "diffusion direction": Attribute("DiffusionGradientOrientation", "MRDiffusionSequence", "DiffusionDirectionality"),
    "Siemens diffusion direction": Attribute(0x0019100E),
    "tube voltage": Attribute("KVP", "CTXRayDetailsSequence", "KVP"),
    "kernel": Attribute("ConvolutionKernel", "CTReconstructionSequence", "ConvolutionKernel"),
    "frame of reference": Attribute("FrameOfReferenceUID"),
    "units": Attribute("Units"),
    "rescale type": Attribute("RescaleType", "PixelValueTransformationSequence", "RescaleType"),
    "cardiac phase": Attribute("", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "respiratory phase": Attribute("", "RespiratorySynchronizationSequence", "NominalRespiratoryTriggerDelayTime"),
    "trigger delay": Attribute("NominalCardiacTriggerDelayTime"),
}
# What may also differ between the slices of one volume, which are then scanned in parts or one after the other.
RUNS = {
    "acquisition": Attribute("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    "trigger time": Attribute("TriggerTime"),
    "frame time": Attribute("FrameReferenceTime", "FrameContentSequence", "FrameReferenceDateTime"),
    "temporal offset": Attribute("", "TemporalPositionSequence", "TemporalPositionTimeOffset"),
}
# Those of them that state when slices were measured: slices measured at one time lie apart, with others between them.
TIMES = ("trigger time", "frame time", "temporal offset")
# Dimensions whose index counts the slices (DICOM PS3.3 C.7.6.17): In-Stack Position Number, Image Position (Patient),
# Slice Location and the plane positions.
_SLICE_DIMENSIONS = (0x00209057, 0x00200032, 0x00201041, 0x00209113)
_NUMERIC = ("echo time", "inversion time", "flip angle", "b value", "tube voltage", "cardiac phase", "trigger time")
_ATTRIBUTES = _PLACES | CONTRASTS | RUNS
# The attributes by the sequence of functional groups that holds them.
_GROUPED = {
    sequence: {name: one for name, one in _ATTRIBUTES.items() if one.sequence == sequence}
    for sequence in {one.sequence for one in _ATTRIBUTES.values()} - {""}
}


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice.

    Args:
        header: of its file.
        index: in the file, from 0.
        position: (3,) LPS+ mm of the centre of its first pixel; None if it is not stated.
        axes: (3, 2) directions in LPS+ along a row and along a column, unit vectors; None if they are not stated.
        spacing_mm: distance between columns and between rows, as stated: may be NaN or not positive; None if absent.
        thickness_mm: stated distance to the next slice, or thickness; None if absent.
        slope: RescaleSlope, None if absent.
        intercept: RescaleIntercept, None if absent.
        contrast: what never differs within one volume.
        run: what may differ within one volume.
    """

    header: Header
    index: int
    position: np.ndarray | None
    axes: np.ndarray | None
    spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    slope: float | None
    intercept: float | None
    contrast: dict[str, Hashable]
    run: dict[str, Hashable]

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return count(self.header.data, "Columns"), count(self.header.data, "Rows")

    @property
    def image_type(self) -> tuple[str, ...]:
        """ImageType of its file, and the type of the frame."""
        types = [self.contrast.get(name) for name in ("image type", "frame type", "CT frame type", "PET frame type")]
        return tuple(part for one in types if isinstance(one, tuple) for part in one if isinstance(part, str))


def frames_of(header: Header, source: str) -> list[Frame]:
    """The frames of a file in stored order; `source` names the series in messages.

    Raises:
        InputError: several frames without functional groups, another number of groups than of frames, or groups that
            cannot be read.
    """
    where = header.among(source)
    with parsing(where):
        stated = {name: _value(name, header.data, one.classic) for name, one in _ATTRIBUTES.items() if one.classic}
        if not has_groups(header):
            if header.frames > 1:
                raise InputError(
                    f"{where}: multi-frame DICOM without functional groups ({header.frames} frames) has no frame "
                    "positions; give a series of single slices."
                )
            return [_frame(header, 0, stated)]
        return _enhanced(header, stated, where)


def _enhanced(header: Header, stated: dict[str, Any], where: str) -> list[Frame]:
    """The frames of an enhanced file.

    What the groups of a frame state counts before the shared groups, and these before the dataset (`stated`).
    """
    groups = items(header.data, "PerFrameFunctionalGroupsSequence")
    if len(groups) != header.frames:
        raise InputError(
            f"{where}: NumberOfFrames is {header.frames}, but there are functional groups of {len(groups)} "
            "frames; export the series again."
        )
    shared = next(iter(items(header.data, "SharedFunctionalGroupsSequence")), Dataset())
    stated = stated | _in_groups(_macros(shared))
    # Files of several frames are volumes of their own unless they are parts of a concatenation (PS3.3 C.7.6.16.2.2.4).
    stated["file"] = None if texts(header.data, "ConcatenationUID") else header.name
    dimensions = _other_dimensions(header.data)
    frames = []
    for k, group in enumerate(groups):
        own = _macros(group)
        frames.append(_frame(header, k, stated | _in_groups(own), _indices(own, dimensions)))
    return frames


def _macros(group: Dataset) -> dict[str, Dataset]:
    """The items of the functional groups by the keyword of their sequence."""
    return {name: found[0] for name in _GROUPED if (found := items(group, name))}


def _in_groups(groups: dict[str, Dataset]) -> dict[str, Any]:
    """The values that functional groups state."""
    found: dict[str, Any] = {}
    for sequence, data in groups.items():
        for name, one in _GROUPED[sequence].items():
            if value := _value(name, data, one.inner):
                found[name] = value
    if direction := _direction(groups):
        found["diffusion direction"] = direction
    return found


def _value(name: str, data: Dataset, attribute: str | int) -> Any:
    """The numbers of a place, or what tells frames apart; None if it is absent."""
    return (numbers(data, attribute) or None) if name in _PLACES else _mark(name, data, attribute)


def _frame(header: Header, index: int, stated: dict[str, Any], indices: dict[str, Hashable] | None = None) -> Frame:
    """One frame from what is stated of it."""

    def marks(names: Iterable[str]) -> dict[str, Hashable]:
        return {name: stated[name] for name in names if stated.get(name) is not None}

    orientation, position, spacing = stated.get("orientation"), stated.get("position"), stated.get("spacing")
    return Frame(
        header,
        index,
        np.array(position) if position else None,
        np.array(orientation).reshape(2, 3).T if orientation and len(orientation) == 6 else None,
        # Stated as the distance between rows, then between columns.
        tuple(reversed(spacing)) if spacing else None,
        only(stated.get("between") or stated.get("thickness") or ()),
        only(stated.get("slope") or ()),
        only(stated.get("intercept") or ()),
        marks(CONTRASTS) | (indices or {}),
        marks((*RUNS, "file")),
    )


def _mark(name: str, data: Dataset, attribute: str | int) -> Hashable:
    """A value that tells frames apart: numbers to 3 digits, because some scanners vary them in the last ones."""
    if name in _NUMERIC:
        return tuple(float(f"{value:.3g}") for value in numbers(data, attribute) if math.isfinite(value)) or None
    if _is_binary(data, attribute):
        # NaN, which some scanners write for "none", equals nothing.
        return tuple(value if math.isfinite(value) else None for value in numbers(data, attribute)) or None
    return tuple(texts(data, attribute)) or None


def _is_binary(data: Dataset, attribute: str | int) -> bool:
    """Whether the value is stored in binary numbers, which have no text."""
    found = element(data, attribute)
    return found is not None and kind_of_value(found) in ("US", "SS", "UL", "SL", "FL", "FD")


def _other_dimensions(data: Dataset) -> list[int]:
    """The dimension indices that count something else than slices; none are known without the names of dimensions."""
    named = [_pointer(item) for item in items(data, "DimensionIndexSequence")]
    return [at for at, tag in enumerate(named) if tag is not None and tag not in _SLICE_DIMENSIONS]


def _pointer(item: Dataset) -> int | None:
    """The tag that a dimension counts."""
    found: Any = item.get("DimensionIndexPointer")
    return int(found) if isinstance(found, int) else None


def _indices(own: dict[str, Dataset], dimensions: list[int]) -> dict[str, Hashable]:
    """The indices of a frame in the dimensions that tell volumes apart."""
    content = own.get("FrameContentSequence")
    found = numbers(content, "DimensionIndexValues") if content is not None else []
    return {f"dimension {at + 1}": found[at] for at in dimensions if at < len(found)}


def _direction(groups: dict[str, Dataset]) -> Hashable:
    """The diffusion gradient of a frame."""
    diffusion = groups.get("MRDiffusionSequence")
    gradients = items(diffusion, "DiffusionGradientDirectionSequence") if diffusion is not None else ()
    return _mark("diffusion direction", gradients[0], "DiffusionGradientOrientation") if gradients else None
