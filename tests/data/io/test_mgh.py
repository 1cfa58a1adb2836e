"""Each field of a FreeSurfer MGH header: absent, nonsense, or in contradiction to the file."""

import gzip
import re
import struct

import nibabel as nib
import numpy as np
import pytest

from tests.data.images import OBLIQUE, orthogonal, ramp
from volseg.data.io.reading import read_scan
from volseg.data.io.writing import write_labels
from volseg.errors import InputError

VOXELS = ramp((5, 4, 6)) - 7
AFFINE = orthogonal(OBLIQUE)
FIELDS = {
    "version": (0, ">i"),
    "dims": (4, ">4i"),
    "type": (20, ">i"),
    "good": (28, ">h"),
    "delta": (30, ">3f"),
    "Mdc": (42, ">9f"),
    "Pxyz_c": (78, ">3f"),
}
NAN = float("nan")


def file_of(folder, gz=False, voxels=VOXELS, **fields):
    """A file of VOXELS with some fields replaced."""
    content = bytearray(nib.MGHImage(voxels, AFFINE).to_bytes())
    for name, value in fields.items():
        at, kind = FIELDS[name]
        struct.pack_into(kind, content, at, *(value if isinstance(value, tuple) else (value,)))
    path = folder / ("a.mgz" if gz else "a.mgh")
    path.write_bytes(gzip.compress(bytes(content)) if gz else content)
    return path


def rejected(path, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read_scan(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "corrupt" not in message


@pytest.mark.parametrize("gz", [False, True])
def test_what_is_stated_is_read(tmp_path, gz):
    scan = read_scan(file_of(tmp_path, gz))
    np.testing.assert_array_equal(scan.channels[0], VOXELS)
    np.testing.assert_allclose(scan.geometry.affine, AFFINE, atol=1e-5)
    assert scan.warnings == ("The image axes are oblique by 20 degrees and are not straightened.",)
    assert scan.unstated == ""


@pytest.mark.parametrize("flag", [0, -1])
@pytest.mark.parametrize("delta", [(1.2, 0.5, 3), (0, NAN, -1)])
@pytest.mark.parametrize("gz", [False, True])
def test_without_good_ras_flag_freesurfers_convention_is_taken(tmp_path, gz, flag, delta):
    scan = read_scan(file_of(tmp_path, gz, good=flag, delta=delta))
    np.testing.assert_array_equal(scan.channels[0], VOXELS)
    # x to the left, y down, z to the front, 1 mm, and the middle of 5 x 4 x 6 voxels at 0.
    expected = [[-1, 0, 0, 2.5], [0, 0, 1, -3], [0, -1, 0, 2], [0, 0, 0, 1]]
    np.testing.assert_allclose(scan.geometry.affine, expected, atol=1e-6)
    assert len(scan.warnings) == 1
    assert "goodRASFlag is not set" in scan.warnings[0]
    assert scan.unstated == "goodRASFlag is not set"
    write_labels(np.ones((5, 4, 6), np.uint8), scan, tmp_path / "seg.mgz")
    np.testing.assert_allclose(nib.load(tmp_path / "seg.mgz").affine, expected, atol=1e-6)


@pytest.mark.parametrize("delta", [(0, 1, 1), (1, NAN, 1), (1, 1, -2), (float("inf"), 1, 1)])
def test_voxel_sizes_that_are_not_positive(tmp_path, delta):
    rejected(file_of(tmp_path, delta=delta), "the voxel sizes (delta) are ")


@pytest.mark.parametrize(
    "directions",
    [
        (1, 0, 0, 0, 1, 0, 0, 0, 0),
        (2, 0, 0, 0, 1, 0, 0, 0, 1),
        (1, 0, 0, 0.1, 0.995, 0, 0, 0, 1),
        (NAN, 0, 0, 0, 1, 0, 0, 0, 1),
        (0,) * 9,
    ],
)
def test_directions_that_are_not_at_right_angles(tmp_path, directions):
    rejected(file_of(tmp_path, Mdc=directions), "the directions of its axes (Mdc) are ")


def test_a_mirrored_image_is_fine(tmp_path):
    affine = np.array(read_scan(file_of(tmp_path, Mdc=(-1, 0, 0, 0, 1, 0, 0, 0, 1))).geometry.affine)
    assert np.linalg.det(affine) < 0


def test_a_centre_that_is_not_a_number(tmp_path):
    rejected(file_of(tmp_path, Pxyz_c=(0, NAN, 0)), "the middle of the image (Pxyz_c) is at [0.0, nan, 0.0]")


@pytest.mark.parametrize("dims", [(0, 4, 6, 1), (5, 4, -6, 1), (5, 4, 6, 0)])
def test_sizes_that_are_not_positive(tmp_path, dims):
    rejected(file_of(tmp_path, dims=dims), f"its size (dims) is {' x '.join(map(str, dims))}, expected positive")


@pytest.mark.parametrize(
    ("kind", "name"), [(2, "MRI_LONG"), (7, "complex"), (9, "RGB colour"), (77, "unknown"), (-1, "unk")]
)
def test_types_that_are_not_read(tmp_path, kind, name):
    rejected(file_of(tmp_path, type=kind), f"the type of its voxels is {kind} ({name}")


@pytest.mark.parametrize(
    ("version", "words"), [(2, "is of version 2 of FreeSurfer's MGH"), (1 << 24, "is not a FreeSurfer")]
)
def test_other_versions(tmp_path, version, words):
    rejected(file_of(tmp_path, version=version), words)


def test_several_frames(tmp_path):
    path = file_of(tmp_path, voxels=ramp((5, 4, 6, 3)))
    rejected(path, "is 4-D (5 x 4 x 6 x 3) with 3 volumes, expected 1; choose one with --volume N")
    np.testing.assert_array_equal(read_scan(path, channels=3).channels[1], ramp((5, 4, 6, 3))[..., 1])


def test_a_size_beyond_the_file(tmp_path):
    for gz in (False, True):
        rejected(file_of(tmp_path, gz, dims=(5, 4, 7, 1)), "is too short: its header declares ")
        rejected(file_of(tmp_path, gz, dims=(2**31 - 1,) * 4), "is too short: its header declares ")


def test_mgz_that_is_not_compressed(tmp_path):
    path = file_of(tmp_path).rename(tmp_path / "b.mgz")
    rejected(path, "is not gzip-compressed despite its suffix .mgz; rename it")


@pytest.mark.parametrize("gz", [False, True])
def test_no_file_that_is_cut_is_read(tmp_path, gz):
    """The bytes after the voxels, which hold the repetition time, may be missing."""
    content = file_of(tmp_path).read_bytes()
    path = tmp_path / ("b.mgz" if gz else "b.mgh")
    last = 284 + VOXELS.nbytes
    for end in np.random.default_rng(3).choice(last, 80, replace=False):
        path.write_bytes(gzip.compress(content[:end]) if gz else content[:end])
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_scan(path)
    path.write_bytes(gzip.compress(content[:last]) if gz else content[:last])
    np.testing.assert_array_equal(read_scan(path).channels[0], VOXELS)
    if gz:
        whole = gzip.compress(content)
        for end in np.random.default_rng(4).choice(len(whole), 40, replace=False):
            path.write_bytes(whole[:end])
            with pytest.raises(InputError, match=re.escape(str(path))):
                read_scan(path)


# What FreeSurfer writes after the voxels: TR, flip angle, TE, TI and the field of view, then tags.
PARAMETERS = struct.pack(">5f", 2300, 0.16, 2.98, 900, 256)
COMMAND = struct.pack(">iq", 3, 14) + b"mri_convert a\0"
TRANSFORM = struct.pack(">iq", 31, 6) + b"a.xfm\0"
TAGS = {
    "none": b"",
    "command": COMMAND,
    "transform": TRANSFORM + COMMAND,
    "long": struct.pack(">iq", 3, 480) + b"x" * 480,
    "old transform": struct.pack(">ii", 30, 6) + b"a.xfm\0",
    "colours": struct.pack(">4i", 1, -2, 14, 8) + b"LUT.txt\0" + bytes(range(200)),
    "old colours": struct.pack(">3i", 1, 14, 8) + b"LUT.txt\0" + bytes(range(200)),
}


def followed(folder, more, gz, dims=(5, 4, 6, 1)):
    """A file of VOXELS with other bytes after them."""
    content = file_of(folder, dims=dims).read_bytes()[: 284 + VOXELS.nbytes] + more
    path = folder / ("b.mgz" if gz else "b.mgh")
    path.write_bytes(gzip.compress(content) if gz else content)
    return path


@pytest.mark.parametrize("gz", [False, True])
class TestTheEnd:
    @pytest.mark.parametrize("name", TAGS)
    def test_parameters_and_tags_are_not_voxels(self, tmp_path, gz, name):
        scan = read_scan(followed(tmp_path, PARAMETERS + TAGS[name], gz))
        np.testing.assert_array_equal(scan.channels[0], VOXELS)
        assert not any("after the voxels" in warning for warning in scan.warnings)

    @pytest.mark.parametrize("more", [bytes(40), bytes(1000), PARAMETERS + b"other", PARAMETERS + bytes(5)])
    def test_zeros_and_other_bytes_are_not_used(self, tmp_path, gz, more):
        scan = read_scan(followed(tmp_path, more, gz))
        np.testing.assert_array_equal(scan.channels[0], VOXELS)
        assert f"{len(more)} bytes after the voxels are not used." in scan.warnings

    @pytest.mark.parametrize("end", [b"", PARAMETERS])
    @pytest.mark.parametrize("dims", [(5, 4, 5, 1), (5, 4, 2, 1), (5, 3, 6, 1), (4, 4, 6, 1), (5, 4, 1, 3)])
    def test_voxels_that_the_header_leaves_out_are_rejected(self, tmp_path, gz, dims, end):
        declared, found = 2 * int(np.prod(dims)), 240 + len(end)
        path = followed(tmp_path, end, gz, dims)
        rejected(path, f"declares {declared} bytes of voxels, found {found}, so its sizes or its type are wrong")

    def test_a_second_volume_that_is_not_declared_is_rejected(self, tmp_path, gz):
        rejected(followed(tmp_path, PARAMETERS + VOXELS.tobytes(), gz), "declares 240 bytes of voxels, found 500")


@pytest.mark.parametrize("more", [b"garbage", b"garbage" * 10])
def test_other_bytes_after_a_gzip_stream_are_named(tmp_path, more):
    path = file_of(tmp_path, True)
    path.write_bytes(path.read_bytes() + more)
    rejected(path, "other bytes follow the end of the gzip stream; remove them")
