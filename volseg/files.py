"""Files that appear whole or not at all, and their checksums."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

from volseg.errors import InputError, ResourceError, UsageError, VolsegError
from volseg.system import file_lock, sync_file, sync_folder
from volseg.text import shows_names

# The temporary names of `whole_file`.
LEFTOVERS = ".????????.tmp.*"
_OWN_NAME = re.compile(r"^(\.[^.]{8}\.tmp\.)+")
# A name longer than this many bytes has a temporary name that is shorter, of its last characters.
_LONG, _LAST = 100, 20
# In the folder of a set of files that takes its places: what had these places before.
_BEFORE = ".before"
# Seconds that a process waits for another one to put files in their places, which takes milliseconds.
_PATIENCE = 30.0
# System errors that more disk space would fix.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def given_path(path: str | Path) -> Path:
    """The path that the user gave.

    Raises:
        UsageError: it is an empty text, which `Path` would take for the current folder.
    """
    if not str(path):
        raise UsageError("An empty path was given. Give a file or a folder; '.' is the current folder.")
    return Path(path)


@contextmanager
def access_to(path: str | Path, named: str = "", private: bool = False) -> Iterator[None]:
    """Turn an error of the operating system while a path is inspected or read into one sentence.

    An OSError without a number comes from a file reader, for a corrupt file, and passes through.

    Args:
        path: what is read.
        named: what the message calls it; by default the path that the error names.
        private: do not name what lies below `path`, see `volseg.text.shows_names`.

    Raises:
        InputError: no permission, a name too long, a failing disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise InputError(
            f"{named or _named(error, path, private)} cannot be read: {error.strerror}; check its name, its "
            "permissions and its disk."
        ) from error


def _named(error: OSError, path: str | Path, private: bool) -> str:
    """The path that an error names; only the folder above it if its name is private."""
    found = os.fsdecode(error.filename or path)
    hidden = private and not shows_names() and Path(path) in Path(found).parents
    return f"A file or folder in {path}" if hidden else found


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success sync it and rename it to `path`, else remove it.

    The temporary name keeps the suffixes of `path`, because image writers choose their format by them.

    Raises:
        ResourceError: the file cannot be written (disk full, read-only or over quota).
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
    finally:
        discard(temporary)
    _sync_names(path.parent)


@contextmanager
def whole_files(folder: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder; on success its files take their places in `folder` as one set, `last` as the last.

    If anything fails, what was in `folder` stays as it was. If the process is killed while the files take their
    places, `finish_files` puts the rest in theirs; so does the next set with the same `last`.

    Raises:
        ResourceError: a file cannot be written.
        UsageError: another process has been writing the same files for long.
    """
    temporary = temporary_path(folder / last)
    try:
        with writing(folder / last):
            temporary.mkdir(parents=True)
        yield temporary
        with writing(folder / last), _placing(folder, last):
            _place(temporary, folder, last)
    except VolsegError as error:
        # Of the file that was to be, not of its temporary place.
        error.args = tuple(str(part).replace(str(temporary), str(folder)) for part in error.args)
        raise
    finally:
        _discard_tree(temporary)
    _sync_names(folder)


def finish_files(folder: Path, lasts: Iterable[str]) -> None:
    """Put the files of sets in their places that were complete when their process was killed, see `whole_files`.

    Raises:
        ResourceError: a file cannot be moved.
        UsageError: see `whole_files`.
    """
    for last in lasts:
        if any(os.path.lexists(_of_set(folder, last, what)) for what in ("ready", "lock")):
            with writing(folder / last), _placing(folder, last):
                pass


@contextmanager
def _placing(folder: Path, last: str) -> Iterator[None]:
    """Keep others from placing a set with the same `last`, and complete one whose process was killed."""
    lock, patient_until = _of_set(folder, last, "lock"), time.monotonic() + _PATIENCE
    with ExitStack() as locked:
        while True:
            try:
                locked.enter_context(file_lock(lock))
                break
            except BlockingIOError as error:
                if time.monotonic() > patient_until:
                    raise UsageError(
                        f"Another process has been writing {folder / last} for {_PATIENCE:.0f} s. Stop it, or choose "
                        "another place."
                    ) from error
            time.sleep(0.01)
        try:
            _finish(folder, last)
            yield
        finally:
            # While it is locked: afterwards, it may be another one's.
            discard(lock)


def _place(temporary: Path, folder: Path, last: str) -> None:
    """Move the files of a complete set to their places; if that fails, what was there before comes back."""
    before, ready = temporary / _BEFORE, _of_set(folder, last, "ready")
    files = sorted(temporary.iterdir(), key=lambda file: file.name == last)
    before.mkdir()
    for file in files:
        if os.path.lexists(folder / file.name):
            _keep(folder / file.name, before / file.name)
    # From here on, the set is completed also after a kill.
    os.rename(temporary, ready)
    _sync_names(folder)
    try:
        _finish(folder, last)
    except BaseException:
        os.rename(ready, temporary)
        for file in files:
            if not file.exists():
                _put_back(before / file.name, folder / file.name)
        raise


def _finish(folder: Path, last: str) -> None:
    """Move what is left of a set that was complete to its place."""
    ready = _of_set(folder, last, "ready")
    if not os.path.lexists(ready):
        return
    files = [file for file in ready.iterdir() if file.name != _BEFORE]
    for file in sorted(files, key=lambda file: file.name == last):
        os.replace(file, folder / file.name)
    done = temporary_path(folder / last)
    with suppress(OSError):
        os.rename(ready, done)
    _discard_tree(done)


def _keep(file: Path, copy: Path) -> None:
    """A second name for a file; a copy where the file system has no such names."""
    try:
        os.link(file, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, copy, follow_symlinks=False)


def _put_back(kept: Path, file: Path) -> None:
    """Give a file its earlier content again; remove it where it had none."""
    if os.path.lexists(kept):
        os.replace(kept, file)
    else:
        file.unlink(missing_ok=True)


def _of_set(folder: Path, last: str, what: str) -> Path:
    """The name of a set's lock, or of its folder once it is complete ("ready"); the same in every process."""
    return folder / f".{zlib.crc32(os.fsencode(last)):08x}.tmp.{what}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system while `path` is written into one sentence."""
    try:
        yield
    except OSError as error:
        advice = "Free some space or choose another place." if error.errno in _FULL else "Choose another place."
        raise ResourceError(f"Could not write {path}: {error.strerror or error}. {advice}") from error


def require_writable(paths: Iterable[Path]) -> None:
    """Reject paths that `whole_file` could not write, before any work starts.

    Missing folders are not created yet. An unnamed temporary file, which disappears at once, tests the nearest
    existing folder.

    Raises:
        UsageError: a name is too long, a parent folder is a file, the path is a folder, or the operating system
            does not allow creating a file there.
    """
    tried: set[Path] = set()
    for path in paths:
        folder = next(parent for parent in path.parents if os.path.lexists(parent))
        try:
            if os.path.isdir(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            names = (*path.parent.relative_to(folder).parts, temporary_path(path).name, path.name)
            for place in (*(folder / name for name in names), path):
                with suppress(FileNotFoundError):
                    os.lstat(place)
            # Permissions alone do not reveal /proc or a read-only disk.
            if folder not in tried:
                tempfile.TemporaryFile(dir=folder).close()
                tried.add(folder)
        except OSError as error:
            advice = "Choose another place."
            if error.errno == errno.ENAMETOOLONG:
                advice = f"Its last part has {len(os.fsencode(path.name))} bytes. Choose a shorter name or path."
            raise UsageError(f"{path} cannot be written: {error.strerror}. {advice}") from error


def require_disk_space(path: Path, size: int) -> None:
    """Check that the disk has room for `size` bytes at `path`.

    Raises:
        ResourceError: it does not.
    """
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ResourceError(
            f"{path} needs {size / 2**30:.2f} GiB, but the disk has {free / 2**30:.2f} GiB left. "
            "Free some space or choose another place."
        )


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Yield a path of UTF-8, for libraries that accept no other: `path` itself, or one through a link to it.

    Only the last part of `path` may be missing, and only if it is UTF-8.
    """
    if _is_utf8(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="volseg-") as folder:
        link = Path(folder) / f"link{''.join(path.suffixes) if _is_utf8(Path(path.suffix)) else ''}"
        named = _is_utf8(Path(path.name))
        link.symlink_to((path.parent if named else path).absolute())
        yield link / path.name if named else link


def _is_utf8(path: Path) -> bool:
    return str(path).isascii() or os.fsencode(path).decode("utf-8", errors="replace") == str(path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all; bytes of file names that are not UTF-8 are written as their code."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document whole or not at all."""
    write_text(path, as_json(document))


def as_json(document: Any) -> str:
    """A JSON document as text; NaN and infinity, which JSON does not have, are rejected."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def as_tuples(value: Any) -> Any:
    """The lists in a value read from JSON as tuples, all the way down."""
    if isinstance(value, dict):
        return {name: as_tuples(item) for name, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value


def read_json_lines(path: Path) -> list[Any]:
    """The objects of a file with one JSON object per line; other lines, and an incomplete last one, are left out."""
    found = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else [""]
    for line in lines[:-1]:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]


@contextmanager
def open_regular(path: Path) -> Iterator[FileIO]:
    """Open a regular file to read its bytes; a link, a pipe or a device in its place is not opened.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    with FileIO(open_no_link(path, os.O_RDONLY)) as handle:
        yield handle


def append_to(path: Path) -> TextIO:
    """A UTF-8 text file that is open for appending, made if it does not exist.

    Raises:
        ResourceError: it cannot be opened, or is a link, which may lead anywhere.
    """
    with writing(path):
        descriptor = open_no_link(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def open_no_link(path: Path, flags: int) -> int:
    """A descriptor of a regular file, see `os.open`; what a link leads to is neither opened nor changed.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "It is a link", str(path))
    # Windows lacks the first two, which close the gap since the look and keep a pipe without a writer from blocking.
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "It is not a regular file", str(path))
    return descriptor


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files that a killed process left below `folder`."""
    for path in list(folder.rglob(LEFTOVERS)):
        if path.is_dir() and not path.is_symlink():
            _discard_tree(path)
        else:
            discard(path)


def remove_leftovers_of(files: Iterable[Path]) -> None:
    """Remove what killed processes left of files that no living process writes, see `whole_file`."""
    by_folder: dict[Path, set[str]] = {}
    for file in files:
        by_folder.setdefault(file.parent, set()).add(file.name)
    for folder, names in by_folder.items():
        for path in folder.glob(LEFTOVERS):
            if _OWN_NAME.sub("", path.name) in names:
                _discard_tree(path) if path.is_dir() else discard(path)


def discard(*files: Path | None) -> None:
    """Remove files that may be there, as well as that goes."""
    for file in filter(None, files):
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _discard_tree(folder: Path) -> None:
    # Python's own way to ignore errors raises that of closing a folder.
    with suppress(OSError):
        shutil.rmtree(folder, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def temporary_path(path: Path) -> Path:
    """A new temporary name for `path` on every call, see `whole_file`; it is allowed wherever the name of `path` is."""
    # Without bytes that are not UTF-8: some image writers accept no such name.
    name = os.fsencode(path.name).decode("utf-8", errors="ignore")
    last = name[-_LAST:] if len(os.fsencode(path.name)) > _LONG else name
    return path.with_name(f".{secrets.token_hex(4)}.tmp.{last}")


def _sync_names(folder: Path) -> None:
    """Make a rename durable; on file systems that cannot sync a folder, content is safe all the same."""
    with suppress(OSError):
        sync_folder(folder)


def folders_below(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and its sub-folders, also linked ones, each once, with the names of their files; without hidden ones.

    Raises:
        OSError: one of them cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for parent, names, files in os.walk(folder, onerror=fail, followlinks=True):
        # A link may lead to a folder above it.
        shown = [name for name in sorted(names) if not is_hidden(name)]
        fresh = [name for name in shown if os.path.realpath(os.path.join(parent, name)) not in seen]
        seen |= {os.path.realpath(os.path.join(parent, name)) for name in fresh} | {os.path.realpath(parent)}
        names[:] = fresh
        yield Path(parent), [name for name in files if not is_hidden(name)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's data by its name: it begins with a dot, or macOS put it there."""
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"
