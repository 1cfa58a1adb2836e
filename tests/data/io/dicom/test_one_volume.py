"""What differs between the slices of one volume, and what looks like one volume and is none."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.data.images import ramp
from tests.data.io.dicom.writers import (
    affine_of,
    assert_volume,
    classic,
    decimals,
    enhanced,
    put,
    read,
    stack,
    write,
    write_all,
    write_kind,
)
from volseg.errors import InputError

ARRAY = ramp((3, 4, 8))
AFFINE = affine_of(stack(8))
# Slices of 3 mm that fit beside each other.
FITTING = {"SliceThickness": "3"}


def one_series(folder, values, **stated):
    """8 slices of one stack with values of their own by keyword."""

    def change(k, data):
        for name, of_slices in values.items():
            put(data, name, of_slices[k])

    return write_all(folder, classic(ARRAY, change=change, **stated))


RAMP = [f"{20 + k / 2}" for k in range(8)]
# What varies between slices, and what of it is in the warning.
VARYING = {
    "echo time in the last digits": ({"EchoTime": ["2.4649", "2.4651"] * 4}, None),
    "kernel in capitals": ({"ConvolutionKernel": ["B30f", "b30f"] * 4}, None),
    "tube voltage": ({"KVP": ["120", "120.0"] * 4}, None),
    "flip angle": ({"FlipAngle": RAMP}, "Flip angle differs"),
    "flip angle of some": ({"FlipAngle": ["20", "20", "20", "30", "30", "40", "40", "40"]}, "Flip angle differs"),
    "flip angle of one": ({"FlipAngle": ["20"] * 4 + ["25", "30"] + ["20"] * 2}, "Flip angle differs"),
    "inversion time": ({"InversionTime": [f"{900 + 50 * (k * 3 % 8)}" for k in range(8)]}, "Inversion time differs"),
    "series number": ({"SeriesNumber": [f"{k}" for k in range(8)]}, "Series number differs"),
    "frame of reference": ({"FrameOfReferenceUID": ["1.2.9", None] * 4}, "Frame of reference differs"),
    "acquisition": ({"AcquisitionNumber": ["1", "2"] * 4}, "several values of acquisition lie in turn"),
}


# What is never slices of one volume, also where they would make one even stack.
HARD = {
    "image type": {"ImageType": ["ORIGINAL\\PRIMARY", "ORIGINAL\\PRIMARY\\AXIAL"] * 4},
    "stack 1": {"StackID": ["1", "2"] * 4},
    "stack 2": {"StackID": ["1"] * 4 + ["2"] * 4},
    "frame of reference": {"FrameOfReferenceUID": ["1.2.9"] * 4 + ["1.2.8"] * 4},
}


@pytest.mark.parametrize("name", HARD)
def test_what_separates_volumes_even_in_one_even_stack(tmp_path, name):
    with pytest.raises(InputError, match=rf"is 4-D, with 2 volumes .*{name}"):
        read(one_series(tmp_path, HARD[name], **FITTING))


@pytest.mark.parametrize("name", VARYING)
def test_what_varies_between_the_slices_of_one_volume(tmp_path, name):
    values, words = VARYING[name]
    scan = read(one_series(tmp_path, values, **FITTING))
    assert_volume(scan, ARRAY, AFFINE)
    if words is None:
        assert scan.warnings == ()
    else:
        assert any(words in one for one in scan.warnings)


IN_TURN = ["frame of reference", "acquisition"]


@pytest.mark.parametrize("thickness", ["6", None, "0", "1.5"])
@pytest.mark.parametrize("name", IN_TURN)
def test_slices_in_turn_that_do_not_fit_beside_each_other(tmp_path, name, thickness):
    """Two stacks half a slice apart, or of slices whose thickness is unknown."""
    with pytest.raises(InputError, match="4-D, with 2 volumes"):
        read(one_series(tmp_path, VARYING[name][0], SliceThickness=thickness))


def test_a_distance_that_states_less_than_the_thickness(tmp_path):
    """Some scanners state the gap between slices as SpacingBetweenSlices: it tells nothing here."""
    folder = one_series(tmp_path, VARYING["acquisition"][0], SliceThickness="6", SpacingBetweenSlices="0.4")
    with pytest.raises(InputError, match="4-D, with 2 volumes"):
        read(folder)


def test_slices_that_overlap_as_stated(tmp_path):
    folder = one_series(tmp_path, VARYING["acquisition"][0], SliceThickness="5", SpacingBetweenSlices="3")
    assert_volume(read(folder), ARRAY, AFFINE)


def test_soft_differences_at_the_same_places_are_volumes(tmp_path):
    places = np.concatenate([stack(4)] * 2)
    for name in ("FlipAngle", "InversionTime", "StackID", "SeriesNumber", "AcquisitionNumber"):
        made = classic(ARRAY, places, change=lambda k, data, name=name: put(data, name, str(10 + 10 * (k // 4))))
        folder = write_all(tmp_path / name, made)
        assert_volume(read(folder, volume=2), ARRAY[..., 4:], affine_of(stack(4)))
        with pytest.raises(InputError, match="4-D, with 2 volumes"):
            read(folder)


@pytest.mark.parametrize("kind", [classic, enhanced])
def test_stacks_of_two_orientations_are_volumes(tmp_path, kind):
    across = decimals((1, 0, 0, 0, 0, 1))
    places = np.concatenate([stack(4), stack(4) @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])])

    def change(k, stated):
        values = {"StackID": str(1 + k // 4)} | ({"ImageOrientationPatient": across} if k > 3 else {})
        for name, value in values.items():
            put(stated, name, value) if kind is classic else stated.update({name: value})

    folder = write_kind(tmp_path, kind, ARRAY, positions=places, change=change)
    with pytest.raises(InputError, match=r"4-D, with 2 volumes \(1: stack 1, 4 images; 2: stack 2, 4 images"):
        read(folder)
    assert_volume(read(folder, volume=1), ARRAY[..., :4], affine_of(stack(4)))
    assert np.array_equal(np.sort(read(folder, volume=2).channels[0], axis=2), np.sort(ARRAY[..., 4:], axis=2))


def test_stacks_of_one_file_far_apart_are_volumes(tmp_path):
    places = np.concatenate([stack(4), stack(4) + np.array([0, 0, 40])])
    made = classic(ARRAY, places, change=lambda k, data: put(data, "StackID", str(1 + k // 4)), **FITTING)
    assert_volume(read(write_all(tmp_path, made), volume=2), ARRAY[..., 4:], affine_of(places[4:]))


def test_times_that_vary_from_slice_to_slice(tmp_path):
    """3 phases at 4 places: the time of a phase is not the same in all slices."""
    array = ramp((3, 4, 12))

    def change(k, data):
        put(data, "TriggerTime", f"{33.1 * (k % 3) + 0.3 * (k // 3 % 2) * (k % 3):.2f}")

    folder = write_all(tmp_path, classic(array, np.repeat(stack(4), 3, axis=0), change=change))
    with pytest.raises(InputError, match=r"with 3 volumes \(1: trigger time 0, 4 images; 2: trigger time 33.1, 4 im"):
        read(folder)
    for number in (1, 2, 3):
        scan = read(folder, volume=number)
        assert_volume(scan, array[..., number - 1 :: 3], affine_of(stack(4)))
        assert any("Trigger time varies from slice to slice" in one for one in scan.warnings)


@pytest.mark.parametrize("stated", [{"SliceThickness": "1.5"}, {"SliceThickness": "1", "SpacingBetweenSlices": "1.5"}])
def test_gaps_of_twice_the_thickness_are_warned_of(tmp_path, stated):
    scan = read(write_all(tmp_path, classic(ARRAY, **stated)))
    assert_volume(scan, ARRAY, AFFINE)
    assert scan.warnings == ("Gaps of 3 mm, slices are 1.5 mm thick: slices of this volume may be missing.",)


def test_a_volume_with_gaps_that_the_others_have_not(tmp_path):
    places = np.concatenate([stack(4), stack(2, step=9)])
    array = ramp((3, 4, 6))
    made = classic(array, places, change=lambda k, data: put(data, "EchoTime", str(10 + k // 4)), SliceThickness=None)
    folder = write_all(tmp_path, made)
    assert read(folder, volume=1).warnings == ()
    assert read(folder, volume=2).warnings == (
        "Gaps of 9 mm, 3 mm in another volume of the series: slices of this volume may be missing.",
    )


def test_a_volume_of_fewer_slices_than_the_others(tmp_path):
    places = np.concatenate([stack(5), stack(3)])
    folder = write_all(
        tmp_path, classic(ARRAY, places, change=lambda k, data: put(data, "EchoTime", str(9 + k // 5 * 9)))
    )
    assert read(folder, volume=1).warnings == ()
    assert read(folder, volume=2).warnings == (
        "3 images, 5 in another volume of the series: slices of this volume may be missing.",
    )


def test_two_concatenations_at_one_place_are_two_volumes(tmp_path):
    concatenation(tmp_path / "a", (1, 2))
    for k in range(2):
        stated = {"ConcatenationUID": "1.2.8", "InConcatenationNumber": k + 1}
        made = enhanced(ARRAY[..., 2 * k : 2 * k + 2] + 100, stack(8)[2 * k : 2 * k + 2], InstanceNumber="5", **stated)
        made.SOPInstanceUID = f"1.2.3.5.{k}"
        write(made, tmp_path / "b" / f"{k}.dcm")
    for number in (1, 2):
        assert_volume(read(tmp_path, volume=number), ARRAY[..., :4] + 100 * (number - 1), affine_of(stack(4)))


def test_a_rescaling_of_some_slices_is_warned_of(tmp_path):
    slopes = {"RescaleSlope": ["1", None] * 4, "RescaleIntercept": ["-5", None] * 4}
    scan = read(one_series(tmp_path, slopes))
    assert "RescaleSlope/RescaleIntercept is absent in 4 of 8 slices." in scan.warnings
    assert np.array_equal(scan.channels[0][..., 1::2], ARRAY[..., 1::2])


def files(folder, names, stated):
    """Enhanced files at one place, with values by keyword of each."""
    for k, name in enumerate(names):
        made = enhanced(ARRAY + 100 * k, **{keyword: values[k] for keyword, values in stated.items()})
        made.SOPInstanceUID = f"1.2.3.4.{k}"
        write(made, folder / name)
    return folder


ORDERS = {
    "names": {},
    "numbers": {"InstanceNumber": ["3", "20", "100"]},
    "times": {"ContentDate": ["20200101"] * 3, "ContentTime": ["095959.5", "100000", "100001"]},
    "days": {"AcquisitionDateTime": ["20200131235959", "20200201000000.5", "20200201000001"]},
    "times before numbers": {
        "AcquisitionDate": ["20200101"] * 3,
        "AcquisitionTime": ["100000", "100001", "100002.5"],
        "InstanceNumber": ["3", "2", "1"],
    },
}


@pytest.mark.parametrize("name", ORDERS)
def test_volumes_of_several_files_are_ordered_in_time(tmp_path, name):
    names = ["IM2", "IM10", "IM100"] if name == "names" else ["c.dcm", "a.dcm", "b.dcm"]
    folder = files(tmp_path, names, ORDERS[name])
    for number in (1, 2, 3):
        assert_volume(read(folder, volume=number), ARRAY + 100 * (number - 1))


def concatenation(folder, parts, total=None):
    for k, part in enumerate(parts):
        stated = {"ConcatenationUID": "1.2.7", "InConcatenationNumber": part, "InConcatenationTotalNumber": total}
        made = enhanced(ARRAY[..., 2 * k : 2 * k + 2], stack(8)[2 * k : 2 * k + 2], **stated)
        made.SOPInstanceUID = f"1.2.3.4.{k}"
        write(made, folder / f"{k}.dcm")
    return folder


@pytest.mark.parametrize("total", [None, 2])
@pytest.mark.parametrize("parts", [(1, 3), (1, 1), (0, 1), (2, 3), (None, 2)])
def test_parts_of_a_concatenation_that_are_not_all(tmp_path, parts, total):
    with pytest.raises(InputError, match=r"have InConcatenationNumber \d, \d, expected 1, 2, 3 and so on"):
        read(concatenation(tmp_path, parts, total))


def test_a_second_part_alone(tmp_path):
    with pytest.raises(InputError, match="have InConcatenationNumber 2, expected"):
        read(concatenation(tmp_path, (2,)))


def test_a_concatenation_of_unknown_length(tmp_path):
    scan = read(concatenation(tmp_path, (1, 2)))
    assert_volume(scan, ARRAY[..., :4], affine_of(stack(4)))
    assert scan.warnings[0].startswith("Nothing states how many files the volume has")


def dimensions(folder, index, pointer=0x00189074, positions=None):
    made = enhanced(
        ARRAY,
        positions,
        change=lambda k, stated: stated.update(DimensionIndexValues=np.array(index(k), "<u4").tobytes()),
    )
    named = [put(Dataset(), "DimensionIndexPointer", one) for one in (0x00209057, pointer)]
    made.DimensionIndexSequence = Sequence(named)
    return write(made, folder / "a.dcm")


@pytest.mark.parametrize("pointer", [0x00189074, 0x00200013, 0x00209156])
def test_a_dimension_that_counts_the_slices_anew(tmp_path, pointer):
    scan = read(dimensions(tmp_path, lambda k: (k + 1, 8 - k), pointer))
    assert_volume(scan, ARRAY, AFFINE)
    assert scan.warnings == ()


def test_a_dimension_that_counts_places_where_images_repeat(tmp_path):
    file = dimensions(tmp_path, lambda k: (1, k % 4 + 1), 0x00200013, np.tile(stack(4), (2, 1)))
    with pytest.raises(InputError, match="8 images lie at 4 positions"):
        read(file)


def test_a_dimension_that_counts_all_frames_orders_them_in_time(tmp_path):
    file = dimensions(tmp_path, lambda k: (1, k + 1), positions=np.tile(stack(4), (2, 1)))
    for number in (1, 2):
        assert_volume(read(file, volume=number), ARRAY[..., 4 * number - 4 : 4 * number], affine_of(stack(4)))


# Elements in blocks of their creators, and of others.
PRIVATE = {
    "Siemens": (0x0019, "SIEMENS MR HEADER", 0x0C, "IS"),
    "Philips": (0x2001, "Philips Imaging DD 001", 0x03, "FL"),
    "GE": (0x0043, "GEMS_PARM_01", 0x39, "IS"),
}


@pytest.mark.parametrize("block", [0x10, 0x11, 0xE0])
@pytest.mark.parametrize("maker", PRIVATE)
def test_private_b_values_in_the_block_of_their_creator(tmp_path, maker, block):
    group, creator, at, kind = PRIVATE[maker]

    def change(k, data, of=creator):
        value = np.float32(1000 * (k // 4)).tobytes() if kind == "FL" else f"{1000 * (k // 4)}\\{k}"
        put(data, group << 16 | block, of, "LO")
        put(data, group << 16 | block << 8 | at, value if maker != "Siemens" else value.split("\\")[0], kind)

    made = classic(ARRAY, np.concatenate([stack(4)] * 2), change=change)
    folder = write_all(tmp_path / "made", made)
    with pytest.raises(InputError, match=rf"with 2 volumes \(1: {maker} b value 0, 4 images; 2: {maker} b value 1000"):
        read(folder)
    other = classic(ARRAY, change=lambda k, data: change(k, data, "SOMEBODY ELSE"))
    scan = read(write_all(tmp_path / "other", other))
    assert_volume(scan, ARRAY, AFFINE)
    assert scan.warnings == ()


def test_one_slice_in_two_exports(tmp_path):
    made = classic(ARRAY)
    folder = write_all(tmp_path, made)
    for k in (1, 4):
        write(put(made[k], "InstitutionName", "Exported again"), folder / f"again{k}.dcm")
    scan = read(folder)
    assert_volume(scan, ARRAY, AFFINE)
    assert scan.warnings == ("2 images are there twice (same SOPInstanceUID, place and pixels); each is used once.",)
    write(put(made[2], "ImagePositionPatient", "0\\0\\99"), folder / "moved.dcm")
    with pytest.raises(InputError, match=r"shifted|not evenly spaced"):
        read(folder)
