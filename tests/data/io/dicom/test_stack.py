"""The grid of a stack: what every slice has to state, tilt, gaps and order, in classic and enhanced files."""

import numpy as np
import pytest
import SimpleITK as sitk

from tests.data.images import ramp, write_series
from tests.data.io.dicom.writers import (
    CT,
    ENHANCED_CT,
    ORIGIN,
    ROTATED,
    SPACING,
    STRAIGHT,
    affine_of,
    assert_volume,
    classic,
    decimals,
    enhanced,
    put,
    read,
    stack,
    write,
    write_kind,
)
from volseg.errors import InputError

ARRAY = ramp()
KINDS = pytest.mark.parametrize("kind", [classic, enhanced])
IMPLICIT = "1.2.840.10008.1.2"


@KINDS
@pytest.mark.parametrize("axes", [STRAIGHT, ROTATED, -ROTATED, np.eye(3)[:, [1, 2]], np.eye(3)[:, [0, 2]] * [1, -1]])
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1), [2, 0, 4, 1, 3]])
def test_slices_are_sorted_by_position_not_by_number(tmp_path, kind, axes, order):
    """Every voxel keeps its position, whatever the order of the files and frames."""
    scan = read(write_kind(tmp_path, kind, ARRAY[..., order], positions=stack(5, axes)[order], axes=axes))
    assert_volume(scan, ARRAY, affine_of(stack(5, axes), axes))


def test_oblique_series_agrees_with_simpleitk(tmp_path):
    normal = np.cross(*ROTATED.T)
    positions = np.array([5.0, -6.0, 7.0]) + 2.5 * np.outer(np.arange(5), normal)
    folder = write_series(tmp_path / "s", ramp(), positions, axes=ROTATED.T)
    scan = read(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(scan.channels[0], sitk.GetArrayFromImage(image).T)
    for index in ((0, 0, 0), (2, 3, 4), (1, 0, 3)):
        lps = image.TransformIndexToPhysicalPoint(index)
        ras = scan.geometry.affine @ [*index, 1]
        np.testing.assert_allclose(ras[:3], (-lps[0], -lps[1], lps[2]), atol=1e-4)
    assert len(scan.warnings) == 1
    assert "oblique" in scan.warnings[0]


NOT_STATED = {
    "PixelSpacing": {
        "absent or empty": [None, "", " "],
        "0\\0": ["0\\0"],
        "nan\\nan": ["nan\\nan", "x\\y", "0,5\\0,75"],
        "0.75": ["0.75"],
        "0.75\\0.5\\3": ["0.75\\0.5\\3"],
        "-0.75\\0.5": ["-0.75\\0.5"],
        "inf\\0.5": ["inf\\0.5", "1e999\\0.5"],
        "nan\\0.5": ["1_0\\0.5", "0.7 5\\0.5", "\\0.5"],
    },
    "ImageOrientationPatient": {
        "lack ImageOrientationPatient": [None, "", "1\\0\\0", "1\\0\\0\\0\\1\\0\\0"],
        "two directions of length 1": [
            "0\\0\\0\\0\\0\\0",
            "nan\\0\\0\\0\\1\\0",
            "1\\0\\0\\0\\2\\0",
            "1\\0\\0\\0\\0\\0",
        ],
        "meet at 63.4 degrees": [decimals((1, 0, 0, 1 / 5**0.5, 2 / 5**0.5, 0))],
        "meet at 0.0 degrees": ["1\\0\\0\\1\\0\\0"],
    },
    "ImagePositionPatient": {
        "lack ImagePositionPatient": [None, ""],
        "is 1\\2, expected 3 numbers": ["1\\2"],
        "is nan\\0\\0": ["nan\\0\\0", "x\\0\\0", "1,5\\0\\0"],
        "is 1\\2\\inf": ["1\\2\\inf"],
        "expected 3 numbers": ["1\\2\\3\\4"],
    },
}
CASES = [
    (name, why, value) for name, all_of in NOT_STATED.items() for why, values in all_of.items() for value in values
]


@KINDS
@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize(("name", "why", "value"), CASES)
def test_what_every_slice_has_to_state(tmp_path, kind, name, why, value, every):
    def change(k, stated):
        if every or k == 2:
            stated[name] = value if kind is enhanced else None
            if kind is classic:
                put(stated, name, value)

    def change_classic(k, data):
        if every or k == 2:
            put(data, name, value)

    folder = write_kind(tmp_path, kind, ARRAY, change=change_classic if kind is classic else change)
    with pytest.raises(InputError) as caught:
        read(folder)
    assert why in str(caught.value)
    assert "copy it again" not in str(caught.value)


@KINDS
def test_detector_spacing_is_no_pixel_spacing(tmp_path, kind):
    folder = write_kind(tmp_path, kind, ARRAY, PixelSpacing=None, ImagerPixelSpacing="0.2\\0.3")
    with pytest.raises(
        InputError, match=r"PixelSpacing is absent .*ImagerPixelSpacing, 0\.2\\0\.3 mm, is the size at the"
    ):
        read(folder)


@KINDS
@pytest.mark.parametrize("syntax", [IMPLICIT, "1.2.840.10008.1.2.1"])
def test_odd_but_valid_numbers(tmp_path, kind, syntax):
    """Blanks, exponents, signs, and more than the 16 characters that the standard allows."""
    made = kind(ARRAY, PixelSpacing=" +7.500000000000000000e-1 \\ 0.5\0")
    for k, data in enumerate(made if isinstance(made, list) else [made]):
        write(data, tmp_path / f"{k}.dcm", syntax=syntax)
    assert_volume(read(tmp_path), ARRAY, affine_of(stack(5)))


def test_values_of_unknown_representation(tmp_path):
    """A tool that does not know an attribute writes it as UN."""
    made = classic(ARRAY)
    for data in made:
        for name, value in (("PixelSpacing", "0.75\\0.5"), ("Rows", b"\4\0"), ("BitsStored", b"\20\0")):
            put(data, name, value, "UN")
    for k, data in enumerate(made):
        write(data, tmp_path / f"{k}.dcm")
    assert_volume(read(tmp_path), ARRAY, affine_of(stack(5)))


@KINDS
@pytest.mark.parametrize(
    ("name", "value"),
    [("ImageOrientationPatient", decimals((1, 0, 0, 0, 0, 1))), ("PixelSpacing", "0.8\\0.5")],
)
def test_slices_that_differ_are_rejected(tmp_path, kind, name, value):
    def change(k, stated):
        if k == 2:
            stated.update({name: value}) if kind is enhanced else put(stated, name, value)

    with pytest.raises(InputError, match="5 images differ in size, pixel spacing or orientation"):
        read(write_kind(tmp_path, kind, ARRAY, change=change))


def test_slices_of_another_size_are_rejected(tmp_path):
    write_kind(tmp_path / "a", classic, ARRAY)
    write_kind(tmp_path / "b", classic, ramp((4, 4, 1)), positions=stack(6)[5:], SOPInstanceUID="1.2.8")
    with pytest.raises(InputError, match="6 images differ in size"):
        read(tmp_path)


@KINDS
def test_tilt(tmp_path, kind):
    positions = stack(5) + np.outer(np.arange(5), [0, 0.5, 0])
    sop_class = CT if kind is classic else ENHANCED_CT
    options = {"RescaleSlope": "1", "RescaleIntercept": "0"}
    folder = write_kind(tmp_path, kind, ARRAY, positions=positions, sop_class=sop_class, **options)
    with pytest.raises(InputError, match=r"stacked 9\.5 degrees off their normal \(gantry tilt\); add --untilt"):
        read(folder)
    scan = read(folder, untilt=True)
    assert_volume(scan, ARRAY, affine_of(positions))
    assert any("The slices are tilted by 9.5 degrees" in warning for warning in scan.warnings)


@KINDS
@pytest.mark.parametrize(("degrees", "accepted"), [(0.4, True), (0.6, False), (1.0, False), (5.0, False)])
def test_tilt_is_accepted_up_to_half_a_degree(tmp_path, kind, degrees, accepted):
    positions = stack(5) + np.outer(np.arange(5), [0, SPACING[2] * np.tan(np.radians(degrees)), 0])
    folder = write_kind(tmp_path, kind, ARRAY, positions=positions)
    if accepted:
        assert_volume(read(folder), ARRAY, affine_of(positions))
    else:
        with pytest.raises(InputError, match=rf"stacked {degrees:.1f} degrees off their normal"):
            read(folder)


@KINDS
@pytest.mark.parametrize(("fraction", "accepted"), [(0.09, True), (0.11, False), (0.33, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_gaps_may_differ_from_the_typical_one_by_a_tenth(tmp_path, kind, fraction, accepted, sign):
    positions = stack(5)
    positions[3:, 2] += sign * fraction * SPACING[2]
    folder = write_kind(tmp_path, kind, ARRAY, positions=positions)
    if accepted:
        assert any("Gaps between slices vary" in warning for warning in read(folder).warnings)
    else:
        with pytest.raises(InputError, match="not evenly spaced"):
            read(folder)


@KINDS
@pytest.mark.parametrize(("fraction", "warned"), [(0.008, False), (0.012, True)])
def test_gaps_that_differ_by_less_than_a_hundredth_are_even(tmp_path, kind, fraction, warned):
    positions = stack(5)
    positions[3:, 2] += fraction * SPACING[2]
    scan = read(write_kind(tmp_path, kind, ARRAY, positions=positions))
    assert any("Gaps between slices vary" in warning for warning in scan.warnings) == warned


@KINDS
def test_a_missing_slice(tmp_path, kind):
    keep = [0, 1, 3, 4]
    folder = write_kind(tmp_path, kind, ARRAY[..., keep], positions=stack(5)[keep])
    with pytest.raises(
        InputError, match=r"the median gap is 3\.00 mm, but 6\.00 mm after slice 2; add the missing slices"
    ):
        read(folder)


@KINDS
@pytest.mark.parametrize("gaps", [[4] * 6 + [7] * 5, [4] * 5 + [7] * 6, [4, 7] * 4, [2.5] * 3 + [5] * 4 + [10] * 3])
def test_slices_uneven_by_design(tmp_path, kind, gaps):
    positions = ORIGIN + np.outer(np.cumsum([0, *gaps]), [0, 0, 1])
    folder = write_kind(tmp_path, kind, ramp((3, 4, len(positions))), positions=positions)
    with pytest.raises(InputError, match="not evenly spaced: gaps of ") as caught:
        read(folder)
    assert "missing" not in str(caught.value)
    for gap in set(gaps):
        assert f"{gap:.2f} mm ({gaps.count(gap)} times)" in str(caught.value)


@KINDS
def test_slightly_uneven_gaps_give_a_warning(tmp_path, kind):
    positions = stack(5)
    positions[2, 2] += 0.1  # gaps 3, 3.1, 2.9, 3
    scan = read(write_kind(tmp_path, kind, ARRAY, positions=positions))
    assert_volume(scan, ARRAY, affine_of(positions))
    assert scan.warnings == ("Gaps between slices vary from 2.900 to 3.100 mm; their mean is used.",)


@KINDS
def test_a_slice_shifted_in_its_plane(tmp_path, kind):
    positions = stack(5)
    positions[2, 0] += 5
    with pytest.raises(InputError, match=r"slice 3 is shifted by 5\.00 mm in its plane"):
        read(write_kind(tmp_path, kind, ARRAY, positions=positions))


@KINDS
def test_two_at_one_position(tmp_path, kind):
    with pytest.raises(InputError, match="5 images lie at 4 positions") as caught:
        read(write_kind(tmp_path, kind, ARRAY, positions=stack(5)[[0, 1, 1, 2, 3]]))
    assert str(tmp_path) in str(caught.value)


@KINDS
def test_a_single_slice_uses_its_thickness(tmp_path, kind):
    folder = write_kind(tmp_path, kind, ARRAY[..., :1])
    scan = read(folder)
    np.testing.assert_allclose(scan.geometry.spacing_mm, (*SPACING[:2], 9))
    warning = (
        "Single slice: 9 mm (SpacingBetweenSlices, else SliceThickness) is used as spacing. If it is one slice of a "
        "series, give its folder."
    )
    assert scan.warnings == (warning,)
    assert read(next(folder.iterdir())).geometry == scan.geometry


@KINDS
@pytest.mark.parametrize(("first", "then", "off"), [(1.985, 2.015, 2.25), (1.9, 2.1, 5.0)])
def test_slices_that_drift_off_the_grid(tmp_path, kind, first, then, off):
    """Each gap alone is nearly even."""
    half = round(off / (2 - first))
    places = np.concatenate([[0], np.cumsum([first] * half + [then] * half)])
    positions = ORIGIN + places[:, None] * [0, 0, 1]
    array = np.arange(6 * len(places), dtype=np.int16).reshape(2, 3, -1)
    with pytest.raises(InputError, match=rf"not evenly spaced: slice {half + 1} lies {off:.2f} mm beside the grid"):
        read(write_kind(tmp_path, kind, array, positions=positions))


@KINDS
def test_slices_a_little_beside_the_grid_give_a_warning(tmp_path, kind):
    places = np.array([0, 2.9, 5.8, 8.9, 12.0])
    scan = read(write_kind(tmp_path, kind, ARRAY, positions=ORIGIN + places[:, None] * [0, 0, 1]))
    assert scan.warnings == ("Gaps between slices vary from 2.900 to 3.100 mm; their mean is used.",)
    uneven = np.array([0, 2.75, 5.5, 8.75, 12.0])
    scan = read(write_kind(tmp_path / "b", kind, ARRAY, positions=ORIGIN + uneven[:, None] * [0, 0, 1]))
    assert "The slices lie up to 0.50 mm beside the evenly spaced grid." in scan.warnings


@KINDS
@pytest.mark.parametrize("value", [None, "", "0", "nan", "-3", "1\\2"])
def test_a_single_slice_without_thickness_is_rejected(tmp_path, kind, value):
    with pytest.raises(InputError, match="single slice has no slice thickness; give the whole series"):
        read(write_kind(tmp_path, kind, ARRAY[..., :1], SliceThickness=value))
