"""Image objects of SimpleITK and nibabel: what they do not state is not invented, and no process ends."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tests.data.images import STRAIGHT, nifti, ramp
from volseg.data.io.any_scan import as_scan
from volseg.errors import InputError


def itk(dtype=np.int16):
    return sitk.GetImageFromArray(ramp((3, 4, 5), dtype))


class TestSimpleITK:
    @pytest.mark.parametrize(
        "kind", [sitk.sitkLabelUInt8, sitk.sitkLabelUInt16, sitk.sitkLabelUInt32, sitk.sitkLabelUInt64]
    )
    def test_label_maps_are_rejected(self, kind):
        image = sitk.Cast(itk(np.uint8), kind)
        with pytest.raises(
            InputError, match=r"is a label map \(label of .*\), a kind of image without voxels; convert it"
        ):
            as_scan(image, 1)

    def test_components(self):
        colour = sitk.Compose([itk()] * 3)
        words = r"is 3-D with 3 components per voxel \(vector of 16-bit signed integer\), such as colour, expected 3-D"
        with pytest.raises(InputError, match=words):
            as_scan(colour, 1)
        assert len(as_scan(colour, 3).channels) == 3
        with pytest.raises(InputError, match="3 components per voxel"):
            as_scan(colour, 2)

    @pytest.mark.parametrize("components", [2, 3])
    def test_a_flat_picture_in_colour_is_no_volume(self, components):
        """Its components would look like slices."""
        flat = sitk.GetImageFromArray(ramp((6, 7)))
        for channels in (1, components):
            with pytest.raises(InputError, match=f"is 2-D with {components} components per voxel"):
                as_scan(sitk.Compose([flat] * components), channels)

    def test_flat_complex_and_empty_images(self):
        with pytest.raises(InputError, match=r"is 2-D \(6 x 7\)|is 2-D \(7 x 6\)"):
            as_scan(sitk.GetImageFromArray(ramp((6, 7))), 1)
        with pytest.raises(InputError, match="the voxels are complex"):
            as_scan(sitk.Cast(itk(), sitk.sitkComplexFloat32), 1)
        with pytest.raises(InputError, match=r"is empty|is 2-D"):
            as_scan(sitk.Image(), 1)


class TestNibabel:
    def test_no_unit_is_not_millimetres(self):
        scan = as_scan(nifti(ramp(), units="none"), 1)
        assert "millimetres are assumed" in scan.warnings[0]
        assert scan.unstated == "the header has no spatial unit"
        assert as_scan(nifti(ramp()), 1).unstated == ""

    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair])
    def test_no_affine(self, kind):
        with pytest.raises(InputError, match="The nibabel image has no affine; add one"):
            as_scan(kind(ramp(), None), 1)

    def test_an_affine_in_the_header_alone(self):
        image = nib.Nifti1Image(ramp(), None, nifti(ramp()).header)
        np.testing.assert_allclose(as_scan(image, 1).geometry.affine, STRAIGHT, atol=1e-5)

    @pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage])
    def test_analyze_states_no_orientation(self, kind, tmp_path):
        nib.save(kind(ramp(), np.diag([-1.0, 1, 1, 1])), tmp_path / "a.img")
        (tmp_path / "a.mat").unlink(missing_ok=True)
        with pytest.raises(InputError, match="is an Analyze image, which does not state which side is left"):
            as_scan(kind.load(tmp_path / "a.img"), 1)

    def test_spm_states_it_in_a_file_beside(self, tmp_path):
        nib.save(nib.Spm99AnalyzeImage(ramp(), STRAIGHT), tmp_path / "a.img")
        assert (tmp_path / "a.mat").exists()
        scan = as_scan(nib.Spm99AnalyzeImage.load(tmp_path / "a.img"), 1)
        np.testing.assert_allclose(scan.geometry.affine, STRAIGHT, atol=1e-5)
        np.testing.assert_array_equal(scan.channels[0], ramp())

    def test_a_vox_offset_inside_of_the_header(self, tmp_path):
        content = bytearray(nifti(ramp()).to_bytes())
        struct.pack_into("<f", content, 108, 0)
        (tmp_path / "a.nii").write_bytes(content)
        with pytest.raises(
            InputError, match=r"from byte 0 \(vox_offset\), expected 352 or more, after the header; give"
        ):
            as_scan(nib.load(tmp_path / "a.nii"), 1)
        np.testing.assert_array_equal(as_scan(tmp_path / "a.nii", 1).channels[0], ramp())

    @pytest.mark.parametrize("flag", [0, 1])
    def test_good_ras_flag_of_a_file(self, tmp_path, flag):
        content = bytearray(nib.MGHImage(ramp(), STRAIGHT).to_bytes())
        struct.pack_into(">h", content, 28, flag)
        path = tmp_path / "a.mgz"  # nibabel leaves .mgh files open
        path.write_bytes(gzip.compress(content))
        if flag:
            assert as_scan(nib.load(path), 1).geometry == as_scan(path, 1).geometry
        else:
            # nibabel's axes are (0, 0, 1) and (0, -1, 0), those of FreeSurfer (0, 0, -1) and (0, 1, 0).
            with pytest.raises(InputError, match="goodRASFlag is not set in the file, and the affine of this image is"):
                as_scan(nib.load(path), 1)

    def test_pairs_begin_at_byte_0(self, tmp_path):
        nib.save(nib.Nifti1Pair(ramp(), STRAIGHT, nifti(ramp()).header), tmp_path / "a.img")
        np.testing.assert_array_equal(as_scan(nib.load(tmp_path / "a.img"), 1).channels[0], ramp())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [complex, np.complex64])
def test_a_complex_affine_is_rejected_before_numpy_drops_a_part_of_it(kind):
    with pytest.raises(InputError, match=r"affine cannot be made from a ndarray \(it is complex\); give a 4 x 4"):
        as_scan((ramp(), STRAIGHT.astype(kind)), 1)
