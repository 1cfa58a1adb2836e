"""DICOM series: sorted by position, with the true geometry, or rejected with a stated reason."""

import os
import struct
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk

from tests.data.images import ramp, write_series
from volseg.data.io.dicom import series as dicom
from volseg.data.io.reading import read_scan
from volseg.errors import InputError, ResourceError

K = np.arange(5)
STACK = np.stack([np.full(5, -10.0), np.full(5, 20.0), 3.0 * K - 30], axis=1)
# Row and column directions of a plane rotated about two axes, at right angles.
ROTATED = np.array([[0.96, 0.28, 0.0], [-0.28 * 0.8, 0.96 * 0.8, 0.6]])


def test_series_with_its_geometry(tmp_path):
    array = ramp()
    scan = read_scan(write_series(tmp_path / "s", array, STACK))
    # LPS+ positions and axes, the first two negated to RAS+.
    expected = [[-0.5, 0, 0, 10], [0, -0.75, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]]
    np.testing.assert_allclose(scan.geometry.affine, expected, atol=1e-9)
    np.testing.assert_array_equal(scan.channels[0], array)
    assert scan.channels[0].dtype == np.int16
    assert scan.warnings == ()
    assert scan.header is None


def test_slices_are_sorted_by_position_not_by_number(tmp_path):
    """Slices numbered from the top are reversed together with their affine: every voxel keeps its position."""
    array = ramp()
    scan = read_scan(write_series(tmp_path / "s", array, STACK[::-1]))
    np.testing.assert_array_equal(scan.channels[0], array[:, :, ::-1])
    np.testing.assert_allclose(scan.geometry.affine[:3, 2:].T, [[0, 0, 3], [10, -20, -30]], atol=1e-9)


def test_oblique_series_agrees_with_simpleitk(tmp_path):
    normal = np.cross(*ROTATED)
    positions = np.array([5.0, -6.0, 7.0]) + 2.5 * np.outer(K, normal)
    folder = write_series(tmp_path / "s", ramp(), positions, axes=ROTATED)
    scan = read_scan(folder)
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


def test_other_files_are_skipped(tmp_path):
    folder = write_series(tmp_path / "s" / "deep", ramp(), STACK)
    (tmp_path / "s" / "README.txt").write_text("notes")
    (tmp_path / "s" / "._000.dcm").write_bytes(b"\0\5\x16\7" * 50)
    assert read_scan(tmp_path / "s").geometry == read_scan(folder).geometry


def test_computed_tomography_is_int16_in_hounsfield_units(tmp_path):
    """GDCM stores values minus their intercept, and returns them rescaled, in 32 bits."""
    array = ramp() - 1000
    folder = write_series(
        tmp_path / "s",
        array,
        STACK,
        **{"0028_1052": "-1024", "0028_1053": "1", "0008_0016": "1.2.840.10008.5.1.4.1.1.2"},
    )
    scan = read_scan(folder)
    assert scan.channels[0].dtype == np.int16
    np.testing.assert_array_equal(scan.channels[0], array)
    assert sitk.ReadImage(str(next(folder.iterdir()))).GetPixelID() == sitk.sitkInt32


def without(folder, *tags):
    """Rename tags (group, element) that GDCM always writes to meaningless ones."""
    for file in folder.iterdir():
        content = file.read_bytes()
        for group, element in tags:
            tag = bytes([group, 0, element, 0])
            assert tag in content
            content = content.replace(tag, bytes([group, 0, element + 1, 0]))
        file.write_bytes(content)
    return folder


SPACING_BETWEEN, THICKNESS, POSITION = (0x18, 0x88), (0x18, 0x50), (0x20, 0x32)


def test_series_of_one_slice_uses_its_thickness(tmp_path):
    scan = read_scan(without(write_series(tmp_path / "s", ramp((3, 4, 1)), STACK[:1]), SPACING_BETWEEN))
    np.testing.assert_allclose(scan.geometry.spacing_mm, (0.5, 0.75, 9.0))
    assert scan.warnings == ("Single slice: its thickness is used as spacing.",)
    file = next((tmp_path / "s").iterdir())
    assert read_scan(file).geometry == scan.geometry


def test_slice_without_thickness_is_rejected(tmp_path):
    with pytest.raises(InputError, match="single slice has no slice thickness; give the whole series"):
        read_scan(without(write_series(tmp_path / "s", ramp((3, 4, 1)), STACK[:1]), SPACING_BETWEEN, THICKNESS))


def test_slightly_uneven_gaps_give_a_warning(tmp_path):
    positions = STACK.copy()
    positions[2, 2] += 0.1  # gaps 3, 3.1, 2.9, 3
    scan = read_scan(write_series(tmp_path / "s", ramp(), positions))
    assert scan.geometry.spacing_mm[2] == pytest.approx(3.0)
    assert scan.warnings == ("Gaps between slices vary from 2.900 to 3.100 mm; their mean is used.",)


REJECTED = {
    "missing slice": (STACK[[0, 1, 3, 4]], "the median gap is 3.00 mm, but 6.00 mm after slice 2; add the missing"),
    "two at one position": (STACK[[0, 1, 1, 2, 3]], "5 images lie at 4 positions"),
    "gantry tilt": (STACK + np.outer(K, [0, 0.5, 0]), r"9.5 degrees off their normal \(gantry tilt\)"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_series(tmp_path, name):
    positions, message = REJECTED[name]
    with pytest.raises(InputError, match=message) as caught:
        read_scan(write_series(tmp_path / "s", ramp((3, 4, len(positions))), positions))
    assert str(tmp_path / "s") in str(caught.value)


def test_series_without_positions_is_rejected(tmp_path):
    with pytest.raises(InputError, match="slices lack ImagePositionPatient or ImageOrientationPatient"):
        read_scan(without(write_series(tmp_path / "s", ramp(), STACK), POSITION))


def test_several_series_are_listed_without_patient_data(tmp_path):
    write_series(tmp_path / "s", ramp(), STACK)
    write_series(tmp_path / "s", ramp((6, 4, 2)), STACK[:2], series="1.2.3.5", **{"0020_0011": "8"})
    with pytest.raises(InputError, match="2 DICOM series") as caught:
        read_scan(tmp_path / "s")
    assert "number 7: MR, 5 images of 3 x 4; number 8: MR, 2 images of 6 x 4" in str(caught.value)
    assert "Secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "axes"), [(ramp((4, 4, 1)), ((1, 0, 0), (0, 1, 0))), (ramp((3, 4, 1)), ((1, 0, 0), (0, 0, -1)))]
)
def test_images_that_differ_are_rejected(tmp_path, array, axes):
    write_series(tmp_path / "s", ramp(), STACK)
    write_series(tmp_path / "s", array, STACK[:1] - 9, axes=axes, first=5)
    with pytest.raises(InputError, match="6 images differ in size, pixel spacing or orientation"):
        read_scan(tmp_path / "s")


def test_folder_without_dicom_is_rejected(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="contains no DICOM images"):
        read_scan(tmp_path)


def test_corrupt_pixels_are_rejected(tmp_path):
    folder = write_series(tmp_path / "s", ramp((32, 32, 5)), STACK)
    file = sorted(folder.iterdir())[2]
    file.write_bytes(file.read_bytes()[:-900])
    with pytest.raises(InputError):
        read_scan(folder)


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, prefix + file.name)
    return path


MR, REPORT = b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008.5.1.4.1.1.88.11"


def element(group, number, kind, value):
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def without_pixels(sop_class):
    """A whole DICOM file of some class without pixels."""
    meta = (
        element(2, 2, b"UI", sop_class) + element(2, 3, b"UI", b"1.2.9") + element(2, 16, b"UI", b"1.2.840.10008.1.2.1")
    )
    data = (
        element(8, 0x16, b"UI", sop_class) + element(8, 0x18, b"UI", b"1.2.9") + element(0x20, 0xE, b"UI", b"1.2.3.9")
    )
    return bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + data


CORRUPTIONS = {
    "first slice without pixels": (0, lambda content: content[:600]),
    "last slice cut in its pixels": (4, lambda content: content[:-100]),
    "slice in the middle cut in its pixels": (2, lambda content: content[:-100]),
    "cut in the header of the file": (0, lambda content: content[:150]),
    "cut before the magic": (4, lambda content: content[:100]),
    "empty": (0, lambda content: b""),
    "zeros": (0, lambda content: bytes(len(content))),
    "another file": (0, lambda content: b"<html>not found</html>"),
    "pixels left out": (0, lambda content: without_pixels(MR)),
}


def in_order(folder):
    """The files of a series as `write_series` stacked them."""
    return sorted(folder.iterdir(), key=lambda file: int(file.name[8:10]) * 9 % 31)


@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupt_slices_are_named(tmp_path, name, in_zip):
    """Without its last slice a volume still looks complete, so no slice is skipped."""
    folder = write_series(tmp_path / "s", ramp((32, 32, 5)), STACK)
    index, corrupt = CORRUPTIONS[name]
    file = in_order(folder)[index]
    file.write_bytes(corrupt(file.read_bytes()))
    given = zipped(folder, tmp_path / "s.zip", "study/") if in_zip else folder
    with pytest.raises(InputError) as caught:
        read_scan(given)
    assert str(caught.value) == (
        f"{given}: 1 DICOM files cannot be read (corrupt, truncated or unsupported compression: "
        f"{'study/' if in_zip else ''}{file.name}); copy them again, or remove files that are not slices."
    )


def test_many_corrupt_slices_are_counted(tmp_path):
    folder = write_series(tmp_path / "s", ramp((32, 32, 7)), np.outer(np.arange(7), (0, 0, 3)))
    files = sorted(folder.iterdir())
    for file in files[:6]:
        file.write_bytes(b"")
    named = ", ".join(file.name for file in files[:5])
    with pytest.raises(InputError, match=rf": 6 DICOM files .*: {named} and 1 more\); copy them again"):
        read_scan(folder)


@pytest.mark.parametrize("names", [[f"IM{k:04}" for k in range(5)], [f"1.2.840.{k}" for k in range(5)]])
@pytest.mark.parametrize("left", [0, 100])
def test_corrupt_slices_without_a_suffix_are_named(tmp_path, names, left):
    folder = write_series(tmp_path / "s", ramp(), STACK)
    for file, name in zip(in_order(folder), names, strict=True):
        file.rename(folder / name)
    (folder / "README").write_text("notes")
    (folder / "notes.txt").touch()
    assert read_scan(folder).geometry.shape == (3, 4, 5)
    (folder / names[4]).write_bytes((folder / names[4]).read_bytes()[:left])
    with pytest.raises(InputError, match=rf": 1 DICOM files cannot be read .*: {names[4]}\)"):
        read_scan(folder)


def test_other_objects_than_images_are_skipped(tmp_path):
    folder = write_series(tmp_path / "s", ramp(), STACK)
    (folder / "report.dcm").write_bytes(without_pixels(REPORT))
    (folder / "DICOMDIR").write_bytes(without_pixels(b"1.2.840.10008.1.3.10"))
    (folder / "thumbnail.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    np.testing.assert_array_equal(read_scan(folder).channels[0], ramp())


@pytest.mark.parametrize("content", [without_pixels(REPORT), without_pixels(MR), b""])
def test_a_lone_file_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "a.dcm"
    file.write_bytes(content)
    for given in (file, tmp_path):
        with pytest.raises(InputError) as caught:
            read_scan(given)
        assert str(caught.value) == (
            f"{given} contains no readable DICOM images (corrupt, truncated, unsupported compression or not an image: "
            "a.dcm); copy them again, or give the folder of one DICOM series."
        )


def test_a_broken_link_to_a_slice_is_reported(tmp_path):
    folder = write_series(tmp_path / "s", ramp(), STACK)
    lost = in_order(folder)[4]
    lost.unlink()
    lost.symlink_to(tmp_path / "lost")
    with pytest.raises(InputError) as caught:
        read_scan(folder)
    assert str(caught.value) == (
        f"{lost} cannot be read: No such file or directory; check its name, its permissions and its disk."
    )


def test_an_unreadable_folder_of_slices_is_reported(tmp_path, monkeypatch):
    write_series(tmp_path / "s" / "a", ramp(), STACK)
    closed = write_series(tmp_path / "s" / "b", ramp(), STACK + np.array([0, 0, 15]), first=5)
    scandir = os.scandir

    def refuse(folder):
        if str(folder) == str(closed):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=rf"{closed} cannot be read: Permission denied; check its name"):
        read_scan(tmp_path / "s")


@pytest.mark.parametrize("prefix", ["", "study/series/", "../../outside/", "/outside/"])
def test_zip_is_read_wherever_its_names_point(tmp_path, prefix):
    folder = write_series(tmp_path / "s", ramp(), STACK)
    scan = read_scan(zipped(folder, tmp_path / "a.zip", prefix))
    np.testing.assert_array_equal(scan.channels[0], ramp())
    assert scan.geometry == read_scan(folder).geometry
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "s"]
    assert not (tmp_path.parent.parent / "outside").exists()


def test_zip_above_the_limit_is_rejected(tmp_path, monkeypatch):
    path = zipped(write_series(tmp_path / "s", ramp(), STACK), tmp_path / "a.zip")
    monkeypatch.setattr(dicom, "LARGEST_ZIP_BYTES", 1000)
    with pytest.raises(InputError, match=r"unpacks to 0\.0 GiB, at most 0\.0 are accepted"):
        read_scan(path)


def test_corrupt_zip_is_rejected(tmp_path):
    path = zipped(write_series(tmp_path / "s", ramp(), STACK), tmp_path / "a.zip")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"is not a readable \.zip file"):
        read_scan(path)


def test_full_temporary_folder_is_reported(tmp_path, monkeypatch):
    path = zipped(write_series(tmp_path / "s", ramp(), STACK), tmp_path / "a.zip")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dicom, "copyfileobj", full)
    with pytest.raises(ResourceError, match="No space left"):
        read_scan(path)


@pytest.mark.needs_data
class TestReal:
    def test_hippocampus_series(self, data_folder):
        scan = read_scan(data_folder / "wild" / "mr_hippocampus_series")
        assert scan.geometry.shape == (35, 51, 32)
        assert scan.geometry.spacing_mm == (1.0, 1.0, 1.0)
        assert scan.channels[0].dtype == np.int16
        assert scan.warnings == ()

    def test_zip_spacing_comes_from_positions(self, data_folder):
        """The slices are 5 mm thick and 6.5 mm apart."""
        scan = read_scan(data_folder / "wild" / "mr_oblique_5mm_series.zip")
        assert scan.geometry.shape == (512, 512, 22)
        np.testing.assert_allclose(scan.geometry.spacing_mm, (0.4297, 0.4297, 6.5), atol=1e-4)
        assert scan.warnings == ("The image axes are oblique by 16 degrees and are not straightened.",)

    def test_ct(self, data_folder):
        scan = read_scan(data_folder / "wild" / "ct_3slice_series")
        np.testing.assert_allclose(scan.geometry.spacing_mm, (0.810547, 0.810547, 1.0), atol=1e-6)
        assert scan.geometry.axis_codes == "LPS"
        assert scan.channels[0].dtype == np.int16
        assert scan.channels[0].min() == -3024

    def test_multiframe(self, data_folder):
        scan = read_scan(data_folder / "wild" / "enh.dcm")
        assert scan.geometry.shape == (64, 64, 6)
        np.testing.assert_allclose(scan.geometry.spacing_mm, (3.375, 3.375, 2.4), atol=1e-6)
        # The first frame's ImagePositionPatient, in RAS+.
        np.testing.assert_allclose(scan.geometry.affine[:3, 3], (109.79, 58.4773, -5.40356), atol=1e-4)
        assert scan.warnings == ("Multi-frame DICOM: the frames are read as one evenly spaced stack.",)

    def test_multiframe_with_uneven_positions_is_rejected(self, data_folder, tmp_path):
        content = (data_folder / "wild" / "enh.dcm").read_bytes()
        content = content.replace(b"-109.79\\-58.4774\\1.79644", b"-109.79\\-58.4774\\2.79644")
        (tmp_path / "uneven.dcm").write_bytes(content)
        with pytest.raises(InputError, match="the frame positions cannot be determined"):
            read_scan(tmp_path / "uneven.dcm")
