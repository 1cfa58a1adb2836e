"""Scans to predict: a CT of any size made from a small one, and copies of hippocampus scans."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import torch
from common.sides import data_folder

NOISE_SD = 10.0


def write_ct(folder: Path, shape: tuple[int, int, int]) -> None:
    """Write the torso resampled to `shape` voxels (I, J, K) over the same extent, trilinear, with noise, int16."""
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
    """Copy the first `count` hippocampus scans."""
    scans = sorted((data_folder() / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))
    for index, scan in enumerate(scans[:count]):
        shutil.copyfile(scan, folder / f"case_{index:03}_0000.nii.gz")
