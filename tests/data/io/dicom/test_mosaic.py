"""Siemens mosaics: tiles of one image, whose normal only the private CSA header states."""

import struct

import numpy as np
import pytest

from tests.data.images import ramp
from tests.data.io.dicom.writers import (
    ROTATED,
    SPACING,
    STRAIGHT,
    affine_of,
    assert_volume,
    classic,
    normal_of,
    put,
    read,
    stack,
    write,
    write_all,
)
from volseg.data.io.choice import Choice
from volseg.data.io.dicom.reader import count_volumes
from volseg.errors import InputError

ARRAY = ramp((4, 3, 7))
CORONAL = np.array([[1.0, 0, 0], [0, 0, -1.0]]).T
MOSAIC = "ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC"


def csa(fields):
    """A CSA header of version 2: named tags with items of text, padded to 4 bytes."""
    content = b"SV10\4\3\2\1" + struct.pack("<ii", len(fields), 77)
    for name, values in fields.items():
        content += struct.pack("<64si4siii", name.encode(), len(values), b"FD", 3, 6, 77)
        for at in range(6):
            value = f"{values[at]}".encode() + b"\0" if at < len(values) else b""
            content += struct.pack("<4i", len(value), len(value), 77, len(value))
            content += value + b"\0" * (-len(value) % 4)
    return content


def mosaic(array, axes=STRAIGHT, sign=1, header=True, **attributes):
    """One image of all slices of (I, J, K) as tiles, stacked along the normal of the axes or against it."""
    width, height, count = array.shape
    side = int(np.ceil(np.sqrt(count)))
    tiles = np.zeros((side * width, side * height), array.dtype)
    for k in range(count):
        column, row = k % side * width, k // side * height
        tiles[column : column + width, row : row + height] = array[:, :, k]
    normal = sign * normal_of(axes)
    # The position is that of a slice as large as the mosaic around the centre of the first slice.
    more = (np.array(tiles.shape) - [width, height]) / 2
    position = stack(1)[0] - axes * SPACING[:2] @ more
    stated = {"ImageType": MOSAIC, "SpacingBetweenSlices": str(SPACING[2])} | attributes
    (data,) = classic(tiles[:, :, None], position[None], axes, **stated)
    if header:
        fields = {
            "EchoLinePosition": ["32"],
            "NumberOfImagesInMosaic": [str(count)],
            "SliceNormalVector": [f"{value:.8f}" for value in normal],
        }
        put(data, 0x00290010, "SIEMENS CSA HEADER", "LO")
        put(data, 0x00291010, csa(fields), "OB")
    return data


def truth(axes, sign, count=7):
    return affine_of(stack(1)[0] + sign * SPACING[2] * np.arange(count)[:, None] * normal_of(axes), axes)


@pytest.mark.parametrize("axes", [STRAIGHT, CORONAL, ROTATED])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("count", [7, 9, 10, 1])
def test_a_mosaic_is_unpacked(tmp_path, axes, sign, count):
    array = ramp((4, 3, count))
    scan = read(write(mosaic(array, axes, sign), tmp_path / "a.dcm"))
    assert_volume(scan, array, truth(axes, sign, max(count, 2)))
    assert f"A Siemens mosaic was unpacked into {count} slices." in scan.warnings


@pytest.mark.parametrize("sign", [1, -1])
def test_a_mosaic_is_the_same_volume_as_its_slices(tmp_path, sign):
    positions = stack(1)[0] + sign * SPACING[2] * np.arange(7)[:, None] * normal_of(ROTATED)
    slices = read(write_all(tmp_path / "slices", classic(ARRAY, positions, ROTATED)))
    scan = read(write(mosaic(ARRAY, ROTATED, sign), tmp_path / "a.dcm"))
    order = slice(None, None, sign)
    np.testing.assert_array_equal(scan.channels[0][..., order], slices.channels[0])
    at = np.array([2, 1, 5, 1])
    there = slices.geometry.affine @ [2, 1, 5 if sign == 1 else 1, 1]
    np.testing.assert_allclose(scan.geometry.affine @ at, there, atol=1e-6)


def test_rescaled_mosaic(tmp_path):
    data = mosaic(ARRAY, RescaleSlope="2", RescaleIntercept="-4096")
    assert_volume(read(write(data, tmp_path / "a.dcm")), ARRAY * 2 - 4096)


def test_several_mosaics_are_volumes_by_instance_number(tmp_path):
    made = []
    for k in range(3):
        data = mosaic(ARRAY + 1000 * k, InstanceNumber=str(k + 9))
        data.SOPInstanceUID = f"1.2.3.4.{30 - k}"
        made.append(data)
    folder = write_all(tmp_path, made[::-1])
    with pytest.raises(InputError, match=r"4-D, with 3 volumes \(Siemens mosaics\); choose one with --volume N"):
        read(folder)
    assert count_volumes(folder, Choice()) == 3
    for k in range(3):
        assert_volume(read(folder, volume=k + 1), ARRAY + 1000 * k, truth(STRAIGHT, 1))
    for wrong in (4, 0, -1):
        with pytest.raises(InputError, match="with 3 volumes"):
            read(folder, volume=wrong)


def changed(data, old, new):
    return put(data, 0x00291010, data[0x00291010].value.replace(old, new), "OB")


NOT_STATED = {
    "no header": lambda data: put(data, 0x00291010, None),
    "an empty header": lambda data: put(data, 0x00291010, b"", "OB"),
    "a header of version 1": lambda data: changed(data, b"SV10", b"SV09"),
    "no number": lambda data: changed(data, b"NumberOfImagesInMosaic", b"NumberOfImagesInSomeMos"),
    "no normal": lambda data: changed(data, b"SliceNormalVector", b"SliceNormalVectox"),
    "another normal": lambda data: changed(data, b"1.00000000", b"0.90000000"),
    "a normal of nan": lambda data: changed(data, b"1.00000000", b"nan\0\0\0\0\0\0\0"),
    "a negative number": lambda data: changed(data, b"7\0", b"-7"),
    "a number that fits no square": lambda data: changed(data, b"7\0", b"77"),
    "no distance": lambda data: put(data, "SpacingBetweenSlices", None),
    "a distance of zero": lambda data: put(data, "SpacingBetweenSlices", "0"),
    "a distance of nan": lambda data: put(data, "SpacingBetweenSlices", "nan"),
    "an infinite distance": lambda data: put(data, "SpacingBetweenSlices", "inf"),
}


@pytest.mark.parametrize("name", NOT_STATED)
def test_a_mosaic_that_does_not_state_its_slices(tmp_path, name):
    data = NOT_STATED[name](mosaic(ARRAY))
    with pytest.raises(InputError, match=r"is a Siemens mosaic .* does not state the number, normal and distance"):
        read(write(data, tmp_path / "a.dcm"))


def test_a_csa_header_cut_anywhere_is_rejected(tmp_path):
    content = mosaic(ARRAY)[0x00291010].value
    end = content.index(b"1.00000000") + 10
    for size in range(0, end, 5):
        data = put(mosaic(ARRAY), 0x00291010, content[:size], "OB")
        with pytest.raises(InputError, match="is a Siemens mosaic"):
            read(write(data, tmp_path / "a.dcm"))


def test_more_slices_stated_than_tiles(tmp_path):
    data = changed(mosaic(ARRAY), b"7\0", b"9\0")
    scan = read(write(data, tmp_path / "a.dcm"))
    # Tiles of a 3 x 3 mosaic may all be slices; the last two are empty.
    assert scan.geometry.shape == (4, 3, 9)
    assert not scan.channels[0][..., 7:].any()
