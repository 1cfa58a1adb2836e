"""Files that are read or extended in place: regular files only, their lines and checksums."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, TextIO

from volseg.files.paths import access_to
from volseg.files.whole import writing


def read_json_lines(path: Path) -> list[Any]:
    """The objects of a file with one JSON object per line; other lines, and an incomplete last one, are left out.

    Raises:
        InputError: it cannot be read.
    """
    found = []
    with access_to(path):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else [""]
    for line in lines[:-1]:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]


def as_tuples(value: Any) -> Any:
    """The lists in a value read from JSON as tuples, all the way down."""
    if isinstance(value, dict):
        return {name: as_tuples(item) for name, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value


def open_to_read(path: str | Path) -> BufferedReader:
    """Open a file, or what its link leads to, to read its bytes; a pipe is not waited for.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str | Path, flags: int) -> int:
    """A descriptor of a regular file, see `os.open`."""
    # Else a pipe without a writer would block; Windows has neither.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


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
    # Windows lacks the first, which closes the gap since the look.
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    return _open_regular(path, flags)


def require_regular(path: Path) -> None:
    """Check that a path, or what its link leads to, is a file: a pipe would block, and a device may have no end.

    Raises:
        OSError: it is not, or cannot be inspected.
    """
    _require_regular(os.stat(path).st_mode, path)


def _require_regular(kind: int, path: str | Path) -> None:
    """Reject all but regular files by their `st_mode`."""
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "It is not a regular file", str(path))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which may have no end.
    """
    with open_to_read(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
