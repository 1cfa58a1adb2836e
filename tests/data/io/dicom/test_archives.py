"""Archives, hidden files, and letters of a DICOMDIR: what is read of them, and why others are rejected."""

import zipfile

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.data.images import ramp
from tests.data.io.dicom.writers import affine_of, assert_volume, classic, put, read, stack, write, write_all
from volseg.errors import InputError

ARRAY = ramp()
AFFINE = affine_of(stack(5))
HIDDEN = [".hidden/", ".Trash/", "a/.b/", "__MACOSX/"]


def series(folder):
    return write_all(folder, classic(ARRAY))


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


@pytest.mark.parametrize("hidden", [*HIDDEN, "."])
@pytest.mark.parametrize("in_zip", [False, True])
def test_hidden_files_and_folders_are_never_read(tmp_path, hidden, in_zip):
    """Hidden slices at other places of the same series."""
    folder = series(tmp_path / "s")
    moved = stack(5) + np.array([0, 0, 15])
    for number, data in enumerate(classic(ARRAY, positions=moved)):
        data.SOPInstanceUID = f"1.2.99.{number}"
        write(data, folder / f"{hidden}{number}.dcm")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(folder.rglob("*.dcm")):
            archive.write(file, f"./study/{file.relative_to(folder)}")
    assert_volume(read(tmp_path / "a.zip" if in_zip else folder), ARRAY, AFFINE)


def test_a_hidden_folder_that_is_given_is_read(tmp_path):
    assert_volume(read(series(tmp_path / ".cache")), ARRAY, AFFINE)


def test_a_zip_within_a_zip_is_rejected(tmp_path):
    path = zipped(series(tmp_path / "s"), tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more/rest.ZIP", b"PK")
        archive.writestr("__MACOSX/._rest.zip", b"")
    with pytest.raises(InputError, match=r"a\.zip contains 1 \.zip within the \.zip; unpack it and"):
        read(path)


@pytest.mark.parametrize("alone", [False, True])
def test_other_scans_in_a_zip_are_not_passed_over(tmp_path, alone):
    path = tmp_path / "a.zip"
    if not alone:
        zipped(series(tmp_path / "s"), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more/b.nii.gz", b"")
    with pytest.raises(InputError, match=r"contains scans that are not DICOM \(\.nii\.gz\); unpack it and give"):
        read(path)


def changed_zip(folder, path, offset, value):
    """A .zip with other bytes at an offset of the central directory's entries and, 2 bytes before, of the files'."""
    zipped(folder, path)
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\1\2", offset), (b"PK\3\4", offset - 2)):
        place = content.find(magic)
        while place >= 0:
            content[place + at : place + at + len(value)] = value
            place = content.find(magic, place + 4)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (10, b"\x09\0", r"is compressed by a method that is not supported here \(deflate64\)"),
        (10, b"\x5d\0", r"is compressed by a method that is not supported here \(zstd\)"),
        (10, b"\x4d\0", r"is compressed by a method that is not supported here \(number 77\)"),
        (8, b"\x20\0", r"is compressed by a method that is not supported here \(patched data\)"),
        (8, b"\x01\0", "is encrypted"),
        (8, b"\x40\0", "is encrypted"),
        (6, b"\xff\0", r"needs a newer unzip program \(zip file version 25\.5\)"),
    ],
)
def test_a_whole_zip_that_cannot_be_unpacked_here(tmp_path, offset, value, reason):
    path = changed_zip(series(tmp_path / "s"), tmp_path / "a.zip", offset, value)
    with pytest.raises(InputError, match=rf"a\.zip {reason}; unpack it and give the folder\.$"):
        read(path)


def test_names_in_a_zip_that_are_not_in_the_stated_encoding(tmp_path):
    folder = write_all(tmp_path / "s", classic(ARRAY))
    path = changed_zip(folder, tmp_path / "a.zip", 8, b"\0\x08")
    path.write_bytes(path.read_bytes().replace(b".dcm", b"\xe9dcm"))
    with pytest.raises(InputError, match="says that its file names are UTF-8, but they are not; unpack it and give"):
        read(path)


def message_of(path):
    try:
        read(path)
    except InputError as error:
        return str(error)
    return ""


def test_errors_of_a_corrupt_zip_have_a_reason(tmp_path):
    path = zipped(series(tmp_path / "s"), tmp_path / "a.zip")
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(content)
        for place in generator.integers(0, len(content), 6):
            changed[place] = generator.integers(256)
        path.write_bytes(changed)
        assert "()" not in message_of(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x1f\x8b not a zip", r"not a \.zip file but gzip-compressed data; decompress it"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), r"not a \.zip file but of another kind; unpack it and give the folder"),
        (b"", r"not a readable \.zip file \(it is empty\); copy it again"),
    ],
)
def test_other_files_named_zip(tmp_path, content, reason):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read(tmp_path / "a.zip")


def test_a_dicomdir_in_upper_case_beside_files_in_lower_case(tmp_path):
    (tmp_path / "Images").mkdir()
    names = [f"Images/im{number}" for number in range(ARRAY.shape[2])]
    records = []
    for data, name in zip(classic(ARRAY), names, strict=True):
        write(data, tmp_path / name)
        records.append(put(Dataset(), "ReferencedFileID", name.upper().replace("/", "\\")))
    directory = Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.5"
    directory.DirectoryRecordSequence = Sequence(records)
    path = write(directory, tmp_path / "DICOMDIR")
    assert_volume(read(path), ARRAY, AFFINE)
    (tmp_path / names[0]).unlink()
    with pytest.raises(InputError, match="1 are not there, such as file 1 of 5 by name"):
        read(path)
