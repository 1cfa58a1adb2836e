"""The labels of a scan with a large offset are those of the scan without it, whatever the format."""

import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tests.pipeline import tiny_plan, write_model
from volseg.api.segmenter import Segmenter
from volseg.errors import InputError

SCAN = np.random.default_rng(0).integers(0, 1000, (20, 22, 18))
SCAN[0, 0, 0] = 0
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    path = write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", tiny_plan())
    return Segmenter.load(path, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def expected(segmenter):
    labels = segmenter((SCAN.astype(np.int16), AFFINE)).labels
    assert len(np.unique(labels)) > 1
    return labels


def nifti(folder, array, scaling=(1.0, 0.0)):
    image = nib.Nifti1Image(array, AFFINE, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    struct.pack_into("<2f", content, 112, *scaling)
    (folder / "a.nii").write_bytes(content)
    return folder / "a.nii"


def mgh(folder, array):
    nib.save(nib.MGHImage(array, AFFINE), folder / "a.mgz")
    return folder / "a.mgz"


def itk(array):
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing((1.5, 1.5, 2.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return image


def itk_file(folder, array, suffix):
    sitk.WriteImage(itk(array), str(folder / f"a{suffix}"))
    return folder / f"a{suffix}"


INPUTS = {
    "nifti uint32": lambda folder: nifti(folder, (SCAN + 2**32 - 2000).astype(np.uint32)),
    "nifti int64": lambda folder: nifti(folder, SCAN + 2**60),
    "nifti uint64": lambda folder: nifti(folder, SCAN.astype(np.uint64) + np.uint64(2**63)),
    "nifti float64": lambda folder: nifti(folder, SCAN + 1e10),
    "nifti int32 and intercept": lambda folder: nifti(folder, (SCAN - 2**31).astype(np.int32), (1.0, 2.0**31)),
    "nifti int16 and intercept": lambda folder: nifti(folder, SCAN.astype(np.int16), (1.0, 2.0**40)),
    "nifti int16, slope and intercept": lambda folder: nifti(folder, SCAN.astype(np.int16), (0.5, 1e9)),
    "nibabel": lambda folder: nib.load(nifti(folder, (SCAN - 2**31).astype(np.int32), (1.0, 2.0**31))),
    "mgh int32": lambda folder: mgh(folder, (SCAN + 2**31 - 2000).astype(np.int32)),
    "nrrd float64": lambda folder: itk_file(folder, SCAN + 1e10, ".nrrd"),
    "mha uint32": lambda folder: itk_file(folder, (SCAN + 2**32 - 2000).astype(np.uint32), ".mha"),
    "SimpleITK": lambda folder: itk(SCAN - 1e10),
    "array": lambda folder: (SCAN + 2**53, AFFINE),
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())
def test_labels_are_those_without_the_offset(tmp_path, segmenter, expected, make):
    result = segmenter(make(tmp_path))
    np.testing.assert_array_equal(result.labels, expected)
    values = result.scan.channels[0]
    # Differences as Python's numbers, which are exact; the slope divides out.
    first, step = values[0, 0, 0].item(), (values.max().item() - values.min().item()) / int(SCAN.max())
    assert [(value.item() - first) / step for value in values.ravel()] == SCAN.ravel().tolist()


def test_values_beyond_float32_are_refused_before_computing(segmenter):
    for array in (SCAN * 1e200, np.where(SCAN == 0, 1e200, SCAN)):
        with pytest.raises(InputError, match=r"the values range from .*, beyond 3.4e\+38") as caught:
            segmenter((array, AFFINE))
        assert caught.value.exit_code == 2
