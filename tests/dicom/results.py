"""Results about small series, without a network: what objects are about, objects read back, and voxels in them."""

from pathlib import Path

import numpy as np
import pydicom

from tests.data.io.dicom.writers import classic, read, write_kind
from volseg.config import Label
from volseg.dicom.about import About
from volseg.dicom.identity import identity_of
from volseg.dicom.objects import write
from volseg.dicom.segmentation import segmentation
from volseg.dicom.source import source_of

KIDNEY, OTHER = Label(name="kidney_left", value=1), Label(name="something else", value=7)
LABELS = (KIDNEY, OTHER)
SHA256 = "0123456789abcdef" * 4
SHAPE = (6, 5, 4)


def some_labels(shape=SHAPE, values=(1, 7)) -> np.ndarray:
    """Labels without any symmetry: each value in a box and one voxel of its own, none in the first slice."""
    made = np.zeros(shape, dtype=np.uint8 if max(values) < 256 else np.uint16)
    for at, value in enumerate(values):
        made[1 : 3 + at, at : at + 2, 1 : 3 + at % 2] = value
        made[shape[0] - 1, at, 1 + at % 2] = value
    return made


def series(folder: Path, kind=classic, shape=SHAPE, dtype=np.int16, **options) -> Path:
    """A folder of a series of random voxels."""
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    return write_kind(folder, kind, array, **options)


def about(path: Path, labels: np.ndarray, names=LABELS, model="model", sha256=SHA256, options=None, **choice) -> About:
    """What objects about a series say."""
    source = source_of(read(path, **choice))
    return About(source, identity_of(source, sha256, options or {}, labels), tuple(names), model, sha256)


def written(path: Path, what: About, labels: np.ndarray, **options) -> pydicom.Dataset:
    """The segmentation, written and read back."""
    write(segmentation(labels, what, **options), path)
    return pydicom.dcmread(path)


def made(folder: Path, labels=None, names=LABELS, kind=classic, seg=None, choice=None, **options) -> pydicom.Dataset:
    """A series and its segmentation in one step; `seg` are the options of the latter."""
    labels = some_labels() if labels is None else labels
    path = series(folder / "series", kind, labels.shape, **options)
    return written(folder / "seg.dcm", about(path, labels, names, **(choice or {})), labels, **(seg or {}))


def frames(data: pydicom.Dataset) -> list[tuple[int, tuple[float, ...], np.ndarray]]:
    """Of each frame, its segment (0 in a label map), its position in LPS+ mm, and its pixels (rows, columns)."""
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    found = []
    for group, plane in zip(data.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        named = group.get("SegmentIdentificationSequence")
        number = named[0].ReferencedSegmentNumber if named else 0
        found.append((number, tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient)), plane))
    return found


def source_positions(what: About) -> list[tuple[float, ...]]:
    return [tuple(map(float, one)) for one in what.source.positions]
