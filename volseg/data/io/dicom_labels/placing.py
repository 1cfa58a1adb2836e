"""Which grid the labels of a DICOM object belong to.

An object belongs to a series by the first of these that holds: it names images of the series (SOP Instance UIDs); it
names the series (SeriesInstanceUID); both state the same frame of reference. With a warning where the UIDs before it
are stale, and only if its voxels or contours then lie on the series' grid. Another frame of reference is rejected
whatever the UIDs say; so is a series that nothing of these connects with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from volseg.data.grid.geometry import Geometry
from volseg.data.io.choice import ONLY, Choice
from volseg.data.io.dicom.files import files_of
from volseg.data.io.dicom.header import Header, read_header
from volseg.data.io.dicom.reader import grid_of
from volseg.data.io.dicom.series import LOCALISERS, Series, series_among
from volseg.data.io.dicom.values import printable
from volseg.data.io.dicom_labels.objects import References, uids
from volseg.errors import GridError, InputError
from volseg.files import access_to, folders_below

# The problem of labels without a series.
NO_SERIES = "no series"
# Files that are looked at to find the series beside an object.
_MOST_FILES = 5000
_LIKE = "give the scan that it belongs to (--like, like= in Python)"
# How an object belongs to a series, the surest first.
_IMAGES, _SERIES, _FRAME, _NOTHING = range(4)


@dataclass(frozen=True)
class Target:
    """A grid that labels are placed on.

    Args:
        geometry: of the grid.
        name: of what has it, for messages.
        references: the UIDs of its images; None if it is no DICOM.
        header: nibabel header of a NIfTI or MGH image, else None.
        series: its SeriesInstanceUID, for the record; empty if it is no DICOM.
        warnings: of reading it.
        unstated: why its size in millimetres is unknown, see `volseg.data.io.readers.stored.Stored`; empty if it is.
        frames: FrameOfReferenceUIDs of DICOM labels that have the grid; empty for anything else.
    """

    geometry: Geometry
    name: str
    references: References | None = None
    header: Any = None
    series: str = ""
    warnings: tuple[str, ...] = ()
    unstated: str = ""
    frames: frozenset[str] = frozenset()


def target_series(path: Path, choice: Choice = ONLY) -> Target:
    """The grid of a DICOM series.

    Raises:
        InputError: it cannot be read, or it is not clear which series or volume is meant.
    """
    with files_of(path) as names:
        return _target(names, choice, str(path))


def _target(names: Mapping[Path, str], choice: Choice, source: str) -> Target:
    geometry, frames, warnings = grid_of(dict(names), choice, source)
    headers = list(dict.fromkeys(frame.header for frame in frames))
    references = _references(headers)
    series = printable(next(iter(sorted(references.series)), ""))
    return Target(geometry, "the scan", references, None, series, tuple(warnings))


def _references(headers: Sequence[Header]) -> References:
    data = [header.data for header in headers]
    return References(*(uids(data, name) for name in ("SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")))


def connection(own: References, target: Target, source: str) -> list[str]:
    """Check that an object belongs to a grid, and return warnings about how.

    Raises:
        GridError: it has another frame of reference, or nothing connects them.
    """
    if target.references is None:
        _check_frames(own.frames, target.frames, target.name, source)
        if own.frames and target.frames:
            return []
        without = "the image that they are placed on states" if own.frames else "they state"
        return [f"Labels are placed by their coordinates, because {without} no frame of reference to check."]
    return _warnings(_rank(own, target.references, source), own)


def _rank(own: References, other: References, source: str) -> int:
    """How an object belongs to a series."""
    _check_frames(own.frames, other.frames, "the scan", source)
    rank = _rank_by_uids(own, other)
    if rank == _NOTHING:
        absent = "neither states" if not own.frames and not other.frames else "one does not state"
        raise GridError(
            f"{source}: nothing connects it with the scan: it names none of its images, nor its series, and {absent} a "
            "FrameOfReferenceUID",
            _LIKE,
            "nothing connects them",
        )
    return rank


def _check_frames(own: frozenset[str], other: frozenset[str], whose: str, source: str) -> None:
    """Reject an object of another frame of reference."""
    if own and other and not own <= other:
        raise GridError(
            f"{source} has another frame of reference than {whose} (FrameOfReferenceUID), so its coordinates mean "
            "other places",
            _LIKE,
            "another frame of reference",
        )


def _rank_by_uids(own: References, other: References) -> int:
    if own.images & other.images:
        return _IMAGES
    if own.series & other.series:
        return _SERIES
    return _FRAME if own.frames & other.frames else _NOTHING


def _warnings(rank: int, own: References) -> list[str]:
    stale = f"none of the {len(own.images)} images that it names is in the series" if own.images else ""
    if rank == _SERIES and stale:
        return [f"References are stale: {stale}; placed by the series and the coordinates."]
    if rank == _FRAME:
        why = f"References are stale: {stale or 'it does not name the series'}" if own.images or own.series else (
            "It names neither images nor a series"
        )  # fmt: skip
        return [f"{why}; placed by the frame of reference and the coordinates."]
    return []


def series_beside(path: Path, own: References, choice: Choice = ONLY) -> Target:
    """The grid of the series that an object belongs to, in the folder of its file or the folder above, and below them.

    Raises:
        GridError: there is none.
        InputError: there are several, or it cannot be read.
    """
    folder = path.absolute().parent
    for place in dict.fromkeys((folder, folder.parent)):
        with access_to(place):
            files = list(islice(_files_below(place), _MOST_FILES + 1))
        # Of a part of the files, a series might be a part, too.
        if len(files) > _MOST_FILES:
            continue
        headers = [found for file in files if isinstance(found := read_header(file, file.name), Header)]
        if best := _best(series_among(headers), own, path):
            return _target({header.path: header.name for header in best.headers}, choice, str(path))
    raise GridError(
        f"{path}: the series that it belongs to is neither in its folder nor in the folder above (of folders with more "
        f"than {_MOST_FILES} files, none is looked at)",
        _LIKE,
        NO_SERIES,
    )


def _files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and its sub-folders, not pipes and broken links, which are of no series."""
    below = (parent / name for parent, names in folders_below(folder) for name in sorted(names))
    return (file for file in below if file.is_file())


def _best(found: Sequence[Series], own: References, path: Path) -> Series | None:
    """The series that an object belongs to most surely; None if it belongs to none."""
    ranked: dict[int, list[Series]] = {}
    for one in found:
        other = _references(one.headers)
        is_elsewhere = own.frames and other.frames and not own.frames <= other.frames
        if not is_elsewhere and not one.image_types & LOCALISERS:
            ranked.setdefault(_rank_by_uids(own, other), []).append(one)
    rank = min(ranked, default=_NOTHING)
    if rank == _NOTHING:
        return None
    if len(ranked[rank]) > 1:
        listed = "".join(f"\n  {one}" for one in ranked[rank])
        raise InputError(f"{path} may belong to {len(ranked[rank])} series beside it; {_LIKE}:{listed}")
    return ranked[rank][0]
