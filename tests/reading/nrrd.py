"""NRRD: a writer of text and bytes, and what they mean by the definition of the format (teem.sourceforge.net/nrrd)."""

import gzip
import re
from pathlib import Path

import numpy as np

from tests.reading.parts import TooShortError, affine_of, array_of, inflated, numbers, odd_lengths, whole
from tests.reading.right import REFUSED, SHORT, Doubts, NonsenseError, Right
from tests.reading.volume import Volume

TYPES = {
    "u1": "uchar", "i1": "signed char", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "i8": "longlong",
    "u8": "ulonglong", "f4": "float", "f8": "double",
}  # fmt: skip
# Other names of the types that a mutation may choose.
NAMES = {name: kind for kind, name in TYPES.items()} | {"int16": "i2", "uint8": "u1", "int8": "i1", "uint16": "u2"}
SPACES = {
    "left-posterior-superior": (-1, -1, 1), "LPS": (-1, -1, 1), "right-anterior-superior": (1, 1, 1), "RAS": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "LAS": (-1, 1, 1),
}  # fmt: skip
UNITS = {"mm": 1.0, "um": 0.001, "m": 1000.0, "cm": 10.0}
KNOWN = {
    "type", "dimension", "space", "space dimension", "sizes", "space directions", "space origin", "kinds", "endian",
    "encoding", "space units", "spacings", "content", "centerings", "data file", "byte skip", "line skip",
    "thicknesses", "measurement frame", "units", "labels",
}  # fmt: skip


def header(volume: Volume, encoding: str = "raw", order: str = "<", space: str = "left-posterior-superior") -> dict:
    """The fields of a header."""
    assert volume.affine is not None
    affine = np.diag([*SPACES[space], 1.0]) @ volume.affine
    columns = (affine[:3, axis] for axis in range(3))
    return {
        "type": TYPES[volume.voxels.dtype.newbyteorder("=").str[1:]],
        "dimension": "3",
        "space": space,
        "sizes": " ".join(map(str, volume.voxels.shape)),
        "space directions": " ".join(_vector(column) for column in columns),
        "kinds": "domain domain domain",
        "endian": "little" if order == "<" else "big",
        "encoding": encoding,
        "space origin": _vector(affine[:3, 3]),
        "space units": '"mm" "mm" "mm"',
    }


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


def contents(fields: dict[str, str], data: bytes) -> bytes:
    """The bytes of a file: magic, fields, an empty line and the data."""
    lines = ["NRRD0005", *(f"{name}: {value}" for name, value in fields.items())]
    return "\n".join(lines).encode() + b"\n\n" + data


def packed(voxels: np.ndarray, encoding: str, order: str) -> bytes:
    """The voxels as an encoding has them."""
    data = voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")
    return gzip.compress(data, 1, mtime=0) if encoding == "gzip" else data


def write(path: Path, volume: Volume, encoding: str = "raw", order: str = "<", **more: str) -> Path:
    """Write a file; with the voxels in a file of their own where its name ends in .nhdr."""
    fields = header(volume, encoding, order, **more)
    data = packed(volume.voxels, encoding, order)
    if path.suffix == ".nhdr":
        path.with_suffix(".raw").write_bytes(data)
        fields["data file"] = path.with_suffix(".raw").name
        data = b""
    path.write_bytes(contents(fields, data))
    return path


def meaning(data: bytes, detached: bytes | None = None) -> Right:
    """What the bytes of a file mean; `detached`: those of its file of voxels."""
    try:
        fields, rest, doubts = _parsed(data)
        if detached is not None:
            if "data file" not in fields:
                raise NonsenseError
            rest = detached
        elif "data file" in fields:
            raise NonsenseError
        return _meaning(fields, rest, doubts)
    except NonsenseError:
        return REFUSED
    except TooShortError:
        return SHORT


def _parsed(data: bytes) -> tuple[dict[str, str], bytes, Doubts]:
    """Fields, the bytes after the empty line, and doubts: lines that are no known field."""
    if not re.match(rb"NRRD000[1-5]\n", data):
        raise NonsenseError
    text, empty, rest = data.partition(b"\n\n")
    if not empty:
        raise NonsenseError
    fields: dict[str, str] = {}
    doubts = Doubts()
    for line in text.decode("latin-1").split("\n")[1:]:
        if line.startswith("#"):
            continue
        name, colon, value = line.partition(": ")
        if not colon or name not in KNOWN or not value.strip().isascii():
            doubts.refusable = True
        if fields.setdefault(name, value.strip()) != value.strip():
            raise NonsenseError
    return fields, rest, doubts


def _meaning(fields: dict[str, str], data: bytes, doubts: Doubts) -> Right:
    missing = {"type", "dimension", "sizes", "encoding"} - set(fields)
    if missing or whole(fields["dimension"]) != [3]:
        raise NonsenseError
    name = fields["type"]
    if name not in NAMES:
        raise NonsenseError
    doubts.refusable |= name not in TYPES.values()
    encoding = fields["encoding"]
    if encoding in ("bzip2", "ascii", "hex"):
        # The bytes are in another encoding: either is wrong, the field or the voxels.
        raise TooShortError
    if encoding not in ("raw", "gzip", "gz"):
        raise NonsenseError
    doubts.refusable |= any(one in fields for one in ("byte skip", "line skip"))
    if any(fields.get(one, "0") != "0" for one in ("byte skip", "line skip")):
        raise NonsenseError
    dtype = np.dtype(NAMES[name]).newbyteorder(_order(fields, NAMES[name], doubts))
    data = data if encoding == "raw" else inflated(data, "gzip")
    voxels = array_of(data, dtype, tuple(whole(fields["sizes"], 3)), doubts)
    kinds = fields.get("kinds", "domain domain domain").split()
    doubts.refusable |= any(kind not in ("domain", "space") for kind in kinds) or len(kinds) != 3
    return doubts.right(_placed(voxels, fields, doubts))


def _order(fields: dict[str, str], kind: str, doubts: Doubts) -> str:
    if kind[1] == "1":
        return "="
    if "endian" not in fields:
        doubts.about("endian", "byte order")
        return "<"
    if fields["endian"] not in ("little", "big"):
        raise NonsenseError
    return "<" if fields["endian"] == "little" else ">"


def _placed(voxels: np.ndarray, fields: dict[str, str], doubts: Doubts) -> Volume:
    units = _units(fields, doubts)
    if "space directions" not in fields:
        if "spacings" not in fields:
            raise NonsenseError
        spacings = numbers(fields["spacings"], 3)
        if not np.isfinite(spacings).all() or min(spacings) <= 0:
            raise NonsenseError
        doubts.about("space", "orientation")
        # The units are those of the axes of space, which are not stated.
        doubts.refusable |= not np.array_equal(units, np.ones(3))
        return Volume(voxels, spacing=tuple(spacings))
    doubts.refusable |= "spacings" in fields
    axes = _vectors(fields["space directions"], 3) * units
    affine = affine_of(axes.T, np.zeros(3))
    doubts.refusable |= odd_lengths(np.linalg.norm(axes, axis=1))
    known = fields.get("space") in SPACES
    origin = np.full(3, np.nan)
    if "space origin" in fields:
        origin = _vectors(fields["space origin"], 1)[0] * units
    if np.isinf(origin).any():
        raise NonsenseError
    if not known:
        doubts.about("space", "orientation", "patient")
    if np.isnan(origin).any():
        doubts.about("origin")
    if not known or np.isnan(origin).any():
        return Volume(voxels, spacing=tuple(np.linalg.norm(affine[:3, :3], axis=0)))
    affine[:3, 3] = origin
    return Volume(voxels, np.diag([*SPACES[fields["space"]], 1.0]) @ affine)


def _vectors(text: str, count: int) -> np.ndarray:
    found = re.fullmatch(r"\s*".join([r"\(([^()]*)\)"] * count), text.strip())
    if found is None:
        raise NonsenseError
    return np.array([numbers(one.replace(",", " "), 3) for one in found.groups()])


def _units(fields: dict[str, str], doubts: Doubts) -> np.ndarray:
    """Millimetres per unit of each axis of space; where none is stated, millimetres are the convention."""
    if "space units" not in fields:
        return np.ones(3)
    units = re.findall(r'"([^"]*)"', fields["space units"])
    doubts.refusable |= units != ["mm"] * 3
    if len(units) != 3:
        raise NonsenseError
    if any(unit and unit not in UNITS for unit in units):
        doubts.about("unit")
    return np.array([UNITS.get(unit, 1.0) for unit in units])
