"""The folder of a node: what was received, and the results.

    queue.sqlite                      see `volseg.node.queue`
    incoming/                         objects that are not whole yet
    series/<series>/<object>.dcm      received objects, named by UID
    jobs/<number>/                    the results of a job

An object is written to incoming/, synced, moved to series/, and recorded; only then is it acknowledged.
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, NamedTuple

from pydicom import dcmread
from pydicom.dataset import Dataset

from volseg.data.io.dicom.header import inflates_too_far
from volseg.data.io.dicom.values import parsing, text
from volseg.errors import InputError, UsageError
from volseg.files import open_to_read
from volseg.node.config import NodeConfig
from volseg.node.errors import FullDiskError, ObjectError
from volseg.node.queue import NAME, Queue
from volseg.system import file_lock, sync_file, sync_folder

logger = logging.getLogger(__name__)

# Unfinished objects older than this were left by a peer that went away.
STALE_SECONDS = 3600.0
_UID = re.compile(r"[0-9.]{1,64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Identity(NamedTuple):
    """What tells an object apart."""

    study_uid: str
    series_uid: str
    sop_class: str
    sop_uid: str


def identity_of(path: Path) -> Identity:
    """The UIDs of a DICOM file.

    Raises:
        ObjectError: it is not readable DICOM, or lacks one of them.
    """
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
    try:
        _check_size(path)
        with parsing("The object"):
            data = dcmread(path, stop_before_pixels=True, specific_tags=list(names))
            found = Identity(*(text(data, name) for name in names))
    except InputError as error:
        raise ObjectError("The object is not readable DICOM.") from error
    odd = [name for name, value in zip(names, found, strict=True) if not value.isprintable()]
    if odd:
        raise ObjectError(f"The {', '.join(odd)} of the object holds control characters.")
    missing = [name for name, value in zip(names, found, strict=True) if not value]
    if missing:
        raise ObjectError(f"The object lacks {', '.join(missing)}; the node cannot tell what it belongs to.")
    return found


def _check_size(path: Path) -> None:
    """Reject a file that pydicom would inflate to more than any real one has.

    Raises:
        InputError: see above.
    """
    with open_to_read(path) as stream:
        if inflates_too_far(stream):
            raise InputError(f"{path} is compressed more than real images are; send it in another transfer syntax.")


def header_of(path: Path) -> Dataset:
    """The elements of a DICOM file before its pixels, not converted."""
    _check_size(path)
    with parsing("The object"):
        return dcmread(path, stop_before_pixels=True)


def file_name(uid: str) -> str:
    """A UID as a name; what is no UID, as some devices write, by its hash."""
    return uid if _UID.fullmatch(uid) and uid.strip(".") else f"x{hashlib.sha256(uid.encode()).hexdigest()[:40]}"


class Store:
    """The folder of a node, locked for this process until `close`."""

    def __init__(self, config: NodeConfig) -> None:
        self.folder, self.free_bytes = config.store, config.limits.free_disk
        self._lock = ExitStack()
        try:
            # It holds patient data.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.incoming, self.folder / "series", self.folder / "jobs"):
                folder.mkdir(exist_ok=True)
            sure = self._lock.enter_context(file_lock(self.folder / "lock"))
        except BlockingIOError as error:
            raise UsageError(
                f"Another node uses the store {self.folder}. Stop it, or give each node its own store."
            ) from error
        except OSError as error:
            raise UsageError(
                f"The store {self.folder} cannot be used: {error.strerror}. Give a folder that the node may write to."
            ) from error
        if not sure:
            logger.warning("%s has no file locks, so nothing keeps another node from using it", self.folder)
        try:
            self._require_queue()
            self.queue = Queue(self.folder, config.retry)
            self.queue.require_whole()
            self._sweep()
            self.queue.wait_again()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Close the queue and unlock the folder."""
        self.queue.close()
        self._lock.close()

    @property
    def incoming(self) -> Path:
        """Where objects arrive."""
        return self.folder / "incoming"

    def series_folder(self, series_uid: str) -> Path:
        """Where the objects of a series lie."""
        return self.folder / "series" / file_name(series_uid)

    def job_folder(self, number: int) -> Path:
        """Where the results of a job lie."""
        return self.folder / "jobs" / str(number)

    def sync_job(self, number: int) -> None:
        """Write the names of a job's results to the disk itself; their contents are there."""
        for folder in (self.job_folder(number), self.folder / "jobs"):
            sync_folder(folder)

    def free_disk(self) -> int:
        """Bytes that are free on the disk of the store."""
        return shutil.disk_usage(self.folder).free

    def new_file(self) -> "Landing":
        """A file for an object to arrive in."""
        return Landing(self.incoming / f"{secrets.token_hex(8)}.part")

    def keep(self, landed: Path, study_uid: str | None = None) -> Identity:
        """Keep an object that has arrived as a whole; when this returns, it may be acknowledged.

        Args:
            landed: its file in `incoming`, which is moved if it is new; the caller removes it.
            study_uid: the study it has to belong to.

        Raises:
            FullDiskError: the disk is full.
            ObjectError: it cannot be told apart, or belongs to another study.
        """
        try:
            self._require_room()
            found = identity_of(landed)
            if study_uid not in (None, found.study_uid):
                raise ObjectError("The object belongs to another study than the request names.")
            if self.queue.has_instance(found.series_uid, found.sop_uid):
                return found
            target = self.series_folder(found.series_uid) / f"{file_name(found.sop_uid)}.dcm"
            size = sync_file(landed)
            if not target.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                sync_folder(target.parent.parent)
            os.replace(landed, target)
            sync_folder(target.parent)
            added = self.queue.add_instance(found.study_uid, found.series_uid, found.sop_uid, size)
            if added and self.queue.is_segmented(found.series_uid):
                logger.warning(
                    "Series %s: an object came after it was segmented; the result is about a part of the series",
                    found.series_uid,
                )
        except (OSError, sqlite3.OperationalError) as error:
            if getattr(error, "errno", None) not in _FULL and "full" not in str(error):
                raise
            raise FullDiskError("The disk of the node is full.") from error
        return found

    def remove_series(self, series_uid: str) -> None:
        """Remove the files of a series and its results; that it was segmented stays known."""
        shutil.rmtree(self.series_folder(series_uid), ignore_errors=True)
        for job in self.queue.jobs_of(series_uid):
            shutil.rmtree(self.job_folder(job), ignore_errors=True)
        self.queue.decide(series_uid, "removed")

    def clean(self, keep_days: float) -> None:
        """Remove what is finished since this many days, and unfinished objects that nobody completes."""
        for series_uid in self.queue.removable_series(time.time() - keep_days * 86400):
            self.remove_series(series_uid)
            logger.info("Series %s: removed after %g days", series_uid, keep_days)
        for path in self.incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - STALE_SECONDS:
                    path.unlink()

    def _require_queue(self) -> None:
        """Refuse received objects without their queue: a new one would forget them.

        Raises:
            InputError: they have none.
        """
        queue = self.folder / NAME
        if any((self.folder / "series").iterdir()) and not (queue.is_file() and queue.stat().st_size):
            raise InputError(
                f"{self.folder} holds received series, but their queue {queue} is missing or empty. Restore it, or "
                f"move {self.folder} away and send its series again."
            )

    def _require_room(self) -> None:
        if self.free_disk() < self.free_bytes:
            raise FullDiskError("The disk of the node is almost full.")

    def _sweep(self) -> None:
        """Remove what a killed process left: unfinished objects, and whole ones that were not recorded."""
        for path in self.incoming.iterdir():
            path.unlink(missing_ok=True)
        for series_uid in self.queue.settled_series(-float("inf")):
            known = {f"{file_name(uid)}.dcm" for uid in self.queue.instances_of(series_uid)}
            for path in self.series_folder(series_uid).glob("*.dcm"):
                if path.name not in known:
                    path.unlink(missing_ok=True)


class Landing:
    """A file that is written block by block; a failed write is kept as `error` and does not raise.

    It has what pynetdicom needs of the file that a data set is received into: there, an error would end the connection
    without an answer.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.error: OSError | None = None
        self._stream: IO[bytes] | None = None
        try:
            self._stream = open(path, "wb")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            self.error = error

    def __del__(self) -> None:
        """Close the file of an association that ended in the middle of an object, which pynetdicom only forgets."""
        self.close()

    @property
    def file(self) -> "Landing":
        """The file itself, as a temporary file of Python has it."""
        return self

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(self.name)

    def fill(self, blocks: Iterator[bytes]) -> None:
        """Write all blocks, which are read to the end in any case, and close the file.

        Raises:
            FullDiskError: the disk is full.
        """
        for block in blocks:
            self.write(block)
        self.close()
        self.require_whole()

    def require_whole(self) -> None:
        """Check that all that was written is in the file.

        Raises:
            FullDiskError: it is not.
        """
        if self.error:
            raise FullDiskError(f"The object could not be written to the store: {self.error.strerror}.") from self.error

    def write(self, block: bytes) -> int:
        """Write a block, unless an earlier one has failed."""
        try:
            if self._stream and not self.error:
                self._stream.write(block)
        except OSError as error:
            self.error = error
        return len(block)

    def flush(self) -> None:
        """Blocks are flushed when the file is closed."""

    def close(self) -> None:
        """Write what is left in memory, and close the file."""
        try:
            if self._stream:
                self._stream.close()
        except OSError as error:
            self.error = self.error or error

    def discard(self) -> None:
        """Close and remove the file."""
        self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
