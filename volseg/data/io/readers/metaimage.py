"""MetaImage with its voxels in the same file (.mha) or in others (.mhd).

Keys and their meaning are those of MetaIO (github.com/Kitware/MetaIO). Each is read here; what none of them states is
refused, or assumed as MetaIO does with a warning.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from volseg.data.grid.geometry import LPS_FROM_RAS
from volseg.data.io.readers.detached import Body, read_voxels, require_whole
from volseg.data.io.readers.stored import Stored
from volseg.data.io.readers.streams import scaled
from volseg.data.io.readers.textheader import (
    GZIP_MAGIC,
    LARGEST,
    absent,
    every_number,
    file_in,
    header_lines,
    integers,
    millimetres,
    not_of_this_kind,
    numbered_files,
    numbers,
    positive_sizes,
    require_files,
    shown,
    with_number,
    wrong,
)
from volseg.errors import InputError
from volseg.files import access_to, open_to_read

_DTYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_TRUE, _FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")
_BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
# Several names of one key.
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_ORIGINS = ("Offset", "Position", "Origin", "ImagePosition")
_SCALING = ("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset")
# Axes in TransformMatrix have length 1 but for rounding; the spacing has a key of its own.
_LENGTH_TOLERANCE = 1e-3


# What no voxels, and no name of a file, look like.
_LINE_OF_HEADER = re.compile(rb"[A-Za-z]{4,40} ?= ?[ -~]*\r?\n")


class _Header(NamedTuple):
    """The keys of a file, the names of files after LIST, the byte at which the header ends, and the file's name."""

    keys: dict[str, str]
    listed: list[str]
    end: int
    path: Path

    @property
    def source(self) -> str:
        return str(self.path)


def load(path: Path) -> Stored:
    """Read a file.

    Raises:
        InputError: it is not MetaImage, does not state what is needed, or its voxels are missing, damaged or fewer than
            its header declares.
    """
    header = _read_header(path)
    body, assumed = _body(header)
    channels = _channels(header)
    affine, warnings, unstated = _grid(header, len(body.shape) - (channels > 1))
    slope, offset = _scaling(header)
    array, odd = read_voxels(body, header.source)
    if (slope, offset) != (1.0, 0.0):
        odd.append(f"Stored values are scaled as {_SCALING[0]} ({slope:g}) and {_SCALING[1]} ({offset:g}) state.")
    if channels > 1:
        array = np.moveaxis(array, 0, -1)
    return Stored(scaled(array, slope, offset), affine, None, header.source, [*warnings, *assumed, *odd], unstated)


def memory_of(path: Path) -> int:
    """The peak memory in bytes of reading a file, from its header.

    Raises:
        InputError: as `load`, for the header and the sizes of the files.
    """
    header = _read_header(path)
    body, _ = _body(header)
    require_whole(body, header.source)
    if _scaling(header) == (1.0, 0.0):
        return body.nbytes
    return body.nbytes + body.nbytes // body.dtype.itemsize * max(body.dtype.itemsize, 4)


def files_of(path: Path) -> list[Path]:
    """The header and the files of the voxels.

    Raises:
        InputError: as `load`, for the header.
    """
    return list(dict.fromkeys([path, *_body(_read_header(path))[0].files]))


def _read_header(path: Path) -> _Header:
    """The header of a file, each key once."""
    source = str(path)
    with access_to(path), open_to_read(path) as stream:
        start = stream.read(132)
        if b"=" not in start.split(b"\n")[0] or b"\0" in start.split(b"\n")[0]:
            raise not_of_this_kind(start, "a MetaImage file", source)
        stream.seek(0)
        keys: dict[str, str] = {}
        lines = header_lines(stream, source)
        for line in lines:
            if not line.strip():
                continue
            _add_key(keys, line, source)
            if "ElementDataFile" in keys:
                break
        if not (value := keys.get("ElementDataFile", "")):
            raise absent("ElementDataFile", source, "it has to be the last key; the header may be truncated")
        end = stream.tell() if value.upper() == "LOCAL" else 0
        rest = [] if end else [name for line in lines if (name := line.strip())]
        follows = _LINE_OF_HEADER.match(stream.read(200) if end else "\n".join([*rest, ""]).encode("utf-8", "replace"))
        if follows:
            line = follows[0].decode("latin-1").strip()
            raise InputError(
                f"{source}: 'ElementDataFile' has to be the last key, found '{shown(line)}' after it; fix the header."
            )
        return _Header(keys, rest, end, path)


def _add_key(keys: dict[str, str], line: str, source: str) -> None:
    """Take up one line of a header, "Key = value"."""
    name, sign, value = line.partition("=" if "=" in line else ":")
    if not sign:
        raise InputError(
            f"{source}: the header has a line without '=' before 'ElementDataFile': '{shown(line.strip())}'; fix it."
        )
    if name.strip() in keys:
        raise InputError(f"{source}: the key '{shown(name.strip())}' stands twice in the header; remove one.")
    keys[name.strip()] = value.strip()


def _required(header: _Header, key: str) -> str:
    """The value of a key that has to be there."""
    if not (value := header.keys.get(key, "")):
        raise absent(key, header.source)
    return value


def _flag(header: _Header, key: str) -> bool | None:
    """Whether a key is true; None if it is not there."""
    if (value := header.keys.get(key)) is None:
        return None
    if value.lower() not in (*_TRUE, *_FALSE):
        raise wrong(key, value, "True or False", header.source)
    return value.lower() in _TRUE


def _number_of_axes(header: _Header) -> int:
    """2, 3 or 4."""
    if (kind := header.keys.get("ObjectType", "Image")).lower() != "image":
        raise wrong("ObjectType", kind, "Image", header.source)
    (count,) = integers(_required(header, "NDims"), "NDims", header.source, 1)
    if count not in (2, 3, 4):
        raise InputError(f"{header.source}: 'NDims' is {count}, so it is {count}-D, expected a 3-D volume.")
    return count


def _channels(header: _Header) -> int:
    """Numbers per voxel."""
    key = "ElementNumberOfChannels"
    (count,) = positive_sizes(integers(header.keys.get(key, "1"), key, header.source, 1), key, header.source)
    return count


def _body(header: _Header) -> tuple[Body, list[str]]:
    """Where the voxels are and how they are stored, and warnings of what is assumed."""
    source = header.source
    axes = _number_of_axes(header)
    sizes = positive_sizes(integers(_required(header, "DimSize"), "DimSize", source, axes), "DimSize", source)
    warnings: list[str] = []
    encoding = _encoding(header, warnings)
    dtype = _dtype(header, encoding, warnings)
    (skip,) = integers(header.keys.get("HeaderSize", "0"), "HeaderSize", source, 1)
    if skip < (-1 if encoding == "raw" else 0):
        raise wrong("HeaderSize", str(skip), "0 or more (or -1 if not compressed)", source)
    files = _files(header, sizes)
    if encoding == "zlib" and _is_gzip(files[0], skip or header.end):
        encoding = "gzip"
    channels = _channels(header)
    shape = (channels, *sizes) if channels > 1 else sizes
    # A HeaderSize counts from the first byte, also of a file with its own header.
    return Body(files, shape, dtype, encoding, max(skip, 0) or header.end, 0, min(skip, 0)), warnings


def _encoding(header: _Header, warnings: list[str]) -> str:
    """How the voxels are stored, as `volseg.data.io.readers.detached.Body` names it."""
    binary, packed = _flag(header, "BinaryData"), _flag(header, "CompressedData")
    if binary is None:
        warnings.append("The header does not state 'BinaryData'; binary voxels are assumed.")
    if binary is False:
        if packed:
            raise wrong("CompressedData", "True", "False, as the voxels are text (BinaryData is False)", header.source)
        return "ascii"
    return "zlib" if packed else "raw"


def _dtype(header: _Header, encoding: str, warnings: list[str]) -> np.dtype:
    """The type of a number, with its byte order."""
    said = _required(header, "ElementType")
    if (code := _DTYPES.get(said.upper())) is None:
        raise wrong("ElementType", said, "a type of numbers such as MET_SHORT or MET_FLOAT", header.source)
    if code.endswith("1") or encoding == "ascii":
        return np.dtype(code)
    orders = {_flag(header, key) for key in _BYTE_ORDERS} - {None}
    if len(orders) > 1:
        raise InputError(f"{header.source}: {' and '.join(_BYTE_ORDERS)} contradict each other; fix the header.")
    if not orders:
        warnings.append("The header does not state 'BinaryDataByteOrderMSB'; little-endian byte order is assumed.")
    return np.dtype((">" if True in orders else "<") + code)


def _is_gzip(file: Path, start: int) -> bool:
    """Whether compressed voxels have the wrapper of gzip, which MetaIO takes as well as that of zlib."""
    with access_to(file):
        if not file.is_file():
            return False
        with open_to_read(file) as stream:
            stream.seek(max(start, 0))
            return stream.read(2) == GZIP_MAGIC


def _files(header: _Header, sizes: tuple[int, ...]) -> list[Path]:
    """The files of the voxels: the header's own, one other, a numbered set, or a list."""
    key = "ElementDataFile"
    value, source, folder = header.keys[key], header.source, header.path.parent
    word, *rest = value.split()
    if value.upper() == "LOCAL":
        return [header.path]
    if word.upper() == "LIST":
        axes = integers(rest[0].upper().removesuffix("D"), key, source, 1)[0] if rest else None
        require_files(len(header.listed), sizes, axes, key, source)
        return [file_in(folder, name) for name in header.listed]
    numbered = numbered_files(value)
    if numbered is None or file_in(folder, value).exists():
        return [file_in(folder, value)]
    name, words = numbered
    given = integers(" ".join(words), key, source) if words else [1]
    if len(given) > 3:
        raise wrong(key, value, "the first and last number and the step after the name", source)
    last, step = (*given[1:], *(given[0] + sizes[-1] - 1, 1)[len(given) - 1 :])
    indices = every_number(given[0], last, step, value, key, source)
    require_files(len(indices), sizes, None, key, source)
    return [file_in(folder, with_number(name, number)) for number in indices]


def _grid(header: _Header, axes: int) -> tuple[np.ndarray, list[str], str]:
    """The affine to RAS+ millimetres, warnings, and why the size in millimetres is not stated."""
    if axes < 3:
        # Rejected later, as any image of fewer dimensions.
        return np.eye(4), [], ""
    spacing, warnings, unstated = _spacing(header, axes)
    matrix = _stated(header, _MATRICES, axes * axes)
    if matrix is None:
        warnings.append(
            "The header states no 'TransformMatrix', so the patient's orientation is unknown; LPS+ axes are assumed."
        )
        if "DistanceUnits" not in header.keys:
            unstated = unstated or "The file states neither 'TransformMatrix' nor 'DistanceUnits'."
        matrix = np.eye(axes).ravel()
    # Each axis of the image is a row.
    directions = _directions(matrix.reshape(axes, axes).T, header)
    origin = _stated(header, _ORIGINS, axes)
    if origin is None or np.isnan(origin[:3]).any():
        found = "The header states no 'Offset'" if origin is None else "'Offset' is not a number"
        warnings.append(f"{found}, so the origin is unknown; 0 is assumed.")
        origin = np.zeros(axes)
    if not np.isfinite(origin[:3]).all():
        raise wrong("Offset", " ".join(map(str, origin)), "finite numbers", header.source)
    unit = header.keys.get("DistanceUnits")
    scale = 1.0 if unit in (None, "", "?") else millimetres(str(unit), "DistanceUnits", header.source)
    lps = np.eye(4)
    lps[:3, :3] = scale * directions * spacing[:3]
    lps[:3, 3] = scale * origin[:3]
    return LPS_FROM_RAS @ lps, warnings, unstated


def _directions(matrix: np.ndarray, header: _Header) -> np.ndarray:
    """The directions of the first three axes as columns of length 1."""
    if matrix.shape[0] > 3 and (matrix[3, :3].any() or matrix[:3, 3].any()):
        raise InputError(f"{header.source}: 'TransformMatrix' mixes time into the axes of space; fix the header.")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not (np.abs(lengths - 1) <= _LENGTH_TOLERANCE).all():
        found = " ".join(f"{length:g}" for length in lengths)
        raise InputError(
            f"{header.source}: the axes in 'TransformMatrix' have lengths {found}, expected 1 (the spacing has its own "
            "key); fix the header."
        )
    return matrix[:3, :3]


def _spacing(header: _Header, axes: int) -> tuple[np.ndarray, list[str], str]:
    """Spacings along the axes, warnings, and why they are a convention."""
    for key in ("ElementSpacing", "ElementSize"):
        if key not in header.keys:
            continue
        values = np.array(numbers(header.keys[key], key, header.source, axes))
        if not ((values > 0) & (values < LARGEST))[:3].all():
            raise wrong(key, header.keys[key], "positive numbers", header.source)
        if key == "ElementSpacing":
            return values, [], ""
        warning = "The header states no 'ElementSpacing'; 'ElementSize' is taken as the spacing, as MetaIO does."
        return values, [warning], "The file states no 'ElementSpacing', only 'ElementSize'."
    raise absent("ElementSpacing", header.source, "without it, the spacing is unknown")


def _stated(header: _Header, names: tuple[str, ...], count: int) -> np.ndarray | None:
    """The numbers of a key that has several names; None if it has none of them."""
    found = {name: numbers(header.keys[name], name, header.source, count) for name in names if name in header.keys}
    if not found:
        return None
    first, *others = found.values()
    if any(not np.allclose(first, other, equal_nan=True) for other in others):
        raise InputError(f"{header.source}: {' and '.join(found)} contradict each other; fix the header.")
    return np.array(first)


def _scaling(header: _Header) -> tuple[float, float]:
    """Slope and offset from stored numbers to values."""
    slope, offset = (
        numbers(header.keys.get(key, default), key, header.source, 1)[0]
        for key, default in zip(_SCALING, ("1", "0"), strict=True)
    )
    if not (abs(slope) < LARGEST and abs(offset) < LARGEST and slope):
        raise wrong(" and ".join(_SCALING), f"{slope:g} {offset:g}", "numbers, and a slope other than 0", header.source)
    return slope, offset
