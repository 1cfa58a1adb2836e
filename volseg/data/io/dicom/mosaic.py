"""Siemens mosaics: all slices of a volume as tiles of one image."""

import struct
from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from volseg.data.grid.geometry import LPS_FROM_RAS
from volseg.data.io.choice import Choice
from volseg.data.io.dicom.frames import Frame
from volseg.data.io.dicom.pixels import voxels
from volseg.data.io.dicom.stack import check_place
from volseg.data.io.dicom.values import element, number
from volseg.errors import InputError

# The private CSA header of Siemens.
_HEADER = 0x00291010
_TAG, _ITEM = struct.Struct("<64si4siii"), struct.Struct("<4i")


def is_mosaic(frames: Sequence[Frame]) -> bool:
    """Whether the images of a series are mosaics."""
    return any("MOSAIC" in frame.image_type for frame in frames)


def unpacked(frames: Sequence[Frame], choice: Choice, source: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The slices of one mosaic: voxels (I, J, K), 4 x 4 affine to RAS+ millimetres, and warnings.

    The tiles stand row by row. ImagePositionPatient is that of a slice as large as the mosaic, around the same centre;
    the normal is stated by the private CSA header alone (described in the documentation of nibabel).

    Args:
        frames: mosaics, each of which is a volume; they count by InstanceNumber.
        choice: which volume, if there are several.
        source: for messages.

    Raises:
        InputError: none of several was chosen, or one does not state the number, normal or distance of its slices.
    """
    number_of = choice.volume or (1 if len(frames) == 1 else 0)
    if not 1 <= number_of <= len(frames):
        raise InputError(
            f"{source} is 4-D, with {len(frames)} volumes (Siemens mosaics); "
            "choose one with --volume N (volume=N in Python), or take --volume all."
        )
    frame = sorted(frames, key=lambda one: number(one.header.data, "InstanceNumber") or 0)[number_of - 1]
    check_place(frame, source)
    count, normal = _stated_by_csa(frame)
    distance = number(frame.header.data, "SpacingBetweenSlices")
    side = int(np.ceil(np.sqrt(count))) if count else 0
    columns, rows = frame.size
    if normal is None or not side or not 0 < (distance or 0) < np.inf or columns % side or rows % side:
        raise InputError(
            f"{source} is a Siemens mosaic (all slices as tiles of one image) and does not state the number, normal "
            "and distance of its slices (CSA header, SpacingBetweenSlices); convert it with dcm2niix."
        )
    tiles, warnings = voxels([frame], source)
    width, height = columns // side, rows // side
    parts = tiles[:, :, 0].reshape(side, width, side, height).transpose(1, 3, 2, 0).reshape(width, height, -1)
    assert frame.axes is not None
    assert frame.spacing_mm is not None
    assert frame.position is not None
    lps = np.eye(4)
    lps[:3, :2] = frame.axes * np.array(frame.spacing_mm)
    lps[:3, 2] = normal * distance
    lps[:3, 3] = frame.position + lps[:3, :2] @ ((np.array([columns, rows]) - [width, height]) / 2)
    return parts[:, :, :count], LPS_FROM_RAS @ lps, [*warnings, f"A Siemens mosaic was unpacked into {count} slices."]


def _stated_by_csa(frame: Frame) -> tuple[int, np.ndarray | None]:
    """The number of slices and their unit normal in LPS+; 0 and None where they are not stated."""
    count = max(int(next(iter(_csa_numbers(frame.header.data, "NumberOfImagesInMosaic")), 0)), 0)
    normal = _csa_numbers(frame.header.data, "SliceNormalVector")
    if len(normal) != 3 or frame.axes is None:
        return count, None
    across = np.cross(frame.axes[:, 0], frame.axes[:, 1])
    return count, np.array(normal) if abs(abs(across @ normal) - 1) < 1e-3 else None


def _csa_numbers(data: Dataset, name: str) -> list[float]:
    """The numbers of a field of the CSA header, such as SliceNormalVector; none if it is absent or unreadable.

    The layout (version 2, "SV10") is described in the documentation of nibabel: a list of named tags, each with items
    of text, padded to 4 bytes.
    """
    found = element(data, _HEADER)
    content = found.value if found is not None and isinstance(found.value, bytes) else b""
    try:
        return _numbers(content, name.encode()) if content[:4] == b"SV10" else []
    except (struct.error, ValueError):
        return []


def _numbers(content: bytes, name: bytes) -> list[float]:
    (count,), at = struct.unpack_from("<i", content, 8), 16
    for _ in range(count):
        label, used, _, _, items, _ = _TAG.unpack_from(content, at)
        at += _TAG.size
        values = []
        for _ in range(items):
            length = _ITEM.unpack_from(content, at)[1]
            if length < 0:
                return []
            at += _ITEM.size
            values.append(content[at : at + length].split(b"\0")[0].strip())
            at += -(-length // 4) * 4
        if label.split(b"\0")[0] == name:
            found = [float(value) for value in values[: used or None] if value]
            return found if np.isfinite(found).all() else []
    return []
