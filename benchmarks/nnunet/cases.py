"""The scans and random models on which `predict_vs_nnunet.py` compares."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
from data.scans import copy_scans, write_ct

from volseg.inference.windows import window_starts

SCANS = 60


@dataclass(frozen=True)
class Model:
    """What `write_folder.py` writes: a PlainConvUNet with two convolutions per stage; a patch is (D, H, W)."""

    features: tuple[int, ...]
    patch: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    labels: int
    normalisation: str
    smooth: bool = False


@dataclass(frozen=True)
class Comparison:
    """One comparison: its model, and a function that writes its scans into a folder under nnU-Net's names."""

    title: str
    model: Model
    write_scans: Callable[[Path], None]


def comparison(name: str, toy: bool) -> Comparison:
    """One of the cases ct, smooth and folder; as a toy it is small enough for a quick check, and no measurement."""
    if name == "folder":
        model = Model((32, 64, 128, 256), (40, 56, 40), (1.0, 1.0, 1.0), 2, "ZScoreNormalization")
        if toy:
            return Comparison("toy folder", replace(model, features=(4, 8, 16, 32)), lambda to: copy_scans(to, 3))
        return Comparison(f"{SCANS} hippocampus scans", model, lambda to: copy_scans(to, SCANS))
    model = Model((32, 64, 128, 256, 320), (96, 96, 96), (3.0, 3.0, 3.0), 14, "CTNormalization", name == "smooth")
    what = "weights that label smoothly" if name == "smooth" else "random weights"
    if toy:
        model = replace(model, features=(4, 8, 16, 32, 32))
        return Comparison(f"toy CT, {what}", model, lambda to: write_ct(to, (64, 64, 40)))
    return Comparison(f"CT 512 x 512 x 200, {what}", model, lambda to: write_ct(to, (512, 512, 200)))


def windows_of(scans: Path, model: Model) -> int:
    """The number of windows of all scans of a folder, with an overlap of 0.5 and voxels of equal edges."""
    total = 0
    for path in scans.iterdir():
        header = nibabel.load(path).header
        sizes = [round(n * mm / to) for n, mm, to in zip(header.get_data_shape(), header.get_zooms(),
                                                         model.spacing_mm, strict=True)]  # fmt: skip
        # SimpleITK, and so nnU-Net, has the axes in the order K, J, I.
        edges = zip(reversed(sizes), model.patch, strict=True)
        total += math.prod(len(window_starts(size, patch, 0.5)) for size, patch in edges)
    return total
