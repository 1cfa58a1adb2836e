"""Each requirement on an image: met, just not met, and the message."""

import re

import numpy as np
import pytest

from tests.data.images import OBLIQUE, SHEARED, STRAIGHT, nifti, orthogonal, ramp
from volseg.data.io.checks import check_affine, check_container, check_label, check_nifti, check_scan, is_sheared
from volseg.errors import InputError

NAME = "case.nii.gz"


def nifti_check(image):
    return check_nifti(image.header, NAME)[:2]


def rotated(affine, degrees, axis=2):
    """The affine rotated about world axis `axis`."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one, two = [other for other in range(3) if other != axis]
    matrix = np.eye(4)
    matrix[[one, one, two, two], [one, two, one, two]] = c, -s, s, c
    return matrix @ affine


class TestContainer:
    @pytest.mark.parametrize("start", [b"\x1f\x8b", b"\\\1"])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".mgh"])
    def test_compression_agrees_with_the_suffix(self, start, suffix):
        if (start == b"\x1f\x8b") == suffix.endswith("z"):
            check_container(start, suffix, NAME)
        else:
            with pytest.raises(InputError, match=f"{NAME} is (not )?gzip-compressed"):
                check_container(start, suffix, NAME)

    def test_empty(self):
        with pytest.raises(InputError, match="is an empty file"):
            check_container(b"", ".nii", NAME)


class TestAffine:
    @pytest.mark.parametrize(("degrees", "count"), [(0, 0), (4.9, 0), (5.1, 1), (44, 1), (86, 0), (90, 0)])
    def test_oblique_axes_above_five_degrees_give_a_warning(self, degrees, count):
        warnings = check_affine(rotated(STRAIGHT, degrees), NAME)
        assert len(warnings) == count
        assert all("oblique" in warning for warning in warnings)

    def test_sheared_axes_give_a_warning(self):
        assert is_sheared(SHEARED)
        # Columns (1, 0, 0) and (0.3, 1, 0): the angle is arctan(1 / 0.3).
        assert check_affine(SHEARED, NAME) == [
            "The image axes are sheared (they meet at 73.3 degrees) and are not straightened."
        ]
        assert not is_sheared(orthogonal(OBLIQUE))

    def test_zero_spacing_is_rejected(self):
        with pytest.raises(InputError, match=r"a spacing is zero, found 1 x 0 x 2 mm; fix the header"):
            check_affine(np.diag([1.0, 0, 2, 1]), NAME)

    def test_singular_affine_is_rejected(self):
        affine = np.eye(4)
        affine[:3, 2] = (1, 1, 0)
        with pytest.raises(InputError, match=f"{NAME}: the affine is singular; fix the header"):
            check_affine(affine, NAME)

    @pytest.mark.parametrize("spacing", [0.01, 20.0, 20.000001])
    def test_small_and_large_voxels_are_fine(self, spacing):
        assert check_affine(np.diag([1.0, spacing, 1.0, 1.0]), NAME) == []

    @pytest.mark.parametrize(
        ("spacing", "words"),
        [
            ((0.001, 0.001, 0.001), "0.001 x 0.001 x 0.001 mm"),
            ((1.0, 0.0099, 1.0), "1 x 0.0099 x 1 mm"),
            ((100.0, 1.0, 1.0), "100 x 1 x 1 mm"),
            ((1.0, 1.0, 20.1), "1 x 1 x 20.1 mm"),
        ],
    )
    def test_voxel_sizes_in_a_wrong_unit_give_a_warning(self, spacing, words):
        warnings = check_affine(np.diag([*spacing, 1.0]), NAME)
        assert warnings == [
            f"The voxel size {words} is implausible; it is used unchanged, but check the header's unit."
        ]

    def test_size_and_tilt_give_two_warnings(self):
        warnings = check_affine(rotated(np.diag([100.0, 100.0, 100.0, 1.0]), 19), NAME)
        assert warnings == [
            "The voxel size 100 x 100 x 100 mm is implausible; it is used unchanged, but check the header's unit.",
            "The image axes are oblique by 19 degrees and are not straightened.",
        ]


class TestNifti:
    @pytest.mark.parametrize("units", ["metre", "micron"])
    def test_other_units_are_rejected(self, units):
        with pytest.raises(
            InputError, match=f"{NAME}: the header's spatial unit is {units}s, expected millimetres; convert it"
        ):
            nifti_check(nifti(ramp(), units=units))

    @pytest.mark.parametrize(("units", "count"), [("mm", 0), ("mm+s", 0), ("none", 1)])
    def test_missing_units_give_a_warning(self, units, count):
        assert len(nifti_check(nifti(ramp(), units=units))[1]) == count

    def forms(self, sform, qform):
        image = nifti(ramp())
        image.set_sform(sform, 1)
        image.set_qform(qform, 1)
        return nifti_check(image)

    def test_equal_forms_give_no_warning_despite_rounding(self):
        affine, warnings = self.forms(orthogonal(OBLIQUE), orthogonal(OBLIQUE))
        assert warnings == []
        np.testing.assert_allclose(affine, orthogonal(OBLIQUE), atol=1e-5)

    @pytest.mark.parametrize(
        ("qform", "message"),
        [
            (rotated(STRAIGHT, 3), "3.0 degrees, 2.7 mm in origin and 0.0 %"),
            (STRAIGHT @ np.diag([1, 1, 1.1, 1]), "0.0 degrees, 0.0 mm in origin and 9.1 %"),
            (STRAIGHT + np.eye(4)[:, [1, 2, 3, 0]] * [0, 0, 0, 1], "0.0 degrees, 1.0 mm in origin and 0.0 %"),
        ],
    )
    def test_forms_that_differ_give_a_warning_and_the_sform_is_used(self, qform, message):
        # Rotating by 3 degrees moves the origin, 51.1 mm off the axis, by 2 * 51.1 * sin(1.5 degrees) = 2.7 mm.
        affine, warnings = self.forms(STRAIGHT, qform)
        np.testing.assert_allclose(affine, STRAIGHT, atol=1e-5)
        assert warnings == [f"The sform and qform differ by up to {message} in spacing; the sform is used."]

    @pytest.mark.parametrize(
        "qform",
        [
            STRAIGHT @ np.diag([-1, 1, 1, 1]),  # the other handedness
            STRAIGHT @ np.diag([-1, -1, 1, 1]),  # rotated by 180 degrees
            rotated(STRAIGHT, 60),
            STRAIGHT[:, [1, 0, 2, 3]],  # axes swapped
        ],
    )
    def test_contradictory_forms_are_rejected(self, qform):
        with pytest.raises(InputError, match="sform and qform contradict each other"):
            self.forms(STRAIGHT, qform)

    def test_an_unset_form_is_ignored(self):
        image = nifti(ramp(), sform=2, qform=0)
        image.set_qform(STRAIGHT @ np.diag([-1, 1, 1, 1]), 0)
        assert nifti_check(image)[1] == []

    def test_singular_sform_is_rejected(self):
        image = nifti(ramp())
        image.header["srow_y"] = 0
        with pytest.raises(InputError, match="spacing is zero"):
            nifti_check(image)


class TestArray:
    @pytest.mark.parametrize("shape", [(6, 10), (60,), (3, 4, 5, 1, 2), ()])
    def test_other_dimensions_are_rejected(self, shape):
        with pytest.raises(InputError, match=rf"{NAME} is {len(shape)}-D \(.*\), expected a 3-D volume"):
            check_scan(np.arange(np.prod(shape)).reshape(shape), 1, NAME)

    @pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 1), (3, 4, 5, 1, 1)])
    def test_trailing_ones_are_dropped(self, shape):
        (volume,) = check_scan(ramp().reshape(shape), 1, NAME)
        np.testing.assert_array_equal(volume, ramp())

    @pytest.mark.parametrize(("shape", "channels"), [((3, 4, 5, 3), 1), ((3, 4, 5, 3), 2), ((3, 4, 5), 2)])
    def test_channel_counts_have_to_agree(self, shape, channels):
        remedy = "choose one with --volume N" if channels == 1 else "give one file per channel"
        with pytest.raises(InputError, match=f"expected {channels}; {remedy}"):
            check_scan(ramp(shape), channels, NAME)

    @pytest.mark.parametrize("shape", [(0, 4, 5), (3, 4, 0), (3, 4, 5, 0)])
    def test_no_voxels_are_rejected(self, shape):
        with pytest.raises(InputError, match="is empty"):
            check_scan(np.zeros(shape), 1, NAME)

    @pytest.mark.parametrize(
        ("kind", "word"),
        [
            (np.complex64, "complex"),
            (np.complex128, "complex"),
            ([("R", "u1"), ("G", "u1"), ("B", "u1")], r"in colour \(RGB\)"),
            ([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")], r"in colour \(RGBA\)"),
            ([("a", "u1"), ("b", "u1")], "not numbers"),
            (object, "not numbers"),
            ("U3", "not numbers"),
            ("M8[s]", "not numbers"),
        ],
    )
    def test_other_than_real_numbers_are_rejected(self, kind, word):
        array = np.zeros((3, 4, 5), dtype=kind)
        for check in (lambda: check_scan(array, 1, NAME), lambda: check_label(array, NAME)):
            with pytest.raises(InputError, match=f"{NAME}: the voxels are {word}"):
                check()

    def test_truth_values_become_numbers(self):
        (volume,) = check_scan(ramp() > 7, 1, NAME)
        assert volume.dtype == np.uint8
        assert volume.sum() == 52


class TestImage:
    @pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4", ">f8"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite_are_counted(self, kind, bad):
        array = ramp((30, 40, 50)).astype(kind)
        array[::7, 3, 5] = bad  # 5 voxels
        array[2, 3, 49] = np.nan
        with pytest.raises(InputError, match=f"{NAME} contains 6 NaN or infinite voxels; replace them"):
            check_scan(array, 1, NAME)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_values_that_float32_cannot_hold_are_named(self, sign):
        largest = float(np.finfo(np.float32).max)
        array = ramp().astype(np.float64)
        array[0, 0, 0] = sign * largest
        assert check_scan(array, 1, NAME)[0][0, 0, 0] == sign * largest
        array[0, 0, 0] = sign * 1e200
        ends = "1 to 1e+200" if sign > 0 else "-1e+200 to 59"
        with pytest.raises(InputError, match=re.escape(f"{NAME}: the values range from {ends}, beyond 3.4e+38")):
            check_scan(array, 1, NAME)

    @pytest.mark.parametrize(("value", "kind"), [(0, np.uint8), (-1024, np.int16), (0.5, np.float32)])
    def test_constant_volumes_are_rejected(self, value, kind):
        with pytest.raises(
            InputError, match=rf"{NAME}: the image is constant \(every voxel is {value}\); give another one"
        ):
            check_scan(np.full((3, 4, 5), value, dtype=kind), 1, NAME)

    def test_every_channel_is_checked(self):
        array = ramp((3, 4, 5, 2))
        array[..., 1] = 4
        with pytest.raises(InputError, match="every voxel is 4"):
            check_scan(array, 2, NAME)

    def test_usual_arrays_are_not_copied(self):
        array = ramp((3, 4, 5, 2))
        for channel, volume in enumerate(check_scan(array, 2, NAME)):
            assert np.shares_memory(volume, array)
            np.testing.assert_array_equal(volume, array[..., channel])


class TestLabel:
    @pytest.mark.parametrize("kind", [np.uint8, np.int16, ">i2", np.int64, np.float32, np.float64, bool])
    def test_whole_values_of_any_type(self, kind):
        array = (ramp() % 2).astype(kind)
        label = check_label(array, NAME)
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, ramp() % 2)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (0.5, "label values must be integers, found 0.5; give a label image"),
            (-1, "range from -1.0 to 0.0"),
            (65536, "range from 0.0 to 65536.0, expected 0 to 65535; fix the label image"),
            (np.nan, "range from nan to nan"),
            (np.inf, "range from 0.0 to inf"),
        ],
    )
    def test_other_values_are_rejected(self, value, message):
        array = np.zeros((30, 40, 50), dtype=np.float64)
        array[3, 4, 49] = value
        with pytest.raises(InputError, match=message):
            check_label(array, NAME)

    @pytest.mark.parametrize("value", [1, 255, 256, 65535])
    def test_largest_values(self, value):
        array = np.zeros((3, 4, 5), dtype=np.int32)
        array[1, 2, 3] = value
        label = check_label(array, NAME, known=[value])
        assert label.dtype == (np.uint8 if value <= 255 else np.uint16)
        assert label[1, 2, 3] == value
        assert np.count_nonzero(label) == 1

    def test_unknown_values_are_listed(self):
        with pytest.raises(InputError, match=r"contains unknown label values \[3, 4\], expected \[1, 2, 7\]; declare"):
            check_label(ramp() % 5, NAME, known={7, 2, 1})

    def test_four_dimensions_are_rejected(self):
        with pytest.raises(InputError, match="expected 1"):
            check_label(ramp((3, 4, 5, 2)), NAME)
