"""The bytes of pixels in a file, and compressed frames decoded by GDCM.

GDCM gets a file of its own for each frame, which states only how the pixels are stored. So it cannot apply a rescaling,
invert an image or take a default of its own, and no name of a file reaches it.
"""

import os
import re
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from threading import Lock

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from volseg.data.io.dicom.frames import Frame
from volseg.data.io.dicom.header import Header
from volseg.data.io.dicom.pixel_format import PixelFormat
from volseg.data.io.dicom.values import text
from volseg.errors import InputError
from volseg.files import access_to, open_to_read

_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
_BY_GDCM = (*_LOSSY, JPEG2000, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless)
# pydicom checks that the segments of a frame have all their bytes. HTJ2K needs pylibjpeg-openjpeg.
_BY_PYDICOM = (RLELossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
# The marker at the end of every JPEG, JPEG-LS and JPEG 2000 stream.
_END_OF_IMAGE = b"\xff\xd9"
# The first markers of JPEG and JPEG-LS, and of JPEG 2000.
_BEGINS = (b"\xff\xd8", b"\xff\x4f")
# The begin of a code stream of JPEG 2000, and the markers of JPEG and JPEG-LS that a frame's size follows.
_JPEG2000 = b"\xff\x4f\xff\x51"
_FRAME_MARKERS = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
# What libjpeg and OpenJPEG say of corrupt streams.
_COMPLAINT = re.compile(
    rb"Corrupt JPEG data|Premature end of JPEG|Not a JPEG file|Bogus (Huffman|marker|sampling|D[HQ]T)|Must downscale|"
    rb"Invalid (component ID|JPEG file|lossless param|tile|marker size|value|multiple comp)|Huffman table 0x|"
    rb"Unsupported marker|Inconsistent (progression|marker)|A marker ID was expected|"
    rb"(Marker|Tile part length) .*size inconsistent|Marker (handler function|is not compliant)|Stream too short|"
    rb"Failed to decode|Fail to read the current marker|Error (reading|with) S?[A-Z]|required \w+ marker|"
    rb"Unknown (progression|Scod|marker)|read: segment too|Sot length is|We do not support|Malformed HT"
)
# What libjpeg says before another decoder takes over, and of a parameter that it ignores.
_HARMLESS = re.compile(rb"Unsupported JPEG |Invalid SOS parameters for sequential JPEG")
_CONSOLE = Lock()


def is_lossy(header: Header) -> bool:
    """Whether the pixels were compressed with loss at any time, as far as the file states it."""
    return text(header.data, "LossyImageCompression") == "01" or header.syntax in _LOSSY


def may_be_lossy(header: Header) -> bool:
    """Whether the transfer syntax allows loss and the file does not state whether there was any."""
    return header.syntax in (JPEG2000, HTJ2K) and not text(header.data, "LossyImageCompression")


def pixel_bytes(header: Header, start: int, count: int, word: int) -> bytes:
    """Bytes of uncompressed PixelData; fewer than `count` where the file ends."""
    swapped = header.big_endian and header.word_pixels and word == 1
    # Bytes that were written as words of 16 bits in big-endian order.
    first, more = (start - start % 2, count + 2) if swapped else (start, count)
    content = header.stored(first, more)
    if not swapped:
        return content
    even = np.frombuffer(content[: len(content) // 2 * 2], "<u2").byteswap().tobytes()
    return even[start - first : start - first + count]


def decoded(frame: Frame, form: PixelFormat, source: str) -> np.ndarray:
    """The pixels (rows, columns) of a compressed frame, signed or unsigned as stored.

    Raises:
        InputError: the compression is not supported, or the frame is cut short or corrupt.
    """
    header = frame.header
    where, name = header.among(source), UID(header.syntax).name
    if header.syntax not in (*_BY_GDCM, *_BY_PYDICOM) or not _available(header.syntax):
        raise InputError(
            f"{where}: the transfer syntax {name} ({header.syntax}) is not supported here; store it uncompressed, for "
            "example with dcmconv or gdcmconv."
        )
    content = _frame_bytes(header, frame.index, where)
    try:
        pixels = _by_pydicom(content, header, form) if header.syntax in _BY_PYDICOM else _by_gdcm(content, header, form)
    except (RuntimeError, ValueError, EOFError, IndexError, struct.error) as error:
        raise InputError(f"{where}: a frame in {name} is cut short or corrupt; copy it again.") from error
    if pixels.shape != (form.rows, form.columns) or pixels.dtype.itemsize * 8 != form.allocated:
        raise InputError(
            f"{where}: a frame in {name} holds {pixels.shape[-1]} x {pixels.shape[0]} pixels of {pixels.dtype}, "
            f"expected {form.columns} x {form.rows} of {form.allocated} bits; export the series again."
        )
    return pixels


def _available(syntax: str) -> bool:
    return syntax in _BY_GDCM or get_decoder(UID(syntax)).is_available


def _frame_bytes(header: Header, index: int, where: str) -> bytes:
    """The compressed bytes of one frame: DICOM PS3.5 A.4."""
    chosen = _fragments(header, where)[index]
    with access_to(header.path, where), open_to_read(header.path) as stream:
        parts = []
        for offset, length in chosen:
            stream.seek(offset)
            parts.append(stream.read(length))
    content = b"".join(parts)
    if header.syntax == RLELossless:
        return content
    # Within a stream no data look like its end marker; some writers fill up after it.
    end = content.rfind(_END_OF_IMAGE)
    if end < 0:
        raise InputError(
            f"{where}: a compressed frame has no end marker, so it may be cut short; copy it again, or export it again."
        )
    return content[: end + len(_END_OF_IMAGE)]


# Frames are decoded one by one, but all fragments are found at once.
@lru_cache(maxsize=1)
def _fragments(header: Header, where: str) -> list[list[tuple[int, int]]]:
    """Offset and length of the fragments of every frame of a file."""
    assert header.offset is not None
    found = []
    with access_to(header.path, where), open_to_read(header.path) as stream:
        stream.seek(header.offset)
        while (start := stream.read(8))[:4] == _ITEM:
            length = int.from_bytes(start[4:], "little")
            found.append((stream.tell(), length))
            stream.seek(length, 1)
        if start[:4] != _END or not found:
            raise InputError(
                f"{where} ends without the delimiter that follows compressed pixels, so it may be cut short; copy it "
                "again, or export it again."
            )
        # The first fragment is the basic offset table.
        (offset, length), *own = found
        stream.seek(offset)
        table = stream.read(length)
        begins = []
        for offset, _ in own:
            stream.seek(offset)
            begins.append(stream.read(2) in _BEGINS)
    if sum(begins) > header.frames:
        raise InputError(
            f"{where}: NumberOfFrames is {header.frames}, but there are {sum(begins)} compressed images; export it "
            "again."
        )
    return _by_frame(own, begins, table, header.frames, where)


def _by_frame(
    own: list[tuple[int, int]], begins: list[bool], table: bytes, frames: int, where: str
) -> list[list[tuple[int, int]]]:
    """The fragments of each frame: all of an only frame, one each, as the basic offset table or their begins state."""
    if frames == 1:
        return [own]
    if len(own) == frames:
        return [[one] for one in own]
    if not table and sum(begins) == frames and begins[0]:
        firsts = [*np.flatnonzero(begins), len(own)]
        return [own[first:stop] for first, stop in pairwise(firsts)]
    if len(table) != 4 * frames or not own:
        raise InputError(
            f"{where}: NumberOfFrames is {frames}, but there are {len(own)} compressed fragments; export it again."
        )
    # Offsets count from the item of the first fragment, 8 bytes before its content.
    starts = np.frombuffer(table, "<u4").astype(np.int64)
    ends = [*starts[1:], np.inf]
    return [[one for one in own if start <= one[0] - own[0][0] < end] for start, end in zip(starts, ends, strict=True)]


def _stated(content: bytes, header: Header, form: PixelFormat) -> Dataset:
    """A dataset that states nothing but how one frame is stored."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(header.syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = form.rows, form.columns
    data.BitsAllocated, data.BitsStored, data.HighBit = form.allocated, form.stored, form.high
    data.PixelRepresentation, data.SamplesPerPixel = int(form.signed), 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = encapsulate([content])
    data["PixelData"].VR = "OB"
    return data


def _by_gdcm(content: bytes, header: Header, form: PixelFormat) -> np.ndarray:
    _check_stream(content, form)
    with tempfile.TemporaryDirectory(prefix="volseg-") as folder:
        path = Path(folder) / "frame.dcm"
        _stated(content, header, form).save_as(path, enforce_file_format=True)
        with _complaints_raised(Path(folder) / "stderr"):
            image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    array: np.ndarray = sitk.GetArrayFromImage(image)
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _check_stream(content: bytes, form: PixelFormat) -> None:
    """Compare the size that a compressed frame states itself with that of its file: GDCM crashes on some others.

    Raises:
        ValueError: they differ, or there is none.
    """
    code_stream = content.find(_JPEG2000)
    if code_stream >= 0 and not content.startswith(_BEGINS[0]):
        right, below, left, above, samples, bits = struct.unpack_from(">8x4I16xHB", content, code_stream)
        size = (below - above, right - left, samples)
        bits = bits % 128 + 1
    else:
        at = 2
        while content[at + 1] not in _FRAME_MARKERS:
            at += 2 + int.from_bytes(content[at + 2 : at + 4])
        bits, rows, columns, samples = struct.unpack_from(">4xBHHB", content, at)
        size = (rows, columns, samples)
    # With fewer bits than stated, the sign would be lost.
    if size != (form.rows, form.columns, 1) or bits > form.allocated or (form.signed and bits < form.stored):
        raise ValueError("the stream states another size than the file")


@contextmanager
def _complaints_raised(path: Path) -> Iterator[None]:
    """Raise what the decoder of JPEG writes to the console: after each such line it continues with invented pixels.

    Other lines, which another thread may have written at that moment, go where they should.

    Args:
        path: a file for the lines.

    Raises:
        ValueError: the decoder has complained.
    """
    try:
        console = os.dup(2)
    except OSError:
        # There is no console, so nothing can be heard.
        yield
        return
    with _CONSOLE, open(path, "w+b") as lines:
        try:
            os.dup2(lines.fileno(), 2)
            yield
        finally:
            os.dup2(console, 2)
            lines.seek(0)
            found = lines.read().splitlines(keepends=True)
            complaints = [line for line in found if _COMPLAINT.match(line)]
            others = [line for line in found if line not in complaints and not _HARMLESS.match(line)]
            os.write(console, b"".join(others))
            os.close(console)
    if complaints:
        raise ValueError(complaints[0].decode("latin-1").strip())


def _by_pydicom(content: bytes, header: Header, form: PixelFormat) -> np.ndarray:
    if header.syntax == RLELossless:
        _count_rle(content, form)
    array: np.ndarray = _stated(content, header, form).pixel_array
    return array


def _count_rle(content: bytes, form: PixelFormat) -> None:
    """Count the bytes of the segments of a frame in RLE (DICOM PS3.5 annex G): pydicom leaves out what is too much.

    Raises:
        ValueError: there are more or fewer than pixels.
    """
    count, *offsets = struct.unpack_from("<16I", content)
    ends = [*offsets[1:count], len(content)]
    for start, end in zip(offsets[:count], ends, strict=False):
        at, pixels = start, 0
        while at < end and pixels < form.rows * form.columns:
            # Up to 127: so many bytes and one follow; from 129: the next byte is repeated; 128 means nothing.
            code = content[at]
            pixels += code + 1 if code < 128 else 257 - code if code > 128 else 0
            at += code + 2 if code < 128 else 2 if code > 128 else 1
        # A segment has an even number of bytes.
        if pixels != form.rows * form.columns or not at <= end <= at + 1:
            raise ValueError("another number of pixels than stated")
