"""Probabilities on the scan's own grid, streamed to disk."""

import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from tests.pipeline import blob, leftovers, tiny_plan, volseg, write_model
from volseg import Segmenter
from volseg.config import Label, NetworkConfig
from volseg.errors import ResourceError

AFFINE = np.diag([-1.5, 1.5, 2.1, 1.0])


@pytest.mark.parametrize("shape", [(37, 20, 50), (50, 37, 20), (20, 50, 37)], ids=["K", "I", "J"])
def test_they_add_up_and_the_likeliest_class_is_the_label(tmp_path, shape):
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu", precision="fp32")
    scan = blob(shape)
    result = segmenter((scan, AFFINE), probabilities=tmp_path / "out.npy")
    found = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert (found.dtype, found.shape) == (np.float16, (3, *shape))
    np.testing.assert_allclose(found.astype(np.float32).sum(0), 1, atol=2e-3)
    first, second = np.sort(found.astype(np.float32), axis=0)[[-1, -2]]
    clear = first - second > 2e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.argmax(0)[clear], result.labels[clear])
    assert (segmenter((scan, AFFINE)).labels == result.labels).mean() > 0.9999


def test_outside_the_cut_out_all_is_background(tmp_path):
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors", tiny_plan(crop="nonzero")), device="cpu")
    scan = blob((30, 20, 25))
    scan[:8], scan[:, 15:] = 0, 0
    result = segmenter((scan, AFFINE), probabilities=tmp_path / "out.npy")
    found = np.load(tmp_path / "out.npy")
    for outside in (np.s_[:, :8], np.s_[:, :, 15:]):
        assert (found[outside][0] == 1).all()
        assert (found[outside][1:] == 0).all()
        assert not result.labels[None][outside].any()


def test_regions_are_each_a_probability_of_their_own(tmp_path):
    labels = (Label(name="whole", value=1, parts=(1, 2)), Label(name="core", value=2, parts=(2,)))
    network = tiny_plan().network.model_copy(update={"classes": 2})
    plan = tiny_plan(regions=True, labels=labels, network=NetworkConfig(**network.model_dump()))
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors", plan), device="cpu", precision="fp32")
    result = segmenter((blob(), AFFINE), probabilities=tmp_path / "out.npy")
    found = np.load(tmp_path / "out.npy").astype(np.float32)
    expected = np.where(found[1] > 0.5, 2, np.where(found[0] > 0.5, 1, 0))
    clear = (np.abs(found - 0.5) > 1e-3).all(0)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(result.labels[clear], expected[clear])
    whole = next(one for one in result.measures if one.name == "whole")
    assert whole.voxels == np.isin(result.labels, (1, 2)).sum()


def test_a_disk_without_room_is_refused_before_any_work(tmp_path, monkeypatch):
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match=r"needs 0\.00 GiB, but the disk has 0\.00 GiB left"):
        segmenter((blob(), AFFINE), probabilities=tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()
    assert not leftovers(tmp_path)


def test_the_command_line_writes_them_beside_the_labels(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    nibabel.save(nibabel.Nifti1Image(blob(), AFFINE), tmp_path / "scan.nii.gz")
    done = volseg("predict", tmp_path / "scan.nii.gz", "--model", model, "--output", tmp_path / "o.nii.gz",
                  "--probabilities")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "o.probabilities.npy").shape == (3, *blob().shape)
