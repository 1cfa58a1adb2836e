"""Files that appear whole or not at all, and paths that cannot be read or written."""

import errno
import os
from pathlib import Path

import pytest

from volseg.errors import InputError, ResourceError, UsageError
from volseg.files import access_to, require_writable, whole_file

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
        (f"{LONG}.nii", "File name too long"),
        (f"new/deep/{LONG}.nii", "File name too long"),
        (f"new/{LONG}xxxxxx/a.nii", "File name too long"),
    ],
)
def test_paths_that_cannot_be_written_are_rejected(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to(tmp_path / "lost")
    with pytest.raises(UsageError) as caught:
        require_writable([tmp_path / "a.nii", tmp_path / name])
    assert str(caught.value) == f"{tmp_path / name} cannot be written: {reason}. Choose another place."


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a system without /proc")
def test_permissions_alone_are_not_trusted() -> None:
    with pytest.raises(UsageError, match=r"^/proc/x/a.nii cannot be written: .*\. Choose another place\.$"):
        require_writable([Path("/proc/x/a.nii")])
