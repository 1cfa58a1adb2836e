"""Which files are slices: folders, links, names, .zip, DICOMDIR, corrupt files and other objects."""

import os
import zipfile

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.data.images import ramp
from tests.data.io.dicom.writers import (
    CT,
    affine_of,
    assert_volume,
    classic,
    enhanced,
    put,
    read,
    stack,
    write,
    write_all,
)
from volseg.data.io.dicom import files
from volseg.errors import InputError, ResourceError

ARRAY = ramp()
AFFINE = affine_of(stack(5))
REPORT, SEGMENTATION, STRUCTURES, STATE, KEYS = (
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("88.11", "66.4", "481.3", "11.1", "88.59")
)


def series(folder, array=ARRAY, **options):
    return write_all(folder, classic(array, **options))


def in_order(folder):
    """The files of a series as they are stacked."""
    return sorted(folder.iterdir(), key=lambda file: file.stem.split("-")[-1])


def without_pixels(path, sop_class):
    """A whole DICOM file of some class without pixels."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = sop_class, "1.2.9", "1.2.3.9"
    return write(data, path)


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, prefix + file.name)
    return path


def test_a_series_with_its_geometry(tmp_path):
    scan = read(series(tmp_path / "s"))
    # LPS+ positions and axes, the first two negated to RAS+.
    expected = [[-0.5, 0, 0, 10], [0, -0.75, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]]
    assert_volume(scan, ARRAY, expected)
    assert scan.channels[0].dtype == np.int16
    assert scan.warnings == ()
    assert scan.header is None


def test_other_files_are_skipped(tmp_path):
    series(tmp_path / "s" / "deep")
    (tmp_path / "s" / "README.txt").write_text("notes")
    (tmp_path / "s" / "._000.dcm").write_bytes(b"\0\5\x16\7" * 50)
    assert_volume(read(tmp_path / "s"), ARRAY, AFFINE)


def test_one_series_in_several_folders(tmp_path):
    made = classic(ARRAY)
    write_all(tmp_path / "s" / "a", made[::2])
    write_all(tmp_path / "s" / "b" / "c", made[1::2])
    assert_volume(read(tmp_path / "s"), ARRAY, AFFINE)


def test_linked_folders_are_read_once(tmp_path):
    made = classic(ARRAY)
    write_all(tmp_path / "s", made[:3])
    write_all(tmp_path / "rest", made[3:])
    (tmp_path / "s" / "rest").symlink_to(tmp_path / "rest")
    (tmp_path / "s" / "again").symlink_to(tmp_path / "rest")
    (tmp_path / "s" / "loop").symlink_to(tmp_path / "s")
    (tmp_path / "rest" / "up").symlink_to(tmp_path)
    assert_volume(read(tmp_path / "s"), ARRAY, AFFINE)


@pytest.mark.parametrize("names", [[f"IM{k:04}" for k in range(5)], [f"1.2.840.{k}" for k in range(5)]])
@pytest.mark.parametrize("left", [None, 0, 100])
def test_names_without_a_suffix(tmp_path, names, left):
    folder = series(tmp_path / "s")
    for file, name in zip(in_order(folder), names, strict=True):
        file.rename(folder / name)
    (folder / "README").write_text("notes")
    (folder / "notes.txt").touch()
    if left is None:
        assert_volume(read(folder), ARRAY, AFFINE)
        return
    (folder / names[4]).write_bytes((folder / names[4]).read_bytes()[:left])
    with pytest.raises(InputError, match=r": 1 DICOM files cannot be read: file 5 of 7 by name \(it is empty\)"):
        read(folder)


def test_names_that_are_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    series(folder)
    for file in list(folder.iterdir()):
        file.rename(folder / os.fsdecode(b"\xfc" + file.name.encode()))
    assert_volume(read(folder), ARRAY, AFFINE)
    in_order(folder)[2].write_bytes(b"")
    with pytest.raises(InputError, match="it is empty"):
        read(folder)


LAST, HEADER = "it ends before its pixels, or has none", "its header is cut short or corrupt"
CORRUPTIONS = {
    "without pixels": (0, lambda content: content[:600], LAST),
    "cut in the file's own header": (0, lambda content: content[:150], LAST),
    "cut in its class": (4, lambda content: content[:190], LAST),
    "cut before the magic": (4, lambda content: content[:100], "it is empty"),
    "empty": (0, lambda content: b"", "it is empty"),
    "zeros": (0, lambda content: bytes(len(content)), "it is empty"),
    "another file": (0, lambda content: b"<html>not found</html>", "it does not begin as DICOM"),
}


@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupt_slices_are_named(tmp_path, name, in_zip):
    """Without its last slice a volume still looks complete, so no slice is skipped."""
    folder = series(tmp_path / "s")
    index, corrupt, reason = CORRUPTIONS[name]
    file = in_order(folder)[index]
    file.write_bytes(corrupt(file.read_bytes()))
    given = zipped(folder, tmp_path / "s.zip", "study/") if in_zip else folder
    with pytest.raises(InputError) as caught:
        read(given)
    assert str(caught.value) == (
        f"{given}: 1 DICOM files cannot be read: file {index + 1} of 5 by name ({reason}); copy them again, "
        "or remove files that are not slices."
    )


@pytest.mark.parametrize("kind", [classic, enhanced])
def test_a_file_cut_at_any_byte_is_never_another_volume(tmp_path, kind):
    array = ramp((2, 2, 3))
    made = kind(array, RescaleSlope="2", RescaleIntercept="-7")
    folder = write_all(tmp_path / "s", made if isinstance(made, list) else [made])
    file = in_order(folder)[-1]
    content = file.read_bytes()
    for size in range(len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(InputError):
            read(folder)
    file.write_bytes(content)
    assert_volume(read(folder), array * 2 - 7)


@pytest.mark.parametrize("in_zip", [False, True])
def test_files_count_by_the_numbers_in_their_names_and_debugging_shows_these(tmp_path, caplog, in_zip):
    folder = series(tmp_path / "s")
    for k, file in enumerate(in_order(folder)):
        file.rename(folder / f"DOE_{8 + k}.dcm")
    (folder / "DOE_10.dcm").write_bytes(b"")
    given = zipped(folder, tmp_path / "s.zip") if in_zip else folder
    with pytest.raises(InputError, match=r"file 3 of 5 by name \(it is empty\)"):
        read(given)
    with caplog.at_level("DEBUG", "volseg"), pytest.raises(InputError, match=r"DOE_10\.dcm \(it is empty\)"):
        read(given)


def test_temporary_files_of_a_zip_have_neutral_names(tmp_path):
    folder = series(tmp_path / "s")
    for k, file in enumerate(in_order(folder)):
        file.rename(folder / f"DOE{k}.JANE")
    (folder / "x.DOE").touch()
    with files.files_of(zipped(folder, tmp_path / "s.zip")) as names:
        assert sorted(file.name for file in names) == [*(f"{k:06}.kind0" for k in range(5)), "000005.kind1"]
        assert sorted(names.values()) == [f"file {number} of 6 by name" for number in range(1, 7)]


def test_many_corrupt_slices_are_counted(tmp_path):
    folder = series(tmp_path / "s", ramp((3, 4, 7)))
    named = sorted(folder.iterdir())[:6]
    for file in named:
        file.write_bytes(b"")
    listed = ", ".join(f"file {number} of 7 by name \\(it is empty\\)" for number in range(1, 6))
    with pytest.raises(InputError, match=f": 6 DICOM files cannot be read: {listed} and 1 more; copy them again"):
        read(folder)


def test_other_objects_are_passed_over_by_name(tmp_path):
    folder = series(tmp_path / "s", sop_class=CT, RescaleSlope="1", RescaleIntercept="-1024")
    for sop_class in (REPORT, SEGMENTATION, STRUCTURES, STATE, KEYS, KEYS):
        without_pixels(folder / f"{len(list(folder.iterdir()))}.dcm", sop_class)
    without_pixels(folder / "DICOMDIR", "1.2.840.10008.1.3.10")
    (folder / "thumbnail.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    scan = read(folder)
    assert_volume(scan, ARRAY - 1024, AFFINE)
    (warning,) = scan.warnings
    assert warning.startswith("Passed over, because they are no scans: ")
    for name in ("1 Segmentation", "1 RT Structure Set", "1 Basic Text SR", "2 Key Object Selection Document"):
        assert name in warning
    assert "DICOMDIR" not in warning


def test_an_object_that_cannot_be_read_is_passed_over_by_name(tmp_path):
    """A spectrum has no pixels; a file of a class of DICOM that is not that of the slices is no lost slice."""
    folder = series(tmp_path / "s")
    without_pixels(folder / "spectrum.dcm", "1.2.840.10008.5.1.4.1.1.4.2")
    without_pixels(folder / "private.dcm", "1.3.12.2.1107.5.9.1")
    scan = read(folder)
    assert_volume(scan, ARRAY, AFFINE)
    assert "1 MR Spectroscopy" in scan.warnings[0]


@pytest.mark.parametrize(("sop_class", "name"), [(SEGMENTATION, "Segmentation"), (REPORT, "Basic Text SR")])
def test_a_lone_object_is_rejected_by_name(tmp_path, sop_class, name):
    file = without_pixels(tmp_path / "a.dcm", sop_class)
    for given in (file, tmp_path):
        with pytest.raises(InputError) as caught:
            read(given)
        assert str(caught.value) == (
            f"{given} contains no scan but DICOM of another kind ({name}); give the folder of the series that it "
            "belongs to."
        )


@pytest.mark.parametrize("empty", [False, True])
def test_a_lone_file_that_cannot_be_read_is_named(tmp_path, empty):
    file = without_pixels(tmp_path / "a.dcm", CT)
    if empty:
        file.write_bytes(b"")
    for given, name in ((file, "a.dcm"), (tmp_path, "file 1 of 1 by name")):
        with pytest.raises(InputError) as caught:
            read(given)
        assert str(caught.value) == (
            f"{given} contains no readable DICOM images: {name} ({'it is empty' if empty else LAST}); copy them again, "
            "or give the folder of one DICOM series."
        )


def test_folder_without_dicom_is_rejected(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="contains no DICOM images"):
        read(tmp_path)


def test_a_broken_link_to_a_slice_is_reported(tmp_path):
    folder = series(tmp_path / "s")
    lost = in_order(folder)[4]
    lost.unlink()
    lost.symlink_to(tmp_path / "lost")
    with pytest.raises(InputError) as caught:
        read(folder)
    assert str(caught.value) == (
        f"{folder}: file 5 of 5 by name cannot be read: No such file or directory; check its name, its permissions and "
        "its disk."
    )


def test_a_pipe_among_slices_is_not_waited_for(tmp_path):
    folder = series(tmp_path / "s")
    os.mkfifo(folder / "a.dcm")
    assert_volume(read(folder), ARRAY, AFFINE)
    (folder / "z.dcm").symlink_to(folder / "a.dcm")
    with pytest.raises(InputError) as caught:
        read(folder)
    assert str(caught.value) == (
        f"{folder}: file 6 of 6 by name cannot be read: It is not a regular file; check its name, its permissions and "
        "its disk."
    )


def test_an_unreadable_folder_of_slices_is_reported(tmp_path, monkeypatch):
    made = classic(ARRAY)
    write_all(tmp_path / "s" / "a", made[:3])
    closed = write_all(tmp_path / "s" / "b", made[3:])
    scandir = os.scandir

    def refuse(folder):
        if str(folder) == str(closed):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"A file or folder in .*/s cannot be read: Permission denied; check"):
        read(tmp_path / "s")


@pytest.mark.parametrize("prefix", ["", "study/series/", "../../outside/", "/outside/"])
def test_zip_is_read_wherever_its_names_point(tmp_path, prefix):
    folder = series(tmp_path / "s")
    assert_volume(read(zipped(folder, tmp_path / "a.zip", prefix)), ARRAY, AFFINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "s"]
    assert not (tmp_path.parent.parent / "outside").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_equal_names_in_a_zip_are_different_files(tmp_path):
    """Each slice has its own signedness."""
    made = classic(ARRAY, change=lambda k, data: put(data, "PixelRepresentation", k % 2))
    for k, data in enumerate(made):
        put(data, "PixelData", np.full(12, 40_000 + k, "<u2").tobytes(), "OW")
    folder = write_all(tmp_path / "s", made)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, "slice.dcm")
    assert read(tmp_path / "a.zip").channels[0][0, 0].tolist() == [40_000, -25_535, 40_002, -25_533, 40_004]


def test_zip_above_the_limit_is_rejected(tmp_path, monkeypatch):
    path = zipped(series(tmp_path / "s"), tmp_path / "a.zip")
    monkeypatch.setattr(files, "LARGEST_ZIP_BYTES", 1000)
    with pytest.raises(InputError, match=r"unpacks to 0\.0 GiB, at most 0\.0 are accepted"):
        read(path)


def test_corrupt_zip_is_rejected(tmp_path):
    path = zipped(series(tmp_path / "s"), tmp_path / "a.zip")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"is not a readable \.zip file"):
        read(path)


def test_full_temporary_folder_is_reported(tmp_path, monkeypatch):
    path = zipped(series(tmp_path / "s"), tmp_path / "a.zip")

    def full(file, mode):
        if mode == "wb":
            raise OSError(28, "No space left on device")
        return open(file, mode)

    monkeypatch.setattr(files, "open", full, raising=False)
    with pytest.raises(ResourceError, match=r"to the temporary folder \(TMPDIR\): No space left on device\. Free"):
        read(path)


def file_set(folder):
    """A DICOMDIR that lists the files in folder/IMAGES."""
    directory = Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.5"
    records = []
    for file in sorted((folder / "IMAGES").iterdir()):
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        records.append(put(record, "ReferencedFileID", f"IMAGES\\{file.name}"))
    patient = Dataset()
    patient.DirectoryRecordType = "PATIENT"
    directory.DirectoryRecordSequence = Sequence([patient, *records])
    return write(directory, folder / "DICOMDIR")


def test_dicomdir_reads_the_files_that_it_lists(tmp_path):
    series(tmp_path / "IMAGES")
    path = file_set(tmp_path)
    (tmp_path / "IMAGES" / "unlisted.dcm").write_bytes(b"")
    assert_volume(read(path), ARRAY, AFFINE)
    in_order(tmp_path / "IMAGES")[1].unlink()
    with pytest.raises(InputError, match=r"lists 5 files, but 1 are not there, such as file 2 of 5 by name; copy"):
        read(path)


def test_a_dicomdir_cut_at_any_byte_never_gives_fewer_slices(tmp_path):
    series(tmp_path / "IMAGES")
    path = file_set(tmp_path)
    content = path.read_bytes()
    end = content.index(b"28-4.dcm ") + 9
    for size in range(end):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"is not a readable DICOMDIR|contains no DICOM|are not there"):
            read(path)
    path.write_bytes(content[:end])
    assert_volume(read(path), ARRAY, AFFINE)


def test_a_secondary_capture_in_the_series_is_set_aside(tmp_path):
    """Such as a dose sheet, which has no position."""
    folder = write_all(tmp_path, classic(ARRAY))
    sheet = classic(ARRAY[..., :1], SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImagePositionPatient=None)[0]
    sheet.SOPInstanceUID = "1.2.3.99"
    write(sheet, folder / "sheet.dcm")
    scan = read(folder)
    assert_volume(scan, ARRAY)
    assert "Secondary captures of the series are set aside: 1." in scan.warnings
