"""Whole predictions against nnU-Net's: its stored labels everywhere, nnU-Net itself where nnunetv2 is installed.

Weights and scans are random, so labels are speckled and few voxels are far from a boundary.
"""

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.interop.folders import write_folder, write_scan
from tests.interop.variants import VARIANTS
from volseg import Segmenter
from volseg.api.importing import import_nnunet
from volseg.data.io.inputs import Case

if importlib.util.find_spec("nnunetv2"):
    from tests.interop.make_answers import nnunet_labels
else:
    nnunet_labels = None

ANSWERS = Path(__file__).parent / "answers.npz"


def our_labels(folder, scan, place):
    model = import_nnunet(folder, place / "model.safetensors")
    segmenter = Segmenter.load(model, device="cpu", precision="fp32")
    return segmenter(Case("case", tuple(scan), ".nii.gz")).labels


@pytest.mark.parametrize("name", VARIANTS)
def test_labels_are_the_stored_ones_of_nnunet(tmp_path, name):
    variant = VARIANTS[name]
    with np.load(ANSWERS) as stored:
        expected = stored[name]
    assert len(np.unique(expected)) == variant.heads + (variant.regions_class_order is not None)
    labels = our_labels(write_folder(tmp_path / "model", variant), write_scan(tmp_path, variant), tmp_path)
    # A few voxels may differ on another machine: those whose best two classes differ by rounding errors only.
    assert (labels == expected).mean() > 0.999


@pytest.mark.skipif(nnunet_labels is None, reason="needs nnunetv2, which volseg itself does not")
@pytest.mark.parametrize("name", VARIANTS)
def test_labels_are_those_of_nnunet(tmp_path, name):
    variant = VARIANTS[name]
    folder, scan = write_folder(tmp_path / "model", variant), write_scan(tmp_path, variant, scale=2)
    expected = nnunet_labels(folder, scan, tmp_path)
    assert (our_labels(folder, scan, tmp_path) == expected).mean() >= 0.9999


@pytest.mark.needs_data
def test_labels_of_a_trained_model_are_those_of_nnunet(tmp_path, data_folder):
    folder = data_folder / "nnunet_hippocampus_model"
    segmenter = Segmenter.load(import_nnunet(folder, tmp_path / "model.safetensors"), device="cpu", precision="fp32")
    cases = sorted((folder / "nnunet_labels").glob("*.nii.gz"))
    assert cases
    for path in cases:
        expected = np.asarray(nibabel.load(path).dataobj)
        scan = folder / "cases" / path.name.replace(".nii.gz", "_0000.nii.gz")
        assert (segmenter(scan).labels == expected).mean() >= 0.9999, path.name
