"""Phantoms of a trunk: a left and a right kidney of one shape, and a liver on the right."""

from pathlib import Path

import nibabel
import numpy as np

from volseg.files import whole_file, write_json

LABELS = {"kidney_left": 1, "kidney_right": 2, "liver": 3}
SHAPE, SPACING_MM = np.array([44, 36, 32]), np.array([2.0, 2.0, 2.0])
NOISE = 15.0


def make_trunk(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One phantom in RAS order: scan (I, J, K) int16 in HU, labels uint8, affine. Equal seeds give equal phantoms.

    Kidneys, unlabelled beads and the rind share their intensity, so that no threshold finds them.
    """
    rng = np.random.default_rng(seed)
    shape = SHAPE + rng.integers(-2, 3, size=3)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -SPACING_MM * (shape - 1) / 2
    world = np.indices(tuple(shape)) * SPACING_MM.reshape(3, 1, 1, 1) + affine[:3, 3].reshape(3, 1, 1, 1)

    def within(centre: tuple[float, float, float], radii: tuple[float, float, float], vary: float) -> np.ndarray:
        place = np.array(centre) + rng.uniform(-vary, vary, 3)
        sizes = np.array(radii) * rng.uniform(0.9, 1.1, 3)
        scaled = (world - place.reshape(3, 1, 1, 1)) / sizes.reshape(3, 1, 1, 1)
        inside: np.ndarray = (scaled**2).sum(0) <= 1
        return inside

    body, inner = within((0, 0, 0), (40, 31, 45), 0), within((0, 0, 0), (36, 27, 41), 0)
    scan = np.where(body, 120.0, -1000.0)
    scan[inner] = 0.0
    for place in ((-22, 8, 10), (-18, 10, -14), (6, 14, -18), (0, -20, 0)):
        scan[inner & within(place, (4, 4, 5), 2)] = 120.0
    liver = inner & within((14, 8, 10), (15, 12, 12), 2)
    scan[liver] = 70.0
    labels = np.where(liver, 3, 0).astype(np.uint8)
    for value, side in ((1, -1), (2, 1)):
        kidney = inner & within((18 * side, -11, -8), (7, 6, 12), 2)
        scan[kidney] = 120.0
        labels[kidney] = value
    scan += rng.normal(0, NOISE, scan.shape)
    return scan.round().astype(np.int16), labels, affine


def write_trunks(folder: Path, count: int, seed: int = 0) -> None:
    """A dataset of phantoms with the seeds from `seed` on, in the layout of the Medical Segmentation Decathlon."""
    names = [f"trunk_{number:03d}.nii.gz" for number in range(count)]
    for number, name in enumerate(names):
        scan, labels, affine = make_trunk(seed + number)
        for array, place in ((scan, "imagesTr"), (labels, "labelsTr")):
            image = nibabel.Nifti1Image(array, affine)
            image.header.set_xyzt_units("mm")
            with whole_file(folder / place / name) as temporary:
                nibabel.save(image, temporary)
    write_json(
        folder / "dataset.json",
        {
            "name": "Trunks",
            "modality": {"0": "CT"},
            "labels": {"0": "background", **{str(value): name for name, value in LABELS.items()}},
            "numTraining": count,
            "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        },
    )
