"""Whether there is memory for a file, before it is read."""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from volseg.data.io.any_scan import paths_of, size_in_memory
from volseg.data.io.choice import Choice
from volseg.data.io.formats import is_dicom
from volseg.data.io.read_cost import reading_bytes
from volseg.errors import InputError, ResourceError, VolsegError
from volseg.system import resident_bytes, tightest_limit

MIB, GIB = 2**20, 2**30
MORE_MEMORY = "Free memory, raise the limit, use a machine with more, or a model with a smaller patch or fewer classes."
# The least free memory for the next scan to be read while one is computed.
PLENTY = 2 * GIB
# The least memory that is set apart for each of the scans at work at once.
SCAN_BYTES = GIB // 2


def has_plenty() -> bool:
    """Whether there is memory for the next scan to be read while one is computed."""
    machine = tightest_limit()
    return machine is None or machine.free >= PLENTY


def room_together() -> float:
    """Bytes that the scans at work at once may take together: half of what is free, as each may need more than
    `bytes_at_work` when it is computed."""
    machine = tightest_limit()
    return math.inf if machine is None else machine.free / 2


def bytes_at_work(scan: Any) -> int:
    """What a scan takes from reading to writing, roughly, from the size that its files state, or that of its voxels.

    DICOM is counted by the size of its files, because reading their headers takes long. A scan that cannot be read
    counts as a small one; reading reports it.
    """
    # Of an object that is no image, anything may be missing or of another type.
    with suppress(VolsegError, OSError, AttributeError, TypeError, ValueError):
        paths = paths_of(scan)
        files = sum(_size_of_files(one) if is_dicom(one) else reading_bytes(one) for one in paths)
        return SCAN_BYTES + 2 * (files if paths else size_in_memory(scan))
    return SCAN_BYTES


def _size_of_files(path: Path) -> int:
    """The bytes of a file, or of the files right in a folder."""
    return sum(one.stat().st_size for one in os.scandir(path)) if path.is_dir() else path.stat().st_size


def require_room_to_read(paths: Sequence[Path], choice: Choice, limit: int | None) -> None:
    """Reject a scan that alone exceeds the memory, before it is read.

    The size of DICOM takes long to find out, so it is asked only where memory is limited or scarce.

    Args:
        paths: the files of the scan, one per channel, or its folder.
        choice: which series of DICOM is read.
        limit: memory limit of the process in bytes; None for none.

    Raises:
        InputError: the scan exceeds the limit.
        ResourceError: it exceeds the free memory of the machine.
    """
    asked = limit is not None or not has_plenty()
    sizes = [reading_bytes(path, choice) for path in paths if asked or not is_dicom(path)]
    if sizes and limit is not None:
        require_room(sum(sizes), limit, str(paths[0]))
    if sizes:
        require_free(sum(sizes), str(paths[0]))


def require_room(needed: int, limit: int, source: str) -> None:
    """Reject a scan that alone exceeds the limit, before it is read.

    Args:
        needed: bytes of the scan.
        limit: memory limit of the process in bytes.
        source: the scan, for messages.

    Raises:
        InputError: the scan exceeds the limit.
    """
    used = resident_bytes()
    if used + needed > limit:
        raise InputError(
            f"{source} takes {needed / GIB:.2f} GiB, and the program and the model {used / GIB:.2f} GiB, "
            f"but --max-memory is {limit / GIB:.2f} GiB. Raise it."
        )


def require_free(needed: int, what: str) -> None:
    """Reject what exceeds the free memory of the machine, before it is taken.

    Args:
        needed: bytes on top of what the process has taken.
        what: needs them, for messages.

    Raises:
        ResourceError: it exceeds the free memory.
    """
    machine = tightest_limit()
    if machine is not None and needed > machine.free:
        raise ResourceError(
            f"{what} takes {needed / MIB:,.0f} MiB, but {machine.source} has {machine.free / MIB:,.0f} MiB left. "
            f"{MORE_MEMORY}"
        )
