"""A plan and a few tiny training cases on disk."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from volseg.config import Channel, Label, NetworkConfig, Plan
from volseg.data.cases.dataset import TrainingCase

# Stored as left, anterior, superior, so that R runs against the first axis.
AFFINE = np.array([[-1.0, 0, 0, 5], [0, 1.5, 0, -3], [0, 0, 2.0, 7], [0, 0, 0, 1]])


def small_plan(**changes: Any) -> Plan:
    """Spacing 2 x 1 x 1.5 mm along S, R, A; patches 8 x 8 x 8; labels stored as 3 and 5."""
    values: dict[str, Any] = {
        "dataset": "small",
        "channels": (Channel(),),
        "labels": (Label(name="one", value=3), Label(name="two", value=5)),
        "axes": (2, 0, 1),
        "spacing_mm": (2.0, 1.0, 1.5),
        "patch_size": (8, 8, 8),
        "batch_size": 4,
        "network": NetworkConfig(
            classes=3, features=(4, 8), encoder_blocks=(1, 1), decoder_blocks=(1,), kernels=((3, 3, 3),) * 2,
            strides=((1, 1, 1), (2, 2, 2)),
        ),
    }  # fmt: skip
    return Plan(**{**values, **changes})


def region_plan(**changes: Any) -> Plan:
    """The same with regions that overlap: all of 3 and 5, and 5 alone."""
    labels = (Label(name="both", value=3, parts=(3, 5)), Label(name="two", value=5, parts=(5,)))
    network = small_plan().network.model_copy(update={"classes": 2})
    return small_plan(labels=labels, regions=True, network=network, **changes)


def write_cases(folder: Path, count: int = 3) -> list[TrainingCase]:
    """Noise scans (I, J, K) = (12, 10 + case, 9), each with two labelled boxes; case 1 lacks the second label."""
    cases = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = rng.normal(100, 20, (12, 10 + number, 9)).astype(np.float32)
        label = np.zeros(image.shape, dtype=np.uint8)
        label[2:5, 3:6, 2:4] = 3
        if number != 1:
            label[7:9, 6:9, 5:8] = 5
        paths = [folder / f"{kind}_{number}.nii.gz" for kind in ("image", "label")]
        for path, array in zip(paths, (image, label), strict=True):
            nib.save(nib.Nifti1Image(array, AFFINE), path)
        cases.append(TrainingCase(f"case_{number}", (paths[0],), paths[1]))
    return cases
