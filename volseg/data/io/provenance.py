"""Records of results, and what they say a scan was read from: UIDs of DICOM, checksums of anything else; no names."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volseg.data.io.itk_files import files_of
from volseg.data.io.reading import Scan
from volseg.documents import DocumentError, read_json
from volseg.files import access_to, sha256_of

# Slices hashed at a time: an array in C order is gathered from lines of the cache that several slices share.
_SLICES = 16


def is_record(path: Path) -> bool:
    """Whether a file is the record of a result of volseg."""
    return "volseg_version" in read_record(path)


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none, or the file is something else."""
    try:
        found = read_json(path)
    except (OSError, DocumentError):
        return {}
    return found if isinstance(found, dict) else {}


def input_of(scan: Scan, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What a scan was read from: an entry per series or file, in the order of the channels.

    Args:
        scan: the scan.
        paths: its files, of which the bytes are read once more; none for a scan that was given as an array or image.

    Raises:
        InputError: a file cannot be read any more.
    """
    stated: Sequence[Any] = scan.chosen.get("input") or (None,) * len(paths)
    if paths:
        return [dict(one) if one else _file(path) for one, path in zip(stated, paths, strict=True)]
    return [dict(one) for one in stated] if stated and all(stated) else [_array(scan)]


def _file(path: Path) -> dict[str, Any]:
    """A file by its SHA-256, with that of the files that hold its voxels if it is a detached header."""
    with access_to(path):
        first, *others = (sha256_of(file) for file in files_of(path))
    return {"kind": "file", "sha256": first} | ({"data_sha256": others} if others else {})


def _array(scan: Scan) -> dict[str, Any]:
    """Voxels by their SHA-256: of their bytes, the first axis fastest, channel after channel."""
    digest = hashlib.sha256()
    for channel in scan.channels:
        for k in range(0, channel.shape[2], _SLICES):
            digest.update(np.ascontiguousarray(channel[:, :, k : k + _SLICES].T).data)
    first = scan.channels[0]
    return {"kind": "array", "sha256": digest.hexdigest(), "dtype": str(first.dtype), "shape": list(first.shape)}
