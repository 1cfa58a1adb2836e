"""MetaImage: a writer of text and bytes, and what they mean by the definition of the format (itk.org, MetaIO)."""

import zlib
from pathlib import Path

import numpy as np

from tests.reading.parts import TooShortError, affine_of, array_of, inflated, numbers, odd_lengths, whole
from tests.reading.right import REFUSED, SHORT, Doubts, NonsenseError, Right
from tests.reading.volume import LPS_RAS, Volume

TYPES = {
    "u1": "MET_UCHAR", "i1": "MET_CHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "u4": "MET_UINT",
    "i8": "MET_LONG_LONG", "u8": "MET_ULONG_LONG", "f4": "MET_FLOAT", "f8": "MET_DOUBLE",
}  # fmt: skip
KINDS = {name: kind for kind, name in TYPES.items()}
# Fields that change nothing about the volume.
IDLE = {"ObjectType", "CenterOfRotation", "AnatomicalOrientation", "Comment", "ElementMin", "ElementMax", "Modality"}
BOOLEANS = {"True": True, "False": False}
POSITION, ORIENTATION = ("Offset", "Position", "Origin"), ("TransformMatrix", "Rotation", "Orientation")
SPACING = ("ElementSpacing", "ElementSize")
BYTE_ORDER = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
KNOWN = {
    *IDLE, *POSITION, *ORIENTATION, *SPACING, *BYTE_ORDER, "NDims", "DimSize", "ElementType", "BinaryData",
    "CompressedData", "CompressedDataSize", "ElementNumberOfChannels", "HeaderSize", "DistanceUnits", "ElementDataFile",
}  # fmt: skip


def header(volume: Volume, size: int | None = None, order: str = "<") -> dict[str, str]:
    """The fields of a header; `size`: that of the compressed voxels."""
    assert volume.affine is not None
    affine = LPS_RAS @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    compressed = {} if size is None else {"CompressedDataSize": str(size)}
    return {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(order == ">"),
        "CompressedData": str(size is not None),
        **compressed,
        "TransformMatrix": _joined((affine[:3, :3] / spacing).T.ravel()),
        "Offset": _joined(affine[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": _joined(spacing),
        "DimSize": " ".join(map(str, volume.voxels.shape)),
        "ElementType": TYPES[volume.voxels.dtype.newbyteorder("=").str[1:]],
    }


def _joined(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in values)


def packed(voxels: np.ndarray, order: str) -> bytes:
    """The voxels as bytes in a byte order."""
    return voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")


def contents(fields: dict[str, str], data: bytes) -> bytes:
    """The bytes of a file: fields, of which ElementDataFile has to be last, and the data."""
    return "".join(f"{name} = {value}\n" for name, value in fields.items()).encode() + data


def write(path: Path, volume: Volume, compressed: bool = False, order: str = "<") -> Path:
    """Write a file; with the voxels in a file of their own where its name ends in .mhd."""
    data = packed(volume.voxels, order)
    data = zlib.compress(data, 1) if compressed else data
    fields = header(volume, len(data) if compressed else None, order)
    beside = path.with_suffix(".zraw" if compressed else ".raw")
    fields["ElementDataFile"] = beside.name if path.suffix == ".mhd" else "LOCAL"
    if path.suffix == ".mhd":
        beside.write_bytes(data)
        data = b""
    path.write_bytes(contents(fields, data))
    return path


def meaning(data: bytes, detached: bytes | None = None) -> Right:
    """What the bytes of a file mean; `detached`: those of its file of voxels."""
    doubts = Doubts()
    try:
        fields, rest = _parsed(data, doubts)
        if not fields["ElementDataFile"]:
            raise TooShortError
        if (detached is None) != (fields["ElementDataFile"] == "LOCAL"):
            raise NonsenseError
        return _meaning(fields, rest if detached is None else detached, doubts)
    except NonsenseError:
        return REFUSED
    except TooShortError:
        return SHORT


def _parsed(data: bytes, doubts: Doubts) -> tuple[dict[str, str], bytes]:
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields:
        line, end, data = data.partition(b"\n")
        name, _, value = line.decode("latin-1").partition("=")
        name = name.strip()
        # Without its last field, a header may have been cut.
        if not end:
            raise TooShortError
        if name not in KNOWN or not value.isascii():
            doubts.refusable = True
        if fields.setdefault(name, value.strip()) != value.strip():
            doubts.refusable = True
            if name not in IDLE:
                raise NonsenseError
    return fields, data


def _meaning(fields: dict[str, str], data: bytes, doubts: Doubts) -> Right:
    if {"NDims", "DimSize", "ElementType"} - set(fields) or whole(fields["NDims"]) != [3]:
        raise NonsenseError
    if fields["ElementType"] not in KINDS:
        raise NonsenseError
    # Bytes that are no text: either is wrong, the field or the voxels.
    if not _boolean(fields, "BinaryData", "True", doubts):
        raise TooShortError
    doubts.refusable |= fields.get("ObjectType") != "Image" or "BinaryData" not in fields
    if fields.get("ElementNumberOfChannels", "1") != "1" or fields.get("HeaderSize", "0") != "0":
        raise NonsenseError
    if _boolean(fields, "CompressedData", "False", doubts):
        # A size that is not that of the stream may be a reason to refuse.
        stated = fields.get("CompressedDataSize", "")
        doubts.refusable |= stated != str(len(data))
        data = inflated(data, "zlib")
    else:
        doubts.refusable |= "CompressedDataSize" in fields or "CompressedData" not in fields
    dtype = np.dtype(KINDS[fields["ElementType"]])
    dtype = dtype.newbyteorder(_order(fields, dtype, doubts))
    voxels = array_of(data, dtype, tuple(whole(fields["DimSize"], 3)), doubts)
    return doubts.right(_placed(voxels, fields, doubts))


def _boolean(fields: dict[str, str], name: str, default: str, doubts: Doubts) -> bool:
    """MetaIO takes a value that begins with T, t or 1 for true, and any other for false."""
    value = fields.get(name, default)
    doubts.refusable |= value not in BOOLEANS
    return BOOLEANS.get(value, value[:1] in ("T", "t", "1"))


def _order(fields: dict[str, str], dtype: np.dtype, doubts: Doubts) -> str:
    if dtype.itemsize == 1:
        return "="
    stated = [_boolean(fields, name, "False", doubts) for name in BYTE_ORDER if name in fields]
    if not stated:
        doubts.about("byte order", "endian", "ByteOrder")
        return "<"
    if len(set(stated)) > 1:
        raise NonsenseError
    return ">" if stated[0] else "<"


def _placed(voxels: np.ndarray, fields: dict[str, str], doubts: Doubts) -> Volume:
    spacing = _stated(fields, SPACING, 3, doubts)
    offset = _stated(fields, POSITION, 3, doubts)
    matrix = _stated(fields, ORIENTATION, 9, doubts)
    if fields.get("DistanceUnits", "mm") != "mm":
        raise NonsenseError
    if spacing is None:
        doubts.about("spacing", "ElementSpacing")
    elif not np.isfinite(spacing).all() or min(spacing) <= 0:
        raise NonsenseError
    if offset is not None and np.isinf(offset).any():
        raise NonsenseError
    if offset is not None and np.isnan(offset).any():
        offset = None
    if offset is None:
        doubts.about("offset", "origin", "position")
    if matrix is None:
        doubts.about("orientation", "TransformMatrix", "direction")
    axes = np.eye(3) if matrix is None else np.array(matrix).reshape(3, 3).T
    affine = affine_of(axes * (spacing or (1, 1, 1)), np.zeros(3) if offset is None else np.array(offset))
    doubts.refusable |= odd_lengths(np.linalg.norm(affine[:3, :3], axis=0))
    # Directions that are not of length 1 change the spacing, or are a mistake.
    doubts.refusable |= not np.allclose(np.linalg.norm(axes, axis=0), 1, atol=1e-3)
    if spacing is None or offset is None or matrix is None:
        return Volume(voxels, spacing=tuple(spacing) if spacing else None)
    return Volume(voxels, LPS_RAS @ affine)


def _stated(fields: dict[str, str], names: tuple[str, ...], count: int, doubts: Doubts) -> list[float] | None:
    """The value of a field with several names."""
    values = [numbers(fields[name], count) for name in names if name in fields]
    doubts.refusable |= len(values) > 1
    return values[0] if values else None
