"""Files that appear whole or not at all, their temporary names, and what killed processes leave of them."""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from volseg.errors import ResourceError
from volseg.system import sync_file, sync_folder

# The temporary names of `whole_file`.
LEFTOVERS = ".????????.tmp.*"
_OWN_NAME = re.compile(r"^(\.[^.]{8}\.tmp\.)+")
# A name longer than this many bytes has a temporary name that is shorter, of its last characters.
_LONG, _LAST = 100, 20
# System errors that more disk space would fix.
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    sync_names(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system while `path` is written into one sentence."""
    try:
        yield
    except OSError as error:
        advice = "Free some space or choose another place." if error.errno in _FULL else "Choose another place."
        raise ResourceError(f"Could not write {path}: {error.strerror or error}. {advice}") from error


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


def temporary_path(path: Path) -> Path:
    """A new temporary name for `path` on every call, see `whole_file`; it is allowed wherever the name of `path` is."""
    # Without bytes that are not UTF-8: some image writers accept no such name.
    name = os.fsencode(path.name).decode("utf-8", errors="ignore")
    last = name[-_LAST:] if len(os.fsencode(path.name)) > _LONG else name
    return path.with_name(f".{secrets.token_hex(4)}.tmp.{last}")


def sync_names(folder: Path) -> None:
    """Make a rename durable; on file systems that cannot sync a folder, content is safe all the same."""
    with suppress(OSError):
        sync_folder(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files that a killed process left below `folder`."""
    for path in list(folder.rglob(LEFTOVERS)):
        if path.is_dir() and not path.is_symlink():
            discard_tree(path)
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
                discard_tree(path) if path.is_dir() else discard(path)


def discard(*files: Path | None) -> None:
    """Remove files that may be there, as well as that goes."""
    for file in filter(None, files):
        with suppress(OSError):
            file.unlink(missing_ok=True)


def discard_tree(folder: Path) -> None:
    """Remove a folder, as well as that goes."""
    # Python's own way to ignore errors raises that of closing a folder.
    with suppress(OSError):
        shutil.rmtree(folder, ignore_errors=True)
