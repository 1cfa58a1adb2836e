"""nnU-Net's own labels for the model folders and scans of `tests.interop.variants`, stored in answers.npz.

Where nnunetv2 is installed (2.8.1 made the stored labels):

    python -m tests.interop.make_answers
"""

import contextlib
import functools
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import nibabel
import numpy as np
import torch

from tests.interop.folders import write_folder, write_scan
from tests.interop.variants import VARIANTS

ANSWERS = Path(__file__).parent / "answers.npz"

for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    # Unless these are set, nnU-Net prints warnings about folders that prediction does not need.
    os.environ.setdefault(name, tempfile.gettempdir())

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nnunetv2.inference import predict_from_raw_data as nnunet


def nnunet_labels(folder: Path, scan: list[Path], output: Path) -> np.ndarray:
    """nnU-Net's labels of a scan with all folds of a model, without test-time flips: (I, J, K)."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), in_float32():
        warnings.simplefilter("ignore")
        predictor = nnunet.nnUNetPredictor(
            use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(folder), None)
        predictor.predict_from_files_sequential([[str(path) for path in scan]], [str(output / "labels")])
    return np.asarray(nibabel.load(output / "labels.nii.gz").dataobj)


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Let nnU-Net sum its windows in float32; its half precision would hide small errors behind rounding."""
    gaussian = functools.cache(functools.partial(nnunet.compute_gaussian, dtype=torch.float32))
    with mock.patch.object(torch, "half", torch.float32), mock.patch.object(nnunet, "compute_gaussian", gaussian):
        yield


def main() -> None:
    labels = {}
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            folder, scan = write_folder(place / "model", variant), write_scan(place, variant)
            labels[name] = nnunet_labels(folder, scan, place).astype(np.uint8)
    np.savez_compressed(ANSWERS, **labels)


if __name__ == "__main__":
    main()
