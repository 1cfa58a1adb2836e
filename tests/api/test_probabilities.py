"""Probabilities on the scan's own grid, streamed to disk."""

import errno
import os
import shutil
import sys
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from tests.pipeline import blob, leftovers, tiny_plan, volseg, write_model
from volseg import Segmenter
from volseg.api.predict import predict
from volseg.config import Label, NetworkConfig
from volseg.data.grid.geometry import GridMap
from volseg.data.io import probabilities
from volseg.data.io.probabilities import probability_file
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


@pytest.mark.parametrize("shape", list(permutations((37, 20, 28))))
def test_uncertainty_is_the_entropy_of_the_probabilities_in_every_axis_order(tmp_path, shape):
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu", precision="fp32")
    result = segmenter((blob(shape), AFFINE), probabilities=True, uncertainty=True)
    p = result.probabilities.astype(np.float64)
    entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(0) / np.log(3)
    assert entropy.std() > 0.001
    np.testing.assert_allclose(result.uncertainty, entropy, atol=5e-3)


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
    (tmp_path / "o.nii.gz").unlink()
    (tmp_path / "o.json").unlink()
    again = volseg("predict", tmp_path / "scan.nii.gz", "--model", model, "--output", tmp_path / "o.nii.gz",
                   "--probabilities")  # fmt: skip
    assert again.returncode == 2
    assert "o.probabilities.npy" in again.stderr.replace("\n", "")


def grid_map(shape, axes, box=None) -> GridMap:
    """A grid of one resolution, its axes in another order, perhaps cut."""
    box = box or tuple((0, shape[axis]) for axis in axes)
    return GridMap(shape, axes, (True, False, False), box, tuple(stop - start for start, stop in box), (1, 1, 1))


def mapped_bytes() -> int:
    """Bytes of files that this process holds in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say what is held")
@pytest.mark.parametrize("cut", [0, 8], ids=["whole", "cut"])
@pytest.mark.parametrize("axis", [0, 1, 2], ids="IJK")
def test_only_so_many_pages_are_held(tmp_path, monkeypatch, axis, cut):
    monkeypatch.setattr(probabilities, "HELD_BYTES", 4 << 20)
    shape = (160, 144, 176)
    axes = (axis, *(other for other in (2, 1, 0) if other != axis))
    box = tuple((cut, shape[one]) for one in axes)
    logits = torch.zeros(4, shape[axes[1]] - cut, shape[axes[2]] - cut)
    logits[2] = 5
    before, most = mapped_bytes(), 0
    with probability_file(tmp_path / "out.npy", grid_map(shape, axes, box), (0, 1, 2), 4, False) as write:
        for plane in range(shape[axis] - cut):
            write(plane, slice(0, logits.shape[1]), logits)
            most = max(most, mapped_bytes() - before)
    found = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert found.nbytes > 30 << 20
    assert most < 8 << 20
    assert (np.bincount(found.argmax(0).ravel(), minlength=3)[[0, 2]] == [
        found[0].size - (logits[0].numel() * (shape[axis] - cut)), logits[0].numel() * (shape[axis] - cut)
    ]).all()  # fmt: skip


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_scan_that_is_not_cut_has_no_outside_to_fill(tmp_path, axes):
    """The sizes of both grids are the same, if in another order."""
    with probability_file(tmp_path / "out.npy", grid_map((5, 6, 7), axes), (0, 1, 2), 3, False):
        pass
    assert not np.load(tmp_path / "out.npy").any()


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0)])
def test_a_system_that_cannot_reserve_room_gets_zeros(tmp_path, monkeypatch, axes):
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(probabilities, "_ZEROS", bytes(100))
    with probability_file(tmp_path / "out.npy", grid_map((5, 6, 7), axes), (0, 1, 2), 2, True) as write:
        write(0, slice(1, 3), torch.zeros(2, 2, (5, 6, 7)[axes[2]]))
        (temporary,) = leftovers(tmp_path)
        assert temporary.stat().st_blocks * 512 >= 2 * 2 * 5 * 6 * 7
    found = np.load(tmp_path / "out.npy")
    assert (found == 0.5).sum() == 2 * 2 * (5, 6, 7)[axes[2]]
    assert found.shape == (2, 5, 6, 7)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
def test_a_full_disk_is_an_error_where_room_cannot_be_reserved(monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        probabilities._reserve(Path("/dev/full"), 0, 1000)


def test_those_of_an_earlier_run_outlive_a_later_one_that_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("volseg.data.io.writing._write_nibabel", full)
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu")
    nibabel.save(nibabel.Nifti1Image(blob(), AFFINE), tmp_path / "scan.nii.gz")
    kept = tmp_path / "o.probabilities.npy"
    kept.write_bytes(b"earlier")
    for wanted in (False, True):
        written = predict(
            tmp_path / "scan.nii.gz", segmenter, tmp_path / "o.nii.gz", probabilities=wanted, overwrite=True
        )
        (outcome,) = written
        assert "No space left on device" in str(outcome.error)
        assert kept.read_bytes() == b"earlier"
