"""Files that appear whole or not at all, and paths that cannot be read or written."""

import errno
import os
from pathlib import Path

import pytest

from volseg.errors import InputError, ResourceError, UsageError
from volseg.files import LEFTOVERS, access_to, require_writable, whole_file, write_text

LONG = "x" * 250


def test_errors_of_the_system_are_quoted_and_those_of_file_readers_pass(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, access_to(tmp_path / "a"):
        os.stat(tmp_path / "a")
    assert str(caught.value) == (
        f"{tmp_path / 'a'} cannot be read: No such file or directory; check its name, its permissions and its disk."
    )
    with pytest.raises(InputError, match=r"^a cannot be read: Input/output error; check"), access_to("a"):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match=r"^not gzip$"), access_to("a"):
        raise OSError("not gzip")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space or choose another place."),
        (errno.EDQUOT, "Free some space or choose another place."),
        (errno.EROFS, "Choose another place."),
        (errno.EACCES, "Choose another place."),
    ],
)
def test_free_some_space_is_advised_only_for_a_full_disk(tmp_path: Path, number: int, advice: str) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ResourceError) as caught, whole_file(path):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"Could not write {path}: {os.strerror(number)}. {advice}"


def test_checking_writable_paths_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "there.nii").touch()
    require_writable([tmp_path / "new" / "deep" / "a.nii", tmp_path / "a.nii", tmp_path / "there.nii"])
    require_writable([])
    assert [path.name for path in tmp_path.iterdir()] == ["there.nii"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/a.nii", "Not a directory"),
        ("file/new/a.nii", "Not a directory"),
        ("folder", "Is a directory"),
        ("broken/a.nii", "No such file or directory"),
    ],
)
def test_paths_that_cannot_be_written_are_rejected(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to(tmp_path / "lost")
    with pytest.raises(UsageError) as caught:
        require_writable([tmp_path / "a.nii", tmp_path / name])
    assert str(caught.value) == f"{tmp_path / name} cannot be written: {reason}. Choose another place."


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (f"{LONG}xx.nii", 256),
        (f"new/deep/{LONG}xx.nii", 256),
        (f"new/{LONG}xxxxxx/a.nii", 5),
        ("ü" * 126 + ".nii", 256),
        ("/".join(["x" * 200] * 21) + "/a.nii", 5),
    ],
)
def test_names_that_are_too_long_are_rejected_with_their_length(tmp_path: Path, name: str, size: int) -> None:
    with pytest.raises(UsageError) as caught:
        require_writable([tmp_path / name])
    assert str(caught.value) == (
        f"{tmp_path / name} cannot be written: File name too long. Its last part has {size} bytes. "
        "Choose a shorter name or path."
    )


@pytest.mark.parametrize(
    "name", [f"{'x' * 248}.nii.gz", f"{'ü' * 124}.nii.gz", f"{'😀' * 62}.nii.gz", f"{'x' * 101}.mha"]
)
def test_any_name_that_the_file_system_allows_can_be_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    require_writable([path])
    with whole_file(path) as temporary:
        assert temporary.name.endswith("".join(path.suffixes))
        assert len(os.fsencode(temporary.name)) <= len(os.fsencode(name))
        assert temporary.match(LEFTOVERS)
        temporary.write_bytes(b"whole")
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_text_with_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", os.fsdecode(b"M\xfcller"))
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "M\\udcfcller"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a system without /proc")
def test_permissions_alone_are_not_trusted() -> None:
    with pytest.raises(UsageError, match=r"^/proc/x/a.nii cannot be written: .*\. Choose another place\.$"):
        require_writable([Path("/proc/x/a.nii")])
