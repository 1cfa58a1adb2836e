"""The frames of DICOM files: where each lies, and everything that could make two of them different volumes.

A classic file is one frame, whose attributes stand in the dataset. An enhanced file has many, whose attributes stand in
functional groups, shared or of one frame (DICOM PS3.3 C.7.6.16). Both become the same `Frame`.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from volseg.data.io.dicom.header import Header, has_groups
from volseg.data.io.dicom.values import items, number, numbers, texts
from volseg.errors import InputError


class Attribute(NamedTuple):
    """An attribute by its keyword or tag in a classic file, and by sequence and keyword in functional groups."""

    classic: str | int
    sequence: str = ""
    inner: str = ""


_POSITION = Attribute("ImagePositionPatient", "PlanePositionSequence", "ImagePositionPatient")
_ORIENTATION = Attribute("ImageOrientationPatient", "PlaneOrientationSequence", "ImageOrientationPatient")
_SPACING = Attribute("PixelSpacing", "PixelMeasuresSequence", "PixelSpacing")
_THICKNESS = Attribute("SliceThickness", "PixelMeasuresSequence", "SliceThickness")
_BETWEEN = Attribute("SpacingBetweenSlices", "PixelMeasuresSequence", "SpacingBetweenSlices")
_SLOPE = Attribute("RescaleSlope", "PixelValueTransformationSequence", "RescaleSlope")
_INTERCEPT = Attribute("RescaleIntercept", "PixelValueTransformationSequence", "RescaleIntercept")
# What differs in another image of the same anatomy: frames that differ here are never slices of one volume.
CONTRASTS = {
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
# Dimensions whose index counts the slices (DICOM PS3.3 C.7.6.17): In-Stack Position Number, Image Position (Patient),
# Slice Location and the plane positions.
_SLICE_DIMENSIONS = (0x00209057, 0x00200032, 0x00201041, 0x00209113)
_NUMERIC = ("echo time", "inversion time", "flip angle", "b value", "tube voltage", "cardiac phase", "trigger time")


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
        return int(number(self.header.data, "Columns") or 0), int(number(self.header.data, "Rows") or 0)

    @property
    def image_type(self) -> tuple[str, ...]:
        """ImageType of its file, and the type of the frame."""
        types = [self.contrast.get(name) for name in ("image type", "frame type", "CT frame type", "PET frame type")]
        return tuple(part for one in types if isinstance(one, tuple) for part in one if isinstance(part, str))


def frames_of(header: Header) -> list[Frame]:
    """The frames of a file in stored order.

    Raises:
        InputError: several frames without functional groups, or another number of groups than of frames.
    """
    if not has_groups(header):
        if header.frames > 1:
            raise InputError(
                f"{header.path}: multi-frame DICOM without functional groups ({header.frames} frames) has no frame "
                "positions; give a series of single slices."
            )
        return [_frame(header, 0, {}, {}, None)]
    shared = next(iter(items(header.data, "SharedFunctionalGroupsSequence")), Dataset())
    groups = items(header.data, "PerFrameFunctionalGroupsSequence")
    if len(groups) != header.frames:
        raise InputError(
            f"{header.path}: NumberOfFrames is {header.frames}, but there are functional groups of {len(groups)} "
            "frames; export the series again."
        )
    common = _macros(shared)
    dimensions = _other_dimensions(header.data)
    return [_frame(header, k, _macros(group), common, dimensions) for k, group in enumerate(groups)]


def _macros(group: Dataset) -> dict[str, Dataset]:
    """The items of the functional groups by the keyword of their sequence."""
    return {name: found[0] for name in _SEQUENCES if (found := items(group, name))}


_SEQUENCES = {one.sequence for one in (_POSITION, _ORIENTATION, _SPACING, _SLOPE, *CONTRASTS.values(), *RUNS.values())}
_SEQUENCES -= {""}


def _frame(
    header: Header, index: int, own: dict[str, Dataset], shared: dict[str, Dataset], dimensions: list[int] | None
) -> Frame:
    """One frame, from its functional groups or, without `dimensions`, from the dataset."""
    enhanced = dimensions is not None

    def place(attribute: Attribute) -> tuple[Dataset, str | int] | None:
        if not enhanced:
            return (header.data, attribute.classic) if attribute.classic else None
        group = own.get(attribute.sequence) or shared.get(attribute.sequence)
        return None if group is None else (group, attribute.inner)

    def values(attribute: Attribute) -> list[float]:
        found = place(attribute)
        return numbers(*found) if found else []

    def mark(name: str, attribute: Attribute) -> Hashable:
        found = place(attribute) or ((header.data, attribute.classic) if attribute.classic else None)
        return None if found is None else _mark(name, *found)

    contrast = {name: mark(name, one) for name, one in CONTRASTS.items()}
    if dimensions:
        contrast |= _indices(own, dimensions)
    if enhanced:
        contrast["diffusion direction"] = _direction(own)
    run = {name: mark(name, one) for name, one in RUNS.items()}
    # Files of several frames are volumes of their own unless they are parts of a concatenation (PS3.3 C.7.6.16.2.2.4).
    run["file"] = header.name if enhanced and not texts(header.data, "ConcatenationUID") else None
    orientation = values(_ORIENTATION)
    position = values(_POSITION)
    between, thickness = values(_BETWEEN), values(_THICKNESS)
    spacing = values(_SPACING)
    slope, intercept = values(_SLOPE), values(_INTERCEPT)
    return Frame(
        header,
        index,
        np.array(position) if position else None,
        np.array(orientation).reshape(2, 3).T if len(orientation) == 6 else None,
        # Stated as the distance between rows, then between columns.
        tuple(reversed(spacing)) if spacing else None,
        next(iter(between or thickness), None),
        next(iter(slope), None),
        next(iter(intercept), None),
        {name: value for name, value in contrast.items() if value is not None},
        {name: value for name, value in run.items() if value is not None},
    )


def _mark(name: str, data: Dataset, attribute: str | int) -> Hashable:
    """A value that tells frames apart: numbers to 3 digits, because some scanners vary them in the last ones."""
    if name in _NUMERIC:
        return tuple(float(f"{value:.3g}") for value in numbers(data, attribute) if math.isfinite(value)) or None
    return tuple(numbers(data, attribute) if _is_binary(data, attribute) else texts(data, attribute)) or None


def _is_binary(data: Dataset, attribute: str | int) -> bool:
    """Whether the value is stored in binary numbers, which have no text."""
    tag = attribute if isinstance(attribute, int) else None
    found = data.get_item(tag) if tag is not None else data.get_item(attribute)
    return found is not None and found.VR in ("US", "SS", "UL", "SL", "FL", "FD")


def _other_dimensions(data: Dataset) -> list[int]:
    """The dimension indices that count something else than slices; none are known without the names of dimensions."""
    named = [_pointer(item) for item in items(data, "DimensionIndexSequence")]
    return [at for at, tag in enumerate(named) if tag is not None and tag not in _SLICE_DIMENSIONS]


def _pointer(item: Dataset) -> int | None:
    """The tag that a dimension counts."""
    found: Any = item.get("DimensionIndexPointer")
    return None if found is None else int(found)


def _indices(own: dict[str, Dataset], dimensions: list[int]) -> dict[str, Hashable]:
    """The indices of a frame in the dimensions that tell volumes apart."""
    content = own.get("FrameContentSequence")
    found = numbers(content, "DimensionIndexValues") if content is not None else []
    return {f"dimension {at + 1}": found[at] for at in dimensions if at < len(found)}


def _direction(own: dict[str, Dataset]) -> Hashable:
    """The diffusion gradient of a frame."""
    diffusion = own.get("MRDiffusionSequence")
    gradients = items(diffusion, "DiffusionGradientDirectionSequence") if diffusion is not None else ()
    return tuple(numbers(gradients[0], "DiffusionGradientOrientation")) or None if gradients else None
