"""What the stages share: where they run and how large, made-up scans and models, timing."""

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from volseg.config import Channel, Label, NetworkConfig, Plan
from volseg.files import write_json
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet

Line = dict[str, Any]
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Setting:
    """Where a stage runs, and how large.

    Args:
        device: that computes.
        dry: tiny sizes, to see that everything runs.
        folder: for its files; removed afterwards.
        dataset: a dataset to train on, or None for phantoms.
    """

    device: torch.device
    dry: bool
    folder: Path
    dataset: Path | None = None

    def sized(self, full: Any, tiny: Any) -> Any:
        """`full`, or `tiny` in a dry run."""
        return tiny if self.dry else full

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_gib(self) -> float | None:
        """The most memory of the device that PyTorch reserved since the last call."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_reserved(self.device) / 2**30
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(peak, 3)


def median_ms(setting: Setting, work: Callable[[], object], repeats: int = 10, warm: int = 3) -> float:
    """The median time of `work` in ms, each until the device has finished, after `warm` runs that are not timed."""
    spent = []
    for number in range(warm + repeats):
        setting.wait()
        started = time.perf_counter()
        work()
        setting.wait()
        if number >= warm:
            spent.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(spent), 4)


def nvidia_smi(*options: str) -> str:
    """What nvidia-smi prints; nothing where it is missing, or does not answer."""
    try:
        asked = subprocess.run(["nvidia-smi", *options], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()


@contextmanager
def utilisation(setting: Setting) -> Iterator[Line]:
    """Fills in the mean share of time in which the device computed, as nvidia-smi says; nothing without one."""
    found: Line = {}
    samples: list[float] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            printed = nvidia_smi("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits").split()
            samples.extend(float(one) for one in printed[:1] if one.isdigit())

    thread = threading.Thread(target=sample, daemon=True)
    if setting.device.type == "cuda":
        thread.start()
    try:
        yield found
    finally:
        over.set()
        if samples:
            found["utilisation, %"] = round(statistics.mean(samples), 1)


def nnunet_network(setting: Setting, classes: int) -> NetworkConfig:
    """The network that nnU-Net plans for a large scan, 31 million weights; a tiny one in a dry run."""
    features = setting.sized((32, 64, 128, 256, 320, 320), (4, 8))
    stages = len(features)
    return NetworkConfig(
        classes=classes,
        features=features,
        encoder_blocks=(2,) * stages,
        decoder_blocks=(2,) * (stages - 1),
        kernels=((3, 3, 3),) * stages,
        strides=((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
    )


def ct_plan(setting: Setting, classes: int) -> Plan:
    """A plan for CT at 1.5 mm with patches of 128 x 128 x 128."""
    edge = setting.sized(128, 16)
    return Plan(
        dataset="gpu",
        channels=(Channel(name="CT", normalisation="ct", clip=(-1000, 1000), mean=0, std=500),),
        labels=tuple(Label(name=f"label {index}", value=index) for index in range(1, classes)),
        spacing_mm=(1.5, 1.5, 1.5),
        patch_size=(edge, edge, edge),
        network=nnunet_network(setting, classes),
    )


def write_model(setting: Setting, classes: int) -> Path:
    """A model of `ct_plan` with random weights."""
    torch.manual_seed(0)
    plan, path = ct_plan(setting, classes), setting.folder / f"{classes}.safetensors"
    save_model(path, ModelCard(name=f"{classes} classes", plan=plan), UNet(plan.network).state_dict())
    return path


def write_scan(path: Path, shape: tuple[int, int, int], seed: int = 0) -> None:
    """A CT-like scan (int16, 0.8 x 0.8 x 1.5 mm): an elliptic body with smooth contents and noise, in air."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, size)) for size in shape)]
    inside = axes[0] ** 2 / 0.6 + axes[1] ** 2 / 0.4 < 1
    organs = 60 * np.sin(9 * axes[0]) * np.cos(8 * axes[1]) * np.sin(7 * axes[2])
    voxels = np.full(shape, -1000, np.int16)
    noise = rng.normal(0, 15, shape[:2]).astype(np.float32)
    for number in range(shape[2]):
        plane = 40 + organs[..., number] + np.roll(noise, 7 * number, 0)
        voxels[..., number] = np.where(inside[..., 0], plane, -1000)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.8, 0.8, 1.5, 1])), path)


def write_cases(folder: Path, count: int, edge: int) -> Path:
    """A dataset of cubes of noise with a ball in each, in the layout of the Medical Segmentation Decathlon."""
    entries = []
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    axes = np.ogrid[(slice(-1, 1, complex(0, edge)),) * 3]
    for number in range(count):
        rng = np.random.default_rng(number)
        centre = rng.uniform(-0.3, 0.3, 3)
        ball = sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True)) < 0.2
        image = rng.normal(0, 100, (edge,) * 3) + 300 * ball
        entry = {"image": f"imagesTr/{number}.nii.gz", "label": f"labelsTr/{number}.nii.gz"}
        for kind, voxels in (("image", image.astype(np.int16)), ("label", ball.astype(np.uint8))):
            scan = nibabel.Nifti1Image(voxels, np.eye(4))
            scan.header.set_xyzt_units("mm")
            nibabel.save(scan, folder / entry[kind])
        entries.append(entry)
    labels = {"0": "background", "1": "ball"}
    document = {"name": "balls", "modality": {"0": "CT"}, "labels": labels, "training": entries}
    write_json(folder / "dataset.json", document)
    return folder
