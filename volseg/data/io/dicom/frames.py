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
    numbers_of,
    only,
    parsing,
    private_blocks,
    private_element,
    tag_of,
    text,
    texts_of,
)
from volseg.errors import InputError


class Attribute(NamedTuple):
    """An attribute by its keyword in a classic file, and by sequence and keyword in functional groups."""

    classic: str
    sequence: str = ""
    inner: str = ""


class Private(NamedTuple):
    """A private attribute: the tag in the first block of its group, its creator, and its value representation."""

    tag: int
    creator: str
    kind: str


_PLACES = {
    "position": Attribute("ImagePositionPatient", "PlanePositionSequence", "ImagePositionPatient"),
    "orientation": Attribute("ImageOrientationPatient", "PlaneOrientationSequence", "ImageOrientationPatient"),
    "spacing": Attribute("PixelSpacing", "PixelMeasuresSequence", "PixelSpacing"),
    "thickness": Attribute("SliceThickness", "PixelMeasuresSequence", "SliceThickness"),
    "between": Attribute("SpacingBetweenSlices", "PixelMeasuresSequence", "SpacingBetweenSlices"),
    "slope": Attribute("RescaleSlope", "PixelValueTransformationSequence", "RescaleSlope"),
    "intercept": Attribute("RescaleIntercept", "PixelValueTransformationSequence", "RescaleIntercept"),
}
_VELOCITY, _CONTRAST, _TYPES = "MRVelocityEncodingSequence", "ContrastBolusUsageSequence", "MRImageFrameTypeSequence"
# What differs in another image of the same anatomy: frames that differ here are slices of several volumes, unless they
# differ in something soft (`volumes`).
CONTRASTS = {
    "modality": Attribute("Modality"),
    "series number": Attribute("SeriesNumber"),
    "image type": Attribute("ImageType"),
    "frame type": Attribute("", _TYPES, "FrameType"),
    "CT frame type": Attribute("", "CTImageFrameTypeSequence", "FrameType"),
    "PET frame type": Attribute("", "PETFrameTypeSequence", "FrameType"),
    "complex component": Attribute("ComplexImageComponent", _TYPES, "ComplexImageComponent"),
    "photometric interpretation": Attribute("PhotometricInterpretation"),
    "stack": Attribute("StackID", "FrameContentSequence", "StackID"),
    "slice thickness": _PLACES["thickness"],
    "time point": Attribute("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    "echo time": Attribute("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    "echo": Attribute("EchoNumbers"),
    "inversion time": Attribute("InversionTime", "MRModifierSequence", "InversionTimes"),
    "flip angle": Attribute("FlipAngle", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "b value": Attribute("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    "diffusion direction": Attribute("DiffusionGradientOrientation", "MRDiffusionSequence", "DiffusionDirectionality"),
    "label": Attribute("", "MRArterialSpinLabelingSequence", "ASLContext"),
    "velocity direction": Attribute("VelocityEncodingDirection", _VELOCITY, "VelocityEncodingDirection"),
    "least velocity": Attribute("VelocityEncodingMinimumValue", _VELOCITY, "VelocityEncodingMinimumValue"),
    "largest velocity": Attribute("VelocityEncodingMaximumValue", _VELOCITY, "VelocityEncodingMaximumValue"),
    "contrast agent": Attribute("ContrastBolusAgent"),
    "contrast route": Attribute("ContrastBolusRoute"),
    "contrast volume": Attribute("ContrastBolusVolume"),
    "contrast phase": Attribute("", _CONTRAST, "ContrastBolusAgentPhase"),
    "contrast administered": Attribute("", _CONTRAST, "ContrastBolusAgentAdministered"),
    "tube voltage": Attribute("KVP", "CTXRayDetailsSequence", "KVP"),
    "kernel": Attribute("ConvolutionKernel", "CTReconstructionSequence", "ConvolutionKernel"),
    "reconstruction": Attribute("ReconstructionAlgorithm", "CTReconstructionSequence", "ReconstructionAlgorithm"),
    "reconstruction method": Attribute("ReconstructionMethod"),
    "image filter": Attribute("ImageFilter", "CTReconstructionSequence", "ImageFilter"),
    "filter": Attribute("FilterType"),
    "frame of reference": Attribute("FrameOfReferenceUID"),
    "units": Attribute("Units"),
    "SUV type": Attribute("SUVType"),
    "decay correction": Attribute("DecayCorrection"),
    "attenuation correction": Attribute("AttenuationCorrectionMethod"),
    "corrections": Attribute("CorrectedImage"),
    "rescale type": Attribute("RescaleType", "PixelValueTransformationSequence", "RescaleType"),
    "cardiac phase": Attribute("", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "respiratory phase": Attribute("", "RespiratorySynchronizationSequence", "NominalRespiratoryTriggerDelayTime"),
    "trigger delay": Attribute("NominalCardiacTriggerDelayTime"),
}
# The same in elements of manufacturers, which mean this in the block of their creator alone.
PRIVATE_CONTRASTS = {
    "Philips image type": Private(0x20050011, "Philips MR Imaging DD 001", "CS"),
    "GE image type": Private(0x0043002F, "GEMS_PARM_01", "SS"),
    "Siemens b value": Private(0x0019000C, "SIEMENS MR HEADER", "IS"),
    "Philips b value": Private(0x20010003, "Philips Imaging DD 001", "FL"),
    # Its first value; the others are of another meaning.
    "GE b value": Private(0x00430039, "GEMS_PARM_01", "IS"),
    "Siemens diffusion direction": Private(0x0019000E, "SIEMENS MR HEADER", "FD"),
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
# Numbers that scanners vary in their last digits.
INEXACT = (
    *("echo time", "inversion time", "flip angle", "tube voltage", "slice thickness", "contrast volume"),
    *("b value", "Siemens b value", "Philips b value", "GE b value", "least velocity", "largest velocity"),
)
_NUMERIC = (*INEXACT, "cardiac phase", "respiratory phase", "trigger delay", "trigger time", "series number")
# Dimensions whose index counts the slices (DICOM PS3.3 C.7.6.17): In-Stack Position Number, Image Position (Patient),
# Slice Location and the plane positions.
_SLICE_DIMENSIONS = (0x00209057, 0x00200032, 0x00201041, 0x00209113)
_ATTRIBUTES = _PLACES | CONTRASTS | RUNS
# The attributes by the sequence of functional groups that holds them.
_GROUPED = {
    sequence: {name: one for name, one in _ATTRIBUTES.items() if one.sequence == sequence}
    for sequence in {one.sequence for one in _ATTRIBUTES.values()} - {""}
}
# The names of the attributes by the tags that dimensions count.
_BY_TAG = {int(tag_of(one.inner)): name for name, one in (CONTRASTS | RUNS).items() if one.inner}
# The name of an index in another dimension, before its number.
DIMENSION = "dimension"


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
        contrast: what differs between volumes.
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
        stated = {
            name: _value(name, element(header.data, one.classic)) for name, one in _ATTRIBUTES.items() if one.classic
        } | _private(header.data)
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
    stated["file"] = text(header.data, "ConcatenationUID") or header.name
    dimensions = _other_dimensions(header.data)
    frames = []
    for k, group in enumerate(groups):
        own = _macros(group)
        found = stated | _in_groups(own)
        frames.append(_frame(header, k, found, _indices(own, dimensions, found)))
    return frames


def _private(data: Dataset) -> dict[str, Any]:
    """What the private elements of a file state."""
    blocks = private_blocks(data)
    return {
        name: _value(name, private_element(data, one.tag, one.kind, blocks.get((one.tag >> 16, one.creator), [])))
        for name, one in PRIVATE_CONTRASTS.items()
    }


def _macros(group: Dataset) -> dict[str, Dataset]:
    """The items of the functional groups by the keyword of their sequence."""
    return {name: found[0] for name in _GROUPED if (found := items(group, name))}


def _in_groups(groups: dict[str, Dataset]) -> dict[str, Any]:
    """The values that functional groups state."""
    found: dict[str, Any] = {}
    for sequence, data in groups.items():
        for name, one in _GROUPED[sequence].items():
            if value := _value(name, element(data, one.inner)):
                found[name] = value
    if direction := _direction(groups):
        found["diffusion direction"] = direction
    return found


def _value(name: str, found: Any) -> Any:
    """The numbers of a place, or what tells frames apart, in an element; None if it is absent."""
    return (numbers_of(found) or None) if name in _PLACES else _mark(name, found)


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
        marks((*CONTRASTS, *PRIVATE_CONTRASTS)) | (indices or {}),
        marks((*RUNS, "file")),
    )


def _mark(name: str, found: Any) -> Hashable:
    """A value that tells frames apart."""
    if found is None:
        return None
    if name in _NUMERIC:
        values = numbers_of(found)[: 1 if name == "GE b value" else None]
        if any(map(math.isfinite, values)) or name != "series number":
            return tuple(value for value in values if math.isfinite(value)) or None
    if kind_of_value(found) in ("US", "SS", "UL", "SL", "FL", "FD"):
        # NaN, which some scanners write for "none", equals nothing.
        return tuple(value if math.isfinite(value) else None for value in numbers_of(found)) or None
    # Some scanners write the name of one kernel in capitals and not.
    return tuple(one.upper() if name == "kernel" else one for one in texts_of(found)) or None


def _other_dimensions(data: Dataset) -> dict[int, str]:
    """The dimension indices that count something else than slices, with the name of what they count if it has one.

    None are known without the names of dimensions.
    """
    named = [_pointer(item) for item in items(data, "DimensionIndexSequence")]
    return {
        at: _BY_TAG.get(tag, "") for at, tag in enumerate(named) if tag is not None and tag not in _SLICE_DIMENSIONS
    }


def _pointer(item: Dataset) -> int | None:
    """The tag that a dimension counts."""
    found: Any = item.get("DimensionIndexPointer")
    return int(found) if isinstance(found, int) else None


def _indices(own: dict[str, Dataset], dimensions: dict[int, str], stated: dict[str, Any]) -> dict[str, Hashable]:
    """The indices of a frame in the dimensions that may tell volumes apart; none where what they count is stated."""
    content = own.get("FrameContentSequence")
    found = numbers(content, "DimensionIndexValues") if content is not None else []
    return {
        f"{DIMENSION} {at + 1}": found[at]
        for at, name in dimensions.items()
        if at < len(found) and stated.get(name) is None
    }


def _direction(groups: dict[str, Dataset]) -> Hashable:
    """The diffusion gradient of a frame."""
    diffusion = groups.get("MRDiffusionSequence")
    gradients = items(diffusion, "DiffusionGradientDirectionSequence") if diffusion is not None else ()
    return _mark("diffusion direction", element(gradients[0], "DiffusionGradientOrientation")) if gradients else None
