"""The scans and random models on which `predict_vs_nnunet.py` compares."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import torch
from sides import data_folder

from volseg.inference.windows import window_starts

NOISE_SD = 10.0
SCANS = 60


@dataclass(frozen=True)
class Model:
    """What `nnunet_folder.py` writes: a PlainConvUNet with two convolutions per stage; a patch is (D, H, W)."""

    features: tuple[int, ...]
    patch: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    labels: int
    normalisation: str
    smooth: bool = False


@dataclass(frozen=True)
class Comparison:
    """One comparison: its model, and what writes its scans into a folder as nnU-Net names them."""

    title: str
    model: Model
    write_scans: Callable[[Path], None]


def comparison(name: str, toy: bool) -> Comparison:
    """One of the cases ct, smooth and folder; as a toy it is small enough for a quick look, and no measurement."""
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


def write_ct(folder: Path, shape: tuple[int, int, int]) -> None:
    """The torso at `shape` voxels (I, J, K) over the same extent, trilinear, with noise, int16."""
    torso = nibabel.load(data_folder() / "wild" / "ct_torso_3mm.nii.gz")
    coarse = torch.from_numpy(np.asarray(torso.dataobj, dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse[None, None], size=shape, mode="trilinear", align_corners=False)
    noise = np.random.default_rng(0).normal(0.0, NOISE_SD, shape)
    voxels = np.rint(fine[0, 0].numpy() + noise).astype(np.int16)
    scale = np.array(coarse.shape) / np.array(shape)
    # Fine index n lies at (n + 0.5) * scale - 0.5 of the coarse grid.
    to_coarse = np.diag([*scale, 1.0])
    to_coarse[:3, 3] = 0.5 * scale - 0.5
    nibabel.save(nibabel.Nifti1Image(voxels, torso.affine @ to_coarse), folder / "torso_0000.nii.gz")


def copy_scans(folder: Path, count: int) -> None:
    """The first `count` hippocampus scans."""
    scans = sorted((data_folder() / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))
    for index, scan in enumerate(scans[:count]):
        shutil.copyfile(scan, folder / f"case_{index:03}_0000.nii.gz")


def windows_of(scans: Path, model: Model) -> int:
    """How many windows, half a window apart, all scans of a folder take on the model's grid of equal edges."""
    total = 0
    for path in scans.iterdir():
        header = nibabel.load(path).header
        sizes = [round(n * mm / to) for n, mm, to in zip(header.get_data_shape(), header.get_zooms(),
                                                         model.spacing_mm, strict=True)]  # fmt: skip
        # SimpleITK, and so nnU-Net, turns I, J, K round.
        edges = zip(reversed(sizes), model.patch, strict=True)
        total += math.prod(len(window_starts(size, patch, 0.5)) for size, patch in edges)
    return total
