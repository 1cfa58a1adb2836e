"""Files that appear whole or not at all, and paths that cannot be read or written."""

import ast
import errno
import hashlib
import os
from pathlib import Path

import pytest

import volseg
from volseg.errors import InputError, ResourceError, UsageError
from volseg.files import (
    LEFTOVERS,
    access_to,
    open_to_read,
    require_writable,
    sha256_of,
    whole_file,
    whole_files,
    write_text,
)

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


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced and renamed from now on, in order: by name, as long as it is open."""
    calls: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def syncing(handle: int) -> None:
        calls.append(("sync", os.path.realpath(f"/proc/self/fd/{handle}")))
        sync(handle)

    def replacing(old: Path, new: Path) -> None:
        calls.append(("rename", str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    return calls


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="a system without /proc")
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = (tmp_path / "new").resolve()
    calls = recorded(monkeypatch)
    with whole_file(folder / "a.json") as temporary:
        temporary.write_text("whole")
        assert calls == []
    assert calls == [
        ("sync", str(folder / temporary.name)), ("rename", str(folder / "a.json")), ("sync", str(folder)),
    ]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="a system without /proc")
def test_files_of_one_result_take_their_places_in_order_and_their_folder_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path.resolve()
    calls = recorded(monkeypatch)
    with whole_files(folder, "a.json") as temporary:
        for name in ("c.png", "a.json", "b.nii"):
            (temporary / name).write_text(name)
    # That the set is complete is on the disk before its first file takes its place.
    renamed = [("rename", str(folder / name)) for name in ("b.nii", "c.png", "a.json")]
    assert calls == [("sync", str(folder)), *renamed, ("sync", str(folder))]


def test_the_checksum_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with open_to_read(tmp_path / "b") as stream:
        assert stream.read() == b"content"
        assert stream.name == str(tmp_path / "b")


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(("make", "expected"), [(os.mkfifo, errno.EINVAL), (os.mkdir, errno.EISDIR)])
def test_what_is_no_file_is_not_read(tmp_path: Path, make, expected: int, linked: bool) -> None:
    """Reading a pipe would wait for a writer, perhaps for ever."""
    path = tmp_path / "a"
    make(path)
    if linked:
        path = tmp_path / "b"
        path.symlink_to(tmp_path / "a")
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for read in (open_to_read, sha256_of):
        with pytest.raises(OSError) as caught:
            read(path)
        assert caught.value.errno == expected
        assert caught.value.filename == str(path)
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("part", ["data/io", "modelfile", "training/state.py", "node", "evaluation", "interop"])
def test_files_of_others_are_opened_without_waiting_for_pipes(part: str) -> None:
    where = Path(volseg.__file__).parent / part
    for path in sorted(where.rglob("*.py")) if where.is_dir() else [where]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "open":
                mode = ast.literal_eval(call.args[1]) if len(call.args) > 1 else "r"
                assert "r" not in mode or "+" in mode, f"{path}:{call.lineno}: use volseg.files.open_to_read"


def test_text_with_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", os.fsdecode(b"M\xfcller"))
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "M\\udcfcller"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a system without /proc")
def test_permissions_alone_are_not_trusted() -> None:
    with pytest.raises(UsageError, match=r"^/proc/x/a.nii cannot be written: .*\. Choose another place\.$"):
        require_writable([Path("/proc/x/a.nii")])
