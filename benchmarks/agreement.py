"""How far label images agree: folder with folder, and a trained nnU-Net model's labels with volseg's."""

import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch
from sides import as_table, data_folder

from volseg import Segmenter
from volseg.api.importing import import_nnunet
from volseg.evaluation.overlap import label_overlaps
from volseg.precision import DTYPES, choose_precision

CHANNEL = "_0000.nii.gz"
LISTED = 20


def share_of_equal(one: Path, other: Path) -> float:
    """Share of the voxels of all label images in folder `other` that have the same label in folder `one`."""
    pairs = [(labels_in(one / path.name), labels_in(path)) for path in sorted(other.glob("*.nii.gz"))]
    return sum(int((ours == theirs).sum()) for ours, theirs in pairs) / sum(ours.size for ours, _ in pairs)


def share_of_boundary(folder: Path) -> float:
    """Share of voxels that differ from one of their six neighbours, over all label images of a folder."""
    found = voxels = 0
    for path in sorted(folder.glob("*.nii.gz")):
        labels = labels_in(path)
        edge = np.zeros(labels.shape, dtype=bool)
        for axis in range(3):
            turned, at_edge = np.moveaxis(labels, axis, 0), np.moveaxis(edge, axis, 0)
            differs = turned[1:] != turned[:-1]
            at_edge[1:] |= differs
            at_edge[:-1] |= differs
        found, voxels = found + int(edge.sum()), voxels + labels.size
    return found / voxels


def labels_in(path: Path) -> np.ndarray:
    """The voxels of a label image, as stored."""
    return np.asarray(nibabel.load(path).dataobj)


def compare_model(precision: str) -> str:
    """Labels of the trained nnU-Net model in VOLSEG_DATA against nnU-Net's own, in fp32 and in `precision`.

    Returns:
        A table with a row per case: voxels that differ and Dice per label; below it every voxel that differs in fp32.
    """
    folder = data_folder() / "nnunet_hippocampus_model"
    asked = choose_precision(precision, torch.device("cpu"))
    names = [name for name, dtype in DTYPES.items() if dtype in (torch.float32, asked)]
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model.safetensors"
        import_nnunet(folder, model)
        segmenters = {name: Segmenter.load(model, device="cpu", precision=name) for name in names}
    values = {label.name: label.value for label in segmenters["fp32"].card.plan.labels}
    rows, listed = [], []
    for reference in sorted((folder / "nnunet_labels").glob("*.nii.gz")):
        case, theirs = reference.name.removesuffix(".nii.gz"), labels_in(reference)
        ours = {name: one(folder / "cases" / (case + CHANNEL)).labels for name, one in segmenters.items()}
        rows.append({"case": case, "voxels": theirs.size, **figures(ours, theirs, values)})
        for place in np.argwhere(ours["fp32"] != theirs).tolist():
            one, other = theirs[tuple(place)], ours["fp32"][tuple(place)]
            listed.append(f"- {case}, voxel {place}: nnU-Net {one}, volseg {other}")
    rows.append(summary(rows))
    unlisted = [f"- and {len(listed) - LISTED} more"] if len(listed) > LISTED else []
    return "\n".join([as_table(rows), "", f"{len(listed)} voxels differ in fp32.", *listed[:LISTED], *unlisted])


def figures(ours: dict[str, np.ndarray], theirs: np.ndarray, values: dict[str, int]) -> dict[str, object]:
    """What one row says of each precision."""
    found: dict[str, object] = {}
    for precision, labels in ours.items():
        found[f"{precision}: differ"] = int((labels != theirs).sum())
        for name, overlap in label_overlaps(labels, theirs, values, 1.0).items():
            found[f"{precision}: Dice {name}"] = "-" if overlap.dice is None else f"{overlap.dice:.5f}"
    return found


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """The last row: all voxels, the share that is equal, and the lowest Dice of each label."""
    voxels = sum(row["voxels"] for row in rows)
    total: dict[str, object] = {"case": "all; equal; lowest", "voxels": voxels}
    for column in list(rows[0])[2:]:
        values = [row[column] for row in rows]
        total[column] = f"{1 - sum(values) / voxels:.4%}" if column.endswith("differ") else min(values)
    return total
