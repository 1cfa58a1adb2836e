"""A small dataset whose labels follow from the intensities, a network that reads them off, and errors in references."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import nn

import volseg

SHAPE = (18, 20, 12)
LABELS = {"left": 1, "right": 2}
# L, P, S: not RAS, so that a place in the wrong voxel order shows.
AFFINE = np.array([[-1.0, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2.0, -30], [0, 0, 0, 1]])
VOXEL_ML = 0.003
OVERRIDES = (
    "plan.normalisation=none", "plan.patch_size=[12, 16, 16]", "plan.batch_size=1", "plan.spacing_mm=[2, 1, 1.5]",
    "training.workers=0", "training.validations=1",
)  # fmt: skip
Change = Callable[[np.ndarray], None]


class Threshold(nn.Module):
    """Intensity 100 k is class k, with a probability of nearly 1; its weight changes nothing."""

    def __init__(self, plan) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.classes = plan.network.classes

    def forward(self, x):
        levels = 100.0 * torch.arange(self.classes, device=x.device).reshape(1, -1, 1, 1, 1)
        return -0.3 * (x - levels).abs() + 0 * self.weight


def truth(number: int) -> np.ndarray:
    """The labels of a case: two boxes whose place depends on its number."""
    labels = np.zeros(SHAPE, np.uint8)
    i, j, k = number % 3, number % 4, number % 2
    labels[2 + i : 8 + i, 3 + j : 11 + j, 3 + k : 8 + k] = 1
    labels[8 + i : 13 + i, 3 + j : 11 + j, 3 + k : 8 + k] = 2
    return labels


def write_dataset(
    folder: Path,
    errors: Mapping[int, Change],
    cases: int = 9,
    labels: Mapping[str, object] = LABELS,
    **more: object,
) -> Path:
    """A Decathlon dataset; `errors` change the references of the cases with these numbers."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    entries = []
    for number in range(cases):
        reference = truth(number)
        image = 100 * reference.astype(np.int16) + np.random.default_rng(number).integers(-9, 10, SHAPE, np.int16)
        errors.get(number, lambda _: None)(reference)
        name = f"case_{number}.nii.gz"
        for part, array in (("imagesTr", image), ("labelsTr", reference)):
            written = nibabel.Nifti1Image(array, AFFINE)
            written.header.set_xyzt_units("mm")
            nibabel.save(written, folder / part / name)
        entries.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
    document = {"name": "boxes", "modality": {"0": "MRI"}, "labels": dict(labels), "training": entries, **more}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def train_folds(dataset: Path, folder: Path, folds: int = 3, **options: object) -> list[Path]:
    """A run of one step for each fold."""
    settings = {"overrides": OVERRIDES, "device": "cpu", "steps": 1, "network": Threshold, **options}
    return [volseg.train(dataset, folder / f"fold{fold}", fold=fold, folds=folds, **settings) for fold in range(folds)]
