"""DICOM segmentations: BINARY, FRACTIONAL and LABELMAP, their segments and frames.

Requirements, in addition to those of volseg.data.io.dicom.stack on the place of every frame:

    segments   SegmentSequence lists every segment that a frame or a voxel names; segment 0 is the background
    frames     as many functional groups as frames; a BINARY or FRACTIONAL frame names one segment
    pixels     as many bytes as stated; BINARY: 1 bit a voxel, packed without gaps between frames; FRACTIONAL: 8 bits,
               voxels of at least half of MaximumFractionalValue belong to the segment; LABELMAP: 8 or 16 bits, voxels
               of the PixelPaddingValue belong to no segment
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from volseg.data.io.dicom.decode import decoded, pixel_bytes
from volseg.data.io.dicom.frames import Frame, frames_of
from volseg.data.io.dicom.header import Header
from volseg.data.io.dicom.pixel_format import PixelFormat, format_of
from volseg.data.io.dicom.stack import alike, check_place
from volseg.data.io.dicom.values import count, described, items, number, parsing, shown, text
from volseg.data.io.dicom_labels.objects import Part, References, codes_of, named_parts, uids
from volseg.errors import InputError

_BINARY, _FRACTIONAL, _LABEL_MAP = "BINARY", "FRACTIONAL", "LABELMAP"
_PHOTOMETRICS = ("MONOCHROME2", "PALETTE COLOR")
_CODES = {
    "category": "SegmentedPropertyCategoryCodeSequence",
    "type": "SegmentedPropertyTypeCodeSequence",
    "region": "AnatomicRegionSequence",
}
# The code of a background in a label map (DICOM PS3.16, DCM).
_BACKGROUND = {"value": "125040", "scheme": "DCM"}


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmentation.

    Args:
        header: of its file.
        source: for messages.
        kind: BINARY, FRACTIONAL or LABELMAP.
        parts: its segments, without the background.
        references: the images and series that it was made from.
        frames: with their places, checked and alike.
        segments: the segment of each frame; None in a LABELMAP.
        between_mm: SpacingBetweenSlices; None if it is not stated.
        thickness_mm: SliceThickness; None if it is not stated.
        warnings: assumptions made when reading.
    """

    header: Header
    source: str
    kind: str
    parts: tuple[Part, ...]
    references: References
    frames: tuple[Frame, ...]
    segments: tuple[int | None, ...]
    between_mm: float | None
    thickness_mm: float | None
    warnings: tuple[str, ...]


def open_segmentation(header: Header, source: str) -> Segmentation:
    """The segments and frames of a segmentation, without its pixels.

    Raises:
        InputError: a requirement of this module is not met.
    """
    where = header.among(source)
    with parsing(where):
        kind = text(header.data, "SegmentationType")
        if kind not in (_BINARY, _FRACTIONAL, _LABEL_MAP):
            raise InputError(
                f"{where}: SegmentationType is {kind or 'absent'}, expected BINARY, FRACTIONAL or LABELMAP; export the "
                "segmentation again."
            )
        frames = _frames(header, where)
        groups = list(items(header.data, "PerFrameFunctionalGroupsSequence"))
        shared = list(items(header.data, "SharedFunctionalGroupsSequence"))
        parts = _parts(header, where)
        segments = _segments(header, parts, kind, where)
        measures = [one for group in (*shared, *groups[:1]) for one in items(group, "PixelMeasuresSequence")]
        between, thickness = (
            next((value for one in measures if (value := number(one, name)) is not None), None)
            for name in ("SpacingBetweenSlices", "SliceThickness")
        )
        references = _references(header)
    return Segmentation(
        header, source, kind, tuple(part for part in parts if part.number), references, tuple(frames), segments,
        between, thickness, tuple(_warnings(header, kind, parts)),
    )  # fmt: skip


def _frames(header: Header, where: str) -> list[Frame]:
    """The frames of a segmentation in stored order, with their places checked."""
    if not items(header.data, "PerFrameFunctionalGroupsSequence"):
        raise InputError(
            f"{where}: the segmentation has no PerFrameFunctionalGroupsSequence, so its frames have no place and no "
            "segment; export it again."
        )
    frames = frames_of(header, where)
    for frame in frames:
        check_place(frame, where)
    if not alike(frames):
        raise InputError(
            f"{where}: its {len(frames)} frames differ in pixel spacing or orientation, so no grid holds them; export "
            "one segmentation per orientation."
        )
    return frames


def _parts(header: Header, where: str) -> tuple[Part, ...]:
    """The segments in SegmentSequence."""
    rows = []
    for item in items(header.data, "SegmentSequence"):
        stated = number(item, "SegmentNumber")
        if stated is None or not stated.is_integer() or not 0 <= stated <= 65535:
            raise InputError(
                f"{where}: a SegmentNumber is {'absent' if stated is None else shown(stated)}, expected a whole number "
                "from 1 to 65535; export the segmentation again."
            )
        rows.append((int(stated), described(item, "SegmentLabel"), codes_of(item, _CODES)))
    numbers = [row[0] for row in rows]
    if not rows or len(set(numbers)) < len(numbers):
        found = "is absent or empty" if not rows else "lists a segment twice"
        raise InputError(f"{where}: SegmentSequence {found}; export the segmentation again.")
    return named_parts(rows, "segment")


def _segments(header: Header, parts: tuple[Part, ...], kind: str, where: str) -> tuple[int | None, ...]:
    """The segment of each frame, which is stated per frame, or once for all."""
    groups = items(header.data, "PerFrameFunctionalGroupsSequence")
    if kind == _LABEL_MAP:
        return (None,) * len(groups)
    common = [_segment(group) for group in items(header.data, "SharedFunctionalGroupsSequence")]
    found = [_segment(group) or next(iter(common), None) for group in groups]
    known = {part.number for part in parts} - {0}
    for at, one in enumerate(found):
        if one not in known:
            stated = "names no segment" if one is None else f"names segment {shown(one)}, which SegmentSequence lacks"
            raise InputError(f"{where}: frame {at + 1} {stated}; export the segmentation again.")
    return tuple(int(one) for one in found if one is not None)


def _segment(group: Dataset) -> float | None:
    """ReferencedSegmentNumber of functional groups."""
    named = items(group, "SegmentIdentificationSequence")
    return number(named[0], "ReferencedSegmentNumber") if named else None


def _references(header: Header) -> References:
    """What the segmentation refers to, by the series and, where these name no images, by its frames."""
    series = items(header.data, "ReferencedSeriesSequence")
    images = uids(
        (image for one in series for image in items(one, "ReferencedInstanceSequence")), "ReferencedSOPInstanceUID"
    )
    if not images:
        images = uids(
            (
                image
                for group in items(header.data, "PerFrameFunctionalGroupsSequence")
                for derived in items(group, "DerivationImageSequence")
                for image in items(derived, "SourceImageSequence")
            ),
            "ReferencedSOPInstanceUID",
        )
    return References(images, uids(series, "SeriesInstanceUID"), uids([header.data], "FrameOfReferenceUID"))


def _warnings(header: Header, kind: str, parts: tuple[Part, ...]) -> list[str]:
    found = []
    if kind == _FRACTIONAL:
        of = text(header.data, "SegmentationFractionalType").lower() or "unstated"
        found.append(
            f"The segmentation is FRACTIONAL ({of}); voxels of at least half of MaximumFractionalValue belong to a "
            "segment."
        )
    background = next((part for part in parts if part.number == 0), None)
    if background is not None and not _BACKGROUND.items() <= background.codes.get("type", {}).items():
        found.append("Segment 0 is not coded as background; it is taken as background.")
    return found


def voxels_of(found: Segmentation) -> Iterator[tuple[Frame, int | None, np.ndarray]]:
    """The voxels of the segments, frame by frame.

    Returns:
        The frame, its segment, and the mask (columns, rows) of that; for a LABELMAP None, and the numbers of segments.

    Raises:
        InputError: pixels are missing or corrupt, or name a segment that SegmentSequence lacks.
    """
    if found.kind == _BINARY:
        yield from _bits(found)
        return
    where = found.header.among(found.source)
    form = format_of(found.header, found.source, _PHOTOMETRICS)
    if form.signed or form.allocated not in ((8,) if found.kind == _FRACTIONAL else (8, 16)):
        raise InputError(
            f"{where}: BitsAllocated of the {found.kind} segmentation is {form.allocated}"
            f"{' (signed)' if form.signed else ''}, expected {'8' if found.kind == _FRACTIONAL else '8 or 16'} "
            "unsigned; export it again."
        )
    half = _half(found, where) if found.kind == _FRACTIONAL else 0.0
    for frame, segment in zip(found.frames, found.segments, strict=True):
        values = _values(frame, form, found.source).T
        if segment is not None:
            yield frame, segment, values >= half
        else:
            yield frame, None, _named(values, found, where)


def _values(frame: Frame, form: PixelFormat, source: str) -> np.ndarray:
    """The stored values (rows, columns) of a frame of whole bytes."""
    header = frame.header
    if header.encapsulated:
        return form.values(decoded(frame, form, source).view(f"u{form.allocated // 8}"))
    kind = np.dtype(f"{'>' if header.big_endian else '<'}u{form.allocated // 8}")
    content = pixel_bytes(header, frame.index * form.frame_bytes, form.frame_bytes, kind.itemsize)
    if len(content) != form.frame_bytes:
        raise InputError(f"{header.among(source)} ends before its last pixel; copy it again.")
    return form.values(np.frombuffer(content, kind).reshape(form.rows, form.columns).astype(kind.newbyteorder("=")))


def _half(found: Segmentation, where: str) -> float:
    """Half of MaximumFractionalValue."""
    largest = number(found.header.data, "MaximumFractionalValue")
    if largest is None or not 1 <= largest <= 255:
        raise InputError(
            f"{where}: MaximumFractionalValue is {'absent' if largest is None else shown(largest)}, expected 1 to 255, "
            "so the fractions are unknown; export the segmentation again."
        )
    return largest / 2


def _named(values: np.ndarray, found: Segmentation, where: str) -> np.ndarray:
    """The values of a frame of a label map, with 0 for padding."""
    padding = number(found.header.data, "PixelPaddingValue")
    known = {part.number for part in found.parts}
    named = [int(value) for value in np.flatnonzero(np.bincount(values.ravel())) if value not in (0, padding)]
    if unknown := [value for value in named if value not in known]:
        raise InputError(
            f"{where}: its voxels name segment {unknown[0]}, which SegmentSequence lacks; export the segmentation "
            "again."
        )
    return values if padding is None else np.where(values == padding, values.dtype.type(0), values)


def _bits(found: Segmentation) -> Iterator[tuple[Frame, int, np.ndarray]]:
    """The frames of a BINARY segmentation: bits in the order of pixels, the lowest of a byte first (DICOM PS3.5 8.1.1);
    a frame begins at the bit after the last of the one before it.
    """
    header, where = found.header, found.header.among(found.source)
    rows, columns = count(header.data, "Rows"), count(header.data, "Columns")
    _check_bits(header, rows, columns, where)
    size = rows * columns
    for frame, segment in zip(found.frames, found.segments, strict=True):
        first = frame.index * size
        stop = first + size
        content = pixel_bytes(header, first // 8, -(-stop // 8) - first // 8, 1)
        bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")[first % 8 :]
        if len(bits) < size:
            raise InputError(f"{where} ends before its last pixel; copy it again.")
        if segment is not None:
            yield frame, segment, bits[:size].reshape(rows, columns).T.astype(bool)


def _check_bits(header: Header, rows: int, columns: int, where: str) -> None:
    """Compare the bits that a BINARY segmentation states with those that are there."""
    stated = {name: count(header.data, name) for name in ("BitsAllocated", "BitsStored", "SamplesPerPixel")}
    if header.encapsulated:
        raise InputError(
            f"{where}: compressed pixels of a BINARY segmentation ({header.syntax}) are not supported here; store it "
            "uncompressed, for example with dcmconv or gdcmconv."
        )
    if any(value != 1 for value in stated.values()):
        listed = ", ".join(f"{name} {value}" for name, value in stated.items())
        raise InputError(
            f"{where}: {listed} of the BINARY segmentation, expected 1 each; export the segmentation again."
        )
    needed = -(-header.frames * rows * columns // 8)
    there = header.length or 0
    if header.offset is not None:
        there = min(there, header.size - header.offset)
    if there < needed:
        raise InputError(
            f"{where}: {header.frames} x {rows} x {columns} pixels of 1 bit are {needed} bytes, found {max(there, 0)} "
            "in PixelData; copy it or export it again."
        )
    if (header.length or 0) > needed + needed % 2:
        raise InputError(
            f"{where}: PixelData has {header.length} bytes, but {header.frames} x {rows} x {columns} pixels of 1 bit "
            f"are {needed}; export the segmentation again."
        )
