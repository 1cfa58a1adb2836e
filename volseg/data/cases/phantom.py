"""Seeded phantoms: small scans with known labels, and clips of a known class, for the demo and the tests.

The scans contain two labelled structures, a ball and a rod, with the intensity of an unlabelled rind and of unlabelled
beads, so that only position and shape distinguish them: no threshold finds them. All lengths are in world millimetres,
so that the anatomy is independent of voxel order, direction and tilt.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from volseg.files import whole_file, write_json

Kind = Literal["ct", "mr"]

LABELS = {"ball": 1, "rod": 2}
SPACING_MM = np.array([1.25, 1.5, 2.0])  # along R, A, S
SHAPE = np.array([48, 46, 30])  # along R, A, S, before +-2 voxels
STORED_ORDERS = ("RAS", "LPS", "ALS", "LAS")
CLIP_FRAMES, CLIP_EDGE, CLIP_NOISE = 8, 24, 0.5


@dataclass(frozen=True)
class Tissue:
    """Intensities of the parts of a phantom, and the standard deviation of the noise."""

    air: float
    body: float
    structure: float
    other: float
    noise: float


TISSUES = {
    "ct": Tissue(air=-1000, body=40, structure=160, other=-60, noise=18),
    "mr": Tissue(air=8, body=240, structure=420, other=120, noise=16),
}


def make_phantom(seed: int, kind: Kind) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One phantom scan; equal seeds give equal phantoms.

    Args:
        seed: of the random generator.
        kind: "ct" (Hounsfield units) or "mr" (arbitrary scale, bias field).

    Returns:
        The scan (I, J, K) int16, its labels (I, J, K) uint8 with 1 ball and 2 rod, and the 4 x 4 affine to RAS+
        millimetres; about every second scan is oblique, and the voxel order varies.
    """
    rng = np.random.default_rng(seed)
    shape = SHAPE + rng.integers(-2, 3, size=3)
    affine = _tilted_affine(rng, shape)
    world = np.tensordot(affine[:3, :3], np.indices(tuple(shape)), axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)
    tissue = TISSUES[kind]
    labels, intensity = _anatomy(rng, world, tissue)
    if kind == "mr":
        # The smooth bias field of a receiver coil, and an arbitrary intensity scale per scan.
        intensity = intensity * (1 + np.tensordot(rng.uniform(-0.006, 0.006, size=3), world, axes=1))
    intensity = intensity + rng.normal(0, tissue.noise, size=intensity.shape)
    if kind == "mr":
        intensity = np.abs(intensity) * rng.uniform(0.5, 3.0)
    return _stored(rng, intensity.round().astype(np.int16), labels, affine)


def make_clip(seed: int, moving: bool) -> np.ndarray:
    """One clip of a moving or stationary disc in noise; equal arguments give equal clips.

    Only motion distinguishes the two classes. The two clips of a seed have the same first frame, and in every later one
    the positions of moving discs, which are reflected at the borders, have the same distribution as stationary ones.

    Args:
        seed: of the random generator: the disc's radius, brightness, position, direction and speed, and the noise.
        moving: the disc moves in a straight line by 1 to 2 pixels per frame, reflected at the borders; else it stays.

    Returns:
        (T, H, W) float32: 8 frames of 24 x 24 pixels. The disc is brighter or darker than its surroundings, which are
        0, by 1 to 2; the noise has a standard deviation of 0.5.
    """
    rng = np.random.default_rng(seed)
    radius, brightness = rng.uniform(2.5, 4.5), rng.choice([-1, 1]) * rng.uniform(1, 2)
    speed, angle = rng.uniform(1, 2), rng.uniform(0, 2 * np.pi)
    step = moving * speed * np.array([np.cos(angle), np.sin(angle)])
    # Along each axis the centre stays a radius away from the borders; a triangle wave is a path with reflections.
    room = CLIP_EDGE - 1 - 2 * radius
    path = rng.uniform(0, room, size=2) + np.arange(CLIP_FRAMES)[:, None] * step
    centres = radius + room - np.abs(path % (2 * room) - room)
    rows, columns = np.indices((CLIP_EDGE, CLIP_EDGE))[:, None] - centres.T[..., None, None]
    disc = np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1)  # pixels at the rim are partly covered
    return np.asarray(brightness * disc + rng.normal(0, CLIP_NOISE, size=disc.shape), dtype=np.float32)


def write_phantoms(folder: Path, count: int, seed: int, kind: Kind, tests: int = 0) -> None:
    """Write a dataset of phantoms in the layout of the Medical Segmentation Decathlon.

    Training cases get the seeds `seed`, `seed + 1`, ...; test cases the seeds after them. The labels of test cases are
    written to labelsTs, so that predictions can be scored.

    Args:
        folder: created if missing; gets dataset.json, imagesTr, labelsTr, imagesTs and labelsTs.
        count: number of training cases.
        seed: of the first case.
        kind: "ct" or "mr".
        tests: number of test cases.
    """
    folder = Path(folder)
    names = [f"phantom_{index:03d}.nii.gz" for index in range(1, count + tests + 1)]
    for offset, name in enumerate(names):
        image, labels, affine = make_phantom(seed + offset, kind)
        part = "Tr" if offset < count else "Ts"
        for array, place in ((image, f"images{part}"), (labels, f"labels{part}")):
            scan = nibabel.Nifti1Image(array, affine)
            scan.header.set_xyzt_units("mm")
            with whole_file(folder / place / name) as temporary:
                nibabel.save(scan, temporary)
    write_json(
        folder / "dataset.json",
        {
            "name": f"Phantoms {kind.upper()}",
            "description": "Seeded phantoms: a ball and a rod that share their intensity with unlabelled structures",
            "licence": "Apache-2.0",
            "modality": {"0": {"ct": "CT", "mr": "MRI"}[kind]},
            "labels": {"0": "background", **{str(value): name for name, value in LABELS.items()}},
            "numTraining": count,
            "numTest": tests,
            "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:count]],
            "test": [f"./imagesTs/{name}" for name in names[count:]],
        },
    )


def threshold_baseline(images: list[np.ndarray], labels: list[np.ndarray]) -> float:
    """The best mean foreground Dice of intensity thresholds: the baseline that a network has to beat.

    It is an upper bound: every label of every scan gets its own window lo <= intensity <= hi, fitted to the reference
    itself, with both ends taken from the label's percentiles (0, 2, ... 100).

    Args:
        images: scans (I, J, K).
        labels: their labels (I, J, K), 0 is the background.

    Returns:
        The mean over scans per label, then over labels, in 0..1.
    """
    values = sorted({int(value) for one in labels for value in np.unique(one)} - {0})
    per_label = [
        [_best_window(image, one == value) for image, one in zip(images, labels, strict=True) if (one == value).any()]
        for value in values
    ]
    return float(np.mean([np.mean(scores) for scores in per_label]))


def _best_window(image: np.ndarray, mask: np.ndarray) -> float:
    """The best Dice of an intensity window for one mask."""
    inside, everywhere = np.sort(image[mask]), np.sort(image, axis=None)
    ends = np.percentile(inside, np.arange(0, 101, 2), method="nearest")
    hits, sizes = (
        np.searchsorted(voxels, ends, side="right")[None, :] - np.searchsorted(voxels, ends, side="left")[:, None]
        for voxels in (inside, everywhere)
    )
    return float((2 * hits / np.maximum(sizes + inside.size, 1)).max())


def _anatomy(rng: np.random.Generator, world: np.ndarray, tissue: Tissue) -> tuple[np.ndarray, np.ndarray]:
    """Labels (uint8) and noiseless intensities (float64) at the world positions (3, I, J, K)."""
    radii = np.array([27.0, 31.0, 27.0]) * rng.uniform(0.95, 1.05, size=3)
    depth = np.sqrt(sum((world[axis] / radii[axis]) ** 2 for axis in range(3)))
    body, inner = depth <= 1, depth <= 0.9
    ball_centre = np.array([10.0, 6.0, 0.0]) + rng.uniform(-2.5, 2.5, size=3)
    rod_centre = np.array([-10.0, -5.0, 0.0]) + rng.uniform(-2.5, 2.5, size=3)
    rod_axis = np.array([*rng.uniform(-0.4, 0.4, size=2), 1.0])
    ball = inner & (_distance(world, ball_centre) <= rng.uniform(9.0, 11.0))
    rod = inner & _in_rod(world, rod_centre, rod_axis, half_length=rng.uniform(13, 16), radius=rng.uniform(6, 7))
    labels = np.zeros(world.shape[1:], dtype=np.uint8)
    labels[ball] = LABELS["ball"]
    labels[rod & ~ball] = LABELS["rod"]

    intensity = np.where(body, tissue.body, tissue.air).astype(np.float64)
    intensity[inner & (_distance(world, rng.uniform(-5, 5, size=3)) <= 6)] = tissue.other
    for place in ([8, -16, 8], [-10, 15, -8], [4, -15, -10], [-6, 14, 12]):
        intensity[inner & (_distance(world, place + rng.uniform(-2, 2, size=3)) <= rng.uniform(3, 4))] = (
            tissue.structure
        )
    intensity[body & ~inner] = tissue.structure
    intensity[labels > 0] = tissue.structure
    return labels, intensity


def _distance(world: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Distance of every position to a point."""
    return np.asarray(np.linalg.norm(world - centre.reshape(3, 1, 1, 1), axis=0))


def _in_rod(world: np.ndarray, centre: np.ndarray, axis: np.ndarray, half_length: float, radius: float) -> np.ndarray:
    """Whether each position lies in a cylinder."""
    axis = axis / np.linalg.norm(axis)
    offset = world - centre.reshape(3, 1, 1, 1)
    along = np.tensordot(axis, offset, axes=1)
    across = np.linalg.norm(offset - axis.reshape(3, 1, 1, 1) * along, axis=0)
    return np.asarray((np.abs(along) <= half_length) & (across <= radius))


def _tilted_affine(rng: np.random.Generator, shape: np.ndarray) -> np.ndarray:
    """An affine in RAS order with the world origin in the middle of the image; tilted by up to 15 degrees, or not."""
    rotation = np.eye(3)
    if rng.random() < 0.5:
        for first, second in ((0, 1), (0, 2), (1, 2)):
            angle = np.radians(rng.uniform(-9, 9))
            plane = np.eye(3)
            plane[[first, second], [first, second]] = np.cos(angle)
            plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
            rotation = rotation @ plane
    affine = np.eye(4)
    affine[:3, :3] = rotation * SPACING_MM
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    return affine


def _stored(
    rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same scan in another voxel order and direction."""
    codes = STORED_ORDERS[rng.integers(len(STORED_ORDERS))]
    order = nibabel.orientations.axcodes2ornt(codes)
    reorientation = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), order)
    stored = [np.ascontiguousarray(nibabel.apply_orientation(array, reorientation)) for array in (image, labels)]
    return stored[0], stored[1], affine @ nibabel.orientations.inv_ornt_aff(reorientation, image.shape)
