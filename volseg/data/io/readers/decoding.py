"""Streams of bytes from voxels that are compressed or written as text; a stream that ends early raises EOFError."""

import bz2
import io
from typing import IO, Any

import numpy as np
from isal import isal_zlib
from isal.isal_zlib import IsalError

# How `isal_zlib.decompressobj` names the two wrappers of deflate.
_GZIP, _ZLIB = 31, 15
# Bytes read at a time where they become more.
_PIECE = 1 << 18
# Longer words are no numbers.
_LONGEST_NUMBER = 400
# Whole numbers beyond are not exact in float64.
_LARGEST_EXACT = 2.0**53


class TrailingBytesError(ValueError):
    """A stream is whole, and followed by bytes that are no padding."""


def decoded(raw: IO[bytes], encoding: str, dtype: np.dtype) -> Any:
    """A readable stream of the bytes of voxels, from a file open at the first encoded byte.

    Args:
        raw: the file.
        encoding: "gzip", "zlib", "bzip2", "ascii" or "hex".
        dtype: of the voxels, which text is converted to.
    """
    if encoding in ("gzip", "zlib"):
        return _DeflateStream(raw, _GZIP if encoding == "gzip" else _ZLIB)
    if encoding == "bzip2":
        return bz2.BZ2File(raw)
    if encoding == "ascii":
        return TextStream(raw, dtype)
    return _HexStream(raw)


def is_whole_gzip(raw: IO[bytes]) -> bool:
    """Whether a file begins with a gzip stream that is whole, whatever follows it."""
    raw.seek(0)
    stream = _DeflateStream(raw, _GZIP)
    try:
        while stream.read(_PIECE):
            pass
    except TrailingBytesError:
        return True
    except (EOFError, IsalError):
        return False
    return True


class _Stream(io.RawIOBase):
    """A stream that decodes another."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the beginning of a buffer; 0 at the end."""
        while not self._ready:
            if (more := self._more(len(buffer))) is None:
                return 0
            self._ready = memoryview(more)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _more(self, most: int) -> bytes | None:
        """The next decoded bytes, about `most`; None at the end."""
        raise NotImplementedError


class _DeflateStream(_Stream):
    """Deflate with the header and checksum of zlib, or of gzip, where several members follow each other."""

    def __init__(self, raw: IO[bytes], wrapper: int) -> None:
        super().__init__(raw)
        self._wrapper = wrapper
        self._member = isal_zlib.decompressobj(wrapper)
        self._left = b""

    def _more(self, most: int) -> bytes | None:
        if self._member.eof:
            self._left = self._member.unused_data or self._raw.read(_PIECE)
            if not self._begins_member():
                self._require_padding()
                return None
            self._member = isal_zlib.decompressobj(self._wrapper)
        block = self._left or self._raw.read(_PIECE)
        # Bytes may be left inside the decompressor after the last block.
        more: bytes = self._member.decompress(block, most)
        if not (more or block or self._member.eof):
            raise EOFError
        self._left = self._member.unconsumed_tail
        return more

    def _begins_member(self) -> bool:
        """Whether another member of a gzip file follows."""
        if len(self._left) == 1:
            self._left += self._raw.read(_PIECE)
        return self._wrapper == _GZIP and self._left.startswith(b"\x1f\x8b")

    def _require_padding(self) -> None:
        """Reject anything but zeros and line ends after the end; reading stops at once where there is more."""
        while self._left:
            if self._left.strip(b"\0\r\n"):
                raise TrailingBytesError
            self._left = self._raw.read(_PIECE)


class _HexStream(_Stream):
    """Two hexadecimal digits for each byte, with any blanks."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(raw)
        self._odd = b""

    def _more(self, most: int) -> bytes | None:
        block = self._raw.read(2 * min(most, _PIECE))
        digits = self._odd + b"".join(block.split())
        if not block:
            if digits:
                raise EOFError("the last digit of a byte is missing")
            return None
        even = len(digits) & ~1
        self._odd = digits[even:]
        return bytes.fromhex(digits[:even].decode("ascii"))


class TextStream(_Stream):
    """Numbers as text, separated by blanks, as the bytes of voxels of a type.

    Attributes:
        ended: whether the last number was followed by a blank or a line end, so that it is certainly whole.
    """

    def __init__(self, raw: IO[bytes], dtype: np.dtype) -> None:
        super().__init__(raw)
        self.ended = True
        self._dtype = dtype
        self._begun = b""

    def _more(self, most: int) -> bytes | None:
        block = self._raw.read(max(1, min(most, _PIECE)))
        text = self._begun + block
        words = text.split()
        if not text:
            return None
        if not block:
            self.ended, self._begun = False, b""
        else:
            # The last word of a block may go on in the next one.
            self._begun = b"" if text[-1:].isspace() else words.pop()
        if len(self._begun) > _LONGEST_NUMBER:
            raise ValueError("it has words that are not numbers")
        return _as_numbers(words, self._dtype).tobytes()


def _as_numbers(words: list[bytes], dtype: np.dtype) -> np.ndarray:
    """Words as numbers of a type.

    Raises:
        ValueError: a word is no number, or no number of this type.
    """
    if dtype.kind == "f":
        return np.array([_as_float(word) for word in words], np.float64).astype(dtype)
    values = [_as_integer(word) for word in words]
    limits = np.iinfo(dtype)
    if values and not limits.min <= min(values) <= max(values) <= limits.max:
        raise ValueError(f"it has numbers from {min(values)} to {max(values)}, which are not all {dtype.name}")
    return np.array(values, dtype=dtype)


def _as_float(word: bytes) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError("it has words that are not numbers") from None


def _as_integer(word: bytes) -> int:
    """A whole number, which may be written as 12.0 or 1e+06."""
    try:
        return int(word)
    except ValueError:
        value = _as_float(word)
    if not (value.is_integer() and abs(value) <= _LARGEST_EXACT):
        raise ValueError(f"'{word.decode('ascii', 'replace')}' is not a whole number")
    return int(value)
