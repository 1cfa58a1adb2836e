"""NRRD with an attached (.nrrd) or a detached (.nhdr) header.

The format is defined at teem.sourceforge.net/nrrd/format.html. Every field that bears on the voxels or their place is
read here; what none of them states is refused, or assumed with a warning (see `nrrd_axes`).
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from volseg.data.io.readers.detached import Body, read_voxels, require_whole
from volseg.data.io.readers.nrrd_axes import axes_of
from volseg.data.io.readers.stored import Stored
from volseg.data.io.readers.textheader import (
    absent,
    every_number,
    file_in,
    header_lines,
    integers,
    not_of_this_kind,
    numbered_files,
    positive_sizes,
    require_files,
    shown,
    with_number,
    wrong,
)
from volseg.errors import InputError
from volseg.files import access_to, open_to_read

_MAGIC = re.compile(rb"NRRD000([1-5])\r?\n")
_TYPES = {
    "i1": "char|signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names.split("|")}
_ENCODINGS = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2",
    "ascii": "ascii", "txt": "ascii", "text": "ascii", "hex": "hex",
}  # fmt: skip
# Names of fields without their blanks. The second group says nothing about the values or their place.
_FIELDS = {
    *("dimension", "type", "sizes", "encoding", "endian", "datafile", "lineskip", "byteskip", "kinds", "space"),
    *("spacedimension", "spacedirections", "spaceorigin", "spaceunits", "spacings", "units"),
} | {
    *("content", "number", "blocksize", "min", "max", "oldmin", "oldmax", "sampleunits", "labels", "thicknesses"),
    *("axismins", "axismaxs", "centers", "centerings", "measurementframe"),
}


class _Header(NamedTuple):
    """The fields of a file, the names of its data files after LIST, and the byte at which the header ends."""

    fields: dict[str, str]
    listed: list[str]
    end: int


def load(path: Path) -> Stored:
    """Read a file.

    Raises:
        InputError: it is not NRRD, does not state what is needed, or its voxels are missing, damaged or fewer than its
            header declares.
    """
    source = str(path)
    header = _read_header(path)
    body = _body(path, header)
    axes = axes_of(header.fields, body.shape, source)
    array, warnings = read_voxels(body, source)
    # Axes that are not in space come last; one with a single sample says nothing.
    dropped = tuple(axis for axis in axes.others if body.shape[axis] == 1)
    kept = [axis for axis in axes.others if axis not in dropped]
    array = array.transpose(*axes.in_space, *kept, *dropped)
    array = array.squeeze(axis=tuple(range(array.ndim - len(dropped), array.ndim)))
    return Stored(array, axes.affine, None, source, axes.warnings + warnings, axes.unstated)


def memory_of(path: Path) -> int:
    """The peak memory in bytes of reading a file, from its header.

    Raises:
        InputError: as `load`, for the header and the sizes of the files.
    """
    body = _body(path, _read_header(path))
    require_whole(body, str(path))
    return body.nbytes


def files_of(path: Path) -> list[Path]:
    """The header and the files of the voxels.

    Raises:
        InputError: as `load`, for the header.
    """
    return list(dict.fromkeys([path, *_body(path, _read_header(path)).files]))


def _read_header(path: Path) -> _Header:
    """The header of a file, each field once."""
    source = str(path)
    with access_to(path), open_to_read(path) as stream:
        start = stream.read(132)
        if not (magic := _MAGIC.match(start)):
            raise not_of_this_kind(start, "an NRRD file", source)
        stream.seek(magic.end())
        fields: dict[str, str] = {}
        ended, line, lines = False, "", header_lines(stream, source)
        for line in lines:
            if not (text := line.strip()):
                ended = True
                break
            if text.startswith("#"):
                continue
            _add_field(fields, text, source)
            if _is_list(fields.get("datafile", "")):
                return _Header(fields, [name.rstrip("\r\n") for name in lines if name.strip()], 0)
        if not ended and "datafile" not in fields:
            raise InputError(f"{source} is truncated: its header has no end (an empty line); copy it again.")
        # A last number without a line end may have lost its last digits.
        if not ended and not line.endswith("\n") and line[-1:].isdigit() and not line.lower().startswith("data"):
            raise InputError(
                f"{source}: the header ends within the line '{shown(line)}'; add a line end if it is whole."
            )
        return _Header(fields, [], stream.tell())


def _is_list(value: str) -> bool:
    """Whether a data file is a list of names, one on each line that follows."""
    return value.upper().split()[:1] == ["LIST"]


def _add_field(fields: dict[str, str], line: str, source: str) -> None:
    """Take up one line of a header, "field: value"; "key:=value" is free text of other programs."""
    name, colon, value = line.partition(":")
    key = name.lower().replace(" ", "")
    if colon and value.startswith("="):
        return
    if not colon or key not in _FIELDS:
        raise InputError(f"{source}: the header has an unknown field in the line '{shown(line)}'; fix or remove it.")
    if key in fields:
        raise InputError(f"{source}: the field '{shown(name)}' stands twice in the header; remove one.")
    fields[key] = value.strip()


def _required(fields: dict[str, str], field: str, source: str) -> str:
    """The value of a field that has to be there."""
    if not (value := fields.get(field.replace(" ", ""), "")):
        raise absent(field, source)
    return value


def _body(path: Path, header: _Header) -> Body:
    """Where the voxels are, and how they are stored."""
    source, fields = str(path), header.fields
    (dimension,) = integers(_required(fields, "dimension", source), "dimension", source, 1)
    if not 1 <= dimension <= 16:
        raise wrong("dimension", str(dimension), "1 to 16", source)
    sizes = positive_sizes(integers(_required(fields, "sizes", source), "sizes", source, dimension), "sizes", source)
    said = _required(fields, "encoding", source)
    if (encoding := _ENCODINGS.get(said.lower())) is None:
        raise wrong("encoding", said, "raw, gzip, bzip2, ascii or hex", source)
    files = _files(path, header, sizes)
    lines, skip = (
        integers(fields.get(field.replace(" ", ""), "0"), field, source, 1)[0] for field in ("line skip", "byte skip")
    )
    if lines < 0:
        raise wrong("line skip", str(lines), "0 or more", source)
    if skip < (-1 if encoding == "raw" else 0):
        raise wrong("byte skip", str(skip), "0 or more (or -1 in encoding raw)", source)
    start = 0 if "datafile" in fields else header.end
    return Body(files, sizes, _dtype(fields, encoding, source), encoding, start, lines, skip)


def _dtype(fields: dict[str, str], encoding: str, source: str) -> np.dtype:
    """The type of a voxel, with its byte order."""
    said = _required(fields, "type", source)
    if (code := _DTYPES.get(" ".join(said.lower().split()))) is None:
        raise wrong("type", said, "a type of the NRRD format such as short or float", source)
    if code.endswith("1") or encoding == "ascii":
        return np.dtype(code)
    if not (order := fields.get("endian", "").lower()):
        raise absent("endian", source, "without it, the byte order of the voxels is unknown")
    if order not in ("little", "big"):
        raise wrong("endian", order, "little or big", source)
    return np.dtype(("<" if order == "little" else ">") + code)


def _files(path: Path, header: _Header, sizes: tuple[int, ...]) -> list[Path]:
    """The files of the voxels: the header's own, one other, a numbered set, or a list."""
    value, source, folder = header.fields.get("datafile"), str(path), path.parent
    if value is None:
        return [path]
    if not value:
        raise absent("data file", source)
    if _is_list(value):
        rest = value.split()[1:]
        require_files(
            len(header.listed),
            sizes,
            integers(" ".join(rest), "data file", source, 1)[0] if rest else None,
            "data file",
            source,
        )
        return [file_in(folder, name) for name in header.listed]
    numbered = numbered_files(value)
    if numbered is None or file_in(folder, value).exists():
        return [file_in(folder, value)]
    name, words = numbered
    if len(words) < 3:
        raise wrong("data file", value, "the first and last number and the step after the name", source)
    first, last, step, *axes = integers(" ".join(words), "data file", source)
    indices = every_number(first, last, step, value, "data file", source)
    require_files(len(indices), sizes, axes[0] if axes else None, "data file", source)
    return [file_in(folder, with_number(name, number)) for number in indices]
