"""The header of a .safetensors file, read with bounds and without torch.

A file begins with the length of its header (8 bytes, little-endian), then comes the header, a JSON object, then the
numbers of all tensors without a gap. In the header each tensor has its number type, its shape and where its numbers
begin and end; "__metadata__" maps texts to texts. See https://github.com/huggingface/safetensors#format.
"""

import math
import os
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from volseg.config import Frozen
from volseg.documents import DocumentError, parse_json
from volseg.errors import InputError
from volseg.files import open_to_read

# Bytes of a header. One with 10 networks of 500 tensors each has less than 1 MiB.
LARGEST_HEADER = 8 * 2**20
# Bits of each number type that safetensors knows and that a model may have.
FLOATING = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
BITS = FLOATING | {
    "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
_METADATA = "__metadata__"
# numpy and torch take sizes and their products as signed 64-bit numbers.
_Size = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class Entry(Frozen):
    """What a header says of a tensor; the numbers lie between two bytes, counted from the end of the header."""

    model_config = ConfigDict(strict=False)

    dtype: str
    shape: Annotated[tuple[_Size, ...], Field(max_length=16)]
    data_offsets: tuple[_Size, _Size]


class _CutShortError(DocumentError):
    """The file begins as a model file does, and has fewer bytes than its own header says."""


class Header(NamedTuple):
    """The header of a file: its texts by name, and its tensors by name."""

    metadata: dict[str, str]
    tensors: dict[str, Entry]


_TEXTS, _ENTRIES = TypeAdapter(dict[str, str]), TypeAdapter(dict[str, Entry])


def read_header(path: Path) -> Header:
    """The header of a .safetensors file that fits the size of the file.

    Raises:
        InputError: no such file, not a .safetensors file, or one that is cut short.
    """
    try:
        with open_to_read(path) as file:
            return _header(file)
    except FileNotFoundError as error:
        raise InputError(
            f"There is no model file {path}. Give the path of a .safetensors file that volseg wrote."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Give a readable model file.") from error
    except _CutShortError as error:
        raise InputError(f"{path} is cut short: {error}. Copy or download it again.") from error
    except DocumentError as error:
        raise InputError(f"{path} is not a model file: {error}. Give a .safetensors file that volseg wrote.") from error


def _header(file: BinaryIO) -> Header:
    """The header of an open file.

    Raises:
        DocumentError: it is not one, or does not fit the file; `_CutShortError` where only the end is missing.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8:
        raise DocumentError(f"it has only {size} bytes")
    if length > size - 8:
        # The first 8 bytes of any other file are a length, too, but no brace follows them.
        if length > LARGEST_HEADER or file.read(1) != b"{":
            raise DocumentError("its first bytes are not those of a .safetensors file")
        raise _CutShortError(f"its header has {length} bytes, but only {size - 8} are there")
    if length > LARGEST_HEADER:
        raise DocumentError(f"its header has {length / 2**20:.1f} MiB, at most {LARGEST_HEADER / 2**20:g} are read")
    try:
        document = parse_json(file.read(length).decode("utf-8"))
        if not isinstance(document, dict):
            raise DocumentError("it is no object")
        metadata = _TEXTS.validate_python(document.pop(_METADATA, {}), strict=True)
        header = Header(metadata, _ENTRIES.validate_python(document))
    except UnicodeDecodeError as error:
        raise DocumentError(f"byte {error.start} of its header is not UTF-8") from error
    except DocumentError as error:
        raise DocumentError(f"its header cannot be used, because {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:60]
        raise DocumentError(f"its header cannot be used, because of {place or _METADATA}: {first['msg']}") from error
    _check_offsets(header.tensors, size - 8 - length)
    return header


def _check_offsets(tensors: dict[str, Entry], available: int) -> None:
    """Refuse tensors whose numbers are not exactly those that follow the header, one tensor after the other."""
    end = 0
    for name, one in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        if one.dtype not in BITS:
            raise DocumentError(f"the number type of {name[:60]} is {one.dtype[:20]!r}, which volseg does not know")
        begin, stop = one.data_offsets
        needed = math.prod(one.shape) * BITS[one.dtype] // 8
        if begin != end or stop - begin != needed:
            raise DocumentError(
                f"{name[:60]} lies at bytes {begin} to {stop}, but its shape needs {needed} bytes from {end}"
            )
        end = stop
    if end > available:
        raise _CutShortError(f"its tensors have {end} bytes, but only {available} are there")
    if end != available:
        raise DocumentError(f"its tensors have {end} bytes, but {available} follow the header")
