"""Streams of bytes from voxels that are compressed or written as text; a stream that ends early raises EOFError."""

import bz2
import io
from typing import IO, Any

import numpy as np
from isal import igzip, isal_zlib

# Bytes read at a time where they become more.
_PIECE = 1 << 18
# Longer words are no numbers.
_LONGEST_NUMBER = 400
# Whole numbers beyond are not exact in float64.
_LARGEST_EXACT = 2.0**53


def decoded(raw: IO[bytes], encoding: str, dtype: np.dtype) -> Any:
    """A readable stream of the bytes of voxels, from a file open at the first encoded byte.

    Args:
        raw: the file.
        encoding: "gzip", "zlib", "bzip2", "ascii" or "hex".
        dtype: of the voxels, which text is converted to.
    """
    if encoding == "gzip":
        return igzip.IGzipFile(fileobj=raw, mode="rb")
    if encoding == "bzip2":
        return bz2.BZ2File(raw)
    if encoding == "ascii":
        return TextStream(raw, dtype)
    return _ZlibStream(raw) if encoding == "zlib" else _HexStream(raw)


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


class _ZlibStream(_Stream):
    """Deflate with a zlib header and an Adler-32 checksum."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(raw)
        self._decompressor = isal_zlib.decompressobj()
        self._left = b""

    def _more(self, most: int) -> bytes | None:
        if self._decompressor.eof:
            self._require_end()
            return None
        if not self._left and not (block := self._raw.read(_PIECE)):
            raise EOFError("the stream ends early")
        more: bytes = self._decompressor.decompress(self._left or block, most)
        self._left = self._decompressor.unconsumed_tail
        return more

    def _require_end(self) -> None:
        """Reject anything but zeros after the end; reading stops at once where there is more."""
        rest = self._decompressor.unused_data
        while rest:
            if rest.strip(b"\0"):
                raise ValueError("other bytes follow its end")
            rest = self._raw.read(_PIECE)


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
        return np.array(words, dtype="S").astype(np.float64).astype(dtype) if words else np.empty(0, dtype)
    values = [_as_integer(word) for word in words]
    limits = np.iinfo(dtype)
    if values and not limits.min <= min(values) <= max(values) <= limits.max:
        raise ValueError(f"it has numbers from {min(values)} to {max(values)}, which are not all {dtype.name}")
    return np.array(values, dtype=dtype)


def _as_integer(word: bytes) -> int:
    """A whole number, which may be written as 12.0 or 1e+06."""
    try:
        return int(word)
    except ValueError:
        value = float(word)
    if not (value.is_integer() and abs(value) <= _LARGEST_EXACT):
        raise ValueError(f"'{word.decode('ascii', 'replace')}' is not a whole number")
    return int(value)
