"""Memory planned before it is used."""

import json
import os

import nibabel
import numpy as np
import pytest

from tests.pipeline import blob, volseg, write_model
from volseg import Segmenter
from volseg.api import budget
from volseg.api.budget import GIB, parse_size, require_room
from volseg.data.itk import write_file
from volseg.data.reading import read_scan
from volseg.data.sizes import stored_bytes
from volseg.errors import InputError, UsageError

AFFINE = np.diag([1.5, 1.5, 2.1, 1.0])


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 * GIB), ("1.5GiB", GIB * 3 // 2), ("512m", 2**29), ("2048", 2048), (" 3 KB ", 3072), ("0.5T", 2**39)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "four", "4 apples", "4GG"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="is not an amount of memory"):
        parse_size(text)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".nrrd", ".mha"])
def test_the_header_tells_how_large_a_scan_will_be(tmp_path, dtype, suffix):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)
    path = tmp_path / f"scan{suffix}"
    if suffix in (".nrrd", ".mha"):
        write_file(array, AFFINE, path)
    else:
        kind = nibabel.MGHImage if suffix == ".mgz" else nibabel.Nifti1Image
        nibabel.save(kind(array, AFFINE.astype(np.float32) if suffix == ".mgz" else AFFINE), path)
    assert stored_bytes(path) == array.nbytes == read_scan(path).channels[0].nbytes


def test_a_scaling_is_read_as_float32(tmp_path):
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), AFFINE)
    image.header.set_slope_inter(0.5, 1)
    nibabel.save(image, tmp_path / "scan.nii")
    assert stored_bytes(tmp_path / "scan.nii") == read_scan(tmp_path / "scan.nii").channels[0].nbytes == 480


def test_what_is_no_image_has_no_size(tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    assert stored_bytes(tmp_path / "broken.nii.gz") == 0


def test_a_scan_above_the_limit_is_not_even_read():
    with pytest.raises(InputError, match=r"scan\.nii takes 3\.00 GiB beside .* but --max-memory allows 2\.00 GiB"):
        require_room(3 * GIB, 2 * GIB, "scan.nii")


def test_smaller_pieces_give_the_same_labels(tmp_path, monkeypatch):
    model = write_model(tmp_path / "m.safetensors")
    expected = Segmenter.load(model, device="cpu", precision="fp32")((blob(), AFFINE)).labels
    monkeypatch.setattr(budget, "CHUNKS", (1 << 40, 64))
    limited = Segmenter.load(model, device="cpu", precision="fp32", max_memory="64G")
    np.testing.assert_array_equal(limited((blob(), AFFINE)).labels, expected)


def test_what_cannot_fit_is_refused_with_the_reason_and_the_rest_is_done(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(blob(), AFFINE), tmp_path / "in" / "small.nii.gz")
    large = nibabel.Nifti1Image(np.zeros((800, 800, 800), np.uint8), AFFINE)
    nibabel.save(large, tmp_path / "in" / "large.nii.gz")
    done = volseg("predict", tmp_path / "in", "--model", model, "--output", tmp_path / "out", "--max-memory", "700M",
                  "--json")  # fmt: skip
    assert done.returncode == 3, done.stderr
    cases = {one["name"]: one for one in json.loads(done.stdout)["cases"]}
    assert "--max-memory allows 0.68 GiB" in cases["large"]["error"]
    assert cases["small"]["peak_memory_bytes"] <= 700 * 2**20
    assert sorted(os.listdir(tmp_path / "out")) == ["small.json", "small.nii.gz"]
