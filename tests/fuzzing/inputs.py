"""An input of a seed: a file or folder, what was done to it, and what is right."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.fuzzing import dicom, headers, text
from tests.fuzzing.changes import Change
from tests.reading.right import Right
from tests.reading.volume import Volume, grid, sample


@dataclass(frozen=True)
class Input:
    """An input.

    Args:
        seed: the number that makes it.
        format: its name in FORMATS.
        path: to be read.
        change: what was done to the plain file.
        right: what is right.
        damaged: bytes were cut off or flipped, so a sentence may say so.
        odd_numbers: a number may have become NaN or infinite.
    """

    seed: int
    format: str
    path: Path
    change: str
    right: Right
    damaged: bool
    odd_numbers: bool


Maker = Callable[[np.random.Generator, Volume, Path], tuple[Path, Change, Right]]
# A new format joins by one line: how it is made, for which tests/reading has a writer and what its bytes mean.
FORMATS: dict[str, Maker] = {
    "nii": headers.nifti("scan.nii"),
    "nii.gz": headers.nifti("scan.nii.gz"),
    "nifti-2": headers.nifti("scan.nii", version=2),
    "mgh": headers.mgh("scan.mgh"),
    "mgz": headers.mgh("scan.mgz"),
    "nrrd": text.nrrd_file("scan.nrrd"),
    "nrrd gzip": text.nrrd_file("scan.nrrd", encoding="gzip"),
    "nhdr": text.nrrd_file("scan.nhdr"),
    "mha": text.metaimage_file("scan.mha"),
    "mha compressed": text.metaimage_file("scan.mha", compressed=True),
    "mhd": text.metaimage_file("scan.mhd"),
    "dicom": dicom.series("series"),
    "dicom zip": dicom.series("series.zip"),
    "dicom enhanced": dicom.enhanced("frames.dcm"),
}
NAMES = tuple(FORMATS)


def format_of(seed: int) -> str:
    """The format of a seed."""
    return NAMES[seed % len(NAMES)]


def make_input(seed: int, folder: Path) -> Input:
    """Write the input of a seed into an empty folder."""
    name = format_of(seed)
    rng = np.random.default_rng(seed)
    degrees = float(rng.choice([0.0, 0.0, 12.0]))
    kind = rng.choice(["i2", "i2", "u1", "f4"] if not name.startswith("dicom") else ["i2", "u2", "u1"])
    volume = Volume(sample(kind, seed=seed), grid(degrees=degrees, order=int(rng.integers(48))))
    # Nonsense is what the inputs are about: neither NumPy nor pydicom has to say so while they are written.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        path, change, right = FORMATS[name](rng, volume, folder)
    return Input(seed, name, path, change.what, right, change.damaged, change.odd_numbers)
