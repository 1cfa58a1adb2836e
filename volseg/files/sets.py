"""Sets of files that take their places together, also if a process is killed meanwhile."""

import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from volseg.errors import UsageError, VolsegError
from volseg.files.whole import discard, discard_tree, sync_names, temporary_path, writing
from volseg.system import file_lock

# In the folder of a set of files that takes its places: what had these places before.
_BEFORE = ".before"
# Seconds that a process waits for another one to put files in their places, which takes milliseconds.
_PATIENCE = 30.0


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
        discard_tree(temporary)
    sync_names(folder)


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
    sync_names(folder)
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
    discard_tree(done)


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
