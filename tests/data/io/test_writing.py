"""Results have exactly the geometry of their scan, in every format, or do not appear."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tests.data.images import OBLIQUE, SHEARED, STRAIGHT, nifti, orthogonal, ramp, save
from volseg.data.io import writing
from volseg.data.io.reading import read_label, read_scan, scan_from_array, scan_from_nibabel, scan_from_sitk
from volseg.data.io.writing import write_labels
from volseg.errors import InputError, UsageError, VolsegError

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha")
FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)
LABELS = (ramp() % 4).astype(np.uint8)


def flipped(affine, order, flips):
    """The affine of the same volume in another axis order and direction."""
    columns = affine[:3, :3][:, order] * np.where(flips, -1, 1)
    return np.block([[columns, affine[:3, 3:]], [np.zeros((1, 3)), np.ones((1, 1))]])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("affine", [STRAIGHT, orthogonal(OBLIQUE)], ids=["flipped", "oblique"])
@pytest.mark.parametrize("largest", [3, 255, 256, 65535])
def test_labels_and_geometry_are_kept(tmp_path, suffix, affine, largest):
    labels = LABELS.astype(np.uint32)
    labels[2, 3, 4] = largest
    path = tmp_path / f"a{suffix}"
    write_labels(labels, scan_from_array(ramp(), affine), path)
    written = read_label(path)
    np.testing.assert_array_equal(written.channels[0], labels)
    np.testing.assert_allclose(written.geometry.affine, affine, atol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz", ".nrrd", ".mha"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_axis_order_and_flip_is_kept(tmp_path, suffix, order):
    for number, flips in enumerate(itertools.product((False, True), repeat=3)):
        affine = flipped(orthogonal(OBLIQUE), order, flips)
        scan = scan_from_array(ramp(), affine)
        path = tmp_path / f"{number}{suffix}"
        write_labels(LABELS, scan, path)
        written = read_label(path, like=scan.geometry)
        assert written.geometry.axis_codes == scan.geometry.axis_codes
        np.testing.assert_allclose(written.geometry.affine, affine, atol=1e-4)
        np.testing.assert_array_equal(written.channels[0], LABELS)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (4, 2), (0, 0)])
def test_nifti_keeps_its_geometry_bit_by_bit(tmp_path, suffix, version, endian, sform, qform):
    image = nifti(ramp(), orthogonal(OBLIQUE), sform=sform, qform=qform, version=version, endian=endian, units="mm+s")
    source = nib.load(save(image, tmp_path / f"scan{suffix}"))
    write_labels(LABELS, read_scan(tmp_path / f"scan{suffix}"), tmp_path / f"a{suffix}")
    written = nib.load(tmp_path / f"a{suffix}")
    assert type(written) is type(source)
    assert written.shape == source.shape
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, source.affine)
    for field in FIELDS:
        assert written.header[field].astype("<f8").tobytes() == source.header[field].astype("<f8").tobytes()
    np.testing.assert_array_equal(written.header["pixdim"][:4], source.header["pixdim"][:4])
    np.testing.assert_array_equal(np.asarray(written.dataobj), LABELS)


def test_nifti_header_contains_nothing_else_of_the_scan(tmp_path):
    image = nifti(ramp(), slope=2.0, inter=-7.0)
    image.header["descrip"] = b"Secret^Name"
    image.header["cal_max"] = 900
    image.header.set_intent("z score")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Secret^Name"))
    write_labels(LABELS, read_scan(save(image, tmp_path / "scan.nii")), tmp_path / "a.nii")
    assert b"Secret" in (tmp_path / "scan.nii").read_bytes()
    assert b"Secret" not in (tmp_path / "a.nii").read_bytes()
    header = nib.load(tmp_path / "a.nii").header
    assert header.get_intent()[0] == "none"
    assert header["cal_max"] == 0
    assert header["dim"].tolist() == [3, 3, 4, 5, 1, 1, 1, 1]
    raw = nib.Nifti1Header((tmp_path / "a.nii").read_bytes()[:348], check=False)
    assert raw.get_slope_inter() in ((None, None), (1.0, 0.0))


def test_four_dimensional_scans_give_one_label_volume(tmp_path):
    scan = read_scan(save(nifti(ramp((3, 4, 5, 2))), tmp_path / "scan.nii.gz"), channels=2)
    write_labels(LABELS, scan, tmp_path / "a.nii.gz")
    written = nib.load(tmp_path / "a.nii.gz")
    assert written.shape == (3, 4, 5)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)


def test_other_formats_become_nifti_with_both_forms(tmp_path):
    affine = orthogonal(OBLIQUE)
    write_labels(LABELS, scan_from_array(ramp(), affine), tmp_path / "a.nii.gz")
    header = nib.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"
    assert read_label(tmp_path / "a.nii.gz").warnings == (
        "The image axes are oblique by 20 degrees and are not straightened.",
    )


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_sheared_axes_are_kept(tmp_path, suffix):
    write_labels(LABELS, scan_from_array(ramp(), SHEARED), tmp_path / f"a{suffix}")
    written = read_label(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(written.geometry.affine, SHEARED, atol=1e-6)
    assert written.warnings == ("The image axes are sheared (they meet at 73.3 degrees) and are not straightened.",)


def test_sheared_nifti_keeps_both_forms(tmp_path):
    source = nib.load(save(nifti(ramp(), SHEARED, sform=2, qform=1), tmp_path / "scan.nii.gz"))
    write_labels(LABELS, read_scan(tmp_path / "scan.nii.gz"), tmp_path / "a.nii.gz")
    written = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(written.get_sform(), source.get_sform())
    np.testing.assert_array_equal(written.get_qform(), source.get_qform())


def test_mgh_cannot_store_sheared_axes(tmp_path):
    with pytest.raises(InputError, match=r"sheared axes, which \.mgz cannot store; write \.nii\.gz"):
        write_labels(LABELS, scan_from_array(ramp(), SHEARED), tmp_path / "a.mgz")
    assert list(tmp_path.iterdir()) == []


def test_mgh_keeps_its_geometry_bit_by_bit(tmp_path):
    source = nib.load(save(nib.MGHImage(ramp(), orthogonal(OBLIQUE)), tmp_path / "scan.mgz"))
    for scan in (read_scan(tmp_path / "scan.mgz"), scan_from_nibabel(source)):
        write_labels(LABELS, scan, tmp_path / "a.mgz")
        np.testing.assert_array_equal(nib.load(tmp_path / "a.mgz").affine, source.affine)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_every_voxel_keeps_its_position_in_simpleitk(tmp_path, suffix):
    image = sitk.GetImageFromArray(ramp().T)
    image.SetSpacing((0.7, 1.1, 2.9))
    image.SetOrigin((1 / 3, -200.123456789, 1e-3))
    image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0))
    write_labels(LABELS, scan_from_sitk(image), tmp_path / f"a{suffix}")
    written = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    np.testing.assert_allclose(written.GetSpacing(), image.GetSpacing(), rtol=1e-12)
    np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), rtol=1e-12)
    np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-12)
    assert written.GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_labels_give_equal_bytes(tmp_path, suffix, monkeypatch):
    scan = scan_from_array(ramp(), STRAIGHT)
    write_labels(LABELS, scan, tmp_path / f"a{suffix}")
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_labels(np.asfortranarray(LABELS), scan, tmp_path / f"b{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd", "a.png", "a", "a.dcm"])
def test_other_suffixes_are_rejected(tmp_path, name):
    with pytest.raises(UsageError, match=f"found {name}"):
        write_labels(LABELS, scan_from_array(ramp(), STRAIGHT), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_of_another_shape_never_appear(tmp_path, suffix):
    with pytest.raises(VolsegError, match="result's size of 3 x 4 x 4 differs from that of"):
        write_labels(LABELS[..., :4], scan_from_array(ramp(), STRAIGHT), tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_result_with_another_geometry_never_appears(tmp_path, monkeypatch):
    scan = read_scan(save(nifti(ramp()), tmp_path / "scan.nii.gz"))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(writing, "_copy_geometry", lambda header, like: header.set_qform(np.diag([2, 2, 2, 1]), 1))
    with pytest.raises(VolsegError, match="header field") as caught:
        write_labels(LABELS, scan, tmp_path / "out" / "a.nii.gz")
    assert caught.type is VolsegError
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.needs_data
@pytest.mark.parametrize("name", ["FLAIR.nii.gz", "shear.nii.gz", "ct_torso_3mm.nii.gz", "wm.mgz"])
def test_real_scans_and_results_have_the_same_geometry(data_folder, tmp_path, name):
    scan = read_scan(data_folder / "wild" / name)
    labels = (scan.channels[0] > np.mean(scan.channels[0][::4, ::4, ::4])).astype(np.uint8)
    write_labels(labels, scan, tmp_path / name)
    source, written = nib.load(data_folder / "wild" / name), nib.load(tmp_path / name)
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    if name.endswith(".nii.gz"):
        for field in FIELDS:
            np.testing.assert_array_equal(written.header[field], source.header[field])


@pytest.mark.needs_data
@pytest.mark.parametrize("name", ["mr_hippocampus_series", "mr_oblique_5mm_series.zip", "enh.dcm"])
def test_real_dicom_results_have_the_same_geometry(data_folder, tmp_path, name):
    scan = read_scan(data_folder / "wild" / name)
    write_labels(np.zeros(scan.geometry.shape, np.uint8), scan, tmp_path / "a.nii.gz")
    assert read_label(tmp_path / "a.nii.gz", like=scan.geometry).geometry.same_grid(scan.geometry, 1e-3)
