"""Training on single slices and on stacks of distant slices, end to end."""

import json

import nibabel
import numpy as np
import pytest

from volseg import Segmenter, train
from volseg.data.cases.phantom import make_phantom
from volseg.data.grid.geometry import ras_order
from volseg.evaluation.overlap import label_overlaps
from volseg.planning.planner import read_plan

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ("plan.features=[8, 16, 32]", "training.validations=1", "training.workers=0", "augmentation.warmup_epochs=0")
LABELS = {"ball": 1, "rod": 2}


def slices_of(seed, count, step, axis):
    """`count` slices of a phantom around its middle, every `step`-th, across voxel axis `axis`."""
    image, label, affine = make_phantom(seed, "mr")
    order, _ = ras_order(affine)
    image, label = (array.transpose(order) for array in (image, label))
    first = image.shape[2] // 2 - step * (count // 2)
    return [np.moveaxis(array[:, :, first : first + step * count : step], 2, axis) for array in (image, label)]


def save(array, path, spacing_mm):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), np.diag([*spacing_mm, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def write_dataset(folder, count, step, axis, spacing_mm):
    """16 cases in plain folders."""
    for seed in range(16):
        image, label = slices_of(seed, count, step, axis)
        save(image, folder / "images" / f"case_{seed:02d}.nii.gz", spacing_mm)
        save(label, folder / "labels" / f"case_{seed:02d}.nii.gz", spacing_mm)
    (folder / "labels.json").write_text(json.dumps(LABELS))


@pytest.mark.parametrize(
    ("count", "step", "axis", "spacing_mm"),
    [(1, 1, 2, (1.25, 1.5, 5.0)), (1, 1, 0, (0.5, 1.25, 1.5)), (4, 7, 2, (1.25, 1.5, 14.0))],
)
def test_slices_train_and_segment_held_out_ones(tmp_path, count, step, axis, spacing_mm):
    write_dataset(tmp_path / "data", count, step, axis, spacing_mm)
    run = train(tmp_path / "data", tmp_path / "run", steps=120, fold="all", overrides=SMALL, device="cpu")
    plan = read_plan(run / "plan.yaml")
    assert (plan.dimensions, plan.patch_size[0], plan.axes[0]) == (2, 1, axis)
    assert plan.network.kernels == ((1, 3, 3),) * 3
    segmenter = Segmenter.load(run / "model.safetensors", device="cpu")
    dice = []
    for seed in range(100, 105):
        image, label = slices_of(seed, count, step, axis)
        # Slices of another thickness are slices all the same.
        thicker = np.where(np.arange(3) == axis, 2.0, 1.0) * spacing_mm
        found = segmenter((image, np.diag([*thicker, 1.0])))
        overlaps = label_overlaps(found.labels, label, LABELS, float(np.prod(thicker)) / 1000)
        dice += [one.dice for one in overlaps.values() if one.dice is not None]
        voxels = np.prod(thicker) / 1000
        assert found.volumes_ml["ball"] == pytest.approx((found.labels == 1).sum() * voxels)
    assert np.mean(dice) > 0.8


@pytest.mark.needs_data
def test_spinal_cord_of_distant_slices_trains_slice_by_slice(tmp_path, data_folder):
    """Two contrasts of one subject, 0.84 x 0.84 x 17 mm, and one half of the slices each as a case."""
    folder = data_folder / "aniso" / "sct"
    for name in ("mt0", "t1w"):
        scan, label = (nibabel.load(folder / f"{one}.nii.gz") for one in (name, "mt1_seg"))
        voxels, truth = np.asarray(scan.dataobj), np.asarray(label.dataobj)
        spacing_mm = scan.header.get_zooms()[:3]
        half = voxels.shape[2] // 2
        for part, cut in enumerate((slice(0, half), slice(half, None))):
            save(voxels[:, :, cut], tmp_path / "data" / "images" / f"{name}_{part}.nii.gz", spacing_mm)
            save(truth[:, :, cut].astype(np.uint8), tmp_path / "data" / "labels" / f"{name}_{part}.nii.gz", spacing_mm)
    run = train(tmp_path / "data", tmp_path / "run", steps=40, folds=2, fold=0, overrides=SMALL, device="cpu")
    plan = read_plan(run / "plan.yaml")
    assert (plan.dimensions, plan.patch_size[0]) == (2, 1)
    scores = json.loads((run / "validation.json").read_text())
    assert scores["mean"]["foreground_dice"] > 0.5
