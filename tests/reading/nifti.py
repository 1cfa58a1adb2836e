"""NIfTI-1 and NIfTI-2 in one file: a writer by struct, and what a file's bytes mean by nifti1.h and nifti2.h."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.reading.parts import left_out, odd_lengths, odd_values
from tests.reading.right import REFUSED, SHORT, Doubts, NonsenseError, Right
from tests.reading.volume import Volume

FIELDS_1 = [
    ("sizeof_hdr", "i4"), ("data_type", "S10"), ("db_name", "S18"), ("extents", "i4"), ("session_error", "i2"),
    ("regular", "S1"), ("dim_info", "u1"), ("dim", "i2", 8), ("intent_p1", "f4"), ("intent_p2", "f4"),
    ("intent_p3", "f4"), ("intent_code", "i2"), ("datatype", "i2"), ("bitpix", "i2"), ("slice_start", "i2"),
    ("pixdim", "f4", 8), ("vox_offset", "f4"), ("scl_slope", "f4"), ("scl_inter", "f4"), ("slice_end", "i2"),
    ("slice_code", "u1"), ("xyzt_units", "u1"), ("cal_max", "f4"), ("cal_min", "f4"), ("slice_duration", "f4"),
    ("toffset", "f4"), ("glmax", "i4"), ("glmin", "i4"), ("descrip", "S80"), ("aux_file", "S24"), ("qform_code", "i2"),
    ("sform_code", "i2"), ("quatern", "f4", 3), ("qoffset", "f4", 3), ("srow", "f4", (3, 4)), ("intent_name", "S16"),
    ("magic", "S4"),
]  # fmt: skip
FIELDS_2 = [
    ("sizeof_hdr", "i4"), ("magic", "S8"), ("datatype", "i2"), ("bitpix", "i2"), ("dim", "i8", 8), ("intent_p1", "f8"),
    ("intent_p2", "f8"), ("intent_p3", "f8"), ("pixdim", "f8", 8), ("vox_offset", "i8"), ("scl_slope", "f8"),
    ("scl_inter", "f8"), ("cal_max", "f8"), ("cal_min", "f8"), ("slice_duration", "f8"), ("toffset", "f8"),
    ("slice_start", "i8"), ("slice_end", "i8"), ("descrip", "S80"), ("aux_file", "S24"), ("qform_code", "i4"),
    ("sform_code", "i4"), ("quatern", "f8", 3), ("qoffset", "f8", 3), ("srow", "f8", (3, 4)), ("slice_code", "i4"),
    ("xyzt_units", "i4"), ("intent_code", "i4"), ("intent_name", "S16"), ("dim_info", "u1"), ("unused", "S15"),
]  # fmt: skip
DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
MAGIC = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
FORMS = ("form", "orientation")


def header_dtype(version: int, order: str) -> np.dtype[Any]:
    """The header as nifti1.h (version 1) or nifti2.h (version 2) has it."""
    fields = FIELDS_1 if version == 1 else FIELDS_2
    return np.dtype([(one[0], np.dtype(one[1]).newbyteorder(order), *one[2:]) for one in fields])


def header(volume: Volume, version: int = 1, order: str = "<", slope: float = 0, inter: float = 0) -> np.ndarray:
    """A header with sform and qform, as a 0-D record."""
    assert volume.affine is not None
    record = np.zeros((), header_dtype(version, order))
    dtype = volume.voxels.dtype.newbyteorder("=")
    record["sizeof_hdr"] = record.dtype.itemsize
    record["magic"] = MAGIC[version]
    record["dim"] = [3, *volume.voxels.shape, 1, 1, 1, 1]
    record["datatype"] = next(code for code, kind in DTYPES.items() if np.dtype(kind) == dtype)
    record["bitpix"] = dtype.itemsize * 8
    record["vox_offset"] = record.dtype.itemsize + 4
    record["scl_slope"], record["scl_inter"], record["xyzt_units"] = slope, inter, 2
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    quaternion, factor = _quaternion(volume.affine[:3, :3] / spacing)
    record["pixdim"] = [factor, *spacing, 0, 0, 0, 0]
    record["qform_code"] = record["sform_code"] = 1
    record["quatern"], record["qoffset"], record["srow"] = quaternion, volume.affine[:3, 3], volume.affine[:3]
    return record


def contents(record: np.ndarray, voxels: np.ndarray) -> bytes:
    """The bytes of a file: header, no extension, voxels in the header's byte order."""
    order = record.dtype["sizeof_hdr"].str[0]
    return record.tobytes() + bytes(4) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")


def write(path: Path, volume: Volume, version: int = 1, order: str = "<", slope: float = 0, inter: float = 0) -> Path:
    """Write a file; gzip-compressed where its name ends in .gz. The volume has the stored values."""
    data = contents(header(volume, version, order, slope, inter), volume.voxels)
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.name.endswith(".gz") else data)
    return path


def meaning(data: bytes) -> Right:
    """What the bytes of a file mean."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return SHORT
    version = 2 if data[4:12] == MAGIC[2] else 1
    size = header_dtype(version, "<").itemsize
    if len(data) < size:
        return SHORT
    # The byte order is the one in which dim[0] is a number of dimensions (nifti1.h).
    found: list[Right] = []
    for order in "<>":
        record = np.frombuffer(data, header_dtype(version, order), 1)[0]
        if 1 <= int(record["dim"][0]) <= 7:
            try:
                found.append(_meaning(record, data, version, order))
            except NonsenseError:
                continue
    return found[0] if found else REFUSED


def _meaning(record: Any, data: bytes, version: int, order: str) -> Right:
    doubts = Doubts()
    # numpy cuts zero bytes off the end of a text.
    if bytes(record["magic"]) != MAGIC[version].rstrip(b"\0"):
        raise NonsenseError
    shape = _shape(record)
    if int(record["datatype"]) not in DTYPES:
        raise NonsenseError
    dtype = np.dtype(DTYPES[int(record["datatype"])]).newbyteorder(order)
    doubts.refusable |= int(record["sizeof_hdr"]) != record.dtype.itemsize
    doubts.refusable |= int(record["bitpix"]) != dtype.itemsize * 8
    offset = _offset(record, doubts)
    if offset + math.prod(shape) * dtype.itemsize > len(data):
        return SHORT
    if math.prod(shape[3:]) != 1:
        raise NonsenseError
    shape, spare = shape[:3], data[offset + math.prod(shape) * dtype.itemsize :]
    if any(spare) and left_out(len(spare), shape, dtype.itemsize):
        raise NonsenseError
    array = np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape, order="F")
    voxels = _scaled(array, float(record["scl_slope"]), float(record["scl_inter"]))
    doubts.refusable |= odd_values(voxels)
    unit = _unit(record, doubts)
    volumes = []
    for affine, spacing in _grids(record, doubts):
        lengths = spacing if affine is None else np.linalg.norm(affine[:3, :3], axis=0)
        doubts.refusable |= odd_lengths(np.array(lengths) * unit)
        if affine is not None:
            scaled = affine.copy()
            scaled[:3] *= unit
            volumes.append(Volume(voxels, scaled))
        else:
            volumes.append(Volume(voxels, spacing=tuple(unit * one for one in spacing)))
    doubts.about_spare(spare)
    return doubts.right(*volumes)


def _shape(record: Any) -> tuple[int, ...]:
    sizes = [int(size) for size in record["dim"]]
    if not 3 <= sizes[0] <= 7 or min(sizes[1 : sizes[0] + 1]) < 1:
        raise NonsenseError
    return tuple(sizes[1 : sizes[0] + 1])


def _offset(record: Any, doubts: Doubts) -> int:
    """Where the voxels begin. Careless programs write 0; the file's length shows that they follow the header."""
    first, stated = record.dtype.itemsize + 4, float(record["vox_offset"])
    if stated == 0:
        doubts.refusable = True
        return first
    if not math.isfinite(stated) or stated < first:
        raise NonsenseError
    doubts.refusable |= stated % 16 != 0
    return int(stated)


def _scaled(array: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Slope 0 means that there is no scaling, and so does one that is not a number, which nibabel writes."""
    if slope == 0 or math.isnan(slope):
        return array
    # Below the smallest normal number of float32 a slope leaves nothing of the values.
    if not math.isfinite(slope) or not math.isfinite(inter) or abs(slope) < np.finfo(np.float32).tiny:
        raise NonsenseError
    return array if (slope, inter) == (1, 0) else array.astype(np.float64) * slope + inter


def _unit(record: Any, doubts: Doubts) -> float:
    unit = int(record["xyzt_units"]) & 7
    if unit != 2:
        doubts.refusable = True
    if unit not in (1, 2, 3):
        doubts.about("unit", "millimetre")
    return {1: 1000.0, 3: 0.001}.get(unit, 1.0)


def _grids(record: Any, doubts: Doubts) -> list[tuple[np.ndarray | None, tuple[float, ...]]]:
    """The grids that may be taken."""
    codes = {name: int(record[f"{name}_code"]) for name in ("sform", "qform")}
    doubts.refusable |= any(code < 0 or code > 5 for code in codes.values())
    doubts.refusable |= float(record["pixdim"][0]) not in (-1, 0, 1)
    # The codes above 5 that are not defined: which space the form leads to is unknown.
    if max(codes["sform"], 0) > 5 or (codes["sform"] <= 0 and codes["qform"] > 5):
        doubts.about("code", *FORMS)
    sform = _finite(np.vstack([record["srow"].astype(float), [0, 0, 0, 1]])) if codes["sform"] > 0 else None
    qform = _qform(record, doubts) if codes["qform"] > 0 else None
    if codes["sform"] > 0 and codes["qform"] > 0:
        if sform is None:
            raise NonsenseError
        if qform is None:
            doubts.refusable = True
        elif _apart(sform, qform):
            doubts.about("differ", *FORMS)
        return [(sform, ())]
    pixdim = record["pixdim"][1:4].astype(float)
    doubts.refusable |= not (np.isfinite(pixdim).all() and (pixdim > 0).all())
    if sform is not None or qform is not None:
        return [(sform if sform is not None else qform, ())]
    if codes["sform"] > 0 or codes["qform"] > 0 or not np.isfinite(pixdim).all() or not (pixdim > 0).all():
        raise NonsenseError
    doubts.about("code", *FORMS)
    return [(None, tuple(pixdim))]


def _finite(affine: np.ndarray) -> np.ndarray | None:
    """The affine; None if it spans no space."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        usable = np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.min() > 0
        return affine if usable and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-4 else None


def _qform(record: Any, doubts: Doubts) -> np.ndarray | None:
    """The qform by nifti1.h, method 2; None if it is none."""
    b, c, d = (float(one) for one in record["quatern"])
    square = 1 - (b * b + c * c + d * d)
    pixdim = record["pixdim"][:4].astype(float)
    if (
        not square > -1e-5
        or pixdim[0] not in (-1, 0, 1)
        or not np.isfinite(pixdim[1:]).all()
        or not (pixdim[1:] > 0).all()
    ):
        return None
    # By how much rounding may make a quaternion too long is not defined.
    doubts.refusable |= square < -1e-12
    a = math.sqrt(max(square, 0.0))
    turned = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = turned * (pixdim[1:] * [1, 1, -1 if pixdim[0] < 0 else 1])
    affine[:3, 3] = record["qoffset"]
    return _finite(affine)


def _apart(sform: np.ndarray, qform: np.ndarray) -> bool:
    """Whether the grids differ by more than rounding explains."""
    spacing = np.linalg.norm(sform[:3, :3], axis=0)
    axes = np.abs(sform[:3, :3] / spacing - qform[:3, :3] / spacing).max()
    return bool(axes > 0.005 or np.linalg.norm(sform[:3, 3] - qform[:3, 3]) > 0.2 * spacing.min())


def _quaternion(axes: np.ndarray) -> tuple[list[float], float]:
    """b, c, d and qfac of directions at right angles: the eigenvector of the rotation's symmetric 4 x 4 form."""
    factor = 1.0 if np.linalg.det(axes) > 0 else -1.0
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = axes * np.array([1, 1, factor])
    form = np.array([
        [xx - yy - zz, yx + xy, zx + xz, zy - yz],
        [yx + xy, yy - xx - zz, zy + yz, xz - zx],
        [zx + xz, zy + yz, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]) / 3  # fmt: skip
    _, vectors = np.linalg.eigh(form)
    b, c, d, a = vectors[:, -1]
    sign = -1 if a < 0 else 1
    return [sign * b, sign * c, sign * d], factor
