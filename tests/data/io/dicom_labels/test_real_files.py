"""Segmentations and structure sets of other software against the reference masks that came with them."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import volseg
from volseg.data.io.reading import read_image

pytestmark = pytest.mark.needs_data
STS = [f"rtstruct_sts/{patient}/{scan}" for patient in ("STS_002", "STS_003") for scan in ("CT", "MR_T1")]
# Object, series, mask, value in the mask.
CASES = [
    *((f"{one}/mask/RS.dcm", f"{one}/image", f"{one}/expected_mask.nii.gz")
      for one in (*STS, "rtstruct_sts_stale_series_uid")),
    ("seg_dcmqi/liver.dcm", "seg_dcmqi/ct-3slice", "seg_dcmqi/liver_seg.nrrd"),
    ("seg_dcmqi/sparse-labelmap-noppv.dcm", "seg_dcmqi/24x38x3/image", "seg_dcmqi/sparse_labelmap_noppv_seg.nrrd"),
    ("seg_dcmqi/sparse-labelmap-ppv5.dcm", "seg_dcmqi/24x38x3/image", "seg_dcmqi/sparse_labelmap_ppv5_seg.nrrd"),
    ("seg_dicom4qi_data5/mask/mask.dcm", "seg_dicom4qi_data5/image", "seg_dcmqi/23x38x3/nrrd/label.nrrd"),
]  # fmt: skip
OVERLAPPING = {"GREEN": (1, 1), "ORANGE": (2, 2), "PURPLE": (3, 3), "LIGHT_BLUE": (1, 4), "DARK_BLUE": (1, 5)}


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def mask_of(path):
    """A mask (I, J, K) and its affine to RAS+, read by nibabel or SimpleITK."""
    if path.suffix == ".gz":
        image = nibabel.load(path)
        return np.asanyarray(image.dataobj), image.affine
    image = sitk.ReadImage(str(path))
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1.0, -1, 1, 1]) @ lps


@pytest.mark.parametrize("with_series", [True, False], ids=["like", "alone"])
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_the_reference_mask_on_the_grid_of_the_series(data_folder, tmp_path, case, with_series):
    source, ct, mask = (data_folder / "dicom" / name for name in case)
    record = volseg.convert(source, tmp_path / "out.nii.gz", like=ct if with_series else None)
    found, (expected, affine) = nibabel.load(tmp_path / "out.nii.gz"), mask_of(mask)
    assert found.shape == expected.shape == read_image(ct).geometry.shape
    np.testing.assert_allclose(found.affine, affine, atol=2e-3)
    np.testing.assert_allclose(found.affine, read_image(ct).geometry.affine, atol=1e-4)
    assert list(record["labels"].values()) == [1]
    assert dice(np.asanyarray(found.dataobj) == 1, expected == 1) > 0.999
    stale = [warning for warning in record["warnings"] if "References are stale" in warning]
    assert len(stale) == ("rtstruct" in case[0])
    assert [("frame of reference" in warning) for warning in stale] == ["stale" in case[0]] * len(stale)


def test_overlapping_segments_are_regions(data_folder, tmp_path):
    folder = data_folder / "dicom" / "seg_dcmqi"
    record = volseg.convert(folder / "partial_overlaps.dcm", tmp_path / "out.nii.gz", like=folder / "ct-3slice")
    found = np.asanyarray(nibabel.load(tmp_path / "out.nii.gz").dataobj)
    for name, (group, value) in OVERLAPPING.items():
        expected, _ = mask_of(folder / f"partial_overlaps-{group}.nrrd")
        assert dice(np.isin(found, record["labels"][name]), expected == value) == 1.0, name


@pytest.mark.parametrize("kind", ["binary", "binary_fractional", "true_fractional"])
def test_fractions_agree_with_the_binary_file_of_the_same_segment(data_folder, tmp_path, kind):
    source = data_folder / "dicom" / "seg_highdicom" / f"seg_image_ct_{kind}.dcm"
    record = volseg.convert(source, tmp_path / "out.nii.gz")
    assert record["segments"]["first segment"]["voxels"] == 638
    assert np.asanyarray(nibabel.load(tmp_path / "out.nii.gz").dataobj).shape == (16, 16, 3)
