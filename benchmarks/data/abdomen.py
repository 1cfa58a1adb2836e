"""A synthetic CT with organs: smooth anatomy and the noise of a scanner, so that it compresses as real scans do."""

from pathlib import Path

import nibabel
import numpy as np
import torch

SPACING_MM = (0.8, 0.8, 1.5)
OUTSIDE, AIR, BODY = -1024, -1000, 40
NOISE_SD = 18.0
# Intensities of organs lie so far apart that noise never makes one of another.
LOWEST, STEP = 300, 150


def write_abdomen(path: Path, shape: tuple[int, int, int], organs: int) -> None:
    """Write a NIfTI image of int16 (I, J, K): a body in a round field of view, with ellipsoids as organs.

    Outside of the field of view every voxel is -1024, as scanners fill it.
    """
    random = np.random.default_rng(0)
    i, j, k = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    around = i[:, None] ** 2 + j**2
    inside = (i[:, None] / 0.85) ** 2 + (j / 0.65) ** 2 <= 1
    centres = random.uniform((-0.5, -0.35, -0.9), (0.5, 0.35, 0.9), (organs, 3))
    radii = random.uniform((0.06, 0.06, 0.1), (0.2, 0.2, 0.4), (organs, 3))
    voxels = np.empty(shape, np.int16, order="F")
    for plane in range(shape[2]):
        values = np.where(inside, np.float32(BODY), np.float32(AIR))
        for organ, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
            (x, y, z), (a, b, c) = centre, radius
            distance = ((i[:, None] - x) / a) ** 2 + ((j - y) / b) ** 2 + ((k[plane] - z) / c) ** 2
            values[inside & (distance <= 1)] = LOWEST + STEP * organ
        # Neighbouring voxels of a reconstruction share noise.
        noise = random.standard_normal(shape[:2], dtype=np.float32)
        noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) * np.float32(NOISE_SD / 3**0.5)
        values = np.rint(values + noise * np.where(inside, np.float32(1), np.float32(0.5)))
        voxels[..., plane] = np.where(around <= 1, np.maximum(values, OUTSIDE), OUTSIDE)
    affine = np.diag([-SPACING_MM[0], SPACING_MM[1], SPACING_MM[2], 1.0])
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def organ_logits(intensities: torch.Tensor, organs: int) -> torch.Tensor:
    """Logits (1, organs + 1, D, H, W) of intensities (D, H, W): the more of a voxel's neighbours an organ has, the
    larger; smooth, as those of a network."""
    nearest = ((intensities - LOWEST) / STEP).round().long() + 1
    classes = torch.where(intensities < LOWEST - STEP / 2, 0, nearest.clamp(0, organs))
    members = torch.nn.functional.one_hot(classes, organs + 1).movedim(-1, 0)[None].to(torch.float32)
    logits = 10 * torch.nn.functional.avg_pool3d(members, 5, stride=1, padding=2, count_include_pad=False) - 5
    # As the output of volseg's networks on a CPU.
    return logits.contiguous(memory_format=torch.channels_last_3d)
