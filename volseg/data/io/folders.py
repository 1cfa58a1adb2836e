"""The scans at a path: a file, a folder of one DICOM series, or a folder of scans and series.

Scans are found by file names, and by a file's first bytes if its name does not tell whether it is DICOM.
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

from volseg.data.io.choice import Choice
from volseg.data.io.formats import (
    DICOM_SUFFIXES,
    SUFFIXES,
    begins_as_dicom,
    image_suffix,
    is_dicom,
    stem_of,
    without_result_files,
)
from volseg.errors import InputError
from volseg.files import folders_below, open_to_read
from volseg.text import first_few

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """A scan at a path, and the name of its result."""

    path: Path
    choice: Choice
    name: str


def scans_at(path: Path, choice: Choice) -> list[Found]:
    """The scan at `path`, or the scans in that folder; those that are passed over are named in the log."""
    if not path.exists():
        raise InputError(f"{path} does not exist. Give a scan or a folder of scans.")
    if path.is_dir():
        return _scans_in(path, choice)
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder. Give a scan or a folder of scans.")
    if _is_scan_file(path) or is_dicom(path):
        return [_found(path, choice)]
    raise InputError(
        f"{path} has no supported image format. Supported: {', '.join(SUFFIXES)}, .zip of a DICOM series, .dcm; "
        "for a DICOM series give its folder."
    )


def _scans_in(path: Path, choice: Choice) -> list[Found]:
    """The scans in a folder: its image files, and the DICOM series in it and below it."""
    folders, files, results = _contents(path)
    if results:
        named = first_few([entry.relative_to(path) for entry in results])
        logger.warning("Passed over in %s, because they belong to results: %s.", path, named)
    scans = [_found(entry, choice) for entry in files if entry.parent == path]
    deeper = [entry for entry in files if entry.parent != path]
    if not scans and not folders:
        raise InputError(_nothing_in(path, deeper))
    by_series = choice.series is not None and folders
    if by_series:
        _name_passed_over(path, "because a series is chosen", files)
        return [_found(path, choice)]
    _name_passed_over(path, "because only DICOM is looked for in sub-folders", deeper)
    loose = folders.get(path, [])
    if scans and len(loose) > 1:
        suffixes = ", ".join(sorted({image_suffix(one.path) or ".zip" for one in scans}))
        raise InputError(
            f"{path} contains {len(loose)} DICOM files next to other scans ({suffixes}). Move the DICOM files to a "
            "separate folder, or give each scan by its path."
        )
    if len(loose) == 1 and (scans or len(folders) > 1):
        scans.append(_found(loose[0], choice))
        del folders[path]
    if set(folders) == {path}:
        return [*scans, _found(path, choice)]
    return scans + (_series_in(path, folders, choice) if folders else [])


def _found(path: Path, choice: Choice) -> Found:
    return Found(path, choice, name_of(path))


def _contents(path: Path) -> tuple[dict[Path, list[Path]], list[Path], list[Path]]:
    """What lies at and below `path`, without hidden files.

    The DICOM files of each folder; the other scans; the files that belong to results and are neither.
    """
    folders, others, results = {}, [], []
    for folder, names in folders_below(path):
        every = [folder / name for name in sorted(names) if name.upper() != "DICOMDIR"]
        entries = without_result_files(every)
        results += sorted(set(every) - set(entries))
        if files := [entry for entry in entries if _may_be_dicom(entry)]:
            folders[folder] = files
        others += [entry for entry in entries if _is_scan_file(entry)]
    return folders, others, results


def _nothing_in(path: Path, deeper: Sequence[Path]) -> str:
    """Why a folder cannot be segmented that holds no scan, or has some only in its sub-folders."""
    if not deeper:
        return f"{path} holds no scan. Supported: {', '.join(SUFFIXES)}, .zip or folder of a DICOM series."
    names = first_few([entry.relative_to(path) for entry in deeper])
    return f"{path} holds no scan itself; its sub-folders hold {len(deeper)}: {names}. Give these, or their folders."


def _name_passed_over(path: Path, why: str, files: Sequence[Path]) -> None:
    """Log which scans of a folder are not read."""
    if files:
        named = first_few([entry.relative_to(path) for entry in files])
        logger.warning("Passed over in %s, %s: %s. Give them, or their folders.", path, why, named)


def _series_in(path: Path, folders: Mapping[Path, Sequence[Path]], choice: Choice) -> list[Found]:
    """The scans among folders of DICOM files: a folder each, but a series that is spread over several is one scan.

    Raises:
        InputError: files without SeriesInstanceUID lie next to or above those of other series.
    """
    from volseg.data.io.dicom.reader import series_uids  # noqa: PLC0415 - pydicom is loaded only where it is needed

    stated = {folder: series_uids(files, choice) for folder, files in folders.items()}
    # Folders of reports or segmentations alone are no scans.
    images = {folder: own for folder, own in stated.items() if own is not None} or {folder: {} for folder in stated}
    uids = _without_aside(images, path)
    whole = len(set().union(*uids.values())) == 1 and all(own and "" not in own for own in uids.values())
    if whole and len(uids) == len(images):
        return [_found(path, choice)]
    found: dict[tuple[Path, Choice], Path] = {}
    for folder, own in uids.items():
        others = {uid for other, theirs in uids.items() if other != folder for uid in theirs} - {""}
        below = any(folder in other.parents for other in images)
        if not below and not own & others:
            found[folder, choice] = folder
        elif "" in own:
            raise InputError(
                f"{folder} contains DICOM files without SeriesInstanceUID next to those of other series, so they "
                "cannot be told apart; move each series to a separate folder."
            )
        else:
            for uid in sorted(own):
                # A series in several folders is found in each; it has the name of the first.
                found.setdefault((path, replace(choice, series=uid)), folder)
    return _distinct_names(found, path)


def _without_aside(images: Mapping[Path, Mapping[str, str]], path: Path) -> dict[Path, frozenset[str]]:
    """The SeriesInstanceUIDs in each folder, without the localisers and the like if there are other series.

    Args:
        images: the series in each folder, and why they cannot be meant, see `volseg.data.io.dicom.reader.series_uids`.
        path: of all folders, for the message.
    """
    reasons: dict[str, str] = {}
    for own in images.values():
        reasons |= {uid: reason or reasons.get(uid, "") for uid, reason in own.items()}
    if all(reasons.values()):
        return {folder: frozenset(own) for folder, own in images.items()}
    kept = {folder: frozenset(uid for uid in own if not reasons[uid]) for folder, own in images.items()}
    aside = [folder for folder, own in images.items() if own and not kept[folder]]
    if aside:
        named = [f"{folder.relative_to(path)} ({reasons[next(iter(images[folder]))]})" for folder in aside]
        logger.warning("Set aside in %s, where there are other series: %s.", path, first_few(named))
    return {folder: own for folder, own in kept.items() if folder not in aside}


def _distinct_names(places: Mapping[tuple[Path, Choice], Path], root: Path) -> list[Found]:
    """Scans with names of their own: of their folders, or, if two of these are equal, of all folders below `root`.

    Args:
        places: the folder that a scan, given by path and choice, is named after.
        root: of all folders.
    """
    names = {scan: name_of(folder) for scan, folder in places.items()}
    if len(set(names.values())) < len(set(places.values())):
        names = {scan: "_".join(places[scan].relative_to(root).parts) or name for scan, name in names.items()}
    counts, used = Counter(names.values()), set(names.values())
    found = []
    for scan in sorted(names, key=lambda one: (str(one[0]), one[1].series or "")):
        name = names[scan]
        if counts[name] > 1:
            name = next(numbered for k in count(1) if (numbered := f"{names[scan]}_{k}") not in used)
            used.add(name)
        found.append(Found(*scan, name))
    return found


def _is_scan_file(path: Path) -> bool:
    """Whether this is an image or zip file by its name."""
    return path.is_file() and (image_suffix(path) is not None or path.suffix.lower() == ".zip")


def _may_be_dicom(path: Path) -> bool:
    """Whether this is a .dcm or .ima file, or begins like DICOM and is not another scan by its name."""
    if not path.is_file() or _is_scan_file(path):
        return False
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    with open_to_read(path) as stream:
        start = stream.read(132)
    # Without the magic of DICOM, a file is taken for a slice only if it has no suffix, or is named by a UID.
    return start[128:] == b"DICM" or ((not suffix or suffix[1:].isdecimal()) and begins_as_dicom(start))


def name_of(scan: Path) -> str:
    """The name of a scan without the suffix of its format."""
    return stem_of(absolute(scan))


def absolute(path: Path) -> Path:
    """The absolute path without '..', links kept, so that '.' has a name and a linked scan keeps its own."""
    return Path(os.path.abspath(path))
