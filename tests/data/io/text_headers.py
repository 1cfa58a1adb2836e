"""NRRD and MetaImage files with headers as given, for the tests of their readers."""

import gzip
import itertools
from pathlib import Path

import numpy as np

VOXELS = np.arange(100, 100 + 7 * 6 * 5, dtype="<i2").reshape(7, 6, 5)
RAW = VOXELS.tobytes(order="F")
# Of the headers below, to RAS+ mm.
AFFINE = np.array([[-0.9, 0, 0, -30], [0, -0.8, 0, -40], [0, 0, 1.2, -20], [0, 0, 0, 1]])

NRRD = {
    "type": "short",
    "dimension": "3",
    "sizes": "7 6 5",
    "endian": "little",
    "encoding": "raw",
    "space": "left-posterior-superior",
    "space directions": "(0.9,0,0) (0,0.8,0) (0,0,1.2)",
    "space origin": "(30,40,-20)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "30 40 -20",
    "ElementSpacing": "0.9 0.8 1.2",
    "DimSize": "7 6 5",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def changed(fields: dict, changes: dict) -> dict:
    """Fields with others in their place; None takes one away."""
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def nrrd_file(path: Path, body: bytes = RAW, changes: dict | None = None, magic: str = "NRRD0004") -> Path:
    """An NRRD file with changed fields, whose names may have a blank or none."""
    fields = changed(NRRD, changes or {})
    lines = [magic, *(f"{name}: {value}" for name, value in fields.items())]
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + body)
    return path


def meta_file(path: Path, body: bytes = RAW, changes: dict | None = None) -> Path:
    """A MetaImage file with changed keys; ElementDataFile comes last."""
    fields = changed(META, changes or {})
    fields |= {"ElementDataFile": fields.pop("ElementDataFile")} if "ElementDataFile" in fields else {}
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in fields.items()).encode() + body)
    return path


def as_text(voxels: np.ndarray) -> bytes:
    return (" ".join(map(str, voxels.ravel(order="F").tolist())) + "\n").encode()


def orientations() -> list[np.ndarray]:
    """The 48 matrices that permute and turn around three axes."""
    return [
        np.eye(3)[list(order)] * signs
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]


def slices_beside(folder: Path) -> list[str]:
    """Files of one slice each; their names."""
    names = [f"s{k:03}.raw" for k in range(VOXELS.shape[2])]
    for k, name in enumerate(names):
        (folder / name).write_bytes(VOXELS[:, :, k].tobytes(order="F"))
    return names


# What lies under a suffix that it does not belong to, and what is said of it.
OTHER_KINDS = [
    (b"", "is an empty file"),
    (bytes(128) + b"DICM" + bytes(200), "begins as DICOM"),
    (gzip.compress(RAW), "begins as gzip"),
    (b"<html>\n<p>Not found</p>", "begins with '<html>'"),
    (b"\x89PNG\r\n\x1a\n", "begins with the bytes 89 50 4e 47"),
]
