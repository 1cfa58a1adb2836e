"""Paths that users give: whether they can be read and written, and the folders below them."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from volseg.errors import InputError, ResourceError, UsageError
from volseg.files.whole import temporary_path
from volseg.text import shows_names


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


def common_folder(folders: Sequence[Path]) -> Path | None:
    """The deepest folder that all of some absolute ones lie in; None where there is none: on drives of Windows."""
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        return None
