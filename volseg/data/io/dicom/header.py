"""The header of one DICOM file, and where its pixels lie in it."""

import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from volseg.data.io.dicom.files import DICOMDIR, MOST_TIMES, UNSUSPICIOUS_BYTES, kind_of
from volseg.data.io.dicom.values import element, number, parsing, shown, tag_of, text
from volseg.data.io.formats import DICOM_SUFFIXES, begins_as_dicom
from volseg.errors import InputError
from volseg.files import access_to, is_hidden, open_to_read

# Keyword, offset, length and value representation of the pixels.
Place: TypeAlias = tuple[str, int, int, str | None]

STORAGE = "1.2.840.10008.5.1.4.1.1."
# Beginnings of storage classes that belong to a scan but are none: waveforms, presentation states, raw data,
# registrations, segmentations, parametric maps, reports, key objects, documents, radiotherapy.
_NO_SCANS = ("9.", "11.", "30", "66", "67", "68", "88.", "90.", "104.", "200.", "481.")
# Classes that older dictionaries lack.
_NEW_KINDS = {"66.7": "Label Map Segmentation", "66.8": "Height Map Segmentation"}
_FILE_SET = "1.2.840.10008.1.3.10"
_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_UNDEFINED = 0xFFFFFFFF
# Transfer syntaxes whose pixels are not compressed.
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


@dataclass(frozen=True, eq=False)
class Header:
    """The header of one file.

    Args:
        path: of the file.
        name: for messages, without what its path may say of the patient.
        data: its elements up to the pixels.
        syntax: transfer syntax UID.
        offset: where the bytes of PixelData begin; None if they are in `pixels`.
        length: of PixelData in bytes; None if it is encapsulated and has no stated length.
        word_pixels: whether the value representation of PixelData is OW.
        pixels: PixelData itself, if the whole file is compressed (deflated).
        size: of the file.
    """

    path: Path
    name: str
    data: Dataset
    syntax: str
    offset: int | None
    length: int | None
    word_pixels: bool
    pixels: bytes | None
    size: int

    def among(self, source: str) -> str:
        """The file and the input that it belongs to, for messages; one name where they are the same."""
        return source if self.name in source else f"{source}: {self.name}"

    @property
    def encapsulated(self) -> bool:
        """Whether the pixels are compressed."""
        return self.syntax not in _NATIVE

    def stored(self, start: int = 0, count: int = -1) -> bytes:
        """Bytes of PixelData from `start`, to its end or, if compressed, that of the file; fewer than `count` if cut.

        Raises:
            InputError: the system denies access to the file.
        """
        if self.pixels is not None:
            return self.pixels[start:] if count < 0 else self.pixels[start : start + count]
        assert self.offset is not None
        if count < 0 and self.length is not None:
            count = max(self.length - start, 0)
        with access_to(self.path, self.name), open_to_read(self.path) as stream:
            stream.seek(self.offset + start)
            return stream.read(count)

    @property
    def is_picture(self) -> bool:
        """Whether it is a secondary capture, such as a screenshot or a dose sheet."""
        return self.sop_class.startswith(f"{STORAGE}7")

    @property
    def big_endian(self) -> bool:
        """Whether the pixels are in big-endian byte order."""
        return self.syntax == str(ExplicitVRBigEndian)

    @property
    def frames(self) -> int:
        """The number of frames that the header promises.

        Raises:
            InputError: it is not a positive whole number.
        """
        found = number(self.data, "NumberOfFrames")
        if found is not None and not (found >= 1 and float(found).is_integer()):
            raise InputError(
                f"{self.name}: NumberOfFrames is {shown(found)}, expected 1 or more; export the file again."
            )
        return int(found or 1)

    @property
    def sop_class(self) -> str:
        """Its SOP class UID."""
        return text(self.data, "SOPClassUID")


@dataclass(frozen=True)
class Unusable:
    """A file that is no image.

    Args:
        name: of the file, for messages.
        reason: why it cannot be read, if it may be a slice; empty otherwise.
        kind: the kind of DICOM object, such as "Segmentation Storage"; empty if it is no DICOM object.
        sop_class: its SOP class UID, empty if unknown.
        empty: whether there are no bytes but zeros at its start, as a failed copy leaves it.
        suffix: of its file if it does not begin as DICOM, see `volseg.data.io.dicom.files.kind_of`.
    """

    name: str
    reason: str = ""
    kind: str = ""
    sop_class: str = ""
    empty: bool = False
    suffix: str = ""


def read_header(path: Path, name: str, source: str = "") -> Header | Unusable:
    """The header of a file, or why it is none of an image; `name` and its input `source` are for messages.

    Raises:
        InputError: the system denies access to it.
    """
    with access_to(path, f"{source}: {name}" if source else name), open_to_read(path) as stream:
        start = stream.read(132)
        if not begins_as_dicom(start):
            return _not_dicom(path, name, start)
        size = os.fstat(stream.fileno()).st_size
        stream.seek(0)
        try:
            if inflates_too_far(stream):
                return Unusable(name, f"it is compressed to less than a {MOST_TIMES}th of its size")
            with parsing(name):
                found = _parsed(stream)
        except InputError:
            return Unusable(name, "its header is cut short or corrupt", sop_class=_class_in(path))
    data, place, pixels = found
    return _classified(path, name, data, place, pixels, size)


def kind_of_object(sop_class: str) -> str:
    """The kind of a DICOM object in words, such as "Segmentation"."""
    name = str(UID(sop_class).name).removesuffix(" Storage")
    return _NEW_KINDS.get(sop_class.removeprefix(STORAGE), "DICOM object") if name == sop_class else name


def read_object(path: Path, name: str) -> Header:
    """The header of a DICOM object of any kind, such as a segmentation; one without pixels has `pixels` of no bytes.

    Raises:
        InputError: it is cut short or corrupt, or the system denies access to it.
    """
    with access_to(path, name), open_to_read(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if inflates_too_far(stream):
            raise InputError(f"{name} is compressed to less than a {MOST_TIMES}th of its size; export it again.")
        with parsing(name):
            data, place, pixels = _parsed(stream)
            _check_whole(data)
    return _header(path, name, data, place, pixels, size)


def inflates_too_far(stream: BinaryIO) -> bool:
    """Whether a file is deflated as a whole and would take memory as no real file does: pydicom inflates it at once.

    Args:
        stream: the file; it is at its start before and after.
    """
    start = stream.read(4096)
    stream.seek(0)
    # Its transfer syntax, and the group of the elements that state it, whose length is in its first element.
    if DeflatedExplicitVRLittleEndian.encode() not in start:
        return False
    length = int.from_bytes(start[140:144], "little") if start[132:138] == b"\2\0\0\0UL" else 0
    stream.seek(144 + length)
    packed, total, inflater = 0, 0, zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        while (block := stream.read(2**16)) and total <= max(UNSUSPICIOUS_BYTES, MOST_TIMES * packed):
            packed += len(block)
            while block:
                total += len(inflater.decompress(block, 2**20))
                block = inflater.unconsumed_tail
    # What cannot be inflated is told where it is read.
    except zlib.error:
        return False
    finally:
        stream.seek(0)
    return total > max(UNSUSPICIOUS_BYTES, MOST_TIMES * packed)


def _check_whole(data: Dataset) -> None:
    """Reject a file that ends within an element: pydicom takes what is there of a sequence that is cut short.

    Raises:
        EOFError: as above.
    """
    for tag in data.keys():  # noqa: SIM118 - a dataset iterates over converted elements
        found: Any = element(data, tag)
        value, stated = found.value, getattr(found, "length", _UNDEFINED)
        if isinstance(value, bytes) and stated != _UNDEFINED and len(value) != stated:
            raise EOFError


def sop_class_of(path: Path, name: str = "") -> str:
    """The SOP class of a file from its first elements; empty if it is no DICOM, corrupt there, or states none.

    Args:
        path: of the file.
        name: for messages, without what its path may say of the patient.

    Raises:
        InputError: the system denies access to it.
    """
    with access_to(path, name), open_to_read(path) as stream:
        start = stream.read(132)
        if not begins_as_dicom(start):
            return ""
        stream.seek(0)
        if inflates_too_far(stream):
            return ""
        try:
            with parsing(path.name):
                data = read_partial(stream, lambda tag, *_: tag > tag_of("SOPClassUID"), force=start[128:] != b"DICM")
        except InputError:
            return ""
    return text(data, "SOPClassUID") or text(data.file_meta, "MediaStorageSOPClassUID")


def is_scan_class(sop_class: str) -> bool:
    """Whether objects of a storage class may be slices of a scan; other images, such as photographs, count as well."""
    short = sop_class.removeprefix(STORAGE)
    return short == sop_class or not short.startswith(_NO_SCANS)


def has_groups(header: Header) -> bool:
    """Whether its frames have functional groups: enhanced and legacy-converted enhanced images."""
    return element(header.data, "PerFrameFunctionalGroupsSequence") is not None


def _parsed(stream: Any) -> tuple[Dataset, Place | None, bytes | None]:
    """The elements before the pixels; keyword, offset, length and value representation of the pixels, or the pixels."""
    place: Place | None = None

    def at_pixels(tag: int, kind: str | None, length: int) -> bool:
        nonlocal place
        if tag not in _PIXELS:
            return False
        place = (_PIXELS[tag], stream.tell(), length, kind)
        return True

    force = stream.read(132)[128:] != b"DICM"
    stream.seek(0)
    data = read_partial(stream, at_pixels, force=force)
    if text(data.file_meta, "TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return data, place, None
    stream.seek(0)
    data = dcmread(io.BytesIO(stream.read()), force=force)
    found = element(data, "PixelData")
    return data, None, None if found is None else bytes(found.value)


def _classified(
    path: Path,
    name: str,
    data: Dataset,
    place: Place | None,
    pixels: bytes | None,
    size: int,
) -> Header | Unusable:
    """The header of an image, or what the file is instead."""
    sop_class = text(data, "SOPClassUID") or text(data.file_meta, "MediaStorageSOPClassUID")
    if sop_class == _FILE_SET or path.name.upper().endswith(DICOMDIR):
        return Unusable(name, kind="DICOMDIR", sop_class=sop_class)
    if not is_scan_class(sop_class):
        return Unusable(name, kind=kind_of_object(sop_class), sop_class=sop_class)
    if place is None and pixels is None:
        return Unusable(name, "it ends before its pixels, or has none", sop_class=sop_class)
    if place is not None and place[0] != "PixelData":
        return Unusable(name, kind=f"image of {place[0]}", sop_class=sop_class)
    return _header(path, name, data, place, pixels, size)


def _header(path: Path, name: str, data: Dataset, place: Place | None, pixels: bytes | None, size: int) -> Header:
    """The header of an object whose pixels, if any, lie at `place` or are `pixels`."""
    syntax = text(data.file_meta, "TransferSyntaxUID") or _guessed_syntax(data)
    if pixels is not None or place is None:
        return Header(path, name, data, syntax, None, len(pixels or b""), False, pixels or b"", size)
    _, offset, length, kind = place
    # Without a value representation (implicit), PixelData is OW.
    stated = None if length == _UNDEFINED else length
    return Header(path, name, data, syntax, offset, stated, kind in ("OW", None), None, size)


def _guessed_syntax(data: Dataset) -> str:
    """The transfer syntax of a file without file meta information, as pydicom has recognised it."""
    implicit, little = data.original_encoding
    if not little:
        return str(ExplicitVRBigEndian)
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)


def _not_dicom(path: Path, name: str, start: bytes) -> Unusable:
    """A file that does not begin as DICOM: it may be a corrupt slice by its name, or by having no bytes."""
    empty = not start.strip(b"\0")
    suffix = kind_of(path.name)
    if is_hidden(path.name):
        return Unusable(name)
    if suffix in DICOM_SUFFIXES:
        return Unusable(name, "it is empty" if empty else "it does not begin as DICOM", empty=empty, suffix=suffix)
    return Unusable(name, "it is empty" if empty else "", empty=empty, suffix=suffix)


def _class_in(path: Path) -> str:
    """The SOP class in the first bytes of a corrupt file; empty if it is missing or the file ends before it."""
    with open_to_read(path) as stream:
        # The start of element (0002,0002), Media Storage SOP Class UID, in every file with the DICM prefix.
        _, found, rest = stream.read(1024).partition(b"\2\0\2\0UI")
    length = int.from_bytes(rest[:2], "little")
    return rest[2 : 2 + length].rstrip(b"\0 ").decode("latin-1") if found and len(rest) >= 2 + length else ""
