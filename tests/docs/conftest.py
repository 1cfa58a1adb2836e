"""What the pages of the documentation name: scans, datasets, models, at a size that is computed in a moment."""

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from tests.data.images import write_series
from tests.data.io.dicom.writers import write
from tests.data.io.dicom_labels.writers import blocks, on_slice, segmentation, series, structures
from tests.docs.pages import ROOT
from tests.interop.folders import write_folder
from tests.interop.variants import Variant
from tests.pipeline import tiny_plan, write_model
from volseg.api import train as api_train
from volseg.config import Channel
from volseg.data.cases.phantom import make_phantom
from volseg.files import write_json
from volseg.training.run.folder import is_run

# Pages train for minutes; what their commands do is the same in a few steps of a network of two stages.
SMALL = (
    "plan.features=[4, 8]", "plan.blocks_per_stage=1", "training.validations=0", "training.workers=0",
)  # fmt: skip
STEPS = 4
# Voxels on either side of the middle: both structures of a phantom reach in there, and `hippocampus` needs one window.
HALF = (14, 14, 9)
NAMES = tuple(f"case_{letter}" for letter in "abcdefg")


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Small networks gain nothing from threads, and a busy machine loses."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def small_budgets(monkeypatch):
    """`volseg train` and `volseg.train` with the options that a page gives them, but for budget and network."""
    train = api_train.train

    def small(dataset: Any, output: Any, **options: Any) -> Path:
        resumed = bool(options.get("resume") or options.get("finish")) and is_run(Path(output))
        changes = dict(options)
        if not resumed:
            # A run that starts from a model has its network.
            small = [one for one in SMALL if not (options.get("from_model") and one.startswith("plan."))]
            changes["overrides"] = (*small, *(options.get("overrides") or ()))
        if not resumed or changes.get("minutes") or changes.get("steps"):
            changes |= {"minutes": None, "steps": STEPS + resumed}
        return train(dataset, output, **changes)

    monkeypatch.setattr(api_train, "train", small)


@pytest.fixture(scope="package")
def world(tmp_path_factory, one_thread):
    """A folder with everything that pages name."""
    folder = tmp_path_factory.mktemp("world")
    scans = {name: crop(make_phantom(seed, "mr")) for seed, name in enumerate(NAMES)}
    for name, (image, labels, affine) in scans.items():
        half = "Ts" if name in NAMES[:2] else "Tr"
        for array, kind in ((image, "images"), (labels, "labels")):
            scan = nifti(array, affine)
            save(scan, folder / "Task04_Hippocampus" / f"{kind}{half}" / f"{name}.nii.gz")
            if half == "Ts":
                save(scan, folder / ("scans" if kind == "images" else "labels") / f"{name}.nii.gz")
                continue
            save(scan, folder / "my_dataset" / kind / f"{name}.nii.gz")
            suffix = "_0000.nii.gz" if kind == "images" else ".nii.gz"
            save(scan, folder / "nnUNet_raw" / "Dataset004_Hippocampus" / f"{kind}Tr" / f"{name}{suffix}")
    write_indexes(folder)
    write_halves(folder)
    image, _, affine = scans["case_a"]
    save(nifti(image, affine), folder / "scan.nii.gz")
    for channel in ("t1", "t2"):
        save(nifti(image, affine), folder / f"{channel}.nii.gz")
    positions = [(0.0, 0.0, 2.0 * k) for k in range(image.shape[2])]
    write_series(folder / "dicom_folder", image, positions, spacing=(1.25, 1.5))
    shutil.make_archive(str(folder / "study"), "zip", folder / "dicom_folder")
    save(nifti(np.stack([image, image], axis=-1), affine), folder / "perfusion.nii.gz")
    tilted = [(0.0, 0.5 * k, 2.0 * k) for k in range(image.shape[2])]
    write_series(folder / "head_ct", image, tilted, spacing=(1.25, 1.5), **{"0008_0060": "CT"})
    series(folder / "ct" / "series")
    write(segmentation(blocks()), folder / "ct" / "liver.seg.dcm")
    corners = np.array([[0.5, 0.5], [5.5, 0.5], [5.5, 3.5], [0.5, 3.5]])
    write(structures({1: [on_slice(corners, k) for k in (1, 2)]}), folder / "ct" / "plan.rtstruct.dcm")
    trained = "nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres"
    write_folder(folder / trained, Variant(folds=2, patch=(16, 16, 16), spacing=(3.0, 3.0, 3.0)))
    network = tiny_plan().network.model_copy(update={"in_channels": 2})
    two_channels = tiny_plan(channels=(Channel(name="T1"), Channel(name="T2")), network=network)
    write_model(folder / "two_channels.safetensors", two_channels)
    run = api_train.train(
        folder / "Task04_Hippocampus", folder / "trained", overrides=SMALL, fold="all", steps=STEPS, device="cpu"
    )
    shutil.copy(run / "model.safetensors", folder / "model.safetensors")
    for name in ("configs", "data_samples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def write_halves(folder: Path) -> None:
    """Two datasets of other scans, each with one of the two labels."""
    for value, name in enumerate(("liver", "spleen"), start=1):
        dataset = folder / f"{name}_dataset"
        pairs = [(f"images/{number}.nii.gz", f"labels/{number}.nii.gz") for number in range(5)]
        for number, pair in enumerate(pairs):
            image, labels, affine = crop(make_phantom(10 * value + number, "mr"))
            for array, path in zip((image, (labels == value).astype(np.uint8)), pair, strict=True):
                save(nifti(array, affine), dataset / path)
        training = [{"image": image, "label": label} for image, label in pairs]
        write_json(
            dataset / "dataset.json",
            {"modality": {"0": "MRI"}, "labels": {name.capitalize(): 1}, "training": training},
        )


@pytest.fixture
def workplace(world, tmp_path, monkeypatch):
    """An empty working folder that has all of `world` under the same names."""
    for path in world.iterdir():
        if path.name != "trained":
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOLSEG_CACHE", str(world / "cache"))
    return tmp_path


def crop(phantom: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middle of a scan, its labels, and the affine of both."""
    image, labels, affine = phantom
    first = [size // 2 - half for size, half in zip(image.shape, HALF, strict=True)]
    middle = tuple(slice(start, start + 2 * half) for start, half in zip(first, HALF, strict=True))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ first
    return image[middle], labels[middle], moved


def nifti(array: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    """An image in millimetres."""
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return image


def save(image: nibabel.Nifti1Image, path: Path) -> None:
    """Write an image, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def write_indexes(folder: Path) -> None:
    """The dataset.json of each layout, and names for the labels of the plain one."""
    labels = {"Anterior": 1, "Posterior": 2}
    pairs = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in NAMES[2:]]
    decathlon = {"0": "background", "1": "Anterior", "2": "Posterior"}
    write_json(
        folder / "Task04_Hippocampus" / "dataset.json",
        {"name": "Hippocampus", "modality": {"0": "MRI"}, "labels": decathlon, "training": pairs},
    )
    write_json(
        folder / "nnUNet_raw" / "Dataset004_Hippocampus" / "dataset.json",
        {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **labels},
            "numTraining": len(pairs),
            "file_ending": ".nii.gz",
        },
    )
    write_json(folder / "my_dataset" / "labels.json", labels)
