"""Agreement of label images: of two folders, and of a trained nnU-Net model's labels with volseg's."""

import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from common.results import Row, ratio, table
from common.sides import data_folder

from volseg import Segmenter
from volseg.api.importing import import_nnunet
from volseg.evaluation.overlap import label_overlaps
from volseg.precision import DTYPES, choose_precision

CHANNEL = "_0000.nii.gz"
LISTED = 20


def equal_voxels(one: Path, other: Path) -> tuple[int, int]:
    """The voxels of all label images in folder `other` with the same label in folder `one`, and all their voxels."""
    pairs = [(labels_in(one / path.name), labels_in(path)) for path in sorted(other.glob("*.nii.gz"))]
    return sum(int((ours == theirs).sum()) for ours, theirs in pairs), sum(ours.size for ours, _ in pairs)


def boundary_fraction(folder: Path) -> float:
    """The fraction of voxels that differ from one of their six neighbours, over all label images of a folder."""
    found = voxels = 0
    for path in sorted(folder.glob("*.nii.gz")):
        labels = labels_in(path)
        edge = np.zeros(labels.shape, dtype=bool)
        for axis in range(3):
            planes, at_edge = np.moveaxis(labels, axis, 0), np.moveaxis(edge, axis, 0)
            differs = planes[1:] != planes[:-1]
            at_edge[1:] |= differs
            at_edge[:-1] |= differs
        found, voxels = found + int(edge.sum()), voxels + labels.size
    return found / voxels


def labels_in(path: Path) -> np.ndarray:
    """The voxels of a label image, in its voxel order."""
    return np.asarray(nibabel.load(path).dataobj)


def compare_model(precision: str) -> list[dict[str, Any]]:
    """Labels of the trained nnU-Net model in VOLSEG_DATA against nnU-Net's own, in fp32 and in `precision`.

    Returns:
        Tables of all cases, of each case (voxels that differ, Dice per label), and of the voxels that differ in fp32.
    """
    folder = data_folder() / "nnunet_hippocampus_model"
    chosen = choose_precision(precision, torch.device("cpu"))
    names = [name for name, dtype in DTYPES.items() if dtype in (torch.float32, chosen)]
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model.safetensors"
        import_nnunet(folder, model)
        segmenters = {name: Segmenter.load(model, device="cpu", precision=name) for name in names}
    values = {label.name: label.value for label in segmenters["fp32"].card.plan.labels}
    rows: list[Row] = []
    listed: list[Row] = []
    for reference in sorted((folder / "nnunet_labels").glob("*.nii.gz")):
        case, theirs = reference.name.removesuffix(".nii.gz"), labels_in(reference)
        ours = {name: one(folder / "cases" / (case + CHANNEL)).labels for name, one in segmenters.items()}
        rows.append({"case": case, "voxels": theirs.size, **figures(ours, theirs, values)})
        for place in np.argwhere(ours["fp32"] != theirs).tolist():
            one, other = int(theirs[tuple(place)]), int(ours["fp32"][tuple(place)])
            listed.append({"case": case, "voxel": str(place), "nnU-Net": one, "volseg": other})
    totals = [total(rows, name, list(values)) for name in names]
    equal = ratio("fraction equal", "voxels that differ", over="voxels")
    differing = [table(listed[:LISTED], caption="Voxels that differ in fp32, the first ones")] if listed else []
    return [table(totals, [equal]), table(rows, caption="Per case"), *differing]


def figures(ours: dict[str, np.ndarray], theirs: np.ndarray, values: dict[str, int]) -> Row:
    """The figures of one case in each precision."""
    found: Row = {}
    for precision, labels in ours.items():
        found[f"{precision}: voxels that differ"] = int((labels != theirs).sum())
        for name, overlap in label_overlaps(labels, theirs, values, 1.0).items():
            found[f"{precision}: Dice {name}"] = None if overlap.dice is None else round(overlap.dice, 5)
    return found


def total(rows: list[Row], precision: str, labels: list[str]) -> Row:
    """All cases in one precision: voxels, how many differ, and the lowest Dice of each label."""
    lowest = {
        f"lowest Dice {name}": min(dice for row in rows if (dice := row[f"{precision}: Dice {name}"]) is not None)
        for name in labels
    }
    differ = sum(row[f"{precision}: voxels that differ"] for row in rows)
    return {
        "precision": precision,
        "voxels": sum(row["voxels"] for row in rows),
        "voxels that differ": differ,
        **lowest,
    }
