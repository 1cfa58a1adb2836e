"""Voxels behind a header of text, in its own file or in others: counted, and the array is filled whole or not at all.

Nothing is read twice: compressed voxels are decompressed into their array, and then up to the end of the stream, where
the checksum is.
"""

import io
import math
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from isal.isal_zlib import IsalError

from volseg.data.io.readers.decoding import TextStream, TrailingBytesError, decoded
from volseg.data.io.readers.streams import LARGEST_GZIP_RATIO, are_voxels, more_than_declared, not_used
from volseg.data.io.readers.textheader import GZIP_MAGIC, shown
from volseg.errors import InputError
from volseg.files import access_to, open_to_read

# bzip2 packs a run of 255 bytes into 5, and a block of 900,000 of those into 33 bytes at least.
_LARGEST_BZIP2_RATIO = 1_500_000
# Bytes decoded at a time.
_CHUNK = 1 << 22
# What damaged streams raise.
_DAMAGED = (IsalError, zlib.error, OSError, ValueError)


class Body(NamedTuple):
    """Where voxels are, and how they are stored.

    Args:
        files: one, or several with equal parts of the voxels in the order of the slowest axis.
        shape: the first axis varies fastest.
        dtype: of a voxel, with its byte order.
        encoding: "raw", "gzip", "zlib", "bzip2", "ascii" or "hex".
        start: the byte of each file at which the voxels, or lines before them, begin.
        lines: how many lines are skipped from there.
        skip: how many bytes are skipped after them, of the decompressed ones if they are compressed; -1, for "raw"
            only: the voxels are the last bytes of the file.
    """

    files: list[Path]
    shape: tuple[int, ...]
    dtype: np.dtype
    encoding: str
    start: int = 0
    lines: int = 0
    skip: int = 0

    @property
    def nbytes(self) -> int:
        """The size of the voxels in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_voxels(body: Body, source: str) -> tuple[np.ndarray, list[str]]:
    """The voxels in native byte order and Fortran order, and warnings.

    Raises:
        InputError: a file is missing, unreadable, damaged, or has fewer voxels than the header declares or more than
            padding explains.
    """
    require_whole(body, source)
    count = math.prod(body.shape) // len(body.files)
    voxels = np.empty(count * len(body.files), body.dtype)
    warnings = []
    for number, file in enumerate(body.files):
        with access_to(file), open_to_read(file) as raw:
            warnings += _read_part(raw, file, body, voxels[number * count : (number + 1) * count], source)
    if not body.dtype.isnative:
        voxels = voxels.byteswap(inplace=True).view(body.dtype.newbyteorder("="))
    return voxels.reshape(body.shape, order="F"), list(dict.fromkeys(warnings))


def require_whole(body: Body, source: str) -> None:
    """Reject files that are missing or too small for their voxels, before memory is allocated for them.

    Raises:
        InputError: a file is missing, unreadable or too small.
    """
    for file in body.files:
        with access_to(file):
            _require_size(file, body, math.prod(body.shape) // len(body.files), source)


def _require_size(file: Path, body: Body, count: int, source: str) -> None:
    """Reject a missing file, and one that is too small for `count` voxels."""
    if not file.exists():
        raise InputError(
            f"{source}: the file of the voxels, {shown(str(file), 300)}, does not exist; add it, or correct its name."
        )
    if not file.is_file():
        raise InputError(f"{source}: the file of the voxels, {shown(str(file), 300)}, is not a file; correct its name.")
    needed = count * body.dtype.itemsize
    least = {
        "raw": needed,
        "gzip": needed // LARGEST_GZIP_RATIO,
        "zlib": needed // LARGEST_GZIP_RATIO,
        "bzip2": needed // _LARGEST_BZIP2_RATIO,
        "ascii": 2 * count - 1,
        "hex": 2 * needed,
    }[body.encoding]
    if (there := file.stat().st_size - body.start) < 0:
        raise _skipped(f"{body.start} bytes", file, source)
    _require_not_compressed(file, body, there - needed, source)
    if there < max(1, least):
        what = "" if body.encoding == "raw" else f" in encoding {body.encoding}"
        raise _truncated(needed, f"{there}{what}", file, source)


def _require_not_compressed(file: Path, body: Body, spare: int, source: str) -> None:
    """Reject voxels that are declared as "raw" and are compressed: their size differs, and they begin as a stream."""
    if body.encoding != "raw" or not spare or body.skip or body.lines:
        return
    with open_to_read(file) as stream:
        stream.seek(body.start)
        first = stream.read(2)
    # The two bytes of a zlib header, as one number, are a multiple of 31.
    kind = "gzip" if first == GZIP_MAGIC else "zlib" if first[:1] == b"x" and not int.from_bytes(first) % 31 else ""
    if kind:
        raise InputError(
            f"{source}: the voxels{_inside(file, source)} begin as a {kind} stream, but the header declares that they "
            "are not compressed; fix the header."
        )


def _read_part(raw: IO[bytes], file: Path, body: Body, voxels: np.ndarray, source: str) -> list[str]:
    """Fill the voxels of one file; warnings."""
    view = memoryview(voxels.view(np.uint8).data)
    found = 0
    try:
        stream = _at_first_voxel(raw, file, body, len(view), source)
        while found < len(view) and (count := stream.readinto(view[found : found + _CHUNK])):
            found += count
        spare = _count_spare(stream, raw, len(view)) if found == len(view) else 0
    except EOFError as error:
        raise _truncated(len(view), str(found), file, source) from error
    except TrailingBytesError as error:
        raise InputError(
            f"{source}: other bytes follow the end of the {body.encoding} stream of voxels{_inside(file, source)}; "
            "remove them, or fix the header."
        ) from error
    except _DAMAGED as error:
        # The system's own errors have a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = f"{body.encoding}: {shown(str(error))}"
        raise InputError(
            f"{source}: the voxels{_inside(file, source)} are damaged or in another encoding ({reason}); "
            "copy them again."
        ) from error
    if found < len(view):
        raise _truncated(len(view), str(found), file, source)
    warnings = _judge_spare(spare, voxels, file, body, source)
    if isinstance(stream, TextStream) and not stream.ended:
        warnings.append("The text of the voxels does not end with a line end, so its last number may be cut short.")
    return warnings


def _at_first_voxel(raw: IO[bytes], file: Path, body: Body, needed: int, source: str) -> Any:
    """A stream of decoded bytes that begins at the first voxel."""
    raw.seek(body.start)
    for _ in range(body.lines):
        if not raw.readline():
            raise _skipped(f"{body.lines} lines", file, source)
    first, end = raw.tell(), raw.seek(0, io.SEEK_END)
    if body.skip < 0:
        if end - first < needed:
            raise EOFError
        raw.seek(-needed, io.SEEK_END)
        return raw
    if body.encoding in ("raw", "ascii", "hex"):
        if first + body.skip > end:
            raise _skipped(f"{body.skip} bytes", file, source)
        raw.seek(first + body.skip)
        return raw if body.encoding == "raw" else decoded(raw, body.encoding, body.dtype)
    raw.seek(first)
    stream, left = decoded(raw, body.encoding, body.dtype), body.skip
    while left and (skipped := len(stream.read(min(left, _CHUNK)))):
        left -= skipped
    if left:
        raise _skipped(f"{body.skip} bytes", file, source)
    return stream


def _skipped(what: str, file: Path, source: str) -> InputError:
    """The error for more bytes or lines before the voxels than there are."""
    return InputError(
        f"{source}: the header says that the voxels{_inside(file, source)} begin after {what}, but the file ends "
        "before; fix the header."
    )


def _count_spare(stream: Any, raw: IO[bytes], most: int) -> int:
    """The number of bytes up to the end of the stream, where its checksum is; counting stops above `most`."""
    if stream is raw:
        end_of_voxels: int = raw.tell()
        end_of_file: int = raw.seek(0, io.SEEK_END)
        return end_of_file - end_of_voxels
    spare = 0
    while spare <= most and (chunk := stream.read(_CHUNK)):
        spare += len(chunk)
    return spare


def _judge_spare(spare: int, voxels: np.ndarray, file: Path, body: Body, source: str) -> list[str]:
    """A warning for bytes after the voxels, which may be padding; an error if they may be voxels themselves.

    Not where the header states which bytes of a larger file are meant.
    """
    if not spare:
        return []
    part_is_meant = body.skip > 0 or (body.start > 0 and str(file) != source)
    if not part_is_meant and are_voxels(spare, body.shape, voxels.size, body.dtype):
        at_least = "at least " if body.encoding != "raw" and spare > voxels.nbytes else ""
        found = f"{at_least}{voxels.nbytes + spare}{_inside(file, source)}"
        raise more_than_declared(voxels.nbytes, found, source)
    return [not_used(spare, _inside(file, source))]


def _truncated(needed: int, found: str, file: Path, source: str) -> InputError:
    """The error for a file with fewer voxels than the header declares."""
    return InputError(
        f"{source} is truncated: the header declares {needed} bytes of voxels, found {found}{_inside(file, source)}; "
        "copy it again."
    )


def _inside(file: Path, source: str) -> str:
    """Which file is meant, where the voxels have one of their own."""
    return "" if str(file) == source else f" in {shown(file.name, 100)}"
